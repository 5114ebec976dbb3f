//! Tests that a replay delivers each dead letter once and in order, and reports each result. This includes an agent's
//! messages: a message that was dead-lettered is never taken for a delivered one, whether its callback or gap repair
//! found the message.

use causeway::sandbox::{BodyStyle, CallbackSettings, FaultRule, Operation, Side};
use serde_json::{Value, json};

use crate::harness::matrix::Bench;
use crate::harness::relay::{PATIENCE, Plan, Relay, numbered};

const WORDS: [&str; 4] = ["A", "B", "C", "D"];

/// Connect Support, with events of chats over the handoff API. Chats are read back before each message and every 200
/// ms.
fn plan(bench: &Bench) -> Plan {
    Plan::on(bench)
        .set("servicenow.poll_waiting", "200ms")
        .set("servicenow.poll_active", "200ms")
        .set("delivery.retry.max", "1s")
        .set("xo.callback_url", "")
}

/// Opens a chat with an agent whose greeting was relayed.
async fn talking(relay: &Relay, conversation: &str) -> String {
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    let style = BodyStyle::StockScript;
    relay.sandbox.set_callback(Some(CallbackSettings { style, ..CallbackSettings::to(url) }));
    let group = relay.open(conversation).await;
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.reaches(conversation, "active").await;
    heard(relay, conversation, 1).await;
    group
}

