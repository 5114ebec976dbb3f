//! Tests that a destination that is down delays only itself, uses up no attempts, and is probed with one message. After
//! its recovery the waiting messages are sent in order.

use causeway::sandbox::{BasicLogin, FaultRule, Operation, RetryAfter, SandboxSwitches, Side};

use crate::harness::relay::{Plan, Relay, numbered};

const CHATS: usize = 8;
const EACH: usize = 10;
/// If these messages were probes, one after another, the test would take minutes.
const SICK: usize = 60;
/// The most calls in flight when the breaker trips: one message of each lane, and the poll of each chat.
const IN_THE_AIR: usize = 2 * CHATS;
/// The pauses are 0.1, 0.2, 0.4, ... seconds, so this many probes mean an outage of more than six seconds.
const PROBES: usize = 6;

async fn open(relay: &Relay) -> Vec<(String, String)> {
    let names: Vec<String> = (0..CHATS).map(|n| format!("c-{n}")).collect();
    for name in &names {
        relay.start(name).await;
    }
    let mut chats = Vec::new();
    for name in names {
        let group = relay.open(&name).await;
        chats.push((name, group));
    }
    chats
}

/// The calls that reached ServiceNow to change something.
fn moves(relay: &Relay) -> Vec<causeway::sandbox::LedgerEntry> {
    relay
        .sandbox
        .ledger()
        .find(|entry| entry.side == Side::ServiceNow && entry.operation.moves() && !entry.outbound)
}

async fn everything_is_said(relay: &Relay, chats: &[(String, String)]) {
    for (name, group) in chats {
        relay
            .until(&format!("all of {name}"), |relay| {
                let said = relay.said(group).len();
                if said > EACH { Ok(()) } else { Err(format!("{said} of {}", EACH + 1)) }
            })
            .await;
        let line: Vec<String> = (0..EACH).map(|n| numbered(name, n)).collect();
        assert_eq!(relay.said(group)[1..], line);
    }
}

async fn survives(relay: &Relay, outage: FaultRule) {
    let chats = open(relay).await;
    let names: Vec<String> = chats.iter().map(|(name, _)| name.clone()).collect();
    let before = moves(relay).len();
    let rule = relay.sandbox.script().fail(outage);
    relay.messages(&names, EACH, CHATS).await;
    relay.metric_is("causeway_breaker_state", &[("destination", "servicenow")], |state| state > 0.0).await;

    // The other direction is not affected, and the ingress accepts messages.
    relay.callbacks(&["foreign".to_owned()], EACH, 1).await;
    relay
        .until("callbacks while ServiceNow is down", |relay| {
            let taken = relay.called_back().remove("foreign").unwrap_or_default();
            if taken.len() == EACH { Ok(()) } else { Err(format!("{taken:?}")) }
        })
        .await;
    assert_eq!(relay.metric("causeway_breaker_state", &[("destination", "xo")]).await, 0.0);

    let tried = |relay: &Relay| moves(relay).len() - before;
    relay
        .until("an outage of several probes", |relay| {
            let last = moves(relay).pop().map(|entry| entry.started.elapsed());
            let long = last.is_some_and(|ago| ago.as_millis() > 3000);
            if long { Ok(()) } else { Err(format!("{} tries, the last {last:?} ago", tried(relay))) }
        })
        .await;
    assert!(tried(relay) <= IN_THE_AIR + PROBES, "{} tries: {:#?}", tried(relay), moves(relay));
    assert_eq!(relay.metric("causeway_dead_letters_total", &[]).await, 0.0);

    assert!(relay.sandbox.script().remove(rule));
    everything_is_said(relay, &chats).await;
    relay.metric_is("causeway_breaker_state", &[("destination", "servicenow")], |state| state == 0.0).await;
    assert!(relay.sandbox.ledger().overlaps().is_empty());
}

