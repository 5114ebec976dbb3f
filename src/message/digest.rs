//! Distinguishes two requests that have the same key.
//!
//! A caller of the handoff API may choose a key for a request. The id of the message follows from the conversation and
//! the key, so a request can be posted again without harm. The digest shows whether the two requests are really equal.
//!
//! Guarantees: the same request has the same digest in every process, also if its JSON has another order of fields.
//!
//! Not responsible for: comparing digests (`ingress/idempotency.rs`, `worker/process.rs`).

use std::fmt;

use sha2::{Digest, Sha256};

/// The first 128 bits of the SHA-256 of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PayloadDigest(u128);

impl PayloadDigest {
    /// The digest of a body that Causeway serialized.
    pub fn of(body: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&Sha256::digest(body)[..16]);
        Self(u128::from_be_bytes(first))
    }

    /// Parses a digest in the form of [`fmt::Display`].
    pub fn parse(text: &str) -> Option<Self> {
        let is_hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hexadecimal.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for PayloadDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_beginning_of_sha_256() {
        let digest = PayloadDigest::of(b"{}");
        assert_eq!(digest.to_string(), "44136fa355b3678a1146ad16f7e8649e");
        assert_eq!(PayloadDigest::parse(&digest.to_string()), Some(digest));
        for text in ["", "44136fa3", "+4136fa355b3678a1146ad16f7e8649e", "zz136fa355b3678a1146ad16f7e8649e"] {
            assert_eq!(PayloadDigest::parse(text), None, "{text}");
        }
    }
}
