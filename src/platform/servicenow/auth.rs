//! How we log in, with every call.
//!
//! Guarantees: credentials go into a header that is marked sensitive, and nowhere else. Basic is sent on each call:
//! the session cookie alone would turn a lapsed session into a refused message. Leaves to others: what a refused
//! login means; how a token is got and kept (`oauth.rs`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::oauth::{OAuth, Serial};
use crate::platform::error::CallError;
use crate::platform::http::Http;

/// How the integration user proves who it is.
#[derive(Clone)]
pub enum ServiceNowLogin {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: SecretString,
    },
    /// A token: by the refresh token's grant where there is one, else by the client credentials grant.
    OAuth {
        /// The user whom the instance gives the token to: by this name we know our own messages.
        username: Option<String>,
        /// The application registry's client id.
        client_id: String,
        /// Its client secret.
        client_secret: SecretString,
        /// The refresh token.
        refresh_token: Option<SecretString>,
    },
}

/// Which of the two, for those who explain a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginKind {
    Basic,
    RefreshToken,
    ClientCredentials,
}

/// Credentials that are ready to be sent.
pub(super) struct Auth {
    username: Option<String>,
    way: Way,
}

enum Way {
    Basic(SecretString),
    OAuth(OAuth),
}

/// What one call shows at the door.
pub(super) struct Pass {
    pub(super) header: HeaderValue,
    /// Of a token; a password has none and cannot be renewed.
    serial: Option<Serial>,
}

impl Pass {
    /// Whether a refused one can be replaced by another.
    pub(super) const fn renewable(&self) -> bool {
        self.serial.is_some()
    }
}

impl Auth {
    pub(super) fn new(login: ServiceNowLogin, base: &Url) -> Self {
        match login {
            ServiceNowLogin::Basic { username, password } => {
                Self { username: Some(username), way: Way::Basic(password) }
            }
            ServiceNowLogin::OAuth { username, client_id, client_secret, refresh_token } => {
                Self { username, way: Way::OAuth(OAuth::new(base, client_id, client_secret, refresh_token)) }
            }
        }
    }

    /// What the next call shows. `refused` is what the instance has just refused: a token that is still the current
    /// one is replaced, once for everybody who was refused with it.
    pub(super) async fn pass(&self, http: &Http, refused: Option<&Pass>) -> Result<Pass, CallError> {
        match &self.way {
            Way::Basic(password) => {
                let pair =
                    format!("{}:{}", self.username.as_deref().unwrap_or_default(), password.expose_secret());
                Ok(Pass { header: sensitive("Basic", &STANDARD.encode(pair))?, serial: None })
            }
            Way::OAuth(oauth) => {
                let (header, serial) = oauth.token(http, refused.and_then(|pass| pass.serial)).await?;
                Ok(Pass { header, serial: Some(serial) })
            }
        }
    }

    /// Whose messages are ours when we read a conversation back; empty where nobody said.
    pub(super) fn username(&self) -> &str {
        self.username.as_deref().unwrap_or_default()
    }

    pub(super) fn kind(&self) -> LoginKind {
        match &self.way {
            Way::Basic(_) => LoginKind::Basic,
            Way::OAuth(oauth) if oauth.has_refresh_token() => LoginKind::RefreshToken,
            Way::OAuth(_) => LoginKind::ClientCredentials,
        }
    }
}

/// `Authorization: <scheme> <proof>`.
pub(super) fn sensitive(scheme: &str, proof: &str) -> Result<HeaderValue, CallError> {
    let mut value = HeaderValue::try_from(format!("{scheme} {proof}"))
        .map_err(|_| CallError::not_made("the credentials do not fit into a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Names the way, never what is shown.
impl std::fmt::Debug for ServiceNowLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::OAuth { refresh_token: Some(_), .. } => "OAuth by refresh token",
            Self::OAuth { refresh_token: None, .. } => "OAuth by client credentials",
        })
    }
}
