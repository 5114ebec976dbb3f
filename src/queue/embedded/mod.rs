//! The embedded engine: the clauses of the queue on SQLite, for one machine and one serving process.
//!
//! | clause | how |
//! |---|---|
//! | 1 durable | one thread writes all waiting commands in one transaction, and answers after the sync (`writer.rs`) |
//! | 2 in order | the primary key is (partition, number); commands keep their order (`line.rs`) |
//! | 3 to 5 | unacked messages are tracked in memory; an ack deletes the row (`lending.rs`) |
//! | 6 redeliveries | a clean stop records the delivered messages; after a crash the first `prefetch` of each partition count |
//! | 7 errors | a failed write and too many messages are errors; the thread tries again by itself, without a restart |
//! | 8 unreadable | `row.rs` |
//! | 9 dead letters | a table like that of the messages; a lock file for the exclusive reader (`siding.rs`, `lock.rs`) |
//! | 10 lease | always valid: the lock file keeps other serving processes out |
//!
//! Memory holds the unacked messages without their larger bodies (`../waiting_body.rs`), and 16 MiB of SQLite's cache,
//! however many messages wait. [`EmbeddedQueue::open_desk`] is for tools beside a running server: a tool publishes,
//! dead-letters and reads dead letters, but does not consume. The server sees the messages of a tool within a quarter of a
//! second.

mod lending;
mod line;
mod lock;
mod row;
mod siding;
mod store;
mod subscription;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{Depth, PartitionId, QueueError, QueueTuning};
use crate::data_files;
use crate::message::{DeadLetter, Destination, Destinations, Message};
use lending::Lending;
use line::LineNumbers;
use lock::Lock;
pub use siding::Siding;
use store::Store;
pub use subscription::Subscription;
pub(crate) use subscription::{Receipt, RowBody};
use writer::{Ask, Command, Gate, Write, Writer};

/// Publishes that may wait for the disk at once. More callers wait for a permit.
const PUBLISHES_MAX: usize = 4_096;

/// The settings of the embedded engine.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// The folder of the queue's files, created if it is missing.
    pub data_dir: PathBuf,
    /// Shared with the other engine.
    pub tuning: QueueTuning,
    /// The limit of messages: more are refused ([`QueueError::Full`]). Dead letters do not count and are never refused.
    pub max_messages: Option<u64>,
}

/// The queue in a folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedQueue {
    partitions: u16,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: EmbeddedSettings,
    numbers: LineNumbers,
    /// A tool takes the destinations from the file, since it may run without the settings of the server.
    destinations: Destinations,
    gate: Gate,
    publishes: Arc<Semaphore>,
    connected: watch::Receiver<bool>,
    wanted_elsewhere: watch::Sender<BTreeMap<PartitionId, u64>>,
}

impl EmbeddedQueue {
    /// Opens the queue to serve it. Returns [`QueueError::Busy`] if another process serves it.
    pub async fn open(settings: EmbeddedSettings) -> Result<Self, QueueError> {
        Self::start(settings, true).await
    }

    /// Opens the queue beside the process that serves it, if there is one. All calls work except
    /// [`super::Queue::subscribe`].
    pub async fn open_desk(settings: EmbeddedSettings) -> Result<Self, QueueError> {
        Self::start(settings, false).await
    }

