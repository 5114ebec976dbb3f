//! The in-flight limit of each queue: how many of its publishes may be unconfirmed.
//!
//! A queue that confirms nothing, such as one without a majority of its replicas, would hold up all other queues. It would
//! fill the window of the publisher. Before that, the broker would stop reading from a connection with 32 unconfirmed
//! commands at one quorum queue (`quorum_commands_soft_limit`).
//! Guarantees: requests for one queue leave in their order of arrival. A request waits only while other requests for
//! its queue are unconfirmed; each confirm lets the next request leave.
//! Not responsible for: the content of a request (`publisher.rs`).

use std::collections::{HashMap, VecDeque};

/// Below the 32 at which the broker stops reading, with room for other commands that the broker counts.
const MAX_UNCONFIRMED_PER_QUEUE: usize = 24;

/// The in-flight limits of one publisher window.
#[derive(Debug)]
pub(super) struct PerQueueLimit<T>(HashMap<String, QueueShare<T>>);

#[derive(Debug)]
struct QueueShare<T> {
    unconfirmed: usize,
    waiting: VecDeque<T>,
}

impl<T> PerQueueLimit<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Takes a request for this queue, and returns it if it may leave at once.
    pub(super) fn enter(&mut self, key: &str, request: T) -> Option<T> {
        let share = match self.0.get_mut(key) {
            Some(share) => share,
            None => self.0.entry(key.to_owned()).or_insert_with(QueueShare::new),
        };
        if share.unconfirmed < MAX_UNCONFIRMED_PER_QUEUE {
            share.unconfirmed += 1;
            return Some(request);
        }
        share.waiting.push_back(request);
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

    /// Removes all waiting requests, those of one queue in their order.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.0.values_mut().flat_map(|share| share.waiting.drain(..)).collect()
    }

    /// The number of requests that wait for this queue.
    pub(super) fn waiting(&self, key: &str) -> usize {
        self.0.get(key).map_or(0, |share| share.waiting.len())
    }
}

impl<T> QueueShare<T> {
    fn new() -> Self {
        Self { unconfirmed: 0, waiting: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_publishes_leave_in_order() {
        let mut limits = PerQueueLimit::new();
        let left: Vec<usize> =
            (0..MAX_UNCONFIRMED_PER_QUEUE + 3).filter_map(|request| limits.enter("a", request)).collect();
        assert!(left.into_iter().eq(0..MAX_UNCONFIRMED_PER_QUEUE));
        assert_eq!(limits.waiting("a"), 3);
        assert_eq!(limits.enter("b", 7), Some(7), "other queues are not held up");
        assert_eq!(limits.confirmed("a"), Some(MAX_UNCONFIRMED_PER_QUEUE));
        assert_eq!(
            limits.give_up("a", |request| *request == MAX_UNCONFIRMED_PER_QUEUE + 1),
            [MAX_UNCONFIRMED_PER_QUEUE + 1]
        );
        assert_eq!(
            [limits.confirmed("a"), limits.confirmed("a")],
            [Some(MAX_UNCONFIRMED_PER_QUEUE + 2), None]
        );
        assert_eq!([limits.enter("a", 1), limits.enter("a", 2)], [Some(1), None]);
    }
}
