//! The accepted values of one credential: a secret and its successor.
//!
//! Guarantees: an empty secret is never accepted.
//! Not responsible for: comparing (`credentials.rs`).

use secrecy::{ExposeSecret, SecretString};

/// The accepted values of one credential. Both count while senders change from one to the other.
#[derive(Debug, Clone, Default)]
pub struct AcceptedSecrets {
    /// The value that senders use now.
    pub current: Option<SecretString>,
    /// The value that senders will use next.
    pub next: Option<SecretString>,
}

impl AcceptedSecrets {
    /// The values that are not empty.
    pub fn usable(&self) -> impl Iterator<Item = &str> {
        let secrets = [&self.current, &self.next].into_iter().flatten();
        secrets.map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty())
    }

    /// The value that senders should use.
    pub fn newest(&self) -> Option<&SecretString> {
        self.next.as_ref().or(self.current.as_ref())
    }

    /// Whether at least one value is set.
    pub fn is_set(&self) -> bool {
        self.usable().next().is_some()
    }
}

impl From<&str> for AcceptedSecrets {
    fn from(secret: &str) -> Self {
        Self { current: Some(secret.into()), next: None }
    }
}
