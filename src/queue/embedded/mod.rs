//! The embedded engine: the clauses of the queue on SQLite, for one machine and one serving process.
//!
//! | clause | how |
//! |---|---|
//! | 1 durable | one thread writes all waiting commands in one transaction, and answers after the sync (`writer.rs`) |
//! | 2 in order | the primary key is (partition, number); commands keep their order (`stream.rs`) |
//! | 3 to 5 | unacked messages are tracked in memory; an ack deletes the row (`dispatcher.rs`) |
//! | 6 redeliveries | a clean stop records the delivered messages; after a crash the first `prefetch` of each partition count |
//! | 7 errors | a failed write and too many messages are errors; the thread tries again by itself, without a restart |
//! | 8 unreadable | `row.rs` |
//! | 9 dead letters | a table like that of the messages; a lock file for the exclusive reader (`dead_letters.rs`, `lock.rs`) |
//! | 10 lease | always valid: the lock file keeps other serving processes out |
//!
//! Memory holds the unacked messages without their larger bodies (`../waiting_body.rs`), and 16 MiB of SQLite's cache,
//! however many messages wait. [`EmbeddedQueue::open_admin`] is for tools beside a running server: a tool publishes,
//! dead-letters and reads dead letters, but does not consume. The server sees the messages of a tool within a quarter of a
//! second.

mod dead_letters;
mod dead_reasons;
mod dispatcher;
mod lock;
mod row;
mod store;
mod stored_lanes;
mod stream;
mod subscription;
pub(in crate::queue) mod transfer;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{PartitionId, QueueDepth, QueueError, QueueTuning};
use crate::data_files;
use crate::message::{DeadLetter, DeadReason, Destination, Destinations, Message};
pub use dead_letters::EmbeddedReader;
use dispatcher::MessageDispatcher;
use lock::FileLock;
use store::MessageStore;
use stored_lanes::StoredLane;
use stream::StreamNumbers;
pub use subscription::EmbeddedSubscription;
pub(crate) use subscription::{EmbeddedAck, RowBody};
pub use transfer::StoredCount;
use writer::{ControlRequest, StoreWriter, WriteRequest, WriterCommand, WriterHandle};

/// The number of publishes that may wait for the disk at once. Further callers wait for a permit.
const PUBLISHES_MAX: usize = 4_096;

/// The settings of the embedded engine.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// The folder of the queue's files, created if it is missing.
    pub data_dir: PathBuf,
    /// The settings that both engines share.
    pub tuning: QueueTuning,
    /// The limit of messages: more are refused ([`QueueError::Full`]). Dead letters do not count and are never refused.
    pub max_messages: Option<u64>,
}

/// The queue in a folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedQueue {
    partitions: u16,
    inner: Arc<EngineState>,
}

#[derive(Debug)]
struct EngineState {
    settings: EmbeddedSettings,
    numbers: StreamNumbers,
    /// A tool takes the destinations from the file, since it may run without the settings of the server.
    destinations: Destinations,
    writer_handle: WriterHandle,
    publishes: Arc<Semaphore>,
    connected: watch::Receiver<bool>,
    preferred_elsewhere: watch::Sender<BTreeMap<PartitionId, u64>>,
}

impl EmbeddedQueue {
    /// Opens the queue to serve it. Returns [`QueueError::Busy`] if another process serves it.
    pub async fn open(settings: EmbeddedSettings) -> Result<Self, QueueError> {
        Self::start(settings, true).await
    }

    /// Opens the queue beside the process that serves it, if there is one. All calls work except
    /// [`super::Queue::subscribe`].
    pub async fn open_admin(settings: EmbeddedSettings) -> Result<Self, QueueError> {
        Self::start(settings, false).await
    }

    async fn start(settings: EmbeddedSettings, serves: bool) -> Result<Self, QueueError> {
        let partitions = settings.tuning.partitions.max(1);
        let (commands, taken) = std::sync::mpsc::channel();
        let writer_handle = WriterHandle(commands);
        let (connected, seen) = watch::channel(true);
        let (opened, answer) = oneshot::channel();
        let inside = settings.clone();
        std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || match open_files(&inside, serves) {
                Ok((store, dispatcher, lock)) => {
                    let numbers = store.numbers().clone();
                    let writer = StoreWriter {
                        store,
                        partitions,
                        max_messages: inside.max_messages,
                        dispatcher,
                        connected,
                        acking: HashMap::new(),
                    };
                    let _ = opened.send(Ok(numbers));
                    let closed = writer.run(&taken);
                    drop(lock);
                    closed.map(|(reply, noted)| reply.send(noted));
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .map_err(|error| QueueError::Unavailable(format!("cannot start the queue's thread: {error}")))?;
        let ended = |_| QueueError::Unavailable("the queue's thread ended".to_owned());
        let numbers = answer.await.map_err(ended)??;
        let destinations = match serves {
            true => settings.tuning.destinations.clone(),
            false => Destinations::new(numbers.destinations()),
        };
        let inner = EngineState {
            settings,
            numbers,
            destinations,
            writer_handle,
            publishes: Arc::new(Semaphore::new(PUBLISHES_MAX)),
            connected: seen,
            preferred_elsewhere: watch::Sender::default(),
        };
        Ok(Self { partitions, inner: Arc::new(inner) })
    }

    pub(super) const fn partitions(&self) -> u16 {
        self.partitions
    }

    pub(super) fn destinations(&self) -> &Destinations {
        &self.inner.destinations
    }

    pub(super) async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        self.write(|_permit| WriteRequest::Publish { message: message.clone(), _permit }).await
    }

    pub(super) async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        self.write(|_permit| WriteRequest::DeadLetter { dead: Box::new(dead.clone()), _permit }).await
    }

