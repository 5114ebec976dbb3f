//! Tests that one message can be followed in the logs: two lines with the same ids, and a trace that goes on at the
//! platforms.

use causeway::sandbox::{FaultRule, LedgerEntry, Operation, Side};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::http;
use crate::harness::relay::{PATIENCE, Plan, Process, Relay};
use crate::harness::wait::eventually;
use crate::harness::xo::FakeXo;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The lines of a log that have this text as their message.
pub(crate) fn lines(log: &str, message: &str) -> Vec<Value> {
    let read = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    read.filter(|line| line["message"] == message).collect()
}

fn log(process: &Process) -> String {
    process.running.stderr()
}

pub(crate) fn log_of(relay: &Relay) -> String {
    relay.processes.iter().map(log).collect()
}

/// Posts JSON with these headers. Returns the answer's id and its `x-request-id`.
async fn post(url: String, headers: &[(&str, &str)], body: Value) -> (String, String) {
    let request = http::client().post(url).header("content-type", "application/json").body(body.to_string());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (body["id"].as_str().unwrap().to_owned(), request_id)
}

async fn handoff(relay: &Relay, headers: &[(&str, &str)], body: Value) -> (String, String) {
    let url = format!("{}/v1/handoffs", relay.processes[0].public_url());
    let headers = [&[("authorization", "Bearer handoffs-token")], headers].concat();
    post(url, &headers, body).await
}

/// The line at accept and the line at settle of a message.
async fn both_lines(relay: &Relay, id: &str) -> (Value, Value) {
    eventually(&format!("both lines of {id}"), PATIENCE, async || {
        let log = log_of(relay);
        let of =
            |message| lines(&log, message).into_iter().filter(|line| line["id"] == id).collect::<Vec<_>>();
        match (of("message accepted").as_slice(), of("message settled").as_slice()) {
            ([accepted], [settled]) => Ok((accepted.clone(), settled.clone())),
            others => Err(format!("{others:?}")),
        }
    })
    .await
}

fn applied(relay: &Relay, side: Side, operation: Operation) -> Vec<LedgerEntry> {
    let entries = relay.sandbox.ledger().entries();
    entries
        .into_iter()
        .filter(|entry| entry.side == side && entry.operation == operation && entry.applied)
        .collect()
}

