//! Tests the clauses of `src/queue/mod.rs` on every engine, one test for each clause. The promises of a single engine
//! have files of their own.
//!
//! A bench is the place of an engine's messages; each [`open`] stands for one process.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that finds the unexpected has failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use causeway::message::{
    AttemptHistory, AttemptRecord, DeadLetter, DeadReason, Destination, Destinations, Kind, LaneKey, Message,
    MessageId, PlatformWords,
};
use causeway::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use causeway::queue::rabbit::{
    BrokerUrl, QueueDeclare, RabbitQueue, RabbitSettings, RabbitUse, TopologyNames,
};
use causeway::queue::{
    DeadLetterReader, PartitionId, Queue, QueueError, QueueTuning, ReceivedMessage, Subscription,
};
use causeway::tls::TlsFiles;
use tokio::time::{Instant, timeout};

use super::harness::amqp::Amqp;
use super::harness::matrix::Bench;

pub(super) const PARTITIONS: u16 = 4;
pub(super) const PREFETCH: u16 = 8;
/// Every expected event must happen within this time.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// How long a test watches for an event that must not happen.
const A_WHILE: Duration = Duration::from_millis(300);

pub(super) fn tuning() -> QueueTuning {
    QueueTuning {
        destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
        partitions: PARTITIONS,
        prefetch: PREFETCH,
        publish_timeout: Duration::from_secs(5),
    }
}

/// Opens the queue as a starting process does.
async fn open(bench: &Bench) -> Queue {
    match bench.vhost() {
        None => {
            let data_dir = bench.folder().to_owned();
            let settings = EmbeddedSettings { data_dir, tuning: tuning(), max_messages: None };
            Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap())
        }
        Some(vhost) => open_rabbit(&vhost.url()).await,
    }
}

/// Opens the queue on the broker of the URL.
pub(super) async fn open_rabbit(url: &str) -> Queue {
    let rabbit = RabbitQueue::open(rabbit_settings(url, tuning()));
    rabbit.ready(SOON).await.unwrap();
    Queue::Rabbit(rabbit)
}

pub(super) fn rabbit_settings(url: &str, tuning: QueueTuning) -> RabbitSettings {
    RabbitSettings {
        url: BrokerUrl::parse(url).unwrap(),
        tls: TlsFiles::default(),
        names: TopologyNames::parse("causeway.").unwrap(),
        declare: QueueDeclare::Make,
        heartbeat: Duration::from_secs(4),
        tuning,
        usage: RabbitUse::Work,
        worker: MessageId::fresh().to_string(),
    }
}

/// Makes the only message of the partition `home` unreadable for this version. The queue is closed meanwhile.
async fn make_unreadable(bench: &Bench) {
    let Some(vhost) = bench.vhost() else {
        let file = rusqlite::Connection::open(bench.folder().join("queue.sqlite")).unwrap();
        file.execute("UPDATE message SET kind = 'handoff.hologram'", []).unwrap();
        return;
    };
    let amqp = Amqp::open(&vhost.url()).await;
    let taken = amqp.take(&format!("causeway.w.{}", home())).await;
    let properties = taken.properties.with_type("handoff.hologram".into());
    amqp.publish("causeway.in", &home().to_string(), &taken.data, properties).await;
}

pub(super) fn text(lane: &str, number: usize) -> Message {
    let lane = LaneKey::parse(lane).unwrap();
    Message::new(MessageId::fresh(), Kind::CallbackMessage, Destination::Xo, lane, format!("{number}"))
}

pub(super) fn number(message: &Message) -> usize {
    std::str::from_utf8(&message.body).unwrap().parse().unwrap()
}

/// The partition of the lane that most tests use.
pub(super) fn home() -> PartitionId {
    PartitionId::of(Destination::Xo, &LaneKey::parse("home").unwrap(), PARTITIONS)
}

pub(super) async fn fill(queue: &Queue, numbers: std::ops::Range<usize>) {
    for number in numbers {
        queue.publish(&text("home", number)).await.unwrap();
    }
}

