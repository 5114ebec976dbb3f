//! The lanes of one partition: a strict queue for each conversation, of which only the first message is in flight.
//!
//! Guarantees: a lane never has two messages in flight, and hands out messages in the order in which they came. A waiting
//! lane does not hold up another. Pure: no I/O, time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use crate::message::LaneKey;
use crate::queue::Loan;

/// The state of the first message of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Ready,
    Flying,
    Waiting(Instant),
    /// Waits for the breaker, not for a point in time.
    Parked,
}

#[derive(Debug)]
struct Lane {
    line: VecDeque<Loan>,
    head: Head,
    /// The first message kept failing while others were delivered, and no message of the lane was accepted since. The lane
    /// may not hold more than its limit of a crowded window.
    stuck: bool,
}

/// The number of lanes in each state; the labels of `causeway_lanes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LaneCounts {
    pub(super) waiting: usize,
    pub(super) in_flight: usize,
    pub(super) backing_off: usize,
}

/// All lanes of a partition that have messages in this worker.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneKey, Lane>,
    ready: VecDeque<LaneKey>,
    alarms: BTreeSet<(Instant, LaneKey)>,
}

impl Lanes {
    /// Appends a message to its lane.
    pub(super) fn push(&mut self, loan: Loan) {
        let key = loan.message.lane.clone();
        match self.lanes.get_mut(&key) {
            Some(lane) => lane.line.push_back(loan),
            None => {
                self.lanes.insert(
                    key.clone(),
                    Lane { line: VecDeque::from([loan]), head: Head::Ready, stuck: false },
                );
                self.ready.push_back(key);
            }
        }
    }

