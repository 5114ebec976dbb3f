//! How we log in.
//!
//! Guarantees: credentials go into a header that is marked sensitive, and nowhere else. Basic is sent on each call:
//! the session cookie alone would turn a lapsed session into a refused message. Leaves to others: what a refused
//! login means. A login that can be renewed (a token) is a further variant here: [`Auth::header`] then takes the
//! current token, and `ServiceNow::exchange`, which already tries a 401 once more, is where it is renewed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use crate::platform::error::CallError;

pub(super) enum Auth {
    Basic { username: String, password: SecretString },
}

impl Auth {
    /// The `Authorization` header of one call.
    pub(super) fn header(&self) -> Result<HeaderValue, CallError> {
        let Self::Basic { username, password } = self;
        let pair = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
        let mut value = HeaderValue::try_from(format!("Basic {pair}"))
            .map_err(|_| CallError::not_made("the credentials do not fit into a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Whose messages are ours when we read a conversation back.
    pub(super) fn username(&self) -> &str {
        let Self::Basic { username, .. } = self;
        username
    }
}