pub(super) async fn borrow(queue: &Queue) -> Subscription {
    timeout(SOON, queue.subscribe(home())).await.expect("nobody else borrows").unwrap()
}

pub(super) async fn next(subscription: &mut Subscription) -> ReceivedMessage {
    timeout(SOON, subscription.next()).await.expect("something is lent").expect("the subscription goes on")
}

pub(super) async fn next_numbers(subscription: &mut Subscription, count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(number(&next(subscription).await.message));
    }
    numbers
}

async fn nothing_is_lent(subscription: &mut Subscription) -> bool {
    timeout(A_WHILE, subscription.next()).await.is_err()
}

pub(super) fn dead(number: usize) -> DeadLetter {
    let mut story = AttemptHistory::default();
    story.add(AttemptRecord {
        at: causeway::clock::now(),
        status: Some(403),
        outcome: "refused".into(),
        error: "not allowed".into(),
        said: PlatformWords::new("words of the platform", ""),
    });
    DeadLetter::new(text("home", number), DeadReason::Rejected, "refused for good", story)
}

pub(super) async fn visit(queue: &Queue) -> DeadLetterReader {
    timeout(SOON, queue.dead_letter_reader(Destination::Xo)).await.unwrap().unwrap()
}

pub(super) async fn dead_numbers(queue: &Queue) -> Vec<usize> {
    let mut dead_letter_reader = visit(queue).await;
    let mut numbers = Vec::new();
    while let Some(held) = dead_letter_reader.next().await.unwrap() {
        numbers.push(number(&held.dead.message));
    }
    dead_letter_reader.close().await;
    numbers
}

