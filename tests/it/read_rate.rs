//! Tests `servicenow.read_rate`: the polls of many chats stay within the rate, and each chat gets its turn.

use std::collections::BTreeMap;
use std::time::Instant;

use causeway::sandbox::{Operation, Side};
use serde_json::json;

use crate::harness::matrix::Engine;
use crate::harness::relay::{Plan, Relay};

const CHATS: usize = 200;
const RATE: f64 = 300.0;

/// The polls of each chat.
fn polls(relay: &Relay) -> BTreeMap<String, usize> {
    let states = relay.sandbox.ledger().find(|entry| {
        entry.side == Side::ServiceNow
            && entry.operation == Operation::State
            && entry.path.contains("group_id")
    });
    let mut polls = BTreeMap::new();
    for state in states {
        let group = state.path.split("group_id=").nth(1).unwrap_or_default().to_owned();
        *polls.entry(group).or_default() += 1;
    }
    polls
}

#[tokio::test(flavor = "multi_thread")]
async fn many_chats_are_polled_within_the_rate_and_each_in_turn() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let plan = Plan::on(&bench).set("servicenow.poll_waiting", "50ms").set("servicenow.poll_active", "50ms");
    let relay = plan.set("servicenow.read_rate", format!("{RATE}/s")).start().await;
    for n in 0..CHATS {
        let body = json!({"type": "start", "conversation_id": format!("c-{n}"), "message": "help"});
        relay.handoff(body).await.id();
    }
    relay
        .until("all chats", |relay| match relay.sandbox.groups().len() {
            CHATS => Ok(()),
            some => Err(format!("{some} chats")),
        })
        .await;
    for n in 0..CHATS {
        relay.reaches(&format!("c-{n}"), "waiting").await;
    }
    relay.sandbox.ledger().clear();
    let began = Instant::now();
    relay
        .until("two polls of each chat", |relay| {
            let polls = polls(relay);
            let fewest = polls.values().min().copied().unwrap_or(0);
            if polls.len() == CHATS && fewest >= 2 {
                Ok(())
            } else {
                Err(format!("{}: {fewest}", polls.len()))
            }
        })
        .await;
    let ledger = relay.sandbox.ledger();
    let reads = ledger.count(|entry| matches!(entry.operation, Operation::State | Operation::Read));
    // One batch may be in flight at the beginning.
    let most = RATE.mul_add(began.elapsed().as_secs_f64(), 64.0);
    assert!((reads as f64) < most, "{reads} requests, at most {most}");
    let polls = polls(&relay);
    let (fewest, most) = (polls.values().min().unwrap(), polls.values().max().unwrap());
    assert!(most - fewest <= 2, "a chat was polled {most} times and another one {fewest} times");
    assert!(
        relay.metric("causeway_servicenow_reads_total", &[("what", "state")]).await >= 2.0 * CHATS as f64
    );
}
