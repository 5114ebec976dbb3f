//! Tests `GET /v1/availability`: the answer is ServiceNow's, comes from a short cache, and outlives a short outage.

use std::time::Duration;

use causeway::sandbox::{
    FaultRule, Operation, SandboxQueue, SandboxSettings, SandboxSwitches, Side, TableAccess,
};
use serde_json::Value;

use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;

/// The calls about one queue.
fn asked(relay: &Relay) -> usize {
    relay.sandbox.ledger().count(|entry| entry.operation == Operation::Queue)
}

async fn problem(relay: &Relay, query: &str) -> (u16, String, String) {
    let answer = relay.availability(query).await;
    let code = answer.body["type"].as_str().unwrap_or_default().replace("urn:causeway:problem:", "");
    (answer.status.as_u16(), code, answer.body["field"].as_str().unwrap_or_default().to_owned())
}

fn plan(bench: &Bench, kept: &str) -> Plan {
    Plan::on(bench).set("servicenow.availability_kept", kept)
}

fn bench() -> Bench {
    Engine::Embedded.bench().expect("it is always there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_open_or_closed_as_servicenow_says_and_is_asked_once() {
    let bench = bench();
    let relay = plan(&bench, "10m").start().await;
    let queue = SandboxQueue::default();
    // The worker has asked for the queues of the settings at its start.
    relay
        .until("the check of the queues", |relay| if asked(relay) > 0 { Ok(()) } else { Err("none".into()) })
        .await;
    let before = asked(&relay);
    for query in ["", &format!("?queue={}", queue.id)] {
        let answer = relay.availability(query).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["queue"], queue.id);
        assert_eq!(answer.body["name"], queue.name);
        assert_eq!(answer.body["open"], true);
        assert_eq!(answer.body["wait"], queue.wait);
        assert_eq!(answer.body["reason"], Value::Null);
    }
    assert_eq!(asked(&relay), before + 1, "one call for both");
    assert_eq!(problem(&relay, "?queue=none").await, (404, "unknown_queue".into(), "queue".into()));
    assert_eq!(problem(&relay, "?queue=a%2Fb").await, (422, "invalid".into(), "queue".into()));
    assert_eq!(problem(&relay, "?queue=a&queue=b").await, (422, "invalid".into(), "queue".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_answer_outlives_an_outage_and_a_change_is_seen() {
    let bench = bench();
    let relay = plan(&bench, "1ms").start().await;
    let queue = SandboxQueue::default();
    assert_eq!(relay.availability("").await.body["open"], true);
    let away = FaultRule::new(Side::ServiceNow).operation(Operation::Queue).status(500);
    let rule = relay.sandbox.script().fail(away);
    let answer = relay.availability("").await;
    assert_eq!((answer.status.as_u16(), &answer.body["open"]), (200, &Value::Bool(true)), "{}", answer.body);
    assert_eq!(problem(&relay, "?queue=other").await, (503, "servicenow_away".into(), "servicenow".into()));
    relay.sandbox.script().remove(rule);
    relay.sandbox.set_queue_open(&queue.id, false);
    eventually("the queue to be closed", PATIENCE, async || {
        let answer = relay.availability("").await;
        if answer.body["open"] == false && answer.body["reason"] == queue.not_available.as_str() {
            Ok(())
        } else {
            Err(answer.body.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_servicenow_delays_only_the_first_answer() {
    let bench = bench();
    let relay = plan(&bench, "1ms").start().await;
    assert_eq!(relay.availability("").await.status, 200);
    let slow = FaultRule::new(Side::ServiceNow).operation(Operation::Queue).delay(Duration::from_secs(600));
    relay.sandbox.script().fail(slow);
    let before = asked(&relay);
    for _ in 0..3 {
        assert_eq!(relay.availability("").await.status, 200);
    }
    assert!(asked(&relay) <= before + 1, "one call in flight for a queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_virtual_agent_api_reports_only_what_a_row_says() {
    for (tables, name) in [(TableAccess::Allowed, Some("IT Service Desk chat")), (TableAccess::Refused, None)]
    {
        let bench = bench();
        let plan = plan(&bench, "10m").set("servicenow.api", "virtual_agent").sandbox(
            |sandbox: &mut SandboxSettings| {
                sandbox.switches = SandboxSwitches { tables, ..SandboxSwitches::default() };
            },
        );
        let relay = plan.start().await;
        let id = relay.sandbox.records("awa_queue")[0]["sys_id"].clone();
        let answer = relay.availability(&format!("?queue={id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["name"].as_str(), name);
        for unknown in ["open", "wait", "waiting", "reason"] {
            assert_eq!(answer.body[unknown], Value::Null, "{unknown}");
        }
    }
}

on_every_rabbit! {
    async fn a_separate_ingress_without_the_login_lets_a_worker_ask(bench: Bench) {
        // The first process has the ingress, and no worker runs yet.
        let password = SandboxSettings::default().password;
        let plan = Plan::on(&bench).apart(0).set("servicenow.password", "").set("servicenow.availability_kept", "1ms");
        let mut relay = plan.start().await;
        assert_eq!(problem(&relay, "").await, (503, "servicenow_away".into(), "servicenow".into()));
        relay.add_with("worker", &[("servicenow.password", password)]).await;
        eventually("an answer of the worker", PATIENCE, async || {
            let answer = relay.availability("").await;
            if answer.status == 200 && answer.body["open"] == true { Ok(()) } else { Err(answer.body.to_string()) }
        })
        .await;
        assert_eq!(problem(&relay, "?queue=none").await, (404, "unknown_queue".into(), "queue".into()));
    }
}
