//! The keys of handoff requests that this process accepted lately, each with the digest of its request.
//!
//! Guarantees: while a key is remembered, another request under it is refused before anything is published. Memory is bounded by
//! [`GENERATION`]; no lookup leaves the process. A key that another ingress accepted, or that is forgotten here, is found by the worker:
//! the request then becomes a dead letter `rejected`.
//! Not responsible for: recognising a repeat of the same request (`worker/flight.rs`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::message::{MessageId, PayloadDigest};

/// Keys in one of two generations. When the young one is full it becomes the old one, and the old one is forgotten.
const GENERATION: usize = 32_768;

/// What was accepted under which key.
#[derive(Debug, Default)]
pub struct IdempotencyKeys(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<MessageId, PayloadDigest>,
    old: HashMap<MessageId, PayloadDigest>,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// Nothing so far; it is remembered from now on.
    First,
    /// The same request came before.
    Repeat,
    /// Another request came before.
    Reused,
}

impl IdempotencyKeys {
    /// Notes that a request claims this id, which stands for its conversation and key.
    pub(super) fn claim(&self, id: MessageId, digest: PayloadDigest) -> KeyUse {
        let mut keys = self.lock();
        match keys.young.get(&id).or_else(|| keys.old.get(&id)) {
            Some(known) if *known == digest => return KeyUse::Repeat,
            Some(_) => return KeyUse::Reused,
            None => {}
        }
        if keys.young.len() >= GENERATION {
            keys.old = std::mem::take(&mut keys.young);
        }
        keys.young.insert(id, digest);
        KeyUse::First
    }

    /// The request was not accepted: its caller may use the key for another one.
    pub(super) fn release(&self, id: MessageId) {
        let mut keys = self.lock();
        keys.young.remove(&id);
        keys.old.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> MessageId {
        MessageId::derived("test", &n.to_string())
    }

    #[test]
    fn another_request_under_a_key_is_told_from_a_repeat() {
        let (keys, one, other) =
            (IdempotencyKeys::default(), PayloadDigest::of(b"one"), PayloadDigest::of(b"other"));
        assert_eq!(keys.claim(id(1), one), KeyUse::First);
        assert_eq!(keys.claim(id(1), one), KeyUse::Repeat);
        assert_eq!(keys.claim(id(1), other), KeyUse::Reused);
        assert_eq!(keys.claim(id(2), other), KeyUse::First);
        keys.release(id(1));
        assert_eq!(keys.claim(id(1), other), KeyUse::First);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_keys_are_kept() {
        let (keys, digest) = (IdempotencyKeys::default(), PayloadDigest::of(b"one"));
        for n in 0..3 * GENERATION {
            assert_eq!(keys.claim(id(n), digest), KeyUse::First);
        }
        let kept = {
            let generations = keys.lock();
            generations.young.len() + generations.old.len()
        };
        assert!(kept <= 2 * GENERATION, "{kept}");
        assert_eq!(keys.claim(id(2 * GENERATION), digest), KeyUse::Repeat);
        assert_eq!(keys.claim(id(0), digest), KeyUse::First);
    }
}
