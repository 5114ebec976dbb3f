//! Tests the traps that only RabbitMQ has: each test fails if the code falls into one.
//!
//! The traps were measured on 3.10 and 4.3 (`src/queue/rabbit/FACTS.md`). `queue_contract.rs` tests the promises of
//! both engines, and `faults.rs` tests whole processes under faults.

use std::time::Duration;

use causeway::message::{DeadReason, Destination, LaneKey};
use causeway::queue::rabbit::RabbitQueue;
use causeway::queue::{PartitionId, Queue, QueueError, QueueTuning};
use futures_util::future::join_all;
use lapin::BasicProperties;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::harness::amqp::Amqp;
use super::harness::binary::{Causeway, Finished};
use super::harness::broker::Broker;
use super::harness::matrix::{Bench, Engine};
use super::harness::proxy::Proxy;
use super::harness::wait::eventually;
use super::queue_contract::{
    PARTITIONS, PREFETCH, SOON, borrow, dead, dead_numbers, fill, home, next, next_numbers, number,
    open_rabbit, rabbit_settings, text, tuning, visit,
};

/// The time limit for a broker that starts, stops or is killed on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn url(bench: &Bench) -> String {
    bench.vhost().unwrap().url()
}

async fn through_a_proxy(bench: &Bench) -> (Proxy, String) {
    let vhost = bench.vhost().unwrap();
    let proxy = Proxy::start(vhost.broker()).await;
    let through = vhost.url_through(proxy.addr());
    (proxy, through)
}

/// Waits until the broker has delivered all messages of this queue.
async fn all_lent(amqp: &Amqp, queue: &str) {
    eventually("everything to be lent", PATIENCE, async || match amqp.waiting(queue).await {
        0 => Ok(()),
        some => Err(format!("{some} wait")),
    })
    .await;
}

/// More than one consumer of the broker can hold, which is 65,535.
const MORE_THAN_ONE_CONSUMER_HOLDS: usize = 66_000;
const A_FEW_WINDOWS: usize = 3_000;

async fn bury_many(queue: &Queue, count: usize) {
    let letter = |number: usize| {
        let mut letter = dead(number);
        // Several lanes, to dead-letter many messages concurrently.
        letter.message.lane = text(&format!("lane-{}", number % 200), 0).lane;
        letter
    };
    for first in (0..count).step_by(200) {
        let some: Vec<_> = (first..count.min(first + 200)).map(letter).collect();
        for buried in join_all(some.iter().map(|letter| queue.dead_letter(letter))).await {
            buried.unwrap();
        }
    }
}

