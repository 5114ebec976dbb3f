//! What a sender may prove itself with: a secret, and the one that replaces it.
//!
//! Guarantees: an empty secret is none. Not responsible for: comparing (`verify.rs`).

use secrecy::{ExposeSecret, SecretString};

/// The values of one credential that are accepted: both, while senders change from one to the other.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    /// What senders have.
    pub current: Option<SecretString>,
    /// What senders are about to have.
    pub next: Option<SecretString>,
}

impl Accepted {
    /// Those that are no empty text.
    pub fn usable(&self) -> impl Iterator<Item = &str> {
        let secrets = [&self.current, &self.next].into_iter().flatten();
        secrets.map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty())
    }

    /// Whether there is any.
    pub fn is_set(&self) -> bool {
        self.usable().next().is_some()
    }
}

impl From<&str> for Accepted {
    fn from(secret: &str) -> Self {
        Self { current: Some(secret.into()), next: None }
    }
}
