//! Remembers the newest keys of a kind (the settled messages of a partition, the messages that were read back, the chats of
//! routed callbacks), so that the directory is not asked again.
//!
//! Guarantees: bounded memory. The directory keeps what must survive a restart, so correctness does not depend on this
//! file.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::conversation::DedupKey;
use crate::message::PayloadDigest;

/// The usual number of keys.
const CAPACITY: usize = 8192;

/// The newest keys, each with its first value. The oldest key is forgotten first.
#[derive(Debug)]
pub(crate) struct RecentKeys<K = DedupKey, V = Option<PayloadDigest>> {
    known: HashMap<K, V>,
    order: VecDeque<K>,
    capacity: usize,
}

impl<K, V> Default for RecentKeys<K, V> {
    fn default() -> Self {
        Self::with_limit(CAPACITY)
    }
}

impl<K, V> RecentKeys<K, V> {
    /// Remembers at most this number of keys.
    pub(crate) fn with_limit(capacity: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), capacity }
    }
}

impl<K: Clone + Eq + Hash, V> RecentKeys<K, V> {
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.known.get(key)
    }

    pub(crate) fn contains<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.known.contains_key(key)
    }

    pub(crate) fn add(&mut self, key: K, value: V) {
        if self.known.contains_key(&key) {
            return;
        }
        self.known.insert(key.clone(), value);
        self.order.push_back(key);
        if self.order.len() > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let ids: Vec<MessageId> = (0..=CAPACITY).map(|n| MessageId::derived("t", &n.to_string())).collect();
        let mut repeats = RecentKeys::default();
        for (n, id) in ids.iter().enumerate() {
            repeats.add(*id, n);
            repeats.add(*id, 0);
        }
        assert!(!repeats.contains(&ids[0]));
        assert_eq!((repeats.get(&ids[1]), repeats.get(&ids[CAPACITY])), (Some(&1), Some(&CAPACITY)));
    }
}
