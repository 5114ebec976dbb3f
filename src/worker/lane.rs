//! The lanes of one partition: a strict queue for each conversation, of which only the first message is in flight.
//!
//! Guarantees: a lane never has two messages in flight, and hands out messages in the order in which they came. A waiting
//! lane does not hold up another. Pure: no I/O, time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use crate::message::LaneKey;
use crate::queue::ReceivedMessage;

/// The state of the first message of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneHead {
    Ready,
    InFlight,
    Waiting(Instant),
    /// Waits for the breaker, not for a point in time.
    Blocked,
}

#[derive(Debug)]
struct Lane {
    messages: VecDeque<ReceivedMessage>,
    head: LaneHead,
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
pub(super) struct LaneScheduler {
    lanes: BTreeMap<LaneKey, Lane>,
    ready: VecDeque<LaneKey>,
    timers: BTreeSet<(Instant, LaneKey)>,
}

impl LaneScheduler {
    /// Appends a message to its lane.
    pub(super) fn push(&mut self, received: ReceivedMessage) {
        let key = received.message.lane.clone();
        match self.lanes.get_mut(&key) {
            Some(lane) => lane.messages.push_back(received),
            None => {
                self.lanes.insert(
                    key.clone(),
                    Lane { messages: VecDeque::from([received]), head: LaneHead::Ready, stuck: false },
                );
                self.ready.push_back(key);
            }
        }
    }

