//! Tests that every documented metric exists with exactly its labels, and that neither a metric nor a log reveals chat
//! text or users.

use std::collections::{BTreeMap, BTreeSet};

use causeway::sandbox::{CallbackSettings, FaultRule, Operation, Side};
use serde_json::json;

use crate::harness::http;
use crate::harness::relay::{PATIENCE, Plan, Relay};

/// Every documented metric, with its labels in alphabetical order.
const DOCUMENTED: &[(&str, &[&str])] = &[
    ("causeway_ingress_requests_total", &["source", "status"]),
    ("causeway_ingress_request_duration_seconds", &["source"]),
    ("causeway_publish_duration_seconds", &["engine"]),
    ("causeway_delivery_attempts_total", &["destination", "kind", "outcome"]),
    ("causeway_delivery_attempt_duration_seconds", &["destination"]),
    ("causeway_delivery_latency_seconds", &["destination", "kind"]),
    ("causeway_retries_total", &["destination", "reason"]),
    ("causeway_dead_letters_total", &["destination", "reason"]),
    ("causeway_dead_letter_messages", &[]),
    ("causeway_replayed_total", &["destination"]),
    ("causeway_queue_messages", &["destination"]),
    ("causeway_oldest_message_age_seconds", &["destination"]),
    ("causeway_lanes", &["destination", "state"]),
    ("causeway_in_flight", &["destination"]),
    ("causeway_breaker_state", &["destination"]),
    ("causeway_broker_connected", &[]),
    ("causeway_partitions_owned", &["destination"]),
    ("causeway_directory_commit_seconds", &[]),
    ("causeway_conversations", &["state"]),
    ("causeway_build_info", &["engine", "version"]),
    ("process_cpu_seconds_total", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_open_fds", &[]),
];

const WORDS: [&str; 5] = [
    "confidential-opening",
    "confidential-words",
    "confidential-answer",
    "confidential-refused",
    "confidential-junk",
];
const SECRETS: [&str; 6] = [
    "handoffs-token",
    "callback-token",
    "S3cret-Password",
    "S3cret-Events",
    // chatbot_interface:S3cret-Password
    "Y2hhdGJvdF9pbnRlcmZhY2U6UzNjcmV0LVBhc3N3b3Jk",
    "door-Hmac-Secret",
];

/// Produces one of each: a handoff, a retry, a refusal that repeats the text, a dead letter, a replay, an end.
async fn play(relay: &Relay) -> String {
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings::to(url.clone())));
    relay
        .sandbox
        .script()
        .fail(FaultRule::new(Side::ServiceNow).operation(Operation::Start).times(1).status(500));
    relay.handoff(json!({"type": "start", "conversation_id": "c-private", "message": WORDS[0]})).await.id();
    relay.reaches("c-private", "waiting").await;
    let group = relay.sandbox.groups().remove(0);
    relay.sandbox.agent_accept(&group).await.unwrap();
    relay.say("c-private", WORDS[1]).await;
    relay.sandbox.agent_says(&group, WORDS[2]).await.unwrap();
    let echoing =
        json!({"error": {"message": format!("Bad: {}", WORDS[3]), "detail": WORDS[3]}, "status": "failure"});
    let refusal =
        FaultRule::new(Side::ServiceNow).operation(Operation::Message).conversation(WORDS[3]).times(1);
    relay.sandbox.script().fail(refusal.status_with(400, echoing.to_string()));
    relay.say("c-private", WORDS[3]).await;
    let junk = http::client().post(url).header("content-type", "application/json").body(WORDS[4]);
    assert_eq!(junk.send().await.unwrap().status(), 202);
    relay.dead_letters_at_least(2).await;
    let replayed = relay.tool(["dead", "replay", "--yes", "--reason", "rejected"]).run(PATIENCE).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    relay
        .until("everything said", |relay| {
            let said = relay.said(&group);
            if said.len() == 3 { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    relay.end("c-private").await;
    relay.reaches("c-private", "ended").await;
    group
}

async fn metrics(relay: &Relay) -> String {
    let url = format!("{}/metrics", relay.processes[0].admin_url());
    http::client().get(url).send().await.unwrap().text().await.unwrap()
}

/// The labels of each metric over all its series. The parts of a histogram count as the histogram.
fn labels(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, set) = series.split_once('{').unwrap_or((series, ""));
        let name =
            ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let labels = found.entry(name.to_owned()).or_default();
        let pairs = set.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
        labels.extend(pairs.map(|(label, _)| label.to_owned()).filter(|label| label != "le"));
    }
    found
}

on_every_engine! {
    async fn everything_documented_exists_and_no_label_names_a_person(bench: Bench) {
        let relay = Plan::on(&bench)
            .sandbox(|sandbox| {
                sandbox.password = "S3cret-Password".into();
                sandbox.events_token = Some("S3cret-Events".into());
            })
            .set("handoffs.events_token", "S3cret-Events")
            .set("ingress.servicenow.hmac_secret", "door-Hmac-Secret")
            .set("servicenow.poll_waiting", "200ms")
            .set("servicenow.poll_active", "200ms")
            .set("log.level", "debug,causeway=trace")
            .start()
            .await;
        let group = play(&relay).await;
        let servicenow = ("destination", "servicenow");
        let (one, at_least_one) = (|count: f64| count == 1.0, |count: f64| count >= 1.0);
        relay.metric_is("causeway_conversations", &[("state", "ended")], one).await;
        relay.metric_is("causeway_dead_letter_messages", &[], one).await;
        relay.metric_is("causeway_queue_messages", &[], |count| count == 0.0).await;
        relay.metric_is("causeway_replayed_total", &[servicenow], one).await;
        relay.metric_is("causeway_retries_total", &[servicenow, ("reason", "server_error")], one).await;
        relay.metric_is("causeway_dead_letters_total", &[servicenow, ("reason", "rejected")], one).await;
        relay.metric_is("causeway_dead_letters_total", &[("destination", "xo"), ("reason", "unreadable")], one).await;
        let ended = [("destination", "events"), ("kind", "callback.ended"), ("outcome", "delivered")];
        relay.metric_is("causeway_delivery_attempts_total", &ended, one).await;
        let messages = [servicenow, ("kind", "handoff.message")];
        relay.metric_is("causeway_delivery_latency_seconds_count", &messages, |count| count == 2.0).await;
        relay.metric_is("causeway_publish_duration_seconds_count", &[], at_least_one).await;
        relay.metric_is("causeway_partitions_owned", &[servicenow], |count| count == 8.0).await;
        relay.metric_is("causeway_broker_connected", &[], one).await;
        let taken = [("source", "handoffs"), ("status", "202")];
        relay.metric_is("causeway_ingress_requests_total", &taken, |count| count == 4.0).await;

        let text = metrics(&relay).await;
        let found = labels(&text);
        for (name, wanted) in DOCUMENTED {
            let wanted = wanted.iter().map(|label| (*label).to_owned()).collect();
            assert_eq!(found.get(*name), Some(&wanted), "{name} in:\n{text}");
        }
        let running = relay.processes[0].running.stdout() + &relay.processes[0].running.stderr();
        for something in ["\"level\":\"DEBUG\"", "message accepted", "message settled"] {
            assert!(running.contains(something), "the guard below must have {something} to look at");
        }
        for private in WORDS.iter().chain(&SECRETS) {
            assert!(!text.contains(private), "{private} in a metric");
            let told = running.lines().find(|line| line.contains(private));
            assert_eq!(told, None, "{private} in a log");
        }
        for name in ["c-private", group.as_str()] {
            assert!(!text.contains(name), "{name} in a metric");
        }
    }
}