on_every_engine! {
    async fn both_lines_and_the_call_have_the_ids_of_the_request(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let headers = [("x-request-id", "req-start"), ("traceparent", PARENT)];
        let start = json!({"type": "start", "conversation_id": "c-1", "message": "hello"});
        let (id, request_id) = handoff(&relay, &headers, start).await;
        assert_eq!(request_id, "req-start");
        relay.reaches("c-1", "waiting").await;
        let (accepted, settled) = both_lines(&relay, &id).await;
        for line in [&accepted, &settled] {
            assert_eq!(line["level"], "INFO");
            assert_eq!(line["target"], "causeway::message");
            assert_eq!(line["kind"], "handoff.start");
            assert_eq!(line["destination"], "servicenow");
            assert_eq!(line["conversation_id"], "c-1");
            assert_eq!(line["request_id"], "req-start");
            assert_eq!(line["trace_id"], TRACE);
            assert!(line["duration_ms"].is_u64(), "{line}");
        }
        assert_eq!((&settled["outcome"], &settled["attempts"]), (&json!("delivered"), &json!(1)));
        let started = applied(&relay, Side::ServiceNow, Operation::Start).remove(0);
        assert_eq!(started.traceparent.as_deref(), Some(PARENT));

        // The notice about the wait was caused by the start.
        relay.until("the notice", |relay| {
            let events = applied(relay, Side::Events, Operation::Event);
            let parents: Vec<_> = events.iter().map(|event| event.traceparent.as_deref()).collect();
            if parents == [Some(PARENT)] { Ok(()) } else { Err(format!("{parents:?}")) }
        }).await;

        // A callback of a foreign chat passes two queues.
        let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
        let headers = [("x-causeway-token", "callback-token"), ("x-request-id", "req-2"), ("traceparent", PARENT)];
        let callback = json!({"group": "g-foreign", "formatted_message": "x", "sys_created_by": "beth", "sys_id": "s-1"});
        let (id, _) = post(url, &headers, callback).await;
        let (accepted, settled) = both_lines(&relay, &id).await;
        assert_eq!((&accepted["destination"], &settled["destination"]), (&json!("callbacks"), &json!("xo")));
        for line in [&accepted, &settled] {
            assert_eq!(
                (&line["group"], &line["request_id"], &line["trace_id"]),
                (&json!("g-foreign"), &json!("req-2"), &json!(TRACE))
            );
        }
        let taken = applied(&relay, Side::Xo, Operation::Callback).remove(0);
        assert_eq!(taken.traceparent.as_deref(), Some(PARENT));
    }

    async fn an_invalid_trace_is_ignored_and_none_is_made_up(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let message = |n: u32| json!({"type": "message", "conversation_id": "c-1", "message": format!("n {n}")});
        let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
        for (n, headers) in [(1, &[("traceparent", "00-abc-def-01")][..]), (2, &twice), (3, &[])] {
            let (id, request_id) = handoff(&relay, headers, message(n)).await;
            let (accepted, settled) = both_lines(&relay, &id).await;
            for line in [accepted, settled] {
                assert_eq!((line["request_id"].as_str(), line.get("trace_id")), (Some(request_id.as_str()), None));
            }
        }
        assert_eq!(relay.said(&group).len(), 4);
        let entries = relay.sandbox.ledger().entries();
        assert!(entries.iter().all(|entry| entry.traceparent.is_none()), "{entries:?}");
    }

    async fn a_bot_event_carries_its_trace_to_the_call(bench: Bench) {
        let xo = FakeXo::start().await;
        let relay = xo.settings(Plan::on(&bench)).start().await;
        let mut event = xo.event("u-1", false);
        event["message"] = json!("to the bot");
        let headers = [("x-request-id", "req-bot"), ("traceparent", PARENT)];
        xo.posts_with(&relay, "on_user_message", &event, &headers).await;
        relay.until("the call", |_| if xo.asked("/sendBotMessage/").is_empty() { Err(String::new()) } else { Ok(()) }).await;
        assert_eq!(xo.asked("/sendBotMessage/")[0].traceparent.as_deref(), Some(PARENT));
        let accepted = lines(&log_of(&relay), "message accepted").remove(0);
        let (accepted, settled) = both_lines(&relay, accepted["id"].as_str().unwrap()).await;
        for line in [accepted, settled] {
            assert_eq!(
                (&line["kind"], &line["request_id"], &line["trace_id"]),
                (&json!("bot.user_message"), &json!("req-bot"), &json!(TRACE))
            );
            assert!(line["conversation_id"].as_str().unwrap().contains(":u-1:"), "{line}");
        }
    }

    async fn a_dead_letter_and_its_replay_keep_the_ids(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let refusal = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1).status(400);
        relay.sandbox.script().fail(refusal);
        let headers = [("x-request-id", "req-dead"), ("traceparent", PARENT)];
        let message = json!({"type": "message", "conversation_id": "c-1", "message": "again"});
        let (id, _) = handoff(&relay, &headers, message).await;
        let (_, settled) = both_lines(&relay, &id).await;
        assert_eq!(
            (&settled["outcome"], &settled["reason"], &settled["attempts"]),
            (&json!("dead_lettered"), &json!("rejected"), &json!(1))
        );
        let replayed = relay.tool(["dead", "replay", "--yes"]).run(PATIENCE).await;
        assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
        let delivered = lines(&log_of(&relay), "message settled").pop().unwrap();
        assert_eq!((&delivered["id"], &delivered["outcome"]), (&json!(id), &json!("delivered")));
        assert_eq!((&delivered["request_id"], &delivered["trace_id"]), (&json!("req-dead"), &json!(TRACE)));
        assert_eq!(relay.said(&group).len(), 2);
        let sent = applied(&relay, Side::ServiceNow, Operation::Message).pop().unwrap();
        assert_eq!(sent.traceparent.as_deref(), Some(PARENT));
    }

    async fn no_line_names_a_conversation_if_the_setting_says_so(bench: Bench) {
        let relay = Plan::on(&bench).set("log.conversation_ids", "false").start().await;
        let group = relay.open("c-hidden").await;
        let refusal = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1).status(400);
        relay.sandbox.script().fail(refusal);
        relay.say("c-hidden", "refused").await;
        relay.dead_letters_at_least(1).await;
        relay.callback(&group, "from an unknown row", "s-1").await;
        let mut logs = String::new();
        for verb in [&["dead", "show", "--reveal", "--conversation", "c-hidden"][..], &["dead", "replay", "--yes", "--conversation", "c-hidden"]] {
            let run = relay.verb(verb).run(PATIENCE).await;
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            logs.push_str(&run.stderr);
        }
        relay.end("c-hidden").await;
        relay.reaches("c-hidden", "ended").await;
        logs.push_str(&log_of(&relay));
        let settled = lines(&logs, "message settled");
        assert!(settled.len() >= 4, "there must be lines to look at: {logs}");
        for name in ["c-hidden", group.as_str()] {
            let told = logs.lines().find(|line| line.contains(name));
            assert_eq!(told, None, "{name} is in the log");
        }
    }
}
