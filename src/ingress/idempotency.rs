//! The idempotency keys that this process accepted recently, each with the digest of its request.
//!
//! Guarantees: while a key is remembered, a different request with the same key is refused before it is published.
//! Memory is bounded by [`GENERATION`]. A lookup uses only memory of this process. If another ingress accepted the
//! key, or if the key is forgotten here, the worker finds it, and the request becomes a dead letter with the reason
//! `rejected`.
//! Not responsible for: recognising a repeat of the same request (`worker/process.rs`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::message::{MessageId, PayloadDigest};

/// The number of keys in one of two generations. When the young generation is full, it replaces the old one.
const GENERATION: usize = 32_768;

/// The accepted keys and the digests of their requests.
#[derive(Debug, Default)]
pub struct IdempotencyKeys(Mutex<KeyGenerations>);

#[derive(Debug, Default)]
struct KeyGenerations {
    young: HashMap<MessageId, PayloadDigest>,
    old: HashMap<MessageId, PayloadDigest>,
}

/// The result of claiming a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// The key is new and is remembered from now on.
    First,
    /// The same request used the key before.
    Repeat,
    /// A different request used the key before.
    Reused,
}

impl IdempotencyKeys {
    /// Claims this id, which is derived from the conversation and the key.
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

    /// Forgets the key of a request that was not accepted, so that its caller may use the key again.
    pub(super) fn release(&self, id: MessageId) {
        let mut keys = self.lock();
        keys.young.remove(&id);
        keys.old.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, KeyGenerations> {
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
