//! Tests that a message that can still be delivered is tried again, and that any other becomes a dead letter with its
//! whole history. If no agent comes, the bot side is notified.

use std::time::Duration;

use causeway::sandbox::{FaultRule, InjectedFault, Operation, RetryAfter, Side};
use serde_json::{Value, json};

use crate::harness::relay::{PATIENCE, Plan, Relay};

fn message(text: &str) -> FaultRule {
    FaultRule::new(Side::ServiceNow).operation(Operation::Message).conversation(text)
}

/// The dead letters of one conversation.
async fn dead_of(relay: &Relay, conversation: &str, count: usize) -> Vec<Value> {
    let dead = relay.dead_letters_at_least(count).await;
    dead.into_iter().filter(|dead| dead["conversation_id"] == conversation).collect()
}

/// Waits for an event of this conversation, and returns its body.
async fn event(relay: &Relay, conversation: &str, kind: &str) -> Value {
    let found = |relay: &Relay| {
        let events = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
        events.into_iter().find(|entry| entry.event.as_deref() == Some(kind))
    };
    relay
        .until(&format!("{kind} of {conversation}"), |relay| found(relay).map(drop).ok_or("none".into()))
        .await;
    serde_json::from_str(&found(relay).expect("it was just there").body).expect("an event")
}

