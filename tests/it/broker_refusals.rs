//! Promise: what the broker refuses concerns the refused message alone, and a process goes on when the refusal is over.
//!
//! `rabbit.rs` tests the other traps of RabbitMQ.

use std::time::Duration;

use bytes::Bytes;
use causeway::clock;
use causeway::message::{
    AttemptHistory, AttemptRecord, DeadLetter, DeadReason, Destination, Message, PlatformWords,
};
use causeway::queue::rabbit::{BrokerUrl, QueueDeclare, RabbitQueue, RabbitSettings, RabbitUse};
use causeway::queue::{Queue, QueueError};
use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::harness::amqp::Amqp;
use super::harness::broker::Broker;
use super::harness::matrix::Bench;
use super::harness::proxy::Proxy;
use super::harness::wait::eventually;
use super::queue_contract::{SOON, dead, home, open_rabbit, rabbit_settings, text, tuning, visit};

const PATIENCE: Duration = Duration::from_secs(60);
const ALL: &str = ".*";
const NONE: &str = "^$";
/// What a worker needs if the queues exist: its own temporary queue, and no more.
const OWN: &str = r"^amq\.gen.*";

fn url(bench: &Bench) -> String {
    bench.vhost().unwrap().url()
}

fn large(lane: &str, bytes: usize) -> Message {
    Message { body: Bytes::from(vec![b'x'; bytes]), ..text(lane, 0) }
}

fn open(url: &str, declare: QueueDeclare) -> RabbitQueue {
    RabbitQueue::open(RabbitSettings { declare, ..rabbit_settings(url, tuning()) })
}

async fn publishes(queue: &Queue) {
    eventually("a message to be taken", PATIENCE, async || {
        queue.publish(&text("healed", 0)).await.map_err(|error| error.to_string())
    })
    .await;
    eventually("the queue to be usable", PATIENCE, async || queue.unready().map_or(Ok(()), Err)).await;
}

