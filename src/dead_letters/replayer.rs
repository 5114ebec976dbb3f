//! The replayer: publishes dead letters again, many lanes concurrently, and the messages of each lane one after
//! another.
//!
//! Guarantees: the next message of a lane is published only after the previous one is confirmed and its dead letter
//! removed. After a failure or a cancellation nothing more is published, and calls in flight are completed, so the
//! numbers match the work done. The number of bodies in memory is bounded.
//!
//! Not responsible for: the choice and the order of the messages (`replay.rs`).

use std::collections::{HashMap, VecDeque};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Interval;

use super::outcome::RepublishedMessage;
use super::replay::{ReplayCounts, ReplayResult};
use crate::message::{LaneKey, Message};
use crate::queue::{DeadLetterEntry, Queue, QueueError};
use crate::tasks::CancellationToken;

/// The most dead letters in memory: enough to batch the broker's confirms, few enough for the memory.
const WINDOW: usize = 128;

/// The dead letters in memory and the calls in flight.
pub(super) struct DeadLetterReplayer<'a, P> {
    queue: &'a Queue,
    stop: &'a CancellationToken,
    pace: &'a mut Option<Interval>,
    replayed: &'a mut ReplayResult,
    progress: &'a mut P,
    in_hand: usize,
    /// The lanes with a dead letter in memory, and the later dead letters of each lane.
    lanes: HashMap<LaneKey, VecDeque<DeadLetterEntry>>,
    ready: VecDeque<DeadLetterEntry>,
    under_way: FuturesUnordered<BoxFuture<'a, Result<(LaneKey, RepublishedMessage), QueueError>>>,
}

impl<'a, P: FnMut(ReplayCounts)> DeadLetterReplayer<'a, P> {
    pub(super) fn new(
        queue: &'a Queue,
        stop: &'a CancellationToken,
        pace: &'a mut Option<Interval>,
        replayed: &'a mut ReplayResult,
        progress: &'a mut P,
    ) -> Self {
        let (lanes, ready, under_way) = (HashMap::new(), VecDeque::new(), FuturesUnordered::new());
        Self { queue, stop, pace, replayed, progress, in_hand: 0, lanes, ready, under_way }
    }

    /// Whether nothing more may be published.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Only removes the dead letter.
    pub(super) async fn clear(&mut self, held: DeadLetterEntry) -> Result<(), QueueError> {
        held.remove().await?;
        self.replayed.replay_counts.cleared += 1;
        (self.progress)(self.replayed.replay_counts);
        Ok(())
    }

    /// Adds the next dead letter of its lane. Waits while the memory limit is reached.
    pub(super) async fn take(&mut self, held: DeadLetterEntry) -> Result<(), QueueError> {
        self.in_hand += 1;
        match self.lanes.get_mut(&held.dead.message.lane) {
            Some(behind) => behind.push_back(held),
            None => {
                self.lanes.insert(held.dead.message.lane.clone(), VecDeque::new());
                self.ready.push_back(held);
            }
        }
        while self.in_hand >= WINDOW && !self.is_stopped() {
            self.step().await?;
        }
        Ok(())
    }

    /// Publishes all dead letters in memory.
    pub(super) async fn finish(&mut self) -> Result<(), QueueError> {
        while self.in_hand > 0 && !self.is_stopped() {
            self.step().await?;
        }
        Ok(())
    }

    /// Waits for the calls in flight, and leaves the other dead letters unchanged.
    pub(super) async fn give_up(mut self) {
        while let Some(landed) = self.under_way.next().await {
            if let Ok((_, message)) = landed {
                self.count(message);
            }
        }
    }

    async fn step(&mut self) -> Result<(), QueueError> {
        tokio::select! {
            biased;
            Some(landed) = self.under_way.next() => self.landed(landed?),
            () = self.stop.cancelled() => {}
            () = turn(self.pace), if !self.ready.is_empty() => self.send_one(),
        }
        Ok(())
    }

    fn send_one(&mut self) {
        if let Some(held) = self.ready.pop_front() {
            self.under_way.push(Box::pin(send(self.queue, held)));
        }
    }

    fn landed(&mut self, (lane, message): (LaneKey, RepublishedMessage)) {
        self.in_hand -= 1;
        self.count(message);
        match self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    fn count(&mut self, message: RepublishedMessage) {
        self.replayed.messages.push(message);
        self.replayed.replay_counts.replayed += 1;
        (self.progress)(self.replayed.replay_counts);
    }
}

async fn send(queue: &Queue, held: DeadLetterEntry) -> Result<(LaneKey, RepublishedMessage), QueueError> {
    let message = again(&held.dead.message);
    queue.publish(&message).await?;
    held.remove().await?;
    let republished = RepublishedMessage::from(&message);
    Ok((message.lane, republished))
}

/// The same message, accepted anew: its deadline starts again, and its history is dropped.
fn again(message: &Message) -> Message {
    Message {
        accepted_at: crate::clock::now(),
        replays: message.replays.saturating_add(1),
        ..message.clone()
    }
}

async fn turn(pace: &mut Option<Interval>) {
    if let Some(pace) = pace {
        pace.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::message::{Destination, Kind, MessageId};

    #[test]
    fn a_replayed_message_is_the_same_message_taken_now() {
        let mut message = Message::new(
            MessageId::fresh(),
            Kind::HandoffStart,
            Destination::ServiceNow,
            LaneKey::parse("c").unwrap(),
            "{}",
        );
        message.accepted_at = Timestamp::from_second(1).unwrap();
        let again = again(&message);
        assert_eq!((again.id, again.replays), (message.id, 1));
        assert!(again.accepted_at > message.accepted_at);
        assert_eq!((again.body, again.lane), (message.body, message.lane));
    }
}