    /// Whether a lane holds more than `share` messages.
    pub(super) fn exceeds(&self, key: &LaneKey, share: usize) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.line.len() > share)
    }

    /// Removes the messages of a stuck lane beyond `share`, oldest first.
    pub(super) fn shed(&mut self, key: &LaneKey, share: usize) -> VecDeque<Loan> {
        let lane = self.lanes.get_mut(key).filter(|lane| lane.stuck && lane.line.len() > share);
        lane.map(|lane| lane.line.split_off(share)).unwrap_or_default()
    }

    /// The next message that may start. It is in flight until its lane is landed, backed off or parked.
    pub(super) fn launch(&mut self) -> Option<Loan> {
        while let Some(key) = self.ready.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&key)
                && let Some(loan) = lane.line.pop_front()
            {
                lane.head = Head::Flying;
                return Some(loan);
            }
        }
        None
    }

    /// Among the messages that may start, the one with the lowest `rank`; of equal ranks the one that came last.
    pub(super) fn best(&self, rank: impl Fn(&Loan) -> u32) -> Option<(u32, LaneKey)> {
        let heads = self.ready.iter().rev().filter_map(|key| Some((key, self.lanes.get(key)?.line.front()?)));
        let ranked = heads.map(|(key, loan)| (rank(loan), key));
        ranked.min_by_key(|(rank, _)| *rank).map(|(rank, key)| (rank, key.clone()))
    }

    /// Puts a lane in front of the other ready lanes.
    pub(super) fn prefer(&mut self, key: &LaneKey) {
        if let Some(at) = self.ready.iter().position(|ready| ready == key)
            && let Some(key) = self.ready.remove(at)
        {
            self.ready.push_front(key);
        }
    }

    /// The message in flight is acked: the next one may start. `freed`: the destination accepted it, so the lane is not
    /// stuck any more.
    pub(super) fn landed(&mut self, key: &LaneKey, freed: bool) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.stuck &= !freed;
        if lane.line.is_empty() {
            self.lanes.remove(key);
        } else {
            lane.head = Head::Ready;
            self.ready.push_back(key.clone());
        }
    }

    /// The message in flight failed and starts again at `at`.
    pub(super) fn back_off(&mut self, mut loan: Loan, at: Instant) {
        loan.unload();
        let key = loan.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.line.push_front(loan);
            lane.head = Head::Waiting(at);
            self.alarms.insert((at, key));
        }
    }

    /// Marks a lane whose first message keeps failing while other messages are delivered, or could be.
    pub(super) fn mark_stuck(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.stuck = true;
        }
    }

    /// The message could not start: its lane waits for the breaker.
    pub(super) fn park(&mut self, mut loan: Loan) {
        loan.unload();
        let key = loan.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.line.push_front(loan);
            lane.head = Head::Parked;
        }
    }

    /// The breaker passes again: the lanes that wait for the breaker become ready.
    pub(super) fn unpark(&mut self) {
        for (key, lane) in &mut self.lanes {
            if lane.head == Head::Parked {
                lane.head = Head::Ready;
                self.ready.push_back(key.clone());
            }
        }
    }

    /// Makes the lanes ready whose retry time has come.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.alarms.pop_first() {
            if at > now {
                self.alarms.insert((at, key));
                return;
            }
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.head == Head::Waiting(at)
            {
                lane.head = Head::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// The earliest retry time.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// The messages in the lanes, without those in flight, in no order between lanes.
    pub(super) fn loans(&self) -> impl Iterator<Item = &Loan> {
        self.lanes.values().flat_map(|lane| lane.line.iter())
    }

    /// The number of messages in the lanes, without those in flight.
    pub(super) fn held(&self) -> usize {
        self.lanes.values().map(|lane| lane.line.len()).sum()
    }

    pub(super) fn counts(&self) -> LaneCounts {
        let mut counts = LaneCounts::default();
        for lane in self.lanes.values() {
            match lane.head {
                Head::Ready | Head::Parked => counts.waiting += 1,
                Head::Flying => counts.in_flight += 1,
                Head::Waiting(_) => counts.backing_off += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Destination, Destinations, Kind, Message, MessageId};
    use crate::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
    use crate::queue::{PartitionId, Queue, QueueTuning};

    /// Messages of these lanes, in this order; their ids are numbered.
    async fn lanes_of(names: &[&str]) -> Lanes {
        let folder = tempfile::tempdir().unwrap();
        let tuning = QueueTuning {
            destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
            partitions: 1,
            prefetch: 64,
            publish_timeout: Duration::from_secs(5),
        };
        let settings = EmbeddedSettings { data_dir: folder.path().to_owned(), tuning, max_messages: None };
        let queue = Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap());
        let partition = PartitionId::all(Destination::Xo, 1).next().unwrap();
        let mut subscription = queue.subscribe(partition).await.unwrap();
        let mut lanes = Lanes::default();
        for (n, name) in names.iter().enumerate() {
            let id = MessageId::derived("test", &n.to_string());
            let lane = LaneKey::parse(name).unwrap();
            queue
                .publish(&Message::new(id, Kind::CallbackMessage, Destination::Xo, lane, "{}"))
                .await
                .unwrap();
            lanes.push(subscription.next().await.unwrap());
        }
        lanes
    }

    fn key(name: &str) -> LaneKey {
        LaneKey::parse(name).unwrap()
    }

    fn numbers(loans: impl IntoIterator<Item = Loan>) -> Vec<usize> {
        let number = |id| (0..9).find(|n| MessageId::derived("test", &n.to_string()) == id).unwrap();
        loans.into_iter().map(|loan| number(loan.message.id)).collect()
    }

    #[tokio::test]
    async fn only_heads_fly_and_a_lane_moves_on_when_its_head_landed() {
        let mut lanes = lanes_of(&["a", "a", "b"]).await;
        let first: Vec<Loan> = std::iter::from_fn(|| lanes.launch()).collect();
        assert_eq!(numbers(first), [0, 2]);
        lanes.landed(&key("a"), true);
        assert_eq!(numbers(lanes.launch()), [1]);
        lanes.landed(&key("a"), true);
        lanes.landed(&key("b"), true);
        assert_eq!(
            (lanes.launch().is_none(), lanes.held(), lanes.counts()),
            (true, 0, LaneCounts::default())
        );
    }

    #[tokio::test]
    async fn a_head_that_backs_off_flies_before_what_is_behind_it() {
        let mut lanes = lanes_of(&["a", "a"]).await;
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let loan = lanes.launch().unwrap();
        lanes.back_off(loan, later);
        lanes.wake(now);
        assert!(lanes.launch().is_none());
        assert_eq!(lanes.next_alarm(), Some(later));
        lanes.wake(later);
        assert_eq!(numbers(lanes.launch()), [0]);
        assert_eq!(lanes.next_alarm(), None);
    }

    #[tokio::test]
    async fn what_is_parked_waits_for_no_time() {
        let mut lanes = lanes_of(&["a", "a"]).await;
        let loan = lanes.launch().unwrap();
        lanes.park(loan);
        lanes.wake(Instant::now() + Duration::from_secs(9));
        assert!(lanes.launch().is_none());
        lanes.unpark();
        assert_eq!(numbers(lanes.launch()), [0]);
    }

    #[tokio::test]
    async fn a_stuck_lane_sheds_its_newest_and_stays_stuck_until_something_is_taken() {
        let mut lanes = lanes_of(&["a", "a", "a", "a", "a", "b"]).await;
        assert!(lanes.shed(&key("a"), 2).is_empty(), "it is not stuck");
        lanes.mark_stuck(&key("a"));
        assert_eq!(numbers(lanes.shed(&key("a"), 3)), [3, 4]);
        assert!(!lanes.exceeds(&key("a"), 3));
        lanes.launch().unwrap();
        lanes.landed(&key("a"), false);
        assert_eq!(numbers(lanes.shed(&key("a"), 1)), [2]);
        lanes.landed(&key("a"), true);
        assert!(lanes.shed(&key("a"), 0).is_empty(), "its head was taken");
    }

    #[tokio::test]
    async fn the_youngest_of_the_least_tried_heads_is_preferred() {
        let mut lanes = lanes_of(&["a", "b", "c", "c"]).await;
        let rank = |loan: &Loan| match loan.message.lane.as_str() {
            "a" => 2,
            _ => 1,
        };
        let (best, lane) = lanes.best(rank).unwrap();
        assert_eq!((best, lane.as_str()), (1, "c"));
        lanes.prefer(&lane);
        let order: Vec<Loan> = std::iter::from_fn(|| lanes.launch()).collect();
        assert_eq!(numbers(order), [2, 0, 1]);
    }
}