/// Many senders publish small messages while one message above the limit is sent. Only its sender is refused.
async fn one_large_message_among_many(queue: Queue, limit: usize) {
    let senders = (0..64).map(async |sender| {
        for number in 0..40 {
            let sent = queue.publish(&text(&format!("sender-{sender}"), number)).await;
            sent.expect("no other sender notices");
        }
    });
    let senders = join_all(senders);
    let large_ones = async {
        for round in 0..3 {
            let refused = queue.publish(&large(&format!("large-{round}"), limit + 1)).await;
            assert!(matches!(refused, Err(QueueError::TooLarge(found)) if found == limit), "{refused:?}");
        }
        queue.publish(&large("exact", limit)).await.expect("a message of exactly the limit is taken");
    };
    tokio::join!(senders, large_ones);
    let depth = queue.depth().await.unwrap();
    assert!(depth.waiting[&Destination::Xo] > 64 * 40, "{depth:?}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn a_private_broker_that_refuses_a_large_message_refuses_it_alone() {
    let Some(broker) = Broker::private() else { return };
    broker.ctl(&["eval", "application:set_env(rabbit, max_message_size, 65536)."]).await;
    let vhost = broker.vhost();
    one_large_message_among_many(open_rabbit(&vhost.url()).await, 65_536).await;
}

on_newest_rabbit! {
    async fn a_message_above_the_limit_of_the_newest_broker_is_refused_alone(bench: Bench) {
        one_large_message_among_many(open_rabbit(&url(&bench)).await, 16 * 1024 * 1024).await;
    }
}

on_every_rabbit! {
    async fn a_history_that_exceeds_a_frame_is_shortened(bench: Bench) {
        let queue = open_rabbit(&format!("{}?frame_max=8192", url(&bench))).await;
        let mut letter = DeadLetter { story: AttemptHistory::default(), ..dead(0) };
        let said = PlatformWords::new(&"\"".repeat(200), "");
        for status in 500..600 {
            let (at, error) = (clock::now(), "\"\\".repeat(400));
            letter.story.add(AttemptRecord { at, status: Some(status), outcome: "retry".into(), error, said: said.clone() });
        }
        letter.detail = "\u{1}".repeat(20_000);
        queue.dead_letter(&letter).await.unwrap();
        publishes(&queue).await;
        let mut reader = visit(&queue).await;
        let found = reader.next().await.unwrap().unwrap().dead;
        reader.close().await;
        assert_eq!((found.reason, found.story.count(), &found.message), (DeadReason::Rejected, 100, &letter.message));
        let attempts = found.story.attempts();
        assert_eq!((attempts[0].status, attempts.last().unwrap().status), (Some(500), Some(599)));
        queue.close().await;
    }

    async fn a_right_to_write_that_is_revoked_heals(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let proxy = Proxy::start(vhost.broker()).await;
        let queue = open_rabbit(&vhost.url_through(proxy.addr())).await;
        queue.publish(&text("before", 0)).await.unwrap();
        vhost.set_rights("guest", ALL, r"^(?!causeway\.in$).*", ALL);
        // A channel remembers a right for a while, so it has to be a new one.
        proxy.cut();
        eventually("the refusal", PATIENCE, async || match queue.publish(&text("meanwhile", 0)).await {
            Err(QueueError::Refused(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let reason = queue.unready().expect("a process that cannot publish is not ready");
        assert!(reason.contains("exchange 'causeway.in'"), "{reason}");
        queue.dead_letter(&dead(1)).await.expect("the other exchange takes its messages");
        vhost.set_rights("guest", ALL, ALL, ALL);
        publishes(&queue).await;
        queue.close().await;
    }

    async fn a_right_to_read_that_is_missing_is_said_and_heals(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        open_rabbit(&vhost.url()).await.close().await;
        let user = vhost.url_with_rights("worker", ALL, ALL, OWN);
        let queue = open(&user, QueueDeclare::Check);
        queue.ready(SOON).await.unwrap();
        let queue = Queue::Rabbit(queue);
        queue.subscribe(home()).await.expect_err("a queue that may not be read");
        let reason = queue.unready().expect("a worker that receives nothing is not ready");
        assert!(reason.contains(&format!("queue 'causeway.w.{}'", home())), "{reason}");
        let user = user.strip_prefix("amqp://").and_then(|user| user.split(':').next()).unwrap();
        vhost.set_rights(user, ALL, ALL, ALL);
        queue.subscribe(home()).await.unwrap().close().await;
        assert_eq!(queue.unready(), None);
        queue.close().await;
    }

    async fn a_declaration_that_is_refused_later_ends_no_process(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let proxy = Proxy::start(vhost.broker()).await;
        let queue = open_rabbit(&vhost.url_through(proxy.addr())).await;
        vhost.delete_queue("causeway.dlq.xo");
        Amqp::open(&vhost.url()).await.declare("causeway.dlq.xo", "classic").await;
        proxy.cut();
        eventually("the reason", PATIENCE, async || match queue.unready() {
            Some(reason) if reason.contains("causeway.dlq.xo") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        vhost.delete_queue("causeway.dlq.xo");
        publishes(&queue).await;
        queue.close().await;
    }

    async fn a_user_who_may_not_configure_uses_the_queues_of_an_administrator(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let user = vhost.url_with_rights("worker", OWN, ALL, ALL);
        for declare in [QueueDeclare::Make, QueueDeclare::Check] {
            let queue = open(&user, declare);
            let refused = queue.ready(SOON).await.expect_err("there is no queue yet");
            assert!(matches!(refused, QueueError::Refused(_)), "{refused}");
            assert!(refused.to_string().contains("(causeway.in.unrouted, causeway.in, "), "{refused}");
            Queue::Rabbit(queue).close().await;
        }
        let waiting = open(&user, QueueDeclare::Check);
        open_rabbit(&vhost.url()).await.close().await;
        let waiting = Queue::Rabbit(waiting);
        publishes(&waiting).await;
        let made = open(&user, QueueDeclare::Make);
        made.ready(SOON).await.expect("the queues exist");
        let made = Queue::Rabbit(made);
        publishes(&made).await;
        made.close().await;
        waiting.close().await;
    }

    async fn each_role_has_enough_rights_with_those_of_the_documentation(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        open_rabbit(&vhost.url()).await.close().await;
        let ingress = vhost.url_with_rights("ingress", NONE, r"^causeway\.(in|dlx)$", NONE);
        let settings = |url: &str, usage| RabbitSettings {
            usage,
            declare: QueueDeclare::Check,
            url: BrokerUrl::parse(url).unwrap(),
            ..rabbit_settings(url, tuning())
        };
        let queue = RabbitQueue::open(settings(&ingress, RabbitUse::Publish));
        queue.ready(SOON).await.unwrap();
        let queue = Queue::Rabbit(queue);
        let message = text("by-an-ingress", 0);
        queue.publish(&message).await.unwrap();
        queue.dead_letter(&dead(7)).await.unwrap();
        queue.depth().await.expect("queues that the user may not see count as empty");
        queue.close().await;
        let worker = vhost.url_with_rights(
            "worker",
            OWN,
            r"^(causeway\.(in|dlx|workers)|amq\.gen.*)$",
            r"^(causeway\.(w\..+|workers)|amq\.gen.*)$",
        );
        let queue = RabbitQueue::open(settings(&worker, RabbitUse::Work));
        queue.ready(SOON).await.unwrap();
        let queue = Queue::Rabbit(queue);
        let home = causeway::queue::PartitionId::of(Destination::Xo, &message.lane, queue.partitions());
        let mut subscription = queue.subscribe(home).await.unwrap();
        let received = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
        assert_eq!(received.message.id, message.id);
        received.ack().await.unwrap();
        subscription.close().await;
        queue.depth().await.expect("queues that the user may not see count as empty");
        queue.close().await;
        let operator = vhost.url_with_rights(
            "operator",
            r"^causeway\.reader\..+",
            r"^causeway\.(in|dlx|reader\..+)$",
            r"^causeway\.(dlq\..+|unrouted|reader\..+)$",
        );
        let queue = RabbitQueue::open(settings(&operator, RabbitUse::Admin));
        queue.ready(SOON).await.unwrap();
        let queue = Queue::Rabbit(queue);
        let mut reader = visit(&queue).await;
        assert!(reader.next().await.unwrap().is_some());
        reader.close().await;
        queue.close().await;
    }

    async fn a_list_of_hosts_is_tried_in_turn(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let gone = crate::harness::ports::free_address();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let over_v6 = TcpListener::bind("[::1]:0").await.unwrap();
        let (silent_at, v6_at, broker) = (silent.local_addr().unwrap(), over_v6.local_addr().unwrap(), vhost.broker());
        crate::harness::spawn(async move {
            loop {
                let (mut client, _) = over_v6.accept().await.unwrap();
                let mut server = TcpStream::connect(broker).await.unwrap();
                crate::harness::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        let hosts = vhost.url().replace(&broker.to_string(), &format!("{gone},{silent_at},{v6_at}"));
        let queue = open_rabbit(&hosts).await;
        publishes(&queue).await;
        queue.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_is_given_up_leaves_no_thread_and_no_socket() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let queue = RabbitQueue::open(rabbit_settings(&format!("amqp://guest:guest@{address}/%2f"), tuning()));
    let (mut client, _) = silent.accept().await.unwrap();
    let mut header = [0; 8];
    client.read_exact(&mut header).await.unwrap();
    assert_eq!(&header[..4], b"AMQP");
    assert!(!threads_of_the_client().is_empty());
    Queue::Rabbit(queue).close().await;
    let end = tokio::time::timeout(SOON, client.read(&mut header)).await.expect("the socket is closed");
    assert_eq!(end.unwrap(), 0);
    eventually("the thread to end", SOON, async || match threads_of_the_client() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
}

fn threads_of_the_client() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin-io-loop")).collect()
}