on_every_engine! {
    async fn clause_01_what_was_published_survives_the_process(bench: Bench) {
        let queue = open(&bench).await;
        let sent = text("home", 1);
        queue.publish(&sent).await.unwrap();
        let buried = dead(2);
        queue.dead_letter(&buried).await.unwrap();
        queue.close().await;

        let queue = open(&bench).await;
        let received = next(&mut borrow(&queue).await).await;
        assert_eq!(received.message, sent);
        assert_eq!(visit(&queue).await.next().await.unwrap().unwrap().dead, buried);
    }

    async fn clause_02_a_lane_is_received_in_the_order_of_its_publishes(bench: Bench) {
        let queue = open(&bench).await;
        let publishers = (0..20).map(|lane| {
            let queue = queue.clone();
            causeway::tasks::spawn(async move {
                for number in 0..25 {
                    queue.publish(&text(&format!("lane-{lane}"), number)).await.unwrap();
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut subscriptions = Vec::new();
        for partition in PartitionId::all(Destination::Xo, PARTITIONS) {
            subscriptions.push(queue.subscribe(partition).await.unwrap());
        }
        let (messages, mut lent) = tokio::sync::mpsc::channel(1);
        for mut subscription in subscriptions {
            let messages = messages.clone();
            causeway::tasks::spawn(async move {
                while let Some(received) = subscription.next().await {
                    if messages.send(received).await.is_err() {
                        return;
                    }
                }
            });
        }
        for _ in 0..500 {
            let received = timeout(SOON, lent.recv()).await.expect("all are lent").unwrap();
            seen.entry(received.message.lane.to_string()).or_default().push(number(&received.message));
            received.ack().await.unwrap();
        }
        for publisher in publishers {
            publisher.await.unwrap();
        }
        assert_eq!(seen.len(), 20);
        assert!(seen.values().all(|numbers| numbers.iter().copied().eq(0..25)), "{seen:?}");
    }

    async fn clause_03_a_partition_has_one_consumer(bench: Bench) {
        let queue = open(&bench).await;
        fill(&queue, 0..3).await;
        let mut first = borrow(&queue).await;
        assert_eq!(next_numbers(&mut first, 3).await, [0, 1, 2]);

        let other = queue.clone();
        let mut second = causeway::tasks::spawn(async move {
            let mut subscription = other.subscribe(home()).await.unwrap();
            let numbers = next_numbers(&mut subscription, 3).await;
            (subscription, numbers)
        });
        assert!(timeout(A_WHILE, &mut second).await.is_err(), "lent to two");
        first.close().await;
        assert_eq!(timeout(SOON, second).await.unwrap().unwrap().1, [0, 1, 2]);
    }

    async fn clause_04_an_unacked_message_is_received_again_in_its_place(bench: Bench) {
        let queue = open(&bench).await;
        fill(&queue, 0..6).await;
        let mut subscription = borrow(&queue).await;
        let mut kept = Vec::new();
        for place in 0..5 {
            let received = next(&mut subscription).await;
            if place % 2 == 1 {
                received.ack().await.unwrap();
            } else {
                kept.push(received);
            }
        }
        subscription.close().await;
        for late in kept {
            late.ack().await.expect_err("the loan was given back");
        }

        let mut subscription = borrow(&queue).await;
        assert_eq!(next_numbers(&mut subscription, 4).await, [0, 2, 4, 5]);
        subscription.close().await;
        queue.close().await;

        let queue = open(&bench).await;
        fill(&queue, 6..7).await;
        let mut subscription = borrow(&queue).await;
        assert_eq!(next_numbers(&mut subscription, 5).await, [0, 2, 4, 5, 6]);
    }

    async fn clause_04_a_dropped_subscription_gives_back(bench: Bench) {
        let queue = open(&bench).await;
        fill(&queue, 0..2).await;
        let mut subscription = borrow(&queue).await;
        assert_eq!(next_numbers(&mut subscription, 2).await, [0, 1]);
        drop(subscription);
        assert_eq!(next_numbers(&mut borrow(&queue).await, 2).await, [0, 1]);
    }

    async fn clause_05_no_more_than_prefetch_are_out(bench: Bench) {
        let queue = open(&bench).await;
        let all = usize::from(PREFETCH);
        fill(&queue, 0..all + 3).await;
        let mut subscription = borrow(&queue).await;
        let mut held = Vec::new();
        for expected in 0..all {
            let received = next(&mut subscription).await;
            assert_eq!(number(&received.message), expected);
            held.push(received);
        }
        assert!(nothing_is_lent(&mut subscription).await);
        held.remove(3).ack().await.unwrap();
        assert_eq!(next_numbers(&mut subscription, 1).await, [all]);
        assert!(nothing_is_lent(&mut subscription).await);
    }

    async fn clause_06_a_redelivered_message_says_so(bench: Bench) {
        let queue = open(&bench).await;
        fill(&queue, 0..2).await;
        let mut subscription = borrow(&queue).await;
        assert!(next(&mut subscription).await.redeliveries == 0);
        assert!(next(&mut subscription).await.redeliveries == 0);
        subscription.close().await;
        let mut subscription = borrow(&queue).await;
        assert!(next(&mut subscription).await.redeliveries > 0);
        assert!(next(&mut subscription).await.redeliveries > 0);
        fill(&queue, 2..3).await;
        assert!(next(&mut subscription).await.redeliveries == 0, "nobody had it before");
        subscription.close().await;
        queue.close().await;

        let queue = open(&bench).await;
        fill(&queue, 3..4).await;
        let mut subscription = borrow(&queue).await;
        for _ in 0..3 {
            assert!(next(&mut subscription).await.redeliveries > 0);
        }
        assert!(next(&mut subscription).await.redeliveries == 0, "nobody had it before");
    }

    async fn clause_07_an_absent_queue_is_an_error_in_time(bench: Bench) {
        let queue = open(&bench).await;
        assert!(*queue.connected().borrow());
        queue.close().await;
        let begun = Instant::now();
        let refused = queue.publish(&text("home", 1)).await.expect_err("it is closed");
        assert!(matches!(refused, QueueError::Unavailable(_)), "{refused}");
        assert!(queue.dead_letter(&dead(1)).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(12));
    }

    async fn clause_08_an_unreadable_message_is_received_raw(bench: Bench) {
        let queue = open(&bench).await;
        let sent = text("home", 77);
        queue.publish(&sent).await.unwrap();
        queue.close().await;
        make_unreadable(&bench).await;

        let queue = open(&bench).await;
        let mut subscription = borrow(&queue).await;
        let received = next(&mut subscription).await;
        assert_eq!(received.message.body, sent.body);
        assert_eq!(received.message.destination, Destination::Xo);
        assert!(received.unreadable.as_deref().is_some_and(|why| why.contains("hologram")), "{received:?}");
        received.ack().await.unwrap();
        fill(&queue, 1..2).await;
        assert_eq!(next_numbers(&mut subscription, 1).await, [1]);
    }

    async fn clause_09_dead_letters_wait_in_the_order_of_their_death(bench: Bench) {
        let queue = open(&bench).await;
        for number in 0..5 {
            queue.dead_letter(&dead(number)).await.unwrap();
        }
        assert_eq!(dead_numbers(&queue).await, [0, 1, 2, 3, 4]);
        assert_eq!(dead_numbers(&queue).await, [0, 1, 2, 3, 4], "looking changes nothing");

        let mut dead_letter_reader = visit(&queue).await;
        drop(dead_letter_reader.next().await.unwrap());
        dead_letter_reader.next().await.unwrap().unwrap().remove().await.unwrap();
        let third = dead_letter_reader.next().await.unwrap().unwrap();
        dead_letter_reader.next().await.unwrap().unwrap().remove().await.unwrap();
        drop(third);
        dead_letter_reader.close().await;
        assert_eq!(dead_numbers(&queue).await, [0, 2, 4]);
        queue.close().await;
        assert_eq!(dead_numbers(&open(&bench).await).await, [0, 2, 4]);
    }

    async fn clause_09_a_reading_ends_with_the_letters_of_its_start(bench: Bench) {
        let queue = open(&bench).await;
        queue.dead_letter(&dead(0)).await.unwrap();
        let mut dead_letter_reader = visit(&queue).await;
        assert!(dead_letter_reader.next().await.unwrap().is_some());
        queue.dead_letter(&dead(1)).await.unwrap();
        assert!(dead_letter_reader.next().await.unwrap().is_none(), "else a replay that fails again would never end");
    }

    async fn clause_09_a_dead_letter_queue_has_one_reader(bench: Bench) {
        let queue = open(&bench).await;
        let dead_letter_reader = visit(&queue).await;
        let refused = queue.dead_letter_reader(Destination::Xo).await.expect_err("there is a visitor");
        assert!(matches!(refused, QueueError::Busy(_)), "{refused}");
        queue.dead_letter_reader(Destination::ServiceNow).await.unwrap().close().await;
        dead_letter_reader.close().await;
        visit(&queue).await.close().await;
    }

    async fn clause_10_the_lease_holds_while_the_queue_is_there(bench: Bench) {
        let queue = open(&bench).await;
        let mut lease = queue.lease();
        timeout(SOON, lease.renewed()).await.unwrap();
        assert!(lease.holds(Instant::now()));
    }

    async fn depth_counts_what_waits(bench: Bench) {
        let queue = open(&bench).await;
        let first = text("home", 0);
        queue.publish(&first).await.unwrap();
        fill(&queue, 1..3).await;
        let id = MessageId::fresh();
        let lane = LaneKey::alone(id);
        queue.publish(&Message::new(id, Kind::HandoffEnd, Destination::ServiceNow, lane, "{}")).await.unwrap();
        queue.dead_letter(&dead(0)).await.unwrap();

        let expected = BTreeMap::from([(Destination::ServiceNow, 1), (Destination::Xo, 3)]);
        let begun = Instant::now();
        let mut depth = queue.depth().await.unwrap();
        // A broker counts its messages only at intervals.
        while (&depth.waiting, depth.dead) != (&expected, 1) && begun.elapsed() < SOON {
            depth = queue.depth().await.unwrap();
        }
        assert_eq!((depth.waiting, depth.dead, depth.unroutable), (expected, 1, 0));
        if let Some(oldest) = depth.oldest.get(&Destination::Xo) {
            assert_eq!(*oldest, first.accepted_at);
        }
    }
}
