//! Publishes the spooled messages when the broker confirms again.
//!
//! Guarantees: the messages of a lane are published in their order, one after another. A message is deleted only after the
//! broker's confirm. A destination whose queues are unusable holds up no other destination.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use super::{BODIES_KIB, PARTITIONS, Spool, SpoolState};
use crate::message::{AttemptHistory, DeadLetter, DeadReason, LaneKey};
use crate::queue::{PartitionId, QueueError, ReceivedMessage};
use crate::tasks::{CancellationToken, TaskSet};

/// The pause after a failed publish, doubled up to the longest pause. A new connection ends the pause.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a stop waits for confirms. A message whose confirm is missed is published again after the next start.
const CONFIRM_WAIT: Duration = Duration::from_secs(1);
const DEAD_LETTERS_EVERY: Duration = Duration::from_secs(1);

impl Spool {
    /// Starts the tasks that publish the contents.
    pub fn drain(&self, tasks: &mut TaskSet, stop: &CancellationToken) {
        for destination in self.0.store.destinations().iter() {
            for partition in PartitionId::all(destination, PARTITIONS) {
                tasks.start("spool", self.clone().drain_partition(partition, stop.clone()));
            }
        }
        tasks.start("spool", self.clone().drain_dead_letters(stop.clone()));
        tasks.start("spool", self.clone().adopt(stop.clone()));
    }

    pub(super) async fn drain_partition(
        self,
        partition: PartitionId,
        stop: CancellationToken,
    ) -> Result<(), QueueError> {
        let mut subscription = self.0.store.subscribe(partition).await?;
        let mut drain = PartitionDrain::new(self.0);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(confirmed) = drain.publishing.next() => drain.confirmed(confirmed),
                Some(()) = drain.deleting.next() => {}
                received = subscription.next() => match received {
                    Some(received) => drain.take(received),
                    None => break,
                },
            }
        }
        drain.finish().await;
        subscription.close().await;
        Ok(())
    }

    async fn drain_dead_letters(self, stop: CancellationToken) -> Result<(), QueueError> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(DEAD_LETTERS_EVERY) => {}
            }
            if self.0.has_dead.swap(false, Ordering::Relaxed)
                && let Err(error) = self.0.move_dead_letters().await
            {
                self.0.has_dead.store(true, Ordering::Relaxed);
                tracing::debug!(%error, "cannot move the dead letters of the spool yet");
            }
        }
    }
}

/// The messages of one partition that are being published: one message of each lane, and the later messages of these
/// lanes.
struct PartitionDrain {
    state: Arc<SpoolState>,
    publishing: FuturesUnordered<BoxFuture<'static, ReceivedMessage>>,
    behind: HashMap<LaneKey, VecDeque<ReceivedMessage>>,
    deleting: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl PartitionDrain {
    fn new(state: Arc<SpoolState>) -> Self {
        let (publishing, deleting) = (FuturesUnordered::new(), FuturesUnordered::new());
        Self { state, publishing, behind: HashMap::new(), deleting }
    }

    fn take(&mut self, received: ReceivedMessage) {
        match self.behind.get_mut(&received.message.lane) {
            Some(behind) => behind.push_back(received),
            None => {
                self.behind.insert(received.message.lane.clone(), VecDeque::new());
                self.publish(received);
            }
        }
    }

    /// Waits a moment for the messages that are being published. An unconfirmed message stays in the file.
    async fn finish(mut self) {
        let mut confirmed = Vec::new();
        let all = async {
            while let Some(received) = self.publishing.next().await {
                confirmed.push(received);
            }
        };
        let _ = timeout(CONFIRM_WAIT, all).await;
        for received in confirmed {
            Arc::clone(&self.state).delete(received).await;
        }
        while self.deleting.next().await.is_some() {}
    }

    fn publish(&self, received: ReceivedMessage) {
        self.publishing.push(Box::pin(Arc::clone(&self.state).publish_spooled(received)));
    }

    fn confirmed(&mut self, received: ReceivedMessage) {
        let lane = &received.message.lane;
        match self.behind.get_mut(lane).and_then(VecDeque::pop_front) {
            Some(next) => self.publish(next),
            None => drop(self.behind.remove(lane)),
        }
        self.deleting.push(Box::pin(Arc::clone(&self.state).delete(received)));
    }
}

impl SpoolState {
    /// Publishes the message, and returns it when the broker has confirmed it.
    async fn publish_spooled(self: Arc<Self>, mut received: ReceivedMessage) -> ReceivedMessage {
        let kib = u32::try_from((received.body_bytes() / 1024 + 1).min(BODIES_KIB)).unwrap_or(u32::MAX);
        let bodies = self.bodies.acquire_many(kib).await;
        let mut pause = PAUSE_MIN;
        while let Err(error) = self.try_publish(&mut received).await {
            if matches!(error, QueueError::TooLarge(_)) && self.set_aside(&received, &error).await.is_ok() {
                break;
            }
            self.saw_failure(&error);
            let mut connected = self.broker.connected();
            let is_back = async {
                if connected.wait_for(|connected| !connected).await.is_ok() {
                    let _ = connected.wait_for(|connected| *connected).await;
                }
            };
            let _ = timeout(pause, is_back).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        drop(bodies);
        self.saw_confirm();
        received
    }

    /// Moves a message that the broker will never take to the dead letters of the spool, so that the message does not
    /// delay others.
    async fn set_aside(&self, received: &ReceivedMessage, why: &QueueError) -> Result<(), QueueError> {
        let (message, story) = (received.message.clone(), AttemptHistory::default());
        let dead = DeadLetter::new(message, DeadReason::Rejected, why.to_string(), story);
        self.store.dead_letter(&dead).await?;
        tracing::error!(id = %received.message.id, error = %why, "a spooled message stays in the spool as a dead letter");
        Ok(())
    }

    async fn try_publish(&self, received: &mut ReceivedMessage) -> Result<(), QueueError> {
        received.load().await?;
        match &received.unreadable {
            None => self.broker.publish(&received.message).await,
            Some(why) => {
                let (message, story) = (received.message.clone(), AttemptHistory::default());
                let dead = DeadLetter::new(message, DeadReason::Unreadable, why.clone(), story);
                self.broker.dead_letter(&dead).await
            }
        }
    }

    async fn delete(self: Arc<Self>, received: ReceivedMessage) {
        let bytes = received.body_bytes() as u64;
        let (destination, lane) = (received.message.destination, received.message.lane.clone());
        // The store repeats a failed deletion. If the process ends before, the message is published again under its id.
        if let Err(error) = received.ack().await {
            tracing::warn!(%error, "cannot delete a published message from the spool yet");
        }
        self.lanes().remove(destination, &lane, bytes);
        self.shrunk.notify_waiters();
    }

    pub(super) async fn move_dead_letters(&self) -> Result<(), QueueError> {
        for destination in self.store.destinations().iter() {
            let mut reader = self.store.dead_letter_reader(destination).await?;
            while let Some(entry) = reader.next().await? {
                match self.broker.dead_letter(&entry.dead).await {
                    // It stays, and the others go on.
                    Err(QueueError::TooLarge(_)) => continue,
                    moved => moved?,
                }
                let bytes = entry.dead.message.body.len() as u64;
                entry.remove().await?;
                let less = |dead: u64| Some(dead.saturating_sub(bytes));
                let _ = self.dead_bytes.try_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
            reader.close().await;
        }
        Ok(())
    }
}
