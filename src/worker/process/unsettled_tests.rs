//! A message whose subscription ended after the decision about the message and before its ack.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use tempfile::TempDir;

use super::*;
use crate::bridge::DelivererParts;
use crate::conversation::{Directory, DirectorySettings, DirectoryUrl};
use crate::delivery::GateSettings;
use crate::message::{Destination, Destinations, Kind, MessageId};
use crate::platform::http::HttpReply;
use crate::platform::{Xo, XoSettings};
use crate::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use crate::queue::{PartitionId, QueueTuning, Subscription};
use crate::worker::deduplication::SettledStore;
use crate::worker::simulation::{delivery_settings, http, metrics, worker_settings};

struct Bench {
    processor: Arc<MessageProcessor>,
    store: Arc<SettledStore>,
    /// How often the Callback URL was called.
    asked: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Bench {
    /// A bench whose Callback URL answers with this status.
    async fn answering(status: StatusCode) -> Self {
        Self::new(status, false).await
    }

    async fn new(status: StatusCode, has_directory: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = DirectorySettings { url: DirectoryUrl::Sqlite(folder.path().join("directory.db")) };
        let directory = if has_directory { Some(Directory::open(&directory).await.unwrap()) } else { None };
        let tuning = QueueTuning {
            destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
            partitions: 1,
            prefetch: 8,
            publish_timeout: Duration::from_secs(5),
        };
        let settings = EmbeddedSettings { data_dir: folder.path().to_owned(), tuning, max_messages: None };
        let queue = Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let http = http().answered_by(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Box::pin(
                async move { Ok(HttpReply { status, headers: HeaderMap::new(), body: Ok(Bytes::new()) }) },
            )
        });
        let callback_url = Some("http://xo.test/callback".parse().unwrap());
        let xo = Xo::new(http, XoSettings { callback_url, ..XoSettings::default() });
        let gates = BTreeMap::from([(Destination::Xo, GateSettings::default())]);
        let gates = Gates::new(&queue, &gates, metrics());
        let parts = DelivererParts {
            servicenow: None,
            xo,
            directory: directory.clone(),
            gates: gates.clone(),
            queue: queue.clone(),
            metrics: metrics(),
        };
        let deliverer = Deliverer::new(parts, delivery_settings());
        let store = SettledStore::new(directory, None);
        let deduplication = Deduplication::new(store.clone());
        let processor = Arc::new(MessageProcessor {
            queue,
            deliverer,
            gates,
            settings: worker_settings(8),
            metrics: metrics(),
            deduplication,
        });
        Self { processor, store, asked, _folder: folder }
    }

    async fn publish(&self) {
        let lane = LaneKey::parse("a").unwrap();
        let message = Message::new(MessageId::fresh(), Kind::CallbackMessage, Destination::Xo, lane, "{}");
        self.processor.queue.publish(&message).await.unwrap();
    }

    async fn borrow(&self) -> (Subscription, ReceivedMessage) {
        let partition = PartitionId::all(Destination::Xo, 1).next().unwrap();
        let mut subscription = self.processor.queue.subscribe(partition).await.unwrap();
        let received = subscription.next().await.unwrap();
        (subscription, received)
    }

    async fn process(&self, received: ReceivedMessage) -> ProcessResult {
        let retry_state = RetryState::new(&self.processor.settings, &received);
        let over = watch::Sender::new(false);
        self.processor.clone().process(received, retry_state, StartPermission::Normal, over.subscribe()).await
    }
}

/// If the lane moved on, the next message would be sent before this one.
async fn is_not_sent_again(status: StatusCode) {
    let bench = Bench::answering(status).await;
    bench.publish().await;
    let (subscription, received) = bench.borrow().await;
    subscription.close().await;
    assert!(
        matches!(bench.process(received).await, ProcessResult::AckFailed),
        "its lane waits until it is redelivered"
    );
    let (_subscription, again) = bench.borrow().await;
    assert!(again.redeliveries > 0);
    assert!(matches!(bench.process(again).await, ProcessResult::Settled { .. }));
    assert_eq!(bench.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_delivered_message_is_not_sent_again() {
    is_not_sent_again(StatusCode::OK).await;
}

#[tokio::test]
async fn a_dead_lettered_message_is_not_sent_again() {
    is_not_sent_again(StatusCode::BAD_REQUEST).await;
}

/// The copies of one event have one id. A poll, a callback and gap repair may each have queued one.
#[tokio::test]
async fn the_second_copy_of_a_dead_event_is_a_repeat() {
    let bench = Bench::new(StatusCode::OK, true).await;
    let lane = || LaneKey::parse("a").unwrap();
    let known = |kind, destination| {
        let message = Message::new(MessageId::fresh(), kind, destination, lane(), "{}");
        let dead = DedupKey::DeadLettered { message: message.id, replays: 0 };
        // Another worker has dead-lettered the message.
        let store = &bench.store;
        async move {
            Deduplication::new(store.clone()).note(&message, dead, SettledAfter::default()).await;
            Deduplication::new(store.clone()).settled_before(&message, false).await.0
        }
    };
    for kind in [Kind::CallbackMessage, Kind::CallbackEvent, Kind::CallbackEnded, Kind::HandoffFailed] {
        assert_eq!(known(kind, Destination::Xo).await, SettledBefore::Yes, "{kind}");
    }
    // A client that sends its request again after a dead letter wants another attempt.
    assert_eq!(known(Kind::HandoffMessage, Destination::ServiceNow).await, SettledBefore::No);
}
