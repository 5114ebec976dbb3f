//! Lists RabbitMQ's traps, each with the test that fails if the code falls into the trap. The traps were measured on 3.10, 4.0 and
//! 4.3 (`src/queue/rabbit/FACTS.md`).
//!
//! | trap | test |
//! |---|---|
//! | 1 `basic.cancel`, a dropped consumer or a panic with unacked messages lets later messages overtake | `rabbit::however_often_messages_are_handed_over_they_stay_in_order`, `rabbit::a_subscribe_that_is_abandoned_lets_nothing_overtake`, `queue_contract::clause_04_a_dropped_subscription_gives_back`; if another program does this: `rabbit::nothing_is_received_while_a_cancelled_consumer_holds_earlier_messages` |
//! | 2 unequal prefetch loses the order at the second crash | [`every_consumer_of_every_worker_has_the_same_prefetch`] |
//! | 3 `nack`, `reject` requeue in an order of their own | `rabbit::however_often_messages_are_handed_over_they_stay_in_order`, `queue_contract::clause_04_an_unacked_message_is_received_again_in_its_place` |
//! | 4 delivery limit: -1 destroys messages on 3.10, 20 dead-letters them on 4.x; the smaller limit of a policy wins | [`queues_are_declared_as_measured`], `rabbit::however_often_messages_are_handed_over_they_stay_in_order`, [`a_message_that_a_policy_removes_is_dead_lettered_in_its_place`] |
//! | 5 a failing conversation fills the prefetch window | `settings_of_delivery::a_stuck_conversation_that_fills_the_prefetch_window_delays_no_other` |
//! | 6 a takeover waits until no message is unacked | `scale_out::a_failing_conversation_does_not_keep_a_newcomer_out` |
//! | 7 a single active consumer is not a lock | `scale_out::a_frozen_worker_that_wakes_up_harms_nothing`, `faults::a_worker_that_falls_into_a_black_hole_is_replaced_and_comes_back`, `worker::simulation` |
//! | 8 delayed retry, TTL and dead-letter loops reorder | [`queues_are_declared_as_measured`], [`nothing_on_a_message_lets_it_overtake_or_vanish`] |
//! | 9 streams have no compaction | [`queues_are_declared_as_measured`]: there is none |
//! | 10 an unroutable message is confirmed | `rabbit::unroutable_messages_are_counted_and_kept`, [`messages_for_a_deleted_partition_are_kept`] |
//! | 11 tasks that share a channel may get each other's confirms | [`every_confirm_is_for_its_own_message`] |
//! | 12 auto-recovery hides a fail-over | `rabbit::a_connection_that_is_cut_returns_its_messages_in_order` |
//! | 13 `connect` hangs, and leaks if it is cancelled | `broker_refusals::a_connect_that_is_given_up_leaves_no_thread_and_no_socket` |
//! | 14 a blocked connection delays its acks | `rabbit::a_private_broker_that_blocks_publishers_still_takes_acks_and_heals` |
//! | 15 a message that stays unacked for long keeps the log of the queue from shrinking | `retry::the_hold_runs_only_while_others_are_served`, `retry::a_message_past_its_deadline_expires` |
//! | 16 a stream ends without an error | `rabbit::a_queue_is_consumed_again_after_it_is_declared_again` |
//! | 17 the dead-letter target is missing | [`a_message_that_a_policy_removes_is_dead_lettered_in_its_place`] |
//! | 18 a new queue loses confirmed messages if its broker is killed | [`queues_are_declared_as_measured`]: all queues are declared before the first message |
//! | 19 a declare with another argument closes the channel | `rabbit::a_queue_of_another_kind_is_refused`, `rabbit::another_number_of_partitions_is_refused` |
//! | 20 a repeat after an unknown outcome overtakes | `rabbit::publishers_of_one_lane_stay_in_the_order_of_their_calls`, `faults::connections_that_are_cut_lose_nothing` |
//! | 21 `wait_for_confirms` hides refusals | [`every_confirm_is_for_its_own_message`] |
//! | 22 `priority` reorders | [`nothing_on_a_message_lets_it_overtake_or_vanish`] |
//! | 23 `/` is the empty vhost | `queue::rabbit::broker_url::tests::no_vhost_is_the_default_one` |
//! | 24 some versions have faults of their own | `deploy/README.md`; `causeway check` shows the version |
//! | 25 fixtures that cancel before they close | no fixture does: `harness/amqp.rs` closes its channel |
//! | 26 a message over `max_message_size` closes the channel of all | `broker_refusals::a_private_broker_that_refuses_a_large_message_refuses_it_alone`, `broker_refusals::a_message_above_the_limit_of_4_3_is_refused_alone` |
//! | 27 headers larger than a frame end the connection | `broker_refusals::a_history_that_exceeds_a_frame_is_shortened` |
//! | 29 a refused declare or publish ends the process | `broker_refusals::a_right_to_write_that_is_revoked_heals`, `broker_refusals::a_declaration_that_is_refused_later_ends_no_process` |