    async fn write(
        &self,
        write: impl FnOnce(OwnedSemaphorePermit) -> WriteRequest,
    ) -> Result<(), QueueError> {
        let inner = &self.inner;
        let written = async {
            let turn = Arc::clone(&inner.publishes).acquire_owned().await;
            let permit = turn.map_err(|_| QueueError::Unavailable("it is closed".to_owned()))?;
            inner.writer_handle.ask(|reply| WriterCommand::Write(write(permit), reply)).await
        };
        let limit = inner.settings.tuning.publish_timeout;
        tokio::time::timeout(limit, written).await.unwrap_or_else(|_| {
            Err(QueueError::Unavailable(format!("the disk did not answer within {limit:?}")))
        })
    }

    pub(super) async fn subscribe(&self, partition: PartitionId) -> Result<EmbeddedSubscription, QueueError> {
        if partition.index >= self.partitions {
            return Err(QueueError::Mismatch(format!(
                "there is no partition {partition}: the queue has {} for each destination",
                self.partitions
            )));
        }
        let stream = self.inner.numbers.partition(partition).ok_or_else(|| unknown(partition.destination))?;
        let writer_handle = self.inner.writer_handle.clone();
        let wanted = writer_handle.clone();
        let (number, messages) = writer_handle
            .ask(|reply| {
                WriterCommand::Ask(ControlRequest::Subscribe { stream, writer_handle: wanted, reply })
            })
            .await?;
        Ok(EmbeddedSubscription::new(stream, number, messages, writer_handle))
    }

    /// For reading only, beside other readers and beside the exclusive reader.
    pub(super) async fn read_dead_letters(
        &self,
        destination: Destination,
    ) -> Result<EmbeddedReader, QueueError> {
        self.open_reader(destination, None).await
    }

    pub(super) async fn dlq_reader(&self, destination: Destination) -> Result<EmbeddedReader, QueueError> {
        let path = self.inner.settings.data_dir.join(format!("siding.{destination}.lock"));
        let lock = FileLock::take(&path, |holder| {
            format!("the dead letters of {destination} are being read by {holder}: wait until it is done")
        })?;
        self.open_reader(destination, Some(lock)).await
    }

    async fn open_reader(
        &self,
        destination: Destination,
        lock: Option<FileLock>,
    ) -> Result<EmbeddedReader, QueueError> {
        let stream =
            self.inner.numbers.dead_letter_stream(destination).ok_or_else(|| unknown(destination))?;
        let writer_handle = self.inner.writer_handle.clone();
        let end =
            writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::End { stream, reply })).await?;
        Ok(EmbeddedReader { at: stream.start(), end, writer_handle, lock })
    }

    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.inner.connected.clone()
    }

    /// Never changes: there is no other worker.
    pub(super) fn preferred_elsewhere(&self) -> watch::Receiver<BTreeMap<PartitionId, u64>> {
        self.inner.preferred_elsewhere.subscribe()
    }

    /// `waiting` counts all messages that are not acked: a tool cannot know which ones the server has handed out.
    pub(super) async fn depth(&self) -> Result<QueueDepth, QueueError> {
        self.inner.writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::Depth { reply })).await
    }

    /// The number of dead letters by reason, from an index.
    pub(super) async fn dead_reasons(&self) -> Result<BTreeMap<DeadReason, u64>, QueueError> {
        self.inner.writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::Reasons { reply })).await
    }

    /// Whether the folder has a queue that no process serves.
    pub(super) fn is_left(folder: &Path) -> bool {
        let lock = || FileLock::take(&folder.join("causeway.lock"), str::to_owned);
        folder.join("queue.sqlite").exists() && lock().is_ok()
    }

    /// The lane of each message. Reads all rows.
    pub(super) async fn stored_lanes(&self) -> Result<Vec<StoredLane>, QueueError> {
        self.inner.writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::Lanes { reply })).await
    }

    /// Records the delivered messages and releases the folder. Later calls of other handles get
    /// [`QueueError::Unavailable`].
    pub(super) async fn close(&self) {
        if let Err(error) =
            self.inner.writer_handle.ask(|reply| WriterCommand::Ask(ControlRequest::Close { reply })).await
        {
            tracing::warn!(%error, "{}", writer::IN_FLIGHT_NOT_RECORDED);
        }
    }
}

fn unknown(destination: Destination) -> QueueError {
    QueueError::Mismatch(format!("the queue has never had a destination {destination}"))
}

/// Takes the lock, then opens the file, all on the thread that will own the file.
fn open_files(
    settings: &EmbeddedSettings,
    serves: bool,
) -> Result<(MessageStore, Option<MessageDispatcher>, Option<FileLock>), QueueError> {
    let (folder, tuning) = (&settings.data_dir, &settings.tuning);
    let path = folder.join("queue.sqlite");
    if !serves {
        if !path.exists() {
            let text =
                format!("there is no queue in {}: no server has run with this folder yet", folder.display());
            return Err(QueueError::Mismatch(text));
        }
        return Ok((MessageStore::open(&path, tuning)?, None, None));
    }
    data_files::create_folder(folder).map_err(|error| {
        QueueError::Unavailable(format!("cannot make the data folder {}: {error}", folder.display()))
    })?;
    let lock = FileLock::take(&folder.join("causeway.lock"), |holder| {
        format!(
            "the data folder {} is in use by {holder}: stop that process first, or set another data_dir",
            folder.display()
        )
    })?;
    let mut store = MessageStore::open(&path, tuning)?;
    let prefetch = tuning.prefetch.max(1);
    let (streams, out) = store.started(prefetch).map_err(|error| {
        QueueError::Unavailable(format!("cannot write to the queue's file {}: {error}", path.display()))
    })?;
    Ok((store, Some(MessageDispatcher::new(prefetch, out, &streams)), Some(lock)))
}
