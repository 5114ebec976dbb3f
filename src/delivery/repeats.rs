//! The newest ids of some kind (what a partition delivered, what was read back), so that a repeat is known at once.
//!
//! Guarantees: bounded. Not required for correctness: what is remembered across restarts is in the directory.

use std::collections::{HashSet, VecDeque};

use crate::message::MessageId;

const KEPT: usize = 8192;

/// The newest ids, oldest forgotten first.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    known: HashSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl Repeats {
    pub(crate) fn contains(&self, id: MessageId) -> bool {
        self.known.contains(&id)
    }

    pub(crate) fn add(&mut self, id: MessageId) {
        if self.known.insert(id) {
            self.order.push_back(id);
            if self.order.len() > KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let ids: Vec<MessageId> = (0..=KEPT).map(|n| MessageId::derived("t", &n.to_string())).collect();
        let mut repeats = Repeats::default();
        for id in &ids {
            repeats.add(*id);
        }
        assert!(!repeats.contains(ids[0]));
        assert!(repeats.contains(ids[1]) && repeats.contains(ids[KEPT]));
    }
}
