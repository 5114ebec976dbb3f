//! Tests that, under any fault, messages arrive in order for each conversation and destination, one at a time, without
//! a loss. If the platform can be read back, each arrives exactly once.

use std::time::Duration;

use causeway::sandbox::{FaultRule, Operation, RetryAfter, Side};
use serde_json::json;

use crate::harness::matrix::{Bench, Engine};
use crate::harness::relay::{PATIENCE, Plan, Relay, numbered};
use crate::harness::wait::eventually;

const EACH: usize = 20;

/// Five of a hundred calls fail, in every way that a call can fail. The random choice has a seed.
fn five_percent(side: Side, operation: Operation) -> Vec<FaultRule> {
    let rule = |share: f64, seed: u64| FaultRule::new(side).operation(operation).probability(share, seed);
    vec![
        rule(0.012, 1).status(503),
        rule(0.005, 2).status(500),
        rule(0.012, 3).too_many(RetryAfter::None),
        rule(0.009, 4).cut(),
        rule(0.009, 5).after().cut(),
        // These answers concern the whole destination, and each makes it pause.
        rule(0.002, 6).html_page(),
        rule(0.001, 7).too_many(RetryAfter::Seconds(1)).times(3),
    ]
}

fn script(relay: &Relay, rules: Vec<FaultRule>) {
    for rule in rules {
        relay.sandbox.script().fail(rule);
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// The messages of a lane without a loss or an overtake.
fn line(name: &str) -> Vec<String> {
    (0..EACH).map(|n| numbered(name, n)).collect()
}

/// The texts without repeats. If a call is cut after its effect, XO necessarily gets the message twice.
fn once(texts: &[String]) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    texts.iter().filter(|text| seen.insert(text.as_str())).cloned().collect()
}

/// Whether only the last message repeats. Any other repeat would be an overtake.
fn only_the_last_repeats(texts: &[String]) -> bool {
    let mut run = texts.to_vec();
    run.dedup();
    run == once(texts)
}

async fn all_called_back(relay: &Relay, groups: &[String], timeout: Duration) {
    let wanted = groups.len() * EACH;
    eventually("every callback to arrive", timeout, async || {
        // The cheap query comes first: reading the whole ledger at every tick would take the processor from the relay.
        let total = relay.sandbox.ledger().total(Side::Xo, Operation::Callback).applied;
        if total < wanted as u64 {
            return Err(format!("{total} of {wanted}"));
        }
        let arrived: usize = relay.called_back().values().map(|texts| once(texts).len()).sum();
        if arrived >= wanted { Ok(()) } else { Err(format!("{arrived} of {wanted}")) }
    })
    .await;
    let taken = relay.called_back();
    for group in groups {
        let texts = taken.get(group).cloned().unwrap_or_default();
        assert_eq!(once(&texts), line(group), "{group} lost or reordered: {texts:#?}");
        assert!(only_the_last_repeats(&texts), "{group} went back: {texts:#?}");
    }
}

async fn all_said(relay: &Relay, chats: &[(String, String)]) {
    let wanted = chats.len() * EACH;
    eventually("every message to arrive", PATIENCE, async || {
        let total = relay.sandbox.ledger().total(Side::ServiceNow, Operation::Message).applied;
        if total >= wanted as u64 { Ok(()) } else { Err(format!("{total} of {wanted}")) }
    })
    .await;
    // A delivered message is not yet settled. Only an empty queue shows that no message is sent again.
    relay
        .metric_is("causeway_queue_messages", &[("destination", "servicenow")], |waiting| waiting == 0.0)
        .await;
    for (conversation, group) in chats {
        let texts = relay.said(group);
        assert_eq!(texts[1..], line(conversation), "{conversation}: lost, reordered or doubled");
    }
}

fn nothing_overlapped(relay: &Relay) {
    let overlaps = relay.sandbox.ledger().overlaps();
    assert!(overlaps.is_empty(), "in the air at once: {overlaps:?}");
}

/// The full size on one engine of each kind, which every machine has. The other engines use a smaller size.
fn lines_for(bench: &Bench) -> usize {
    match bench.engine() {
        Engine::Embedded => 600,
        Engine::Rabbit310 => 500,
        Engine::Rabbit43 => 200,
    }
}

on_every_engine! {
    async fn callbacks_stay_in_order_while_five_percent_fail(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        script(&relay, five_percent(Side::Xo, Operation::Callback));
        let groups = names("group", lines_for(&bench));
        relay.callbacks(&groups, EACH, 64).await;
        all_called_back(&relay, &groups, PATIENCE * 8).await;
        nothing_overlapped(&relay);
        assert_eq!(relay.metric("causeway_dead_letters_total", &[]).await, 0.0);
    }

    async fn handoffs_stay_in_order_and_exactly_once_while_five_percent_fail(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let conversations = names("c", 50);
        for conversation in &conversations {
            relay.start(conversation).await;
        }
        let mut chats = Vec::new();
        for conversation in &conversations {
            let group = relay.open(conversation).await;
            chats.push((conversation.clone(), group));
        }
        script(&relay, five_percent(Side::ServiceNow, Operation::Message));
        relay.messages(&conversations, EACH, 16).await;
        all_said(&relay, &chats).await;
        nothing_overlapped(&relay);
        assert_eq!(relay.metric("causeway_dead_letters_total", &[]).await, 0.0);
    }

    async fn a_repeat_is_delivered_once_also_after_a_restart(bench: Bench) {
        let mut relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let said = json!({"type": "message", "conversation_id": "c-1", "message": "once only"});
        let first = relay.try_handoff(&said, Some("key-1")).await.unwrap().id();
        assert_eq!(relay.try_handoff(&said, Some("key-1")).await.unwrap().id(), first);
        let called = relay.callback("foreign", "agent's words", "sys-1").await.id();
        assert_eq!(relay.callback("foreign", "agent's words", "sys-1").await.id(), called);
        relay.until("the callback", |relay| there(relay.called_back().get("foreign").map(drop))).await;

        // The worker's memory is lost, and its records on disk are kept.
        assert_eq!(relay.stop().await, [Some(0)]);
        relay.processes[0].restart();
        relay.ready().await;
        assert_eq!(relay.try_handoff(&said, Some("key-1")).await.unwrap().id(), first);
        relay.callback("foreign", "agent's words", "sys-1").await.id();
        relay.say("c-1", "the last words").await;
        relay.callback("foreign", "the agent's last words", "sys-2").await.id();
        relay
            .until("what came last", |relay| {
                let last = relay.said(&group).len() + relay.called_back()["foreign"].len();
                if last >= 5 { Ok(()) } else { Err(format!("{:?} {:?}", relay.said(&group), relay.called_back())) }
            })
            .await;
        assert_eq!(relay.said(&group), ["hello from c-1", "once only", "the last words"]);
        assert_eq!(relay.called_back()["foreign"], ["agent's words", "the agent's last words"]);
    }
}

fn there<T>(thing: Option<T>) -> Result<T, String> {
    thing.ok_or_else(|| "not there".to_owned())
}
