//! Acks in batches, because a single ack costs a quorum queue as much as a message.
//!
//! Guarantees: the next [`Acks::tell`] acks exactly the messages that were settled before. A flush is due at once if no
//! other message of the channel is unacked, otherwise [`SOON`] after the first settled message. If the channel closes
//! before a flush, the broker redelivers the settled messages.
//! Not responsible for: calling [`Acks::tell`] when a flush is due (`subscription.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::Instant;

/// The longest time that a settled message waits for others to share its ack. If the worker is killed in this time, the
/// next worker delivers the message again, as it does with messages in flight.
const SOON: Duration = Duration::from_millis(5);
/// A batch of this size is flushed at once.
const MANY: usize = 32;

/// The settled messages of one channel with one consumer.
#[derive(Debug)]
pub(super) struct Acks {
    channel: Channel,
    ledger: Mutex<Ledger>,
}

impl Acks {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, ledger: Mutex::default() }
    }

    pub(super) fn lent(&self, tag: u64) {
        self.ledger().lent = tag;
    }

    /// Returns false if the channel is closed: the broker then redelivers the message.
    pub(super) fn settle(&self, tag: u64) -> bool {
        self.ledger().settle(tag, Instant::now());
        self.channel.status().connected()
    }

    /// When the next flush is due; `None` if no ack is pending.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ledger().due
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands all pending acks to lapin. If the write fails, the consumer's stream ends.
    pub(super) fn tell(&self) {
        for ack in self.ledger().acks() {
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
pub(super) struct Teller(pub(super) Arc<Acks>);

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.tell();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Ack {
    tag: u64,
    and_all_before: bool,
}

/// The delivery tags of one channel. The broker counts deliveries from 1.
#[derive(Debug, Default)]
struct Ledger {
    /// The newest tag that was handed out.
    lent: u64,
    settled: u64,
    untold: Vec<u64>,
    due: Option<Instant>,
    /// Every tag up to this one is settled.
    through: u64,
    /// Settled tags above `through`. The messages in between are in flight or wait for a retry.
    beyond: BTreeSet<u64>,
}

impl Ledger {
    fn settle(&mut self, tag: u64, now: Instant) {
        self.untold.push(tag);
        self.settled += 1;
        let hurry = self.settled >= self.lent || self.untold.len() >= MANY;
        self.due = if hurry { Some(now) } else { self.due.or(Some(now + SOON)) };
    }

    /// The acks for all pending tags. An ack of several tags must name a pending tag: the broker has forgotten the acked
    /// ones and would close the channel.
    fn acks(&mut self) -> Vec<Ack> {
        self.due = None;
        let untold = std::mem::take(&mut self.untold);
        self.beyond.extend(&untold);
        while self.beyond.remove(&(self.through + 1)) {
            self.through += 1;
        }
        let (within, beyond): (Vec<u64>, Vec<u64>) = untold.into_iter().partition(|tag| *tag <= self.through);
        let all = within.iter().max().map(|newest| Ack { tag: *newest, and_all_before: within.len() > 1 });
        let single = beyond.into_iter().map(|tag| Ack { tag, and_all_before: false });
        all.into_iter().chain(single).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(tag: u64) -> Ack {
        Ack { tag, and_all_before: false }
    }

    fn up_to(tag: u64) -> Ack {
        Ack { tag, and_all_before: true }
    }

    fn told(ledger: &mut Ledger, settled: &[u64]) -> Vec<Ack> {
        ledger.untold.extend(settled);
        ledger.acks()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_neighbours_does_not_wait_long() {
        let (mut ledger, now) = (Ledger { lent: 100, ..Ledger::default() }, Instant::now());
        ledger.settle(1, now);
        ledger.settle(2, now + SOON / 2);
        assert_eq!(ledger.due, Some(now + SOON), "counted from the first");
        assert_eq!((ledger.acks(), ledger.due), (vec![up_to(2)], None));
        (3..3 + MANY as u64).for_each(|tag| ledger.settle(tag, now));
        assert_eq!(ledger.due, Some(now), "many");
        ledger.acks();
        (3 + MANY as u64..=100).for_each(|tag| ledger.settle(tag, now + SOON));
        assert_eq!(ledger.due, Some(now + SOON), "no other message is unacked");
    }

    #[test]
    fn neighbours_are_told_in_one_word() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, &[2, 1, 3]), [up_to(3)]);
        assert_eq!(told(&mut ledger, &[4]), [one(4)]);
        assert_eq!(told(&mut ledger, &[]), []);
    }

    #[test]
    fn what_is_in_the_air_is_never_told() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, &[2, 3]), [one(2), one(3)]);
        // 2 and 3 are acked: no later ack may name either tag.
        assert_eq!(told(&mut ledger, &[1]), [one(1)]);
        assert_eq!(told(&mut ledger, &[5, 4, 7]), [up_to(5), one(7)]);
        assert_eq!(told(&mut ledger, &[6, 8]), [up_to(8)]);
    }

    proptest! {
        /// A broker that forgets acked tags and fails on an unknown tag.
        #[test]
        fn the_broker_learns_all_that_is_settled_and_nothing_else(order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(), cuts: Vec<u8>) {
            let (mut ledger, mut unacked, mut settled) = (Ledger::default(), (1..=40_u64).collect::<BTreeSet<_>>(), BTreeSet::new());
            let (mut left, mut cuts) = (&order[..], cuts.into_iter());
            while !left.is_empty() {
                let cut = usize::from(cuts.next().unwrap_or(3) % 6).min(left.len());
                let (now, later) = if cut == 0 { left.split_at(1) } else { left.split_at(cut) };
                left = later;
                settled.extend(now);
                for ack in told(&mut ledger, now) {
                    prop_assert!(unacked.contains(&ack.tag), "unknown tag {}", ack.tag);
                    unacked.retain(|tag| if ack.and_all_before { *tag > ack.tag } else { *tag != ack.tag });
                }
                prop_assert!(unacked.is_disjoint(&settled));
                prop_assert_eq!(unacked.len() + settled.len(), 40);
            }
        }
    }
}
