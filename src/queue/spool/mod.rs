//! The spool: keeps messages on the disk of the ingress while the broker does not confirm.
//!
//! ServiceNow posts each callback once, and no source says that XO repeats an event. A refused callback is therefore
//! lost. So the ingress accepts callbacks although the broker is unavailable, and publishes them later.
//! Guarantees: a message is durable before [`Spool::publish`] returns `Ok`, at the broker or on this disk. New messages
//! of a lane are published after the spooled messages of the lane. So the messages of a sender that waits for each
//! answer keep their order. A crash loses nothing. A crash between the broker's confirm and the deletion repeats a
//! message under the same id, which the worker recognises. The spool keeps at most `max_bytes`; further messages are
//! refused ([`QueueError::Full`]).
//! Not responsible for: the order across several ingresses, the messages of senders that repeat a refused request.
//!
//! The store is the embedded engine in a folder of its own, so the clauses of the queue hold for the spool, too.

mod adopt;
mod drain;
mod lanes;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::embedded::{EmbeddedQueue, EmbeddedSettings};
use super::{Queue, QueueError, QueueTuning};
use crate::message::{DeadLetter, Destinations, Message};
use crate::tasks;
use lanes::SpooledLanes;
pub use transfer::{TransferredSpool, export_spools, import_spool};

/// The number of partitions for each destination, fixed by the file. Each partition has a task that publishes its
/// messages.
const PARTITIONS: u16 = 8;
/// The number of messages of one partition that are published at once, if they are of different lanes.
const WINDOW: u16 = 64;
/// The limit for the bodies that all publishing tasks hold at once, in KiB.
const BODIES_KIB: usize = 16 << 10;
/// The maximum number of processes that share a `data_dir`, each with a folder of its own.
const FOLDERS_MAX: u32 = 16;
/// The time limit for waiting until the spooled messages of the lane are published. The sender expects an answer within
/// a second.
const LANE_WAIT: Duration = Duration::from_millis(500);
/// The time limit of a write for its sender. A later write still counts: its message is in the file.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of a write for the spool.
const WRITE_GIVEN_UP: Duration = Duration::from_secs(3600);

/// `ingress.spool*`
#[derive(Debug, Clone)]
pub struct SpoolSettings {
    /// The folder with one folder for each process.
    pub folder: PathBuf,
    /// `ingress.spool_max`
    pub max_bytes: u64,
    /// The destinations of the broker's queues.
    pub destinations: Destinations,
}

/// The spool of one ingress. Clones share it.
#[derive(Debug, Clone)]
pub struct Spool(Arc<SpoolState>);

/// The contents of a spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpoolDepth {
    /// Messages and dead letters.
    pub messages: u64,
    /// When the oldest message was accepted.
    pub oldest: Option<Timestamp>,
}

/// The destination of a new message.
enum LanePlace {
    /// To the broker.
    Free,
    /// After the spooled messages of its lane, which are being published.
    Behind,
    /// Into the spool: the broker does not confirm.
    Away,
}

#[derive(Debug)]
struct SpoolState {
    settings: SpoolSettings,
    store: Queue,
    broker: Queue,
    lanes: Mutex<SpooledLanes>,
    /// The bodies of the dead letters that this process has spooled.
    dead_bytes: AtomicU64,
    /// The last publish failed, and no spooled message was published since.
    is_away: AtomicBool,
    has_dead: AtomicBool,
    bodies: Semaphore,
    /// Notified after each deletion.
    shrunk: Notify,
}

impl Spool {
    /// Opens the first folder that no other process uses, with the messages that are left there.
    pub async fn open(settings: SpoolSettings, broker: Queue) -> Result<Self, QueueError> {
        let mut number = 1;
        loop {
            match Self::open_folder(number, settings.clone(), broker.clone()).await {
                Err(QueueError::Busy(_)) if number < FOLDERS_MAX => number += 1,
                opened => return opened,
            }
        }
    }

    async fn open_folder(number: u32, settings: SpoolSettings, broker: Queue) -> Result<Self, QueueError> {
        let tuning = QueueTuning {
            destinations: settings.destinations.clone(),
            partitions: PARTITIONS,
            prefetch: WINDOW,
            publish_timeout: WRITE_GIVEN_UP,
        };
        let data_dir = place(&settings.folder, number);
        let store = EmbeddedQueue::open(EmbeddedSettings { data_dir, tuning, max_messages: None }).await?;
        let mut lanes = SpooledLanes::default();
        for stored in store.stored_lanes().await? {
            lanes.add(stored.destination, &stored.lane, stored.body_bytes);
        }
        let store = Queue::Embedded(store);
        let has_dead = store.depth().await?.dead > 0;
        if lanes.messages() > 0 {
            tracing::info!(number, messages = lanes.messages(), "the spool has messages of an earlier run");
        }
        Ok(Self(Arc::new(SpoolState {
            settings,
            store,
            broker,
            lanes: Mutex::new(lanes),
            dead_bytes: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            has_dead: AtomicBool::new(has_dead),
            bodies: Semaphore::new(BODIES_KIB),
            shrunk: Notify::new(),
        })))
    }