use std::collections::BTreeSet;
use std::time::Duration;

use causeway::message::Destination;
use causeway::queue::{PartitionId, QueueError};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::harness::amqp::Amqp;
use super::harness::matrix::Bench;
use super::harness::wait::eventually;
use super::queue_contract::{
    PARTITIONS, PREFETCH, SOON, borrow, dead_numbers, fill, home, next, number, open_rabbit, text, visit,
};

fn url(bench: &Bench) -> String {
    bench.vhost().unwrap().url()
}

on_every_rabbit! {
    async fn queues_are_declared_as_measured(bench: Bench) {
        // No message has been published yet: an ingress that accepts a message finds queues of sufficient age.
        let _queue = open_rabbit(&url(&bench)).await;
        let queues = bench.vhost().unwrap().queues();
        let arguments = |name: &str| {
            let found = queues.iter().find(|queue| queue["name"] == name);
            found.unwrap_or_else(|| panic!("no {name}"))["arguments"].clone()
        };
        let kept = json!({
            "x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "reject-publish",
        });
        assert_eq!(arguments("causeway.unrouted"), kept);
        for destination in [Destination::ServiceNow, Destination::Xo] {
            assert_eq!(arguments(&format!("causeway.dlq.{destination}")), kept);
            for partition in PartitionId::all(destination, PARTITIONS) {
                let expected = json!({
                    "x-queue-type": "quorum",
                    "x-delivery-limit": 1_000_000,
                    "x-single-active-consumer": true,
                    "x-overflow": "reject-publish",
                    "x-dead-letter-exchange": "causeway.dlx",
                    "x-dead-letter-routing-key": destination.as_str(),
                    "x-dead-letter-strategy": "at-least-once",
                    "x-consumer-disconnected-timeout": 20_000,
                });
                assert_eq!(arguments(&format!("causeway.w.{partition}")), expected);
            }
        }
    }

    async fn nothing_on_a_message_lets_it_overtake_or_vanish(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        fill(&queue, 0..1).await;
        let taken = Amqp::open(&url(&bench)).await.take(&format!("causeway.w.{}", home())).await;
        assert_eq!(*taken.properties.delivery_mode(), Some(2), "on disk");
        assert_eq!((taken.properties.priority(), taken.properties.expiration()), (&None, &None));
        let headers = taken.properties.headers().clone().unwrap_or_default();
        let names: Vec<&str> = headers.inner().keys().map(|name| name.as_str()).collect();
        assert!(names.iter().all(|name| name.starts_with("x-causeway-")), "{names:?}");
    }

    async fn every_consumer_of_every_worker_has_the_same_prefetch(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let (one, other) = (open_rabbit(&vhost.url()).await, open_rabbit(&vhost.url()).await);
        let mut held = Vec::new();
        for queue in [&one, &other] {
            for partition in PartitionId::all(Destination::Xo, PARTITIONS) {
                held.push(queue.subscribe(partition).await.unwrap());
            }
        }
        let all = held.len();
        let windows = eventually("all consumers to be shown", SOON, async || {
            let shown = vhost.consumers();
            let of = |consumer: &&Value| consumer["queue"]["name"].as_str().is_some_and(|it| it.starts_with("causeway.w."));
            let windows: Vec<u64> =
                shown.iter().filter(of).filter_map(|consumer| consumer["prefetch_count"].as_u64()).collect();
            if windows.len() == all { Ok(windows) } else { Err(format!("{windows:?} of {all}")) }
        })
        .await;
        assert!(windows.iter().all(|window| *window == u64::from(PREFETCH)), "{windows:?}");
    }

    async fn a_message_that_a_policy_removes_is_dead_lettered_in_its_place(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let queue = open_rabbit(&vhost.url()).await;
        // An operator's policy for all queues: the smaller limit overrides our argument.
        vhost.set_policy("^causeway.w\\.", json!({ "delivery-limit": 2 }));
        fill(&queue, 0..1).await;
        eventually("the broker to have killed it", SOON, async || {
            let mut subscription = borrow(&queue).await;
            let lent = tokio::time::timeout(Duration::from_millis(500), subscription.next()).await;
            subscription.close().await;
            if lent.is_err() { Ok(()) } else { Err("lent again".into()) }
        })
        .await;
        eventually("it to be among the dead letters", SOON, async || {
            let dead = dead_numbers(&queue).await;
            if dead == [0] { Ok(()) } else { Err(format!("{dead:?}")) }
        })
        .await;
        let mut dead_letter_reader = visit(&queue).await;
        let letter = dead_letter_reader.next().await.unwrap().unwrap().dead;
        assert_eq!(letter.story.count(), 0, "nobody wrote its story: {}", letter.detail);
        dead_letter_reader.close().await;
    }

    async fn messages_for_a_deleted_partition_are_kept(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let queue = open_rabbit(&vhost.url()).await;
        vhost.delete_queue(&format!("causeway.w.{}", home()));
        for published in join_all((0..50).map(|n| async move { text("home", n) }).map(|it| async {
            queue.publish(&it.await).await
        }))
        .await
        {
            published.unwrap();
        }
        eventually("all to be counted", SOON, async || match queue.depth().await {
            Ok(depth) if depth.unroutable == 50 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    async fn every_confirm_is_for_its_own_message(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let queue = open_rabbit(&vhost.url()).await;
        // One partition accepts a few messages and refuses the rest. The others accept every message.
        vhost.set_policy(&format!("^causeway.w\\.{}$", home().to_string().replace('.', "\\.")), json!({
            "max-length": 5, "overflow": "reject-publish",
        }));
        eventually("the limit to hold", SOON, async || {
            match queue.publish(&text("home", 1000)).await {
                Err(QueueError::Full) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // There is room for some messages: a few are accepted among many refusals, all at the same time and from many
        // tasks.
        let mut subscription = borrow(&queue).await;
        while let Ok(Some(received)) = tokio::time::timeout(Duration::from_secs(1), subscription.next()).await {
            received.ack().await.unwrap();
        }
        let tasks: Vec<_> = (0..600).map(|n| {
            let queue = queue.clone();
            let lane = if n % 3 == 0 { at_home(n) } else { format!("lane-{n}") };
            let message = text(&lane, n);
            let ours = PartitionId::of(Destination::Xo, &message.lane, PARTITIONS) == home();
            causeway::tasks::spawn(async move { (n, ours, queue.publish(&message).await) })
        }).collect();
        let (mut confirmed, mut refused) = (BTreeSet::new(), 0);
        for task in tasks {
            let (n, ours, published) = task.await.unwrap();
            match published {
                Ok(()) if ours => drop(confirmed.insert(n)),
                Ok(()) => {}
                Err(QueueError::Full) if ours => refused += 1,
                Err(error) => panic!("{n}, ours {ours}: {error}"),
            }
        }
        assert!(refused > 0, "the limit was never met");
        let mut taken = BTreeSet::new();
        while taken.len() < confirmed.len() {
            let received = next(&mut subscription).await;
            taken.insert(number(&received.message));
            received.ack().await.unwrap();
        }
        assert_eq!(taken, confirmed);
    }
}

/// The n-th of the lanes in the partition `home`.
fn at_home(n: usize) -> String {
    let names = (0..).map(|k| format!("home-{n}-{k}"));
    let lives = |name: &String| PartitionId::of(Destination::Xo, &text(name, 0).lane, PARTITIONS) == home();
    names.into_iter().find(lives).unwrap()
}
