//! Acks in batches, because a single ack costs a quorum queue as much as a message.
//!
//! Guarantees: the next [`AckBatcher::flush`] acks exactly the messages that were settled before. A flush is due at once if no
//! other message of the channel is unacked, otherwise [`MAX_DELAY`] after the first settled message. If the channel closes
//! before a flush, the broker redelivers the settled messages.
//! Not responsible for: calling [`AckBatcher::flush`] when a flush is due (`subscription.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::Instant;

/// The longest time that a settled message waits for others to share its ack. If the worker is killed in this time, the
/// next worker delivers the message again, as it does with messages in flight.
const MAX_DELAY: Duration = Duration::from_millis(5);
/// A batch of this size is flushed at once.
const MAX_BATCH: usize = 32;

/// The settled messages of one channel with one consumer.
#[derive(Debug)]
pub(super) struct AckBatcher {
    channel: Channel,
    state: Mutex<BatchState>,
}

impl AckBatcher {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, state: Mutex::default() }
    }

    pub(super) fn delivered(&self, tag: u64) {
        self.state().delivered = tag;
    }

    /// Returns false if the channel is closed: the broker then redelivers the message.
    pub(super) fn ack(&self, tag: u64) -> bool {
        self.state().ack(tag, Instant::now());
        self.channel.status().connected()
    }

    /// When the next flush is due; `None` if no ack is pending.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().due
    }

    fn state(&self) -> MutexGuard<'_, BatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands all pending acks to lapin. If the write fails, the consumer's stream ends.
    pub(super) fn flush(&self) {
        for ack in self.state().acks() {
            let options = BasicAckOptions { multiple: ack.and_all_before };
            // One poll queues the frame in lapin. After that the future only waits for the socket, and no caller needs that
            // wait.
            if let Some(Err(error)) = self.channel.basic_ack(ack.tag, options).now_or_never() {
                tracing::debug!(%error, "could not ack; the broker will redeliver the unacked messages of this channel");
                return;
            }
        }
    }
}

/// Flushes the pending acks when it is dropped. The channel must still exist then.
#[derive(Debug)]
pub(super) struct FlushOnDrop(pub(super) Arc<AckBatcher>);

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        self.0.flush();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct AckCommand {
    tag: u64,
    and_all_before: bool,
}

/// The delivery tags of one channel. The broker counts deliveries from 1.
#[derive(Debug, Default)]
struct BatchState {
    /// The newest tag that was handed out.
    delivered: u64,
    acked: u64,
    pending: Vec<u64>,
    due: Option<Instant>,
    /// Every tag up to this one is settled.
    through: u64,
    /// Settled tags above `through`. The messages in between are in flight or wait for a retry.
    beyond: BTreeSet<u64>,
}

impl BatchState {
    fn ack(&mut self, tag: u64, now: Instant) {
        self.pending.push(tag);
        self.acked += 1;
        let hurry = self.acked >= self.delivered || self.pending.len() >= MAX_BATCH;
        self.due = if hurry { Some(now) } else { self.due.or(Some(now + MAX_DELAY)) };
    }

    /// The acks for all pending tags. An ack of several tags must name a pending tag: the broker has forgotten the acked
    /// ones and would close the channel.
    fn acks(&mut self) -> Vec<AckCommand> {
        self.due = None;
        let pending = std::mem::take(&mut self.pending);
        self.beyond.extend(&pending);
        while self.beyond.remove(&(self.through + 1)) {
            self.through += 1;
        }
        let (within, beyond): (Vec<u64>, Vec<u64>) =
            pending.into_iter().partition(|tag| *tag <= self.through);
        let all =
            within.iter().max().map(|newest| AckCommand { tag: *newest, and_all_before: within.len() > 1 });
        let single = beyond.into_iter().map(|tag| AckCommand { tag, and_all_before: false });
        all.into_iter().chain(single).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(tag: u64) -> AckCommand {
        AckCommand { tag, and_all_before: false }
    }

    fn up_to(tag: u64) -> AckCommand {
        AckCommand { tag, and_all_before: true }
    }

    fn told(state: &mut BatchState, acked: &[u64]) -> Vec<AckCommand> {
        state.pending.extend(acked);
        state.acks()
    }

    #[tokio::test(start_paused = true)]
    async fn a_partial_ack_batch_is_flushed_soon() {
        let (mut state, now) = (BatchState { delivered: 100, ..BatchState::default() }, Instant::now());
        state.ack(1, now);
        state.ack(2, now + MAX_DELAY / 2);
        assert_eq!(state.due, Some(now + MAX_DELAY), "counted from the first");
        assert_eq!((state.acks(), state.due), (vec![up_to(2)], None));
        (3..3 + MAX_BATCH as u64).for_each(|tag| state.ack(tag, now));
        assert_eq!(state.due, Some(now), "many");
        state.acks();
        (3 + MAX_BATCH as u64..=100).for_each(|tag| state.ack(tag, now + MAX_DELAY));
        assert_eq!(state.due, Some(now + MAX_DELAY), "no other message is unacked");
    }

    #[test]
    fn consecutive_acks_are_one_frame() {
        let mut state = BatchState::default();
        assert_eq!(told(&mut state, &[2, 1, 3]), [up_to(3)]);
        assert_eq!(told(&mut state, &[4]), [one(4)]);
        assert_eq!(told(&mut state, &[]), []);
    }

    #[test]
    fn deliveries_in_flight_are_never_acked() {
        let mut state = BatchState::default();
        assert_eq!(told(&mut state, &[2, 3]), [one(2), one(3)]);
        // 2 and 3 are acked: no later ack may name either tag.
        assert_eq!(told(&mut state, &[1]), [one(1)]);
        assert_eq!(told(&mut state, &[5, 4, 7]), [up_to(5), one(7)]);
        assert_eq!(told(&mut state, &[6, 8]), [up_to(8)]);
    }

    proptest! {
        /// A broker that forgets acked tags and fails on an unknown tag.
        #[test]
        fn the_broker_learns_all_that_is_settled_and_nothing_else(request in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(), cuts: Vec<u8>) {
            let (mut state, mut unacked, mut acked) = (BatchState::default(), (1..=40_u64).collect::<BTreeSet<_>>(), BTreeSet::new());
            let (mut left, mut cuts) = (&request[..], cuts.into_iter());
            while !left.is_empty() {
                let cut = usize::from(cuts.next().unwrap_or(3) % 6).min(left.len());
                let (now, later) = if cut == 0 { left.split_at(1) } else { left.split_at(cut) };
                left = later;
                acked.extend(now);
                for ack in told(&mut state, now) {
                    prop_assert!(unacked.contains(&ack.tag), "unknown tag {}", ack.tag);
                    unacked.retain(|tag| if ack.and_all_before { *tag > ack.tag } else { *tag != ack.tag });
                }
                prop_assert!(unacked.is_disjoint(&acked));
                prop_assert_eq!(unacked.len() + acked.len(), 40);
            }
        }
    }
}