/// The dead letters, read after the previous dead-letter reader has closed.
async fn numbers_once_free(queue: &Queue) -> Vec<usize> {
    eventually("the siding to be free", PATIENCE, async || {
        match queue.dead_letter_reader(Destination::Xo).await {
            Ok(dead_letter_reader) => {
                dead_letter_reader.close().await;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    dead_numbers(queue).await
}

/// Acks some of the next received messages, and removes them from `left`.
async fn hand_over(queue: &Queue, left: &mut Vec<usize>, random: &mut StdRng) {
    let mut subscription = borrow(queue).await;
    let count = random.random_range(1..=usize::from(PREFETCH).min(left.len()));
    let mut settled = Vec::new();
    for expected in left.iter().take(count) {
        let received = next(&mut subscription).await;
        assert_eq!(number(&received.message), *expected, "of {left:?}");
        // The first message is returned every time, so a delivery limit would remove it.
        if *expected != 0 && random.random_bool(0.2) {
            settled.push(*expected);
            received.ack().await.unwrap();
        }
    }
    left.retain(|number| !settled.contains(number));
    if random.random_bool(0.5) {
        subscription.close().await;
    } else {
        drop(subscription);
    }
}

on_every_rabbit! {
    async fn however_often_messages_are_handed_over_they_stay_in_order(bench: Bench) {
        let mut queue = open_rabbit(&url(&bench)).await;
        fill(&queue, 0..60).await;
        let mut left: Vec<usize> = (0..60).collect();
        let seed = rand::random();
        eprintln!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..30 {
            hand_over(&queue, &mut left, &mut random).await;
            if round % 10 == 9 {
                queue.close().await;
                queue = open_rabbit(&url(&bench)).await;
            }
        }
        assert!(next(&mut borrow(&queue).await).await.redeliveries >= 25);
    }

    async fn a_subscribe_that_is_abandoned_lets_nothing_overtake(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        fill(&queue, 0..20).await;
        for tries in 0..20 {
            let patience = Duration::from_micros(300 * tries);
            drop(timeout(patience, queue.subscribe(home())).await);
        }
        let mut subscription = borrow(&queue).await;
        for expected in 0..20 {
            let received = next(&mut subscription).await;
            assert_eq!(number(&received.message), expected);
            received.ack().await.unwrap();
        }
    }

    async fn nothing_is_received_while_a_cancelled_consumer_holds_earlier_messages(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        fill(&queue, 0..5).await;
        let amqp = Amqp::open(&url(&bench)).await;
        let partition = format!("causeway.w.{}", home());
        let holding = amqp.hold(&partition, 2).await;
        let mut subscription = borrow(&queue).await;
        holding.cancel().await;
        // The first consumer holds 0 and 1; the broker delivers the others to us.
        let give_back = async {
            all_lent(&amqp, &partition).await;
            holding.give_back().await;
        };
        let (lent, ()) = tokio::join!(next_numbers(&mut subscription, 5), give_back);
        assert_eq!(lent, [0, 1, 2, 3, 4]);
        // The same holds when the messages go back.
        subscription.close().await;
        assert_eq!(next_numbers(&mut borrow(&queue).await, 5).await, [0, 1, 2, 3, 4]);
    }

    async fn a_policy_that_deletes_during_a_reorder_does_not_stop_the_partition(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        let (vhost, partition) = (bench.vhost().unwrap(), format!("causeway.w.{}", home()));
        // If a return counts (any return on 3.10, a closed channel on 4.3), no message is delivered twice.
        vhost.set_policy("^causeway.w\\.", json!({ "delivery-limit": 0 }));
        eventually("the policy to hold", SOON, async || {
            let queues = vhost.queues();
            let held = queues.iter().find(|queue| queue["name"] == partition.as_str());
            match held.map(|queue| &queue["effective_policy_definition"]["delivery-limit"]) {
                Some(limit) if *limit == 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        fill(&queue, 0..5).await;
        let amqp = Amqp::open(&url(&bench)).await;
        let holding = amqp.hold(&partition, 2).await;
        let mut subscription = borrow(&queue).await;
        holding.cancel().await;
        let give_back = async {
            all_lent(&amqp, &partition).await;
            holding.give_back().await;
            queue.publish(&text("home", 5)).await.unwrap();
        };
        let until_the_last = async {
            loop {
                match subscription.next().await {
                    Some(received) if number(&received.message) == 5 => return,
                    Some(received) => received.ack().await.unwrap(),
                    // The policy removed message 5 together with the subscription. The queue gets a new subscription.
                    None => {
                        subscription.close().await;
                        subscription = borrow(&queue).await;
                        queue.publish(&text("home", 5)).await.unwrap();
                    }
                }
            }
        };
        let (lent, ()) = tokio::join!(timeout(PATIENCE, until_the_last), give_back);
        lent.expect("the partition goes on");
    }

    async fn a_connection_that_is_cut_returns_its_messages_in_order(bench: Bench) {
        let (proxy, through) = through_a_proxy(&bench).await;
        let queue = open_rabbit(&through).await;
        fill(&queue, 0..10).await;
        let mut subscription = borrow(&queue).await;
        for expected in 0..5 {
            let received = next(&mut subscription).await;
            assert_eq!(number(&received.message), expected);
            if expected % 2 == 1 {
                received.ack().await.unwrap();
            }
        }
        // The last two are delivered only after both acks have arrived.
        assert_eq!(next_numbers(&mut subscription, 5).await, [5, 6, 7, 8, 9]);
        proxy.cut();
        let other = open_rabbit(&url(&bench)).await;
        let mut second = borrow(&other).await;
        assert_eq!(next_numbers(&mut second, 8).await, [0, 2, 4, 5, 6, 7, 8, 9]);
        eventually("the cut subscription to end", SOON, async || {
            subscription.next().await.map_or(Ok(()), |received| Err(format!("lent {received:?}")))
        })
        .await;
        second.close().await;
        eventually("the first one to be back", SOON, async || {
            queue.publish(&text("home", 10)).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(next(&mut borrow(&queue).await).await.message.body, "0");
    }

    async fn publishers_of_one_lane_stay_in_the_order_of_their_calls(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        let messages: Vec<_> = (0..300).map(|number| text("home", number)).collect();
        // This many calls are made in order before the runtime switches tasks.
        for some in messages.chunks(50) {
            let published = join_all(some.iter().map(|message| queue.publish(message))).await;
            assert!(published.iter().all(Result::is_ok), "{published:?}");
        }
        let mut subscription = borrow(&queue).await;
        for expected in 0..300 {
            let received = next(&mut subscription).await;
            assert_eq!(number(&received.message), expected);
            received.ack().await.unwrap();
        }
    }

    async fn unroutable_messages_are_counted_and_kept(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        let amqp = Amqp::open(&url(&bench)).await;
        amqp.publish("causeway.in", "xo.99", b"lost?", BasicProperties::default()).await;
        amqp.publish("causeway.dlx", "nowhere", b"lost?", BasicProperties::default()).await;
        eventually("both to be counted", SOON, async || match queue.depth().await {
            Ok(depth) if depth.unroutable == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(amqp.take("causeway.unrouted").await.data, b"lost?");
    }

    async fn a_queue_is_consumed_again_after_it_is_declared_again(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        let mut subscription = borrow(&queue).await;
        bench.vhost().unwrap().delete_queue(&format!("causeway.w.{}", home()));
        assert!(timeout(SOON, subscription.next()).await.unwrap().is_none(), "its end is told");
        subscription.close().await;
        assert!(queue.subscribe(home()).await.is_err(), "and nobody borrows from what is not there");
        let other = open_rabbit(&url(&bench)).await;
        fill(&queue, 0..2).await;
        assert_eq!(next_numbers(&mut borrow(&queue).await, 2).await, [0, 1]);
        other.close().await;
    }

    async fn all_may_start_at_once_on_an_empty_broker(bench: Bench) {
        let url = url(&bench);
        let many: Vec<_> = (0..4).map(|_| RabbitQueue::open(rabbit_settings(&url, tuning()))).collect();
        for ready in join_all(many.iter().map(|queue| queue.ready(SOON))).await {
            ready.unwrap();
        }
    }

    async fn a_first_start_that_broke_off_is_completed(bench: Bench) {
        open_rabbit(&url(&bench)).await.close().await;
        for index in [0, 1] {
            bench.vhost().unwrap().delete_queue(&format!("causeway.w.servicenow.{index}"));
        }
        open_rabbit(&url(&bench)).await;
        let names: Vec<String> =
            bench.vhost().unwrap().queues().iter().map(|queue| queue["name"].to_string()).collect();
        for partition in PartitionId::all(Destination::ServiceNow, PARTITIONS) {
            assert!(names.contains(&format!("\"causeway.w.{partition}\"")), "{partition} of {names:?}");
        }
    }

    async fn a_reader_sees_more_dead_letters_than_the_prefetch(bench: Bench) {
        // The full size on the broker that every machine has: it takes two minutes.
        let full = bench.engine() == Engine::Rabbit310;
        let count = if full { MORE_THAN_ONE_CONSUMER_HOLDS } else { A_FEW_WINDOWS };
        let queue = open_rabbit(&url(&bench)).await;
        bury_many(&queue, count).await;
        let seen = dead_numbers(&queue).await;
        assert_eq!(seen.len(), count);
        assert!(dead_numbers(&queue).await == seen, "looking changes nothing");

        // A dead-letter reader loses its connection while it holds all dead letters.
        let (proxy, through) = through_a_proxy(&bench).await;
        let visitor = open_rabbit(&through).await;
        let mut dead_letter_reader = visit(&visitor).await;
        let mut held = 0;
        while dead_letter_reader.next().await.unwrap().is_some() {
            held += 1;
        }
        assert_eq!(held, count);
        proxy.refuse().await;
        // A dead-letter reader that reads only a part meanwhile changes nothing either.
        assert!(numbers_once_free(&queue).await == seen, "the broker gives them back in their order");

        // A dead-letter reader that removes some dead letters. Consumers after the first see no gap.
        let mut dead_letter_reader = visit(&queue).await;
        let mut kept = Vec::new();
        while let Some(letter) = dead_letter_reader.next().await.unwrap() {
            let number = number(&letter.dead.message);
            if number.is_multiple_of(10) { letter.remove().await.unwrap() } else { kept.push(number) }
        }
        dead_letter_reader.close().await;
        assert!(dead_numbers(&queue).await == kept, "what was not taken out stays in its order");
        let mut all = seen;
        all.sort_unstable();
        assert!(all.into_iter().eq(0..count));
    }

    async fn a_reader_that_disappears_leaves_all_dead_letters(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        for number in 0..5 {
            queue.dead_letter(&dead(number)).await.unwrap();
        }
        let mut dead_letter_reader = visit(&queue).await;
        let held = dead_letter_reader.next().await.unwrap();
        drop(dead_letter_reader);
        drop(held);
        assert_eq!(numbers_once_free(&queue).await, [0, 1, 2, 3, 4]);
    }

    async fn another_number_of_partitions_is_refused(bench: Bench) {
        open_rabbit(&url(&bench)).await.close().await;
        for partitions in [PARTITIONS - 1, PARTITIONS + 1] {
            let wrong = QueueTuning { partitions, ..tuning() };
            let queue = RabbitQueue::open(rabbit_settings(&url(&bench), wrong));
            let refused = queue.ready(SOON).await.expect_err("conversations would be reordered");
            assert!(matches!(refused, QueueError::Mismatch(_)), "{refused}");
            let told = ingress(&bench, partitions).await;
            assert_eq!(told.code, Some(1), "{told:?}");
            assert!(told.stderr.contains(&format!("queue.partitions is {partitions}")), "{told:?}");
        }
    }

    async fn a_queue_of_another_kind_is_refused(bench: Bench) {
        Amqp::open(&url(&bench)).await.declare("causeway.dlq.xo", "classic").await;
        let told = ingress(&bench, PARTITIONS).await;
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stderr.contains("causeway.dlq.xo") && told.stderr.contains("inequivalent arg"), "{told:?}");
    }

    async fn an_unreadable_message_is_dead_lettered_with_its_bytes(bench: Bench) {
        let queue = open_rabbit(&url(&bench)).await;
        let garbage = b"\xff\x00 not one of ours";
        let amqp = Amqp::open(&url(&bench)).await;
        amqp.publish("causeway.in", "xo.1", garbage, BasicProperties::default()).await;
        let _worker = causeway(["worker"], &bench, PARTITIONS).spawn();
        let letter = eventually("the dead letter", PATIENCE, async || {
            let mut dead_letter_reader = queue.dead_letter_reader(Destination::Xo).await.map_err(|error| error.to_string())?;
            let found = dead_letter_reader.next().await.map_err(|error| error.to_string());
            dead_letter_reader.close().await;
            found?.map(|held| held.dead).ok_or_else(|| "none yet".into())
        })
        .await;
        assert_eq!((letter.reason, &letter.message.body[..]), (DeadReason::Unreadable, &garbage[..]));
    }
}

fn causeway(args: [&str; 1], bench: &Bench, partitions: u16) -> Causeway {
    Causeway::new(args)
        .settings(&bench.settings())
        .set("queue.partitions", partitions.to_string())
        .set("ingress.listen", "127.0.0.1:0")
        .set("admin.listen", "127.0.0.1:0")
        .set("ingress.allow_unauthenticated", "true")
        .set("xo.callback_url", "http://127.0.0.1:9/nobody")
}

async fn ingress(bench: &Bench, partitions: u16) -> Finished {
    causeway(["ingress"], bench, partitions).run(PATIENCE).await
}

/// A quorum queue younger than about one second loses confirmed messages when its broker is killed.
async fn old_enough(born: Instant) {
    eventually("the queues to be of age", SOON, async || match born.elapsed() {
        age if age > Duration::from_secs(3) => Ok(()),
        age => Err(format!("{age:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_killed_private_broker_keeps_everything_in_order() {
    let Some(mut broker) = Broker::private() else { return };
    let queue = open_rabbit(&broker.url()).await;
    old_enough(Instant::now()).await;
    fill(&queue, 0..12).await;
    for number in 0..3 {
        queue.dead_letter(&dead(number)).await.unwrap();
    }
    let mut subscription = borrow(&queue).await;
    for expected in 0..6 {
        let received = next(&mut subscription).await;
        assert_eq!(number(&received.message), expected);
        if expected % 2 == 1 {
            received.ack().await.unwrap();
        }
    }
    // An ack has no answer, and a call after the ack on the same channel would have one. The next received message
    // proves that the ack arrived.
    assert_eq!(next_numbers(&mut subscription, 5).await, [6, 7, 8, 9, 10]);

    broker.kill9().await;
    assert!(queue.publish(&text("home", 99)).await.is_err());
    broker.restart().await;
    eventually("the queue to be there again", PATIENCE, async || {
        queue.publish(&text("home", 12)).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(timeout(SOON, subscription.next()).await.unwrap().is_none());
    subscription.close().await;

    let mut subscription = borrow(&queue).await;
    for expected in [0, 2, 4, 6, 7, 8, 9, 10, 11, 12] {
        let received = next(&mut subscription).await;
        assert_eq!(number(&received.message), expected);
        received.ack().await.unwrap();
    }
    assert_eq!(dead_numbers(&queue).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_private_broker_that_blocks_publishers_still_takes_acks_and_heals() {
    let Some(broker) = Broker::private() else { return };
    let queue = open_rabbit(&broker.url()).await;
    fill(&queue, 0..5).await;
    let mut subscription = borrow(&queue).await;
    let first = next(&mut subscription).await;

    broker.ctl(&["set_vm_memory_high_watermark", "0.00000001"]).await;
    eventually("publishers to be refused at once", PATIENCE, async || {
        let asked = Instant::now();
        match queue.publish(&text("home", 9)).await {
            Err(QueueError::Unavailable(why)) if why.contains("alarm") => Ok(()),
            other => Err(format!("{other:?} after {:?}", asked.elapsed())),
        }
    })
    .await;
    first.ack().await.unwrap();
    assert_eq!(next_numbers(&mut subscription, 1).await, [1], "borrowing goes on");

    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    eventually("publishers to be welcome again", PATIENCE, async || {
        queue.publish(&text("other", 10)).await.map_err(|error| error.to_string())
    })
    .await;
    subscription.close().await;
    assert_eq!(next_numbers(&mut borrow(&queue).await, 4).await, [1, 2, 3, 4], "the ack was heard");
}

/// More publishes than may be unconfirmed.
const MORE_THAN_A_WINDOW: usize = 400;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_private_broker_whose_one_partition_confirms_nothing_takes_the_others_messages() {
    let Some(broker) = Broker::private() else { return };
    // Short, because the stuck publishes wait for this time four times. Long enough for the others on a busy disk.
    let tuning = QueueTuning { publish_timeout: Duration::from_secs(6), ..tuning() };
    let rabbit = RabbitQueue::open(rabbit_settings(&broker.url(), tuning));
    rabbit.ready(PATIENCE).await.unwrap();
    let queue = Queue::Rabbit(rabbit);
    queue.publish(&text("home", 0)).await.unwrap();
    // A queue without a majority of its replicas behaves like this: a publish is neither confirmed nor refused.
    let name = format!("whereis(binary_to_atom(<<\"%2F_causeway.w.{}\">>, utf8))", home());
    broker.ctl(&["eval", &format!("sys:suspend({name}).")]).await;
    let lanes = |at_home: bool| {
        let there = move |lane: &String| {
            let at = PartitionId::of(Destination::Xo, &LaneKey::parse(lane.as_str()).unwrap(), PARTITIONS);
            (at == home()) == at_home
        };
        (0..).map(|number| format!("lane-{number}")).filter(there).take(MORE_THAN_A_WINDOW)
    };
    let stuck: Vec<_> = lanes(true).map(|lane| text(&lane, 1)).collect();
    let well: Vec<_> = lanes(false).map(|lane| text(&lane, 1)).collect();
    // Each refused publish is repeated several times, more often than the publisher's queue has room for.
    for _ in 0..4 {
        let (refused, taken) = tokio::join!(
            join_all(stuck.iter().map(|message| queue.publish(message))),
            join_all(well.iter().map(|message| queue.publish(message))),
        );
        assert!(refused.iter().all(Result::is_err), "nobody could have confirmed them");
        for taken in taken {
            taken.expect("its own partition is well");
        }
    }

    broker.ctl(&["eval", &format!("sys:resume({name}).")]).await;
    eventually("the partition to be well again", PATIENCE, async || {
        queue.publish(&text("home", 2)).await.map_err(|error| error.to_string())
    })
    .await;
}

/// If a queue does not answer within 250 ms, the broker reports 0 messages, as for an empty queue.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_private_broker_that_cannot_count_in_time_shows_every_dead_letter_in_its_place() {
    let Some(broker) = Broker::private() else { return };
    let rabbit = RabbitQueue::open(rabbit_settings(&broker.url(), tuning()));
    rabbit.ready(PATIENCE).await.unwrap();
    let queue = Queue::Rabbit(rabbit);
    // The broker itself resumes the queue after a query for its count and for a dead letter, because a command takes
    // seconds here.
    let suspend = r#"
        Queue = whereis(binary_to_atom(<<"%2F_causeway.dlq.xo">>, utf8)),
        sys:suspend(Queue),
        spawn(fun Watch() ->
            case erlang:process_info(Queue, message_queue_len) of
                {_, Asked} when Asked >= 2 -> sys:resume(Queue);
                _ -> receive after 10 -> Watch() end
            end
        end)."#;
    for letters in [0, 5] {
        for number in 0..letters {
            queue.dead_letter(&dead(number)).await.unwrap();
        }
        // A dead letter that was read once has moved to another place, and a returned one comes last there.
        let all: Vec<_> = (0..letters).collect();
        assert_eq!(dead_numbers(&queue).await, all);
        broker.ctl(&["eval", suspend]).await;
        assert_eq!(dead_numbers(&queue).await, all);
        assert_eq!(dead_numbers(&queue).await, all, "looking changes nothing");
    }
}