on_every_engine! {
    async fn every_passing_trouble_is_overcome_and_nothing_is_said_twice(bench: Bench) {
        let plan = Plan::on(&bench).set("delivery.servicenow.timeout", "2s").set("delivery.retry.max", "1s");
        let relay = plan.start().await;
        let once: fn(&str) -> FaultRule = |text| message(text).times(1);
        let troubles: Vec<(&str, FaultRule)> = vec![
            ("500", once("t-500").status(500)),
            ("502", once("t-502").status(502)),
            ("503", once("t-503").status(503)),
            ("504", once("t-504").after().status(504)),
            ("408", once("t-408").status(408)),
            ("425", once("t-425").status(425)),
            ("429", once("t-429").too_many(RetryAfter::None)),
            ("429-seconds", once("t-429-seconds").too_many(RetryAfter::Seconds(1))),
            ("429-date", once("t-429-date").too_many(RetryAfter::Date(1))),
            ("cut", once("t-cut").cut()),
            ("cut-after", once("t-cut-after").after().cut()),
            ("hang", once("t-hang").hang()),
            ("hang-after", once("t-hang-after").after().hang()),
            ("202", once("t-202").accepted()),
            ("html", once("t-html").html_page()),
            ("login", once("t-login").redirect()),
        ];
        let mut groups = Vec::new();
        for (name, _) in &troubles {
            relay.start(name).await;
        }
        for (name, rule) in troubles {
            groups.push((name, relay.open(name).await));
            relay.sandbox.script().fail(rule);
        }
        for (name, _) in &groups {
            relay.say(name, &format!("t-{name}")).await;
            relay.say(name, "and then").await;
        }
        for (name, group) in &groups {
            let wanted = [format!("hello from {name}"), format!("t-{name}"), "and then".to_owned()];
            relay
                .until(&format!("all of {name}"), |relay| {
                    let said = relay.said(group);
                    if said.len() >= wanted.len() { Ok(()) } else { Err(format!("{said:?}")) }
                })
                .await;
            assert_eq!(relay.said(group), wanted);
        }
        assert!(relay.sandbox.script().rules().iter().all(|rule| rule.used == 1), "every trouble was met");
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
    }

    async fn a_rejected_message_is_dead_lettered_with_its_history_and_the_lane_goes_on(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let group = relay.open("c-1").await;
        let statuses = [400, 403, 405, 406, 413, 415, 422];
        for status in statuses {
            relay.sandbox.script().fail(message(&format!("bad {status}")).status(status));
            relay.say("c-1", &format!("bad {status}")).await;
        }
        relay.say("c-1", "good").await;
        let dead = dead_of(&relay, "c-1", statuses.len()).await;
        for (letter, status) in dead.iter().zip(statuses) {
            assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("rejected"), &json!(1)), "{letter:#}");
            assert_eq!(letter["story"][0]["status"], status, "{letter:#}");
            assert!(letter["body"].as_str().is_some_and(|body| body.contains(&format!("bad {status}"))));
        }
        relay
            .until("the good one", |relay| {
                let said = relay.said(&group);
                if said.len() == 2 { Ok(()) } else { Err(format!("{said:?}")) }
            })
            .await;
        relay.metric_is("causeway_dead_letters_total", &[("reason", "rejected")], |count| count == 7.0).await;
    }

    async fn a_chat_that_is_gone_is_over_here_too(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        relay.open("c-1").await;
        relay.sandbox.script().fail(message("to nobody").status(404));
        relay.say("c-1", "to nobody").await;
        relay.reaches("c-1", "ended").await;
        relay.say("c-1", "too late").await;
        let dead = dead_of(&relay, "c-1", 2).await;
        assert!(dead.iter().all(|letter| letter["reason"] == "conversation_over"), "{dead:#?}");
        event(&relay, "c-1", "callback.ended").await;
    }

    async fn a_closed_queue_is_an_answer_and_the_bot_hears_it(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        let queue = causeway::sandbox::SandboxQueue::default();
        relay.sandbox.set_queue_open(&queue.id, false);
        relay.start("c-1").await;
        relay.say("c-1", "hello?").await;
        let told = event(&relay, "c-1", "handoff.failed").await;
        assert_eq!((&told["reason"], &told["detail"]), (&json!("no_agent"), &json!(queue.not_available)), "{told:#}");
        relay.reaches("c-1", "failed").await;
        let dead = dead_of(&relay, "c-1", 1).await;
        assert_eq!((dead.len(), &dead[0]["reason"]), (1, &json!("conversation_failed")), "{dead:#?}");
        let starts = relay.sandbox.ledger().total(Side::ServiceNow, Operation::Start).arrived;
        assert_eq!(starts, 1, "an answer is not asked for twice");
    }

    async fn a_message_past_its_deadline_expires(bench: Bench) {
        let plan = Plan::on(&bench).set("delivery.deadline.start", "3s").set("delivery.deadline.message", "3s");
        let relay = plan.set("delivery.retry.max", "500ms").start().await;
        relay.open("c-1").await;
        relay.sandbox.script().fail(message("never").status(503));
        relay.sandbox.script().fail(FaultRule::new(Side::ServiceNow).operation(Operation::Start).status(503));
        relay.say("c-1", "never").await;
        relay.start("c-2").await;
        relay.handoff(json!({"type": "typing", "conversation_id": "c-1"})).await.id();
        let dead = relay.dead_letters_at_least(2).await;
        assert!(dead.iter().all(|letter| letter["reason"] == "expired"), "{dead:#?}");
        assert!(dead.iter().all(|letter| letter["story"][0]["status"] == 503), "{dead:#?}");
        assert_eq!(event(&relay, "c-2", "handoff.failed").await["reason"], "expired");
        relay.reaches("c-2", "failed").await;
        // A typing notice is useless later, so it never becomes a dead letter.
        relay.metric_is("causeway_queue_messages", &[("destination", "servicenow")], |left| left == 0.0).await;
        assert_eq!(relay.dead_letters().await.len(), 2);
    }

    async fn the_hold_runs_only_while_others_are_served(bench: Bench) {
        const HOLD: Duration = Duration::from_secs(2);
        let plan = Plan::on(&bench).set("delivery.hold", "2s").set("delivery.retry.max", "300ms");
        let relay = plan.start().await;
        let stuck = FaultRule::new(Side::Xo).conversation("stuck");
        relay.sandbox.script().fail(stuck.fault(InjectedFault::Status { status: 503, body: None, headers: [].into() }));
        relay.callback("stuck", "never", "sys-stuck").await.id();
        // If no other message to the destination succeeds, the message may fail without a limit.
        relay
            .until("twice the hold to pass", |relay| {
                let tries = relay.sandbox.ledger().find(|entry| entry.side == Side::Xo);
                let (Some(first), Some(last)) = (tries.first(), tries.last()) else { return Err("no try".into()) };
                let failing = last.started - first.started;
                if failing > HOLD * 2 { Ok(()) } else { Err(format!("{failing:?}")) }
            })
            .await;
        assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
        let mut served = 0;
        crate::harness::wait::eventually("the stuck one to be given up", PATIENCE, async || {
            relay.callback("well", "hello", &format!("sys-well-{served}")).await.id();
            served += 1;
            let dead = relay.metric("causeway_dead_letters_total", &[("reason", "exhausted")]).await;
            if dead == 1.0 { Ok(()) } else { Err(format!("{dead} after {served} others")) }
        })
        .await;
        let dead = relay.dead_letters().await;
        assert_eq!((dead.len(), &dead[0]["lane"]), (1, &json!("stuck")), "{dead:#?}");
        assert!(dead[0]["attempts"].as_u64().is_some_and(|attempts| attempts > 4), "{dead:#?}");
    }
}
