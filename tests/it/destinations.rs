//! Tests that destinations fail independently: an endpoint that is down, throttled or refuses our credential delays no
//! other destination.

use causeway::sandbox::{FaultRule, Operation, RetryAfter, Side};

use crate::botkit;
use crate::harness::relay::{Plan, Relay, numbered};

const EACH: usize = 10;
/// The destination of the sandbox's bot: `bot:` and its id.
const BOT: &str = "bot:st-00000000-0000-5000-8000-000000000001";

/// Checks that callbacks of foreign chats reach the Callback URL, in order.
async fn callbacks_pass(relay: &Relay, name: &str) {
    let groups: Vec<String> = (0..3).map(|n| format!("{name}-{n}")).collect();
    relay.callbacks(&groups, EACH, 3).await;
    relay
        .until("all callbacks", |relay| {
            let taken = relay.called_back();
            let complete = |group: &&String| taken.get(*group).is_some_and(|texts| texts.len() == EACH);
            match groups.iter().filter(complete).count() {
                3 => Ok(()),
                some => Err(format!("{some} of 3 groups are complete")),
            }
        })
        .await;
    for group in &groups {
        let line: Vec<String> = (0..EACH).map(|n| numbered(group, n)).collect();
        assert_eq!(relay.called_back()[group], line);
    }
    assert_eq!(relay.metric("causeway_breaker_state", &[("destination", "xo")]).await, 0.0);
}

on_every_engine! {
    async fn a_failing_events_url_holds_up_no_callback(bench: Bench) {
        // The callbacks of this test have no rows in the chat.
        let relay = Plan::on(&bench).set("servicenow.read_back", "gaps").start().await;
        let group = relay.open("c-1").await;
        for (name, rule) in [
            ("page", FaultRule::new(Side::Events).html_page()),
            ("credential", FaultRule::new(Side::Events).status(401)),
            ("throttled", FaultRule::new(Side::Events).too_many(RetryAfter::Seconds(86_400))),
        ] {
            let outage = relay.sandbox.script().fail(rule);
            relay.sandbox.agent_accept(&group).await.ok();
            relay.callback(&group, name, &format!("{group}-{name}")).await.id();
            relay.metric_is("causeway_breaker_state", &[("destination", "events")], |state| state > 0.0).await;
            callbacks_pass(&relay, name).await;
            relay.sandbox.script().remove(outage);
            if name != "throttled" {
                relay.metric_is("causeway_breaker_state", &[("destination", "events")], |state| state == 0.0).await;
            }
        }
    }

    async fn one_reply_address_that_refuses_us_stops_no_other_user_of_the_bot(bench: Bench) {
        let relay = botkit::relay(&bench, &[]).await;
        let (well, ill) = (botkit::user(&relay, "u-well"), botkit::user(&relay, "u-ill"));
        let group = botkit::talking(&relay, &well).await;
        let refuse = FaultRule::new(Side::BotKit).operation(Operation::Tell).conversation("u-ill").status(401);
        relay.sandbox.script().fail(refuse);
        assert_eq!(ill.transfers("me too").await.status, 200);
        let refused = [("destination", BOT), ("reason", "unauthorized")];
        relay.metric_is("causeway_retries_total", &refused, |count| count >= 1.0).await;
        for text in ["one", "two", "three"] {
            relay.sandbox.agent_says(&group, text).await.unwrap();
            botkit::heard(&relay, &well, text).await;
        }
        let tripped = [("destination", BOT), ("reason", "credentials")];
        assert_eq!(relay.metric("causeway_breaker_trips_total", &tripped).await, 0.0);
    }
}