    /// Whether a lane holds more than `share` messages.
    pub(super) fn exceeds(&self, key: &LaneKey, max_per_stuck_lane: usize) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.messages.len() > max_per_stuck_lane)
    }

    /// Removes the messages of a stuck lane beyond `share`, oldest first.
    pub(super) fn shed(&mut self, key: &LaneKey, max_per_stuck_lane: usize) -> VecDeque<ReceivedMessage> {
        let lane =
            self.lanes.get_mut(key).filter(|lane| lane.stuck && lane.messages.len() > max_per_stuck_lane);
        lane.map(|lane| lane.messages.split_off(max_per_stuck_lane)).unwrap_or_default()
    }

    /// The next message that may start. It is in flight until its lane is landed, backed off or parked.
    pub(super) fn start_next(&mut self) -> Option<ReceivedMessage> {
        while let Some(key) = self.ready.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&key)
                && let Some(received) = lane.messages.pop_front()
            {
                lane.head = LaneHead::InFlight;
                return Some(received);
            }
        }
        None
    }

    /// Among the messages that may start, the one with the lowest `rank`; of equal ranks the one that came last.
    pub(super) fn best(&self, rank: impl Fn(&ReceivedMessage) -> u32) -> Option<(u32, LaneKey)> {
        let heads =
            self.ready.iter().rev().filter_map(|key| Some((key, self.lanes.get(key)?.messages.front()?)));
        let ranked = heads.map(|(key, received)| (rank(received), key));
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
    pub(super) fn finished(&mut self, key: &LaneKey, freed: bool) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.stuck &= !freed;
        if lane.messages.is_empty() {
            self.lanes.remove(key);
        } else {
            lane.head = LaneHead::Ready;
            self.ready.push_back(key.clone());
        }
    }

    /// The message in flight failed and starts again at `at`.
    pub(super) fn back_off(&mut self, mut received: ReceivedMessage, at: Instant) {
        received.unload();
        let key = received.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.messages.push_front(received);
            lane.head = LaneHead::Waiting(at);
            self.timers.insert((at, key));
        }
    }

    /// Marks a lane whose first message keeps failing while other messages are delivered, or could be.
    pub(super) fn mark_stuck(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.stuck = true;
        }
    }

    /// The message could not start: its lane waits for the breaker.
    pub(super) fn block(&mut self, mut received: ReceivedMessage) {
        received.unload();
        let key = received.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.messages.push_front(received);
            lane.head = LaneHead::Blocked;
        }
    }

    /// The breaker passes again: the lanes that wait for the breaker become ready.
    pub(super) fn unblock(&mut self) {
        for (key, lane) in &mut self.lanes {
            if lane.head == LaneHead::Blocked {
                lane.head = LaneHead::Ready;
                self.ready.push_back(key.clone());
            }
        }
    }

    /// Makes the lanes ready whose retry time has come.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, key));
                return;
            }
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.head == LaneHead::Waiting(at)
            {
                lane.head = LaneHead::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// The earliest retry time.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The messages in the lanes, without those in flight, in no order between lanes.
    pub(super) fn messages(&self) -> impl Iterator<Item = &ReceivedMessage> {
        self.lanes.values().flat_map(|lane| lane.messages.iter())
    }

    /// The number of messages in the lanes, without those in flight.
    pub(super) fn held(&self) -> usize {
        self.lanes.values().map(|lane| lane.messages.len()).sum()
    }

    pub(super) fn counts(&self) -> LaneCounts {
        let mut counts = LaneCounts::default();
        for lane in self.lanes.values() {
            match lane.head {
                LaneHead::Ready | LaneHead::Blocked => counts.waiting += 1,
                LaneHead::InFlight => counts.in_flight += 1,
                LaneHead::Waiting(_) => counts.backing_off += 1,
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
    async fn lanes_of(names: &[&str]) -> LaneScheduler {
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
        let mut lanes = LaneScheduler::default();
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

    fn numbers(messages: impl IntoIterator<Item = ReceivedMessage>) -> Vec<usize> {
        let number = |id| (0..9).find(|n| MessageId::derived("test", &n.to_string()) == id).unwrap();
        messages.into_iter().map(|received| number(received.message.id)).collect()
    }

    #[tokio::test]
    async fn only_heads_fly_and_a_lane_moves_on_when_its_head_landed() {
        let mut lanes = lanes_of(&["a", "a", "b"]).await;
        let first: Vec<ReceivedMessage> = std::iter::from_fn(|| lanes.start_next()).collect();
        assert_eq!(numbers(first), [0, 2]);
        lanes.finished(&key("a"), true);
        assert_eq!(numbers(lanes.start_next()), [1]);
        lanes.finished(&key("a"), true);
        lanes.finished(&key("b"), true);
        assert_eq!(
            (lanes.start_next().is_none(), lanes.held(), lanes.counts()),
            (true, 0, LaneCounts::default())
        );
    }

    #[tokio::test]
    async fn a_head_that_backs_off_flies_before_what_is_behind_it() {
        let mut lanes = lanes_of(&["a", "a"]).await;
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let received = lanes.start_next().unwrap();
        lanes.back_off(received, later);
        lanes.wake(now);
        assert!(lanes.start_next().is_none());
        assert_eq!(lanes.next_timer(), Some(later));
        lanes.wake(later);
        assert_eq!(numbers(lanes.start_next()), [0]);
        assert_eq!(lanes.next_timer(), None);
    }

    #[tokio::test]
    async fn a_parked_lane_waits_for_no_time() {
        let mut lanes = lanes_of(&["a", "a"]).await;
        let received = lanes.start_next().unwrap();
        lanes.block(received);
        lanes.wake(Instant::now() + Duration::from_secs(9));
        assert!(lanes.start_next().is_none());
        lanes.unblock();
        assert_eq!(numbers(lanes.start_next()), [0]);
    }

    #[tokio::test]
    async fn a_stuck_lane_sheds_its_newest_and_stays_stuck_until_something_is_taken() {
        let mut lanes = lanes_of(&["a", "a", "a", "a", "a", "b"]).await;
        assert!(lanes.shed(&key("a"), 2).is_empty(), "it is not stuck");
        lanes.mark_stuck(&key("a"));
        assert_eq!(numbers(lanes.shed(&key("a"), 3)), [3, 4]);
        assert!(!lanes.exceeds(&key("a"), 3));
        lanes.start_next().unwrap();
        lanes.finished(&key("a"), false);
        assert_eq!(numbers(lanes.shed(&key("a"), 1)), [2]);
        lanes.finished(&key("a"), true);
        assert!(lanes.shed(&key("a"), 0).is_empty(), "its head was taken");
    }

    #[tokio::test]
    async fn the_youngest_of_the_least_tried_heads_is_preferred() {
        let mut lanes = lanes_of(&["a", "b", "c", "c"]).await;
        let rank = |received: &ReceivedMessage| match received.message.lane.as_str() {
            "a" => 2,
            _ => 1,
        };
        let (best, lane) = lanes.best(rank).unwrap();
        assert_eq!((best, lane.as_str()), (1, "c"));
        lanes.prefer(&lane);
        let order: Vec<ReceivedMessage> = std::iter::from_fn(|| lanes.start_next()).collect();
        assert_eq!(numbers(order), [2, 0, 1]);
    }
}
