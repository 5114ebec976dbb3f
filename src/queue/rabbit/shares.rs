//! The in-flight limit of each queue: how many of its publishes may be unconfirmed.
//!
//! A queue that confirms nothing, such as one without a majority of its replicas, would hold up all other queues. It would
//! fill the window of the publisher. Before that, the broker would stop reading from a connection with 32 unconfirmed
//! commands at one quorum queue (`quorum_commands_soft_limit`).
//! Guarantees: requests for one queue leave in the order in which they came. A request waits only while other requests for
//! its queue are unconfirmed; the end of one of these lets the next one leave.
//! Not responsible for: the content of a request (`publisher.rs`).

use std::collections::{HashMap, VecDeque};

/// Below the 32 at which the broker stops reading, with room for other commands that the broker counts.
const EACH: usize = 24;

/// The in-flight limits of one publisher window.
#[derive(Debug)]
pub(super) struct Shares<T>(HashMap<String, Share<T>>);

#[derive(Debug)]
struct Share<T> {
    unconfirmed: usize,
    waiting: VecDeque<T>,
}

impl<T> Shares<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Takes a request for this queue, and returns it if it may leave at once.
    pub(super) fn enter(&mut self, key: &str, order: T) -> Option<T> {
        let share = match self.0.get_mut(key) {
            Some(share) => share,
            None => self.0.entry(key.to_owned()).or_insert_with(Share::new),
        };
        if share.unconfirmed < EACH {
            share.unconfirmed += 1;
            return Some(order);
        }
        share.waiting.push_back(order);
        None
    }

    /// Records a confirm of this queue, and returns the request that may leave next.
    pub(super) fn confirmed(&mut self, key: &str) -> Option<T> {
        let share = self.0.get_mut(key)?;
        let next = share.waiting.pop_front();
        if next.is_none() {
            share.unconfirmed = share.unconfirmed.saturating_sub(1);
        }
        next
    }

    /// Removes the given-up requests at the front.
    pub(super) fn give_up(&mut self, key: &str, mut is_given_up: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        if let Some(share) = self.0.get_mut(key) {
            while share.waiting.front().is_some_and(&mut is_given_up) {
                gone.extend(share.waiting.pop_front());
            }
        }
        gone
    }

    /// The number of requests that wait for this queue.
    pub(super) fn waiting(&self, key: &str) -> usize {
        self.0.get(key).map_or(0, |share| share.waiting.len())
    }
}

impl<T> Share<T> {
    fn new() -> Self {
        Self { unconfirmed: 0, waiting: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_leaves_in_turn() {
        let mut shares = Shares::new();
        let left: Vec<usize> = (0..EACH + 3).filter_map(|order| shares.enter("a", order)).collect();
        assert!(left.into_iter().eq(0..EACH));
        assert_eq!(shares.waiting("a"), 3);
        assert_eq!(shares.enter("b", 7), Some(7), "other queues are not held up");
        assert_eq!(shares.confirmed("a"), Some(EACH));
        assert_eq!(shares.give_up("a", |order| *order == EACH + 1), [EACH + 1]);
        assert_eq!([shares.confirmed("a"), shares.confirmed("a")], [Some(EACH + 2), None]);
        assert_eq!([shares.enter("a", 1), shares.enter("a", 2)], [Some(1), None]);
    }
}
