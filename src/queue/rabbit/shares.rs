//! How many unconfirmed publishes each queue may have.
//!
//! A queue that confirms nothing, as one whose replicas have no majority, would hold up all the others: it would fill the
//! publisher's window, and before that the broker, which stops reading from a connection that has 32 unconfirmed commands at one
//! quorum queue (`quorum_commands_soft_limit`). Guarantees: orders of one queue leave in the order in which they came, and one that
//! waits has another one of its queue before it, whose end will let it go.
//! Leaves to others: what an order is (`publisher.rs`).

use std::collections::{HashMap, VecDeque};

/// Below what makes the broker stop reading, with room for what it counts besides.
const EACH: usize = 24;

/// The shares of one window; see the head of this file.
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

    /// Takes an order for this queue, and hands it out again where it may leave at once.
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

    /// One of this queue is confirmed: hands out who may leave in its place.
    pub(super) fn confirmed(&mut self, key: &str) -> Option<T> {
        let share = self.0.get_mut(key)?;
        let next = share.waiting.pop_front();
        if next.is_none() {
            share.unconfirmed = share.unconfirmed.saturating_sub(1);
        }
        next
    }

    /// Takes out those at the front whom nobody needs any more.
    pub(super) fn give_up(&mut self, key: &str, mut is_given_up: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        if let Some(share) = self.0.get_mut(key) {
            while share.waiting.front().is_some_and(&mut is_given_up) {
                gone.extend(share.waiting.pop_front());
            }
        }
        gone
    }

    /// How many wait for this queue.
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
        assert_eq!(shares.enter("b", 7), Some(7), "another queue's are not held up");
        assert_eq!(shares.confirmed("a"), Some(EACH));
        assert_eq!(shares.give_up("a", |order| *order == EACH + 1), [EACH + 1]);
        assert_eq!([shares.confirmed("a"), shares.confirmed("a")], [Some(EACH + 2), None]);
        assert_eq!([shares.enter("a", 1), shares.enter("a", 2)], [Some(1), None]);
    }
}