    /// Publishes the message, or keeps it until the broker is back. After an error the message may or may not be there.
    pub async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        let state = &self.0;
        if state.lets_pass(message).await {
            match state.broker.publish(message).await {
                Ok(()) => return Ok(()),
                Err(error) if is_passing(&error) => state.saw_failure(&error),
                Err(error) => return Err(error),
            }
        }
        let keep = tasks::spawn(Arc::clone(state).keep(message.clone()));
        match timeout(WRITE_TIMEOUT, keep).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(_)) => Err(QueueError::Unavailable("it is closed".to_owned())),
            Err(_) => Err(slow_disk()),
        }
    }

    /// Writes the dead letter, or keeps it until the broker is back.
    pub async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        let state = &self.0;
        match state.broker.dead_letter(dead).await {
            Err(error) if is_passing(&error) => {}
            written => return written,
        }
        let bytes = dead.message.body.len() as u64;
        if !state.has_room_for(bytes) {
            return Err(QueueError::Full);
        }
        state.dead_bytes.fetch_add(bytes, Ordering::Relaxed);
        let kept = timeout(WRITE_TIMEOUT, state.store.dead_letter(dead)).await;
        kept.unwrap_or_else(|_| Err(slow_disk()))?;
        state.has_dead.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the spool has room for one more small message.
    pub fn has_room(&self) -> bool {
        self.0.has_room_for(0) && *self.0.store.connected().borrow()
    }

    /// The contents, for metrics.
    pub async fn depth(&self) -> Result<SpoolDepth, QueueError> {
        let depth = self.0.store.depth().await?;
        let messages = depth.waiting.values().sum::<u64>() + depth.dead;
        Ok(SpoolDepth { messages, oldest: depth.oldest.values().min().copied() })
    }

    /// Closes the file. The draining tasks have ended before.
    pub async fn close(&self) {
        self.0.store.close().await;
    }
}

impl SpoolState {
    fn lanes(&self) -> MutexGuard<'_, SpooledLanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the message may go to the broker at once. `false`: the message must follow spooled messages.
    ///
    /// While the broker confirms, the message first waits for the end of its lane's spooled messages. Otherwise a sender
    /// that is faster than the broker would keep its lane in the spool for ever.
    async fn lets_pass(&self, message: &Message) -> bool {
        if matches!(self.place_of(message), LanePlace::Free) {
            return true;
        }
        let is_free = async {
            loop {
                let shrunk = self.shrunk.notified();
                match self.place_of(message) {
                    LanePlace::Free => return true,
                    LanePlace::Away => return false,
                    LanePlace::Behind => shrunk.await,
                }
            }
        };
        timeout(LANE_WAIT, is_free).await.unwrap_or(false)
    }

    fn place_of(&self, message: &Message) -> LanePlace {
        let lanes = self.lanes();
        match self.is_away.load(Ordering::Relaxed) {
            // An empty spool has no message to probe the broker with, so the new message is the probe.
            _ if lanes.messages() == 0 => LanePlace::Free,
            true => LanePlace::Away,
            false if lanes.has(message) => LanePlace::Behind,
            false => LanePlace::Free,
        }
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        let dead = self.dead_bytes.load(Ordering::Relaxed);
        self.lanes().bytes_with(bytes) + dead <= self.settings.max_bytes
    }

    /// Writes the message. The caller may give up, but the count of the lane must follow the file.
    async fn keep(self: Arc<Self>, message: Message) -> Result<(), QueueError> {
        let (destination, lane) = (message.destination, &message.lane);
        let bytes = message.body.len() as u64;
        if !self.has_room_for(bytes) {
            return Err(QueueError::Full);
        }
        // The message is counted before the write: a later message of the lane must not overtake it during the write.
        self.lanes().add(destination, lane, bytes);
        let kept = self.store.publish(&message).await;
        if kept.is_err() {
            self.lanes().remove(destination, lane, bytes);
        }
        kept
    }

    fn saw_failure(&self, error: &QueueError) {
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the broker does not confirm: messages go to the spool");
        }
    }

    fn saw_confirm(&self) {
        if self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the broker confirms again: the spool is being published");
        }
    }
}

/// Whether the same message may be accepted later.
const fn is_passing(error: &QueueError) -> bool {
    matches!(error, QueueError::Unavailable(_) | QueueError::Full | QueueError::Refused(_))
}

/// The folder with this number.
fn place(folder: &Path, number: u32) -> PathBuf {
    folder.join(number.to_string())
}

fn slow_disk() -> QueueError {
    QueueError::Unavailable(format!("the disk did not answer within {WRITE_TIMEOUT:?}"))
}
