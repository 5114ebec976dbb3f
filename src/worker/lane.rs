//! The lanes of one partition: a strict line for each conversation, of which only the head flies.
//!
//! Guarantees: a lane never has two messages in the air, and lends them in the order in which they came; a lane that
//! waits holds up no other. Pure: no I/O, time is an argument.

use std::collections::{BTreeSet, HashMap, VecDeque};

use tokio::time::Instant;

use crate::message::LaneKey;
use crate::queue::Loan;

/// What the head of a lane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Ready,
    Flying,
    Waiting(Instant),
    /// Waits for the breaker, not for a time.
    Parked,
}

#[derive(Debug)]
struct Lane {
    line: VecDeque<Loan>,
    head: Head,
    /// The head keeps failing while others are served: the lane may not fill more than its share of the window.
    stuck: bool,
}

/// How many lanes are in which state; the labels of `causeway_lanes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LaneCounts {
    pub(super) waiting: usize,
    pub(super) in_flight: usize,
    pub(super) backing_off: usize,
}

/// All lanes of a partition that have messages here.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    ready: VecDeque<LaneKey>,
    alarms: BTreeSet<(Instant, LaneKey)>,
}

impl Lanes {
    /// Puts a loan at the end of its lane.
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

    /// Whether a lane is stuck and holds its full share already: one more would take it from the others.
    pub(super) fn is_overfull(&self, key: &LaneKey, share: usize) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.stuck && lane.line.len() >= share)
    }

    /// The next head that may fly. It is in the air until one of the landings below is called for its lane.
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

    /// The head is settled: the next one may fly.
    pub(super) fn landed(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.stuck = false;
        if lane.line.is_empty() {
            self.lanes.remove(key);
        } else {
            lane.head = Head::Ready;
            self.ready.push_back(key.clone());
        }
    }

    /// The head failed and flies again at `at`.
    pub(super) fn back_off(&mut self, loan: Loan, at: Instant, stuck: bool) {
        let key = loan.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.line.push_front(loan);
            lane.head = Head::Waiting(at);
            lane.stuck = stuck;
            self.alarms.insert((at, key));
        }
    }

    /// The head could not even start: it waits for the breaker.
    pub(super) fn park(&mut self, loan: Loan) {
        let key = loan.message.lane.clone();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.line.push_front(loan);
            lane.head = Head::Parked;
        }
    }

    /// The breaker passes again.
    pub(super) fn unpark(&mut self) {
        for (key, lane) in &mut self.lanes {
            if lane.head == Head::Parked {
                lane.head = Head::Ready;
                self.ready.push_back(key.clone());
            }
        }
    }

    /// Lets the heads fly whose time has come.
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

    /// When the next head wakes.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Every loan that lies here, in no order between lanes; what flies is not among them.
    pub(super) fn loans(&self) -> impl Iterator<Item = &Loan> {
        self.lanes.values().flat_map(|lane| lane.line.iter())
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