on_every_engine! {
    async fn a_destination_that_fails_costs_probes_and_drains_in_order(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        survives(&relay, FaultRule::new(Side::ServiceNow).status(503)).await;
        assert!(relay.metric("causeway_breaker_trips_total", &[("reason", "failing")]).await >= 1.0);
    }

    async fn a_hibernating_instance_costs_probes_and_drains_in_order(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        survives(&relay, FaultRule::new(Side::ServiceNow).html_page()).await;
        assert!(relay.metric("causeway_breaker_trips_total", &[("reason", "not_ready")]).await >= 1.0);
    }

    async fn a_refused_login_is_told_apart_and_mended_without_loss(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let chats = open(&relay).await;
        let names: Vec<String> = chats.iter().map(|(name, _)| name.clone()).collect();
        relay.sandbox.set_switches(SandboxSwitches { basic: BasicLogin::Restricted, ..SandboxSwitches::default() });
        relay.messages(&names, EACH, CHATS).await;
        let trips = [("destination", "servicenow"), ("reason", "credentials")];
        relay.metric_is("causeway_breaker_trips_total", &trips, |trips| trips >= 1.0).await;
        relay.sandbox.set_switches(SandboxSwitches::default());
        everything_is_said(&relay, &chats).await;
        assert_eq!(relay.metric("causeway_dead_letters_total", &[]).await, 0.0);
    }

    async fn retry_after_holds_for_everybody(bench: Bench) {
        let relay = Plan::on(&bench).set("servicenow.poll_waiting", "1h").start().await;
        let chats = open(&relay).await;
        let names: Vec<String> = chats.iter().map(|(name, _)| name.clone()).collect();
        let throttled = FaultRule::new(Side::ServiceNow).operation(Operation::Message).times(1);
        relay.sandbox.script().fail(throttled.too_many(RetryAfter::Seconds(3)));
        relay.say("c-0", &numbered("c-0", 0)).await;
        relay.metric_is("causeway_breaker_state", &[("destination", "servicenow")], |state| state > 0.0).await;
        relay.messages(&names[1..], EACH, CHATS).await;
        for n in 1..EACH {
            relay.say("c-0", &numbered("c-0", n)).await;
        }
        everything_is_said(&relay, &chats).await;
        let all = moves(&relay);
        let said = all.iter().find(|entry| entry.status == Some(429)).and_then(|entry| entry.finished);
        let said = said.expect("it was throttled");
        let early: Vec<_> =
            all.iter().filter(|entry| entry.started > said && (entry.started - said).as_millis() < 2990).collect();
        assert!(early.is_empty(), "before the three seconds were over: {early:#?}");
    }

    async fn conversations_that_fail_for_ever_do_not_keep_a_healed_destination_closed(bench: Bench) {
        let mut relay = Plan::on(&bench).set("queue.partitions", "1").start().await;
        let named = |what: &str, count: usize| (0..count).map(|n| format!("{what}-{n}")).collect::<Vec<_>>();
        let (sick, well) = (named("sick", SICK), named("well", CHATS));
        for group in &sick {
            relay.sandbox.script().fail(FaultRule::new(Side::Xo).conversation(group).status(500));
        }
        let outage = relay.sandbox.script().fail(FaultRule::new(Side::Xo).status(500));
        // The oldest messages all fail, and a restarted worker does not know them.
        relay.callbacks(&sick, 1, CHATS).await;
        relay.callbacks(&well, EACH, CHATS).await;
        relay.processes[0].running.kill9();
        relay.processes[0].restart();
        relay.ready().await;
        relay.metric_is("causeway_breaker_state", &[("destination", "xo")], |state| state > 0.0).await;
        relay.sandbox.script().remove(outage);
        relay
            .until("all that is well", |relay| {
                let taken = relay.called_back();
                let done = well.iter().filter(|name| taken.get(*name).is_some_and(|line| line.len() == EACH)).count();
                if done == well.len() { Ok(()) } else { Err(format!("{done} of {}", well.len())) }
            })
            .await;
        for name in &well {
            let line: Vec<String> = (0..EACH).map(|n| numbered(name, n)).collect();
            assert_eq!(relay.called_back()[name], line);
        }
    }

    async fn one_failing_conversation_is_no_outage(bench: Bench) {
        let relay = Plan::on(&bench).set("delivery.retry.initial", "50ms").set("delivery.retry.max", "200ms").start().await;
        let chats = open(&relay).await;
        let (sick, well) = chats.split_first().expect("chats");
        // The connections of this conversation also break, which says nothing about the others.
        let at_sick = || FaultRule::new(Side::ServiceNow).operation(Operation::Message).conversation(&sick.1);
        relay.sandbox.script().fail(at_sick().probability(0.5, 1).cut());
        relay.sandbox.script().fail(at_sick().status(500));
        relay.say(&sick.0, "never").await;
        relay
            .until("many failures in a row", |relay| {
                let failed = moves(relay).iter().filter(|entry| entry.fault.is_some()).count();
                if failed >= 12 { Ok(()) } else { Err(format!("{failed}")) }
            })
            .await;
        assert_eq!(relay.metric("causeway_breaker_trips_total", &[]).await, 0.0);
        let names: Vec<String> = well.iter().map(|(name, _)| name.clone()).collect();
        relay.messages(&names, EACH, CHATS).await;
        everything_is_said(&relay, well).await;
        assert_eq!(relay.metric("causeway_breaker_trips_total", &[]).await, 0.0);
    }
}