    async fn start(settings: EmbeddedSettings, serves: bool) -> Result<Self, QueueError> {
        let partitions = settings.tuning.partitions.max(1);
        let (commands, taken) = std::sync::mpsc::channel();
        let gate = Gate(commands);
        let (connected, seen) = watch::channel(true);
        let (opened, answer) = oneshot::channel();
        let inside = settings.clone();
        std::thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || match open_files(&inside, serves) {
                Ok((store, lending, lock)) => {
                    let numbers = store.numbers().clone();
                    let writer = Writer {
                        store,
                        partitions,
                        max_messages: inside.max_messages,
                        lending,
                        connected,
                        settling: HashMap::new(),
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
        let inner = Inner {
            settings,
            numbers,
            destinations,
            gate,
            publishes: Arc::new(Semaphore::new(PUBLISHES_MAX)),
            connected: seen,
            wanted_elsewhere: watch::Sender::default(),
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
        self.write(|_permit| Write::Publish { message: message.clone(), _permit }).await
    }

    pub(super) async fn bury(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        self.write(|_permit| Write::Bury { dead: Box::new(dead.clone()), _permit }).await
    }

    async fn write(&self, write: impl FnOnce(OwnedSemaphorePermit) -> Write) -> Result<(), QueueError> {
        let inner = &self.inner;
        let written = async {
            let turn = Arc::clone(&inner.publishes).acquire_owned().await;
            let permit = turn.map_err(|_| QueueError::Unavailable("it is closed".to_owned()))?;
            inner.gate.ask(|reply| Command::Write(write(permit), reply)).await
        };
        let limit = inner.settings.tuning.publish_timeout;
        tokio::time::timeout(limit, written).await.unwrap_or_else(|_| {
            Err(QueueError::Unavailable(format!("the disk did not answer within {limit:?}")))
        })
    }

    pub(super) async fn subscribe(&self, partition: PartitionId) -> Result<Subscription, QueueError> {
        if partition.index >= self.partitions {
            return Err(QueueError::Mismatch(format!(
                "there is no partition {partition}: the queue has {} for each destination",
                self.partitions
            )));
        }
        let line = self.inner.numbers.partition(partition).ok_or_else(|| unknown(partition.destination))?;
        let gate = self.inner.gate.clone();
        let wanted = gate.clone();
        let (number, loans) =
            gate.ask(|reply| Command::Ask(Ask::Borrow { line, gate: wanted, reply })).await?;
        Ok(Subscription::new(line, number, loans, gate))
    }

    /// For reading only, beside other readers and beside the exclusive reader.
    pub(super) async fn read_dead_letters(&self, destination: Destination) -> Result<Siding, QueueError> {
        self.visit(destination, None).await
    }

    pub(super) async fn siding(&self, destination: Destination) -> Result<Siding, QueueError> {
        let path = self.inner.settings.data_dir.join(format!("siding.{destination}.lock"));
        let lock = Lock::take(&path, |holder| {
            format!("the dead letters of {destination} are being read by {holder}: wait until it is done")
        })?;
        self.visit(destination, Some(lock)).await
    }

    async fn visit(&self, destination: Destination, lock: Option<Lock>) -> Result<Siding, QueueError> {
        let line = self.inner.numbers.siding(destination).ok_or_else(|| unknown(destination))?;
        let gate = self.inner.gate.clone();
        let end = gate.ask(|reply| Command::Ask(Ask::End { line, reply })).await?;
        Ok(Siding { at: line.start(), end, gate, lock })
    }

    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.inner.connected.clone()
    }

    /// Never changes: there is no other worker.
    pub(super) fn wanted_elsewhere(&self) -> watch::Receiver<BTreeMap<PartitionId, u64>> {
        self.inner.wanted_elsewhere.subscribe()
    }

    /// `waiting` counts all messages that are not acked: a tool cannot know which ones the server has handed out.
    pub(super) async fn depth(&self) -> Result<Depth, QueueError> {
        self.inner.gate.ask(|reply| Command::Ask(Ask::Depth { reply })).await
    }

    /// Records the delivered messages and releases the folder. Later calls of other handles get
    /// [`QueueError::Unavailable`].
    pub(super) async fn close(&self) {
        if let Err(error) = self.inner.gate.ask(|reply| Command::Ask(Ask::Close { reply })).await {
            tracing::warn!(%error, "{}", writer::NO_NOTE);
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
) -> Result<(Store, Option<Lending>, Option<Lock>), QueueError> {
    let (folder, tuning) = (&settings.data_dir, &settings.tuning);
    let path = folder.join("queue.sqlite");
    if !serves {
        if !path.exists() {
            let text =
                format!("there is no queue in {}: no server has run with this folder yet", folder.display());
            return Err(QueueError::Mismatch(text));
        }
        return Ok((Store::open(&path, tuning)?, None, None));
    }
    data_files::create_folder(folder).map_err(|error| {
        QueueError::Unavailable(format!("cannot make the data folder {}: {error}", folder.display()))
    })?;
    let lock = Lock::take(&folder.join("causeway.lock"), |holder| {
        format!(
            "the data folder {} is in use by {holder}: stop that process first, or set another data_dir",
            folder.display()
        )
    })?;
    let mut store = Store::open(&path, tuning)?;
    let prefetch = tuning.prefetch.max(1);
    let (lines, out) = store.started(prefetch).map_err(|error| {
        QueueError::Unavailable(format!("cannot write to the queue's file {}: {error}", path.display()))
    })?;
    Ok((store, Some(Lending::new(prefetch, out, &lines)), Some(lock)))
}
