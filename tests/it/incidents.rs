//! Tests `servicenow.incident`: a failed handoff creates exactly one record at ServiceNow, and a failure of the record does
//! not keep the user from the bot.

use std::collections::BTreeMap;

use causeway::sandbox::{
    BotSettings, CallbackSettings, FaultRule, Operation, SandboxQueue, SandboxSettings, SandboxSwitches,
    Side, TableAccess, VirtualAgentSwitches,
};
use serde_json::{Value, json};

use crate::botkit;
use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{Plan, Relay};

fn bench() -> Bench {
    Engine::Embedded.bench().expect("it is always there")
}

fn plan(bench: &Bench) -> Plan {
    let plan = Plan::on(bench).set("servicenow.incident", "true").set("servicenow.poll_waiting", "200ms");
    plan.set("delivery.retry.initial", "50ms")
}

fn records(relay: &Relay) -> Vec<BTreeMap<String, String>> {
    relay.sandbox.records("incident")
}

/// Waits for the event `handoff.failed` of a conversation.
async fn failed(relay: &Relay, conversation: &str) -> Value {
    let found = |relay: &Relay| {
        let events = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
        let mut bodies =
            events.iter().map(|entry| serde_json::from_str::<Value>(&entry.body).unwrap_or_default());
        bodies.find(|event| event["type"] == "handoff.failed")
    };
    relay.until("handoff.failed", |relay| found(relay).map(|_| ()).ok_or_else(|| "none".into())).await;
    found(relay).expect("it was there")
}

async fn start(relay: &Relay, conversation: &str) {
    let body = json!({
        "type": "start", "conversation_id": conversation, "message": "My laptop is on fire",
        "user": {"name": "Ada", "email": "ada@example.com"},
        "transcript": [{"from": "user", "text": "hi"}, {"from": "bot", "text": "hello"}],
    });
    relay.handoff(body).await.id();
}

fn closed(sandbox: &mut SandboxSettings) {
    sandbox.queues = vec![SandboxQueue { open: false, ..SandboxQueue::default() }];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handoff_without_an_agent_creates_one_record_and_tells_its_number() {
    let bench = bench();
    let plan = plan(&bench).set(
        "servicenow.incident_fields",
        "short_description={message}, description={transcript}, category={reason}",
    );
    let relay = plan.sandbox(closed).start().await;
    let ada = relay.sandbox.plant("sys_user", &[("email", "ada@example.com"), ("active", "true")]);
    start(&relay, "c-1").await;
    let event = failed(&relay, "c-1").await;
    let records = records(&relay);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(event["number"], records[0]["number"]);
    assert_eq!((&event["reason"], &event["incident"]), (&json!("no_agent"), &Value::Null));
    assert_eq!(records[0]["short_description"], "My laptop is on fire");
    assert_eq!(records[0]["description"], "user: hi\nbot: hello\nuser: My laptop is on fire");
    assert_eq!(
        (records[0]["caller_id"].as_str(), records[0]["category"].as_str()),
        (ada.as_str(), "no_agent")
    );
    // Another handoff of the conversation is another failure.
    relay.reaches("c-1", "failed").await;
    start(&relay, "c-1").await;
    relay
        .until("a second record", |relay| {
            if records_of(relay) == 2 { Ok(()) } else { Err(format!("{}", records_of(relay))) }
        })
        .await;
}

fn records_of(relay: &Relay) -> usize {
    records(relay).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_does_not_create_a_second_record() {
    let bench = bench();
    let relay = plan(&bench).set("servicenow.incident_caller_field", "none").sandbox(closed).start().await;
    let lost = FaultRule::new(Side::ServiceNow).operation(Operation::Table).after().cut().times(1);
    relay.sandbox.script().fail(lost);
    start(&relay, "c-1").await;
    let event = failed(&relay, "c-1").await;
    let records = records(&relay);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(event["number"], records[0]["number"]);
    let calls = relay.sandbox.ledger().find(|entry| entry.operation == Operation::Table);
    assert!(calls.iter().any(|call| call.path.contains("correlation_id")), "{calls:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_a_dead_letter_and_the_user_is_told() {
    let bench = bench();
    let relay = plan(&bench).sandbox(closed).sandbox(|sandbox| {
        sandbox.switches = SandboxSwitches { tables: TableAccess::Refused, ..SandboxSwitches::default() };
    });
    let relay = relay.start().await;
    start(&relay, "c-1").await;
    let event = failed(&relay, "c-1").await;
    assert_eq!((&event["reason"], &event["number"]), (&json!("no_agent"), &Value::Null));
    let dead = relay.dead_letters_at_least(1).await;
    assert_eq!((&dead[0]["kind"], &dead[0]["reason"]), (&json!("handoff.incident"), &json!("rejected")));
    assert_eq!(records_of(&relay), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_an_expired_start_has_the_chat_texts() {
    let bench = bench();
    let relay = plan(&bench).set("servicenow.wait_limit", "1s").start().await;
    start(&relay, "c-1").await;
    let event = failed(&relay, "c-1").await;
    let records = records(&relay);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(
        (&event["reason"], &event["number"]),
        (&json!("waited_too_long"), &json!(records[0]["number"]))
    );
    assert!(records[0]["description"].contains("My laptop is on fire"), "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_agent_of_the_virtual_agent_api_is_recorded_with_the_words_of_the_start() {
    let bench = bench();
    let relay = plan(&bench).set("servicenow.api", "virtual_agent").set("xo.callback_url", "").start().await;
    let nobody = VirtualAgentSwitches { no_agents: true, ..VirtualAgentSwitches::default() };
    relay.sandbox.set_switches(SandboxSwitches { virtual_agent: nobody, ..SandboxSwitches::default() });
    let url = format!("{}/v1/callbacks/servicenow?token=callback-token", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings::to(url)));
    start(&relay, "c-1").await;
    let event = failed(&relay, "c-1").await;
    let records = records(&relay);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(event["number"], records[0]["number"]);
    assert_eq!(records[0]["description"], "user: hi\nbot: hello\nuser: My laptop is on fire");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_a_bot_reads_the_number() {
    let bench = bench();
    let relay =
        botkit::relay_of(&bench, vec![BotSettings::default()], &[("servicenow.incident", "true")]).await;
    relay.sandbox.set_queue_open(&SandboxQueue::default().id, false);
    let user = botkit::user(&relay, "u-1");
    assert_eq!(user.transfers("My laptop is on fire").await.status, 200);
    botkit::heard(&relay, &user, "Your request was recorded as INC0010001.").await;
    assert_eq!(records_of(&relay), 1);
}