/// The agent's messages that the bot side accepted.
fn texts(relay: &Relay, conversation: &str) -> Vec<String> {
    let entries = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
    let events = entries.iter().map(|entry| serde_json::from_str::<Value>(&entry.body).unwrap());
    let said = events.filter(|event| event["type"] == "callback.message");
    said.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

async fn heard(relay: &Relay, conversation: &str, count: usize) -> Vec<String> {
    relay
        .until(&format!("{count} messages"), |relay| {
            let texts = texts(relay, conversation);
            if texts.len() >= count { Ok(()) } else { Err(format!("{texts:?}")) }
        })
        .await;
    texts(relay, conversation)
}

/// The agent writes four messages that the bot side refuses. The callbacks of two are lost, so gap repair reads them
/// back.
async fn four_words_die(relay: &Relay, conversation: &str) -> String {
    let group = talking(relay, conversation).await;
    relay.sandbox.script().fail(FaultRule::new(Side::Events).status(400));
    for (n, text) in WORDS.iter().enumerate() {
        if n % 2 == 1 {
            let lost = FaultRule::new(Side::ServiceNow).operation(Operation::Callback).times(1).cut();
            relay.sandbox.script().fail(lost);
        }
        relay.sandbox.agent_says(&group, text).await.unwrap();
    }
    relay.dead_letters_at_least(4).await;
    // Further reading of the chat finds no new message.
    let looks = || relay.sandbox.ledger().total(Side::ServiceNow, Operation::Read).arrived;
    let seen = looks();
    relay
        .until("more looks", |_| if looks() >= seen + 3 { Ok(()) } else { Err(format!("{}", looks())) })
        .await;
    relay.metric_is("causeway_queue_messages", &[], |count| count == 0.0).await;
    group
}

async fn replay<const N: usize>(relay: &Relay, args: [&str; N]) -> String {
    let run = relay.tool(args).run(PATIENCE).await;
    assert_eq!(run.code, Some(0), "{}{}", run.stdout, run.stderr);
    run.stdout
}

on_every_engine! {
    async fn messages_of_the_agent_are_delivered_once_and_in_order(bench: Bench) {
        let relay = plan(&bench).start().await;
        let group = four_words_die(&relay, "c-1").await;
        let dead = relay.dead_letters().await;
        assert_eq!(dead.len(), 4, "each once: {dead:#?}");
        for letter in &dead {
            assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("rejected"), &json!(1)), "{letter:#}");
            assert_eq!(letter["story"][0]["status"], 400, "{letter:#}");
        }
        relay.sandbox.script().clear();
        let said = replay(&relay, ["dead", "replay", "--yes"]).await;
        assert!(said.contains("replayed 4 of 4 messages: delivered 4, died again 0\n"), "{said}");
        assert_eq!(texts(&relay, "c-1")[1..], WORDS);
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
        relay.sandbox.agent_says(&group, "E").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 6).await[1..], ["A", "B", "C", "D", "E"]);
    }

    async fn later_messages_do_not_revive_dead_letters(bench: Bench) {
        let relay = plan(&bench).start().await;
        let group = four_words_die(&relay, "c-1").await;
        relay.sandbox.script().clear();
        relay.sandbox.agent_says(&group, "E").await.unwrap();
        assert_eq!(heard(&relay, "c-1", 2).await[1..], ["E"], "the dead ones wait for their replay");
        let dead = relay.dead_letters().await;
        assert_eq!(dead.len(), 4, "{dead:#?}");
        let said = replay(&relay, ["dead", "replay", "--yes"]).await;
        assert!(said.contains("delivered 4, died again 0"), "{said}");
        assert_eq!(texts(&relay, "c-1")[1..], ["E", "A", "B", "C", "D"]);
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    async fn a_message_that_dies_again_is_reported_and_kept(bench: Bench) {
        let relay = plan(&bench).start().await;
        four_words_die(&relay, "c-1").await;
        relay.sandbox.script().clear();
        relay.sandbox.script().fail(FaultRule::new(Side::Events).times(2).status(400));
        let said = replay(&relay, ["dead", "replay", "--yes", "--json"]).await;
        let report: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&report["replayed"], &report["plan"]["replay"]), (&json!(4), &json!(4)), "{report:#}");
        assert_eq!(report["outcomes"], json!({
            "delivered": 2, "died_again": 2, "answered": 0, "nothing_to_send": 0, "on_the_way": 0
        }));
        assert_eq!(texts(&relay, "c-1")[1..], ["C", "D"]);
        let dead = relay.dead_letters().await;
        assert_eq!(dead.iter().map(|letter| &letter["replays"]).collect::<Vec<_>>(), [1, 1], "{dead:#?}");
        let said = replay(&relay, ["dead", "replay", "--yes"]).await;
        assert!(said.contains("delivered 2, died again 0"), "{said}");
        assert_eq!(texts(&relay, "c-1")[1..], ["C", "D", "A", "B"]);
    }

    async fn the_pure_callback_relay_reports_it_too(bench: Bench) {
        let unset = ["servicenow.host_url", "servicenow.username", "servicenow.password", "servicenow.queue_id"];
        let unset = unset.iter().chain(&["handoffs.events_url", "ingress.handoffs.token"]);
        let relay = unset.fold(Plan::on(&bench), |plan, key| plan.set(key, "")).start().await;
        relay.sandbox.script().fail(FaultRule::new(Side::Xo).status(400));
        relay.callbacks(&["g-1".to_owned(), "g-2".to_owned()], 3, 2).await;
        relay.dead_letters_at_least(6).await;
        relay.sandbox.script().clear();
        relay.sandbox.script().fail(FaultRule::new(Side::Xo).conversation("g-2").status(400));
        let said = replay(&relay, ["dead", "replay", "--yes"]).await;
        assert!(said.contains("replayed 6 of 6 messages: delivered 3, died again 3\n"), "{said}");
        let expected: Vec<String> = (0..3).map(|n| numbered("g-1", n)).collect();
        assert_eq!(relay.called_back()["g-1"], expected);
        assert_eq!(relay.dead_letters().await.len(), 3);
    }

    async fn a_replay_that_is_interrupted_says_what_it_did(bench: Bench) {
        let relay = plan(&bench).start().await;
        let group = relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        relay.messages(&["c-1".to_owned()], 20, 1).await;
        relay.dead_letters_at_least(20).await;
        relay.sandbox.script().clear();
        let mut running = relay.tool(["dead", "replay", "--yes", "--rate", "4/s"]).spawn();
        relay.until("a part of the replay", |relay| match relay.said(&group).len() {
            0..4 => Err(format!("{:?}", relay.said(&group))),
            _ => Ok(()),
        }).await;
        running.sigint();
        assert_eq!(running.exit(PATIENCE).await.code(), Some(1));
        let told = running.stderr();
        let done: usize = told.split("replayed ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((3..20).contains(&done) && told.contains("of 20 messages: delivered"), "{told}");
        assert!(told.contains("interrupted") && told.contains("run it again"), "{told}");
        relay.until("what it published", |relay| {
            let said = relay.said(&group);
            if said.len() == done + 1 { Ok(()) } else { Err(format!("{done} {said:?}")) }
        }).await;
        assert_eq!(relay.dead_letters().await.len(), 20 - done);
    }

    async fn a_replay_without_a_worker_is_still_on_its_way(bench: Bench) {
        let mut relay = plan(&bench).start().await;
        relay.open("c-1").await;
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Message).status(400));
        relay.messages(&["c-1".to_owned()], 2, 1).await;
        relay.dead_letters_at_least(2).await;
        relay.stop().await;
        let said = replay(&relay, ["dead", "replay", "--yes", "--wait", "1s"]).await;
        assert!(said.contains("delivered 0, died again 0, still on its way 2 (no outcome within 1s"), "{said}");
    }
}
