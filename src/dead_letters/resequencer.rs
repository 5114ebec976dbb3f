//! A resequencer: brings messages from the order of death back into the order of acceptance, lane by lane.
//!
//! Guarantees: within a lane, a message leaves only after all messages in front have left or are known to be missing. A
//! message that arrives in order leaves at once, so memory holds only early messages.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The expected keys of each lane, and the messages that arrived early.
#[derive(Debug)]
pub(super) struct LaneResequencer<L, K, T> {
    expected: HashMap<L, VecDeque<K>>,
    early: HashMap<K, T>,
}

impl<L: Eq + Hash + Clone, K: Eq + Hash + Copy, T> LaneResequencer<L, K, T> {
    /// Expects these keys, each lane in the given order.
    pub(super) fn expecting(order: impl IntoIterator<Item = (L, K)>) -> Self {
        let mut expected: HashMap<L, VecDeque<K>> = HashMap::new();
        for (lane, key) in order {
            expected.entry(lane).or_default().push_back(key);
        }
        Self { expected, early: HashMap::new() }
    }

    /// Adds a message, and returns the messages that may leave now, in order.
    pub(super) fn arrive(&mut self, lane: &L, key: K, arrived: T) -> Vec<T> {
        self.early.insert(key, arrived);
        let Some(line) = self.expected.get_mut(lane) else { return Vec::new() };
        let mut ready = Vec::new();
        while let Some(next) = line.front().and_then(|key| self.early.remove(key)) {
            ready.push(next);
            line.pop_front();
        }
        ready
    }

    /// Returns the rest of each lane in order, after the last message has arrived. Missing messages are skipped.
    pub(super) fn rest(mut self) -> Vec<T> {
        let early = &mut self.early;
        self.expected.values().flatten().filter_map(|key| early.remove(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_waits_for_the_message_before_it() {
        let mut lineup = LaneResequencer::expecting([("a", 1), ("a", 2), ("b", 3)]);
        assert!(lineup.arrive(&"a", 2, "second").is_empty());
        assert_eq!(lineup.arrive(&"b", 3, "other"), ["other"]);
        assert_eq!(lineup.arrive(&"a", 1, "first"), ["first", "second"]);
        assert!(lineup.rest().is_empty());
    }

    #[test]
    fn a_missing_message_delays_others_for_a_limited_time() {
        let mut lineup = LaneResequencer::expecting([("a", 1), ("a", 2), ("a", 3)]);
        assert!(lineup.arrive(&"a", 3, 3).is_empty());
        assert!(lineup.arrive(&"a", 2, 2).is_empty());
        assert_eq!(lineup.rest(), [2, 3]);
    }

    proptest! {
        #[test]
        fn any_arrival_leaves_once_and_in_order(
            arrivals in Just((0..60_u32).collect::<Vec<_>>()).prop_shuffle(), missing in 0..60_u32
        ) {
            let lane = |key: u32| key % 7;
            let mut lineup = LaneResequencer::expecting((0..60).map(|key| (lane(key), key)));
            let mut left = Vec::new();
            for key in arrivals.into_iter().filter(|key| *key != missing) {
                left.extend(lineup.arrive(&lane(key), key, key));
            }
            left.extend(lineup.rest());
            prop_assert_eq!(left.len(), 59);
            for which in 0..7 {
                let line: Vec<u32> = left.iter().copied().filter(|key| lane(*key) == which).collect();
                prop_assert!(line.is_sorted());
            }
        }
    }
}
