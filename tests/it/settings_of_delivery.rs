//! Tests that one stuck conversation delays no other, whatever its number of messages.

use causeway::sandbox::{FaultRule, Side};

use crate::harness::relay::{Plan, numbered};

/// Far more than a quarter of the prefetch window, and more than the whole window.
const STUCK: usize = 40;
const OTHERS: usize = 12;

on_every_engine! {
    async fn a_stuck_conversation_that_fills_the_prefetch_window_delays_no_other(bench: Bench) {
        let plan = Plan::on(&bench).set("queue.partitions", "1").set("queue.prefetch", "16");
        let relay = plan.set("delivery.retry.max", "1s").start().await;
        let rule = relay.sandbox.script().fail(FaultRule::new(Side::Xo).conversation("stuck"));
        relay.callbacks(&["stuck".to_owned()], STUCK, 1).await;
        let others: Vec<String> = (0..OTHERS).map(|n| format!("well-{n}")).collect();
        relay.callbacks(&others, 2, OTHERS).await;
        relay
            .until("all the others", |relay| {
                let taken = relay.called_back();
                let done = others.iter().filter(|name| taken.get(*name).is_some_and(|line| line.len() == 2)).count();
                if done == OTHERS { Ok(()) } else { Err(format!("{done} of {OTHERS}")) }
            })
            .await;
        assert!(!relay.called_back().contains_key("stuck"), "it is stuck all the while");

        // After the repair the remaining messages are delivered in order, and every other message is a dead letter.
        assert!(relay.sandbox.script().remove(rule));
        relay.metric_is("causeway_queue_messages", &[("destination", "xo")], |left| left == 0.0).await;
        let dead = relay.dead_letters().await;
        assert!(dead.iter().all(|letter| letter["reason"] == "exhausted" && letter["lane"] == "stuck"), "{dead:#?}");
        let taken = relay.called_back().remove("stuck").unwrap_or_default();
        let is_dead = |n: &usize| {
            let id = format!("\"stuck-{n}\"");
            dead.iter().any(|letter| letter["body"].as_str().is_some_and(|body| body.contains(&id)))
        };
        let survivors: Vec<String> = (0..STUCK).filter(|n| !is_dead(n)).map(|n| numbered("stuck", n)).collect();
        assert_eq!(taken, survivors);
        assert!(!taken.is_empty() && !dead.is_empty(), "its share waited, and only what exceeded it died");
    }
}
