//! Adds the login to each call.
//!
//! Guarantees: credentials go only into a header that is marked sensitive. Basic credentials go with each call. If only
//! the session cookie were sent, an expired session would look like a refused message.
//! Not responsible for: the meaning of a refused login; getting and keeping a token (`oauth.rs`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::oauth::{OAuth, RefreshTokenStore, TokenSerial};
use crate::platform::error::CallError;
use crate::platform::http::HttpClient;

/// The credentials of the integration user.
#[derive(Clone)]
pub enum ServiceNowLogin {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: SecretString,
    },
    /// A token. The refresh token grant is used if there is a refresh token, and the client credentials grant
    /// otherwise.
    OAuth {
        /// The user to whom the instance issues the token. Causeway recognises its own messages by this name.
        username: Option<String>,
        /// The application registry's client id.
        client_id: String,
        /// The client secret.
        client_secret: SecretString,
        /// The refresh token.
        refresh_token: Option<SecretString>,
    },
}

/// The kind of login, for explaining a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginKind {
    Basic,
    RefreshToken,
    ClientCredentials,
}

/// Credentials that are ready to be sent.
pub(super) struct LoginAuth {
    login: ServiceNowLogin,
    auth_method: AuthMethod,
}

enum AuthMethod {
    Basic(SecretString),
    OAuth(OAuth),
}

/// The credential that one call sends.
pub(super) struct RequestCredential {
    pub(super) header: HeaderValue,
    /// The number of the token. A password has none and cannot be renewed.
    serial: Option<TokenSerial>,
}

impl RequestCredential {
    /// Whether a new credential can replace this one after a refusal.
    pub(super) const fn renewable(&self) -> bool {
        self.serial.is_some()
    }
}

impl LoginAuth {
    pub(super) fn new(login: ServiceNowLogin, base: &Url) -> Self {
        let auth_method = match login.clone() {
            ServiceNowLogin::Basic { password, .. } => AuthMethod::Basic(password),
            ServiceNowLogin::OAuth { client_id, client_secret, refresh_token, .. } => {
                AuthMethod::OAuth(OAuth::new(base, client_id, client_secret, refresh_token))
            }
        };
        Self { login, auth_method }
    }

    /// Whether the credentials are the same as these.
    pub(super) fn is_by(&self, login: &ServiceNowLogin) -> bool {
        self.login.parts() == login.parts()
    }

    /// Takes the tokens of the login before this one, if both began with the same refresh token. The newest refresh token
    /// may exist only there.
    #[must_use]
    pub(super) fn continuing(self, before: &Self) -> Self {
        let auth_method = match (self.auth_method, &before.auth_method) {
            (AuthMethod::OAuth(oauth), AuthMethod::OAuth(old))
                if self.login.refresh_token() == before.login.refresh_token() =>
            {
                AuthMethod::OAuth(oauth.with_tokens_of(old))
            }
            (other, _) => other,
        };
        Self { auth_method, ..self }
    }

    /// Returns the credential for the next call. `refused` is the credential that the instance has just refused. If
    /// its token is still the current one, it is replaced once for all calls that were refused with it.
    pub(super) async fn pass(
        &self,
        http: &HttpClient,
        refused: Option<&RequestCredential>,
    ) -> Result<RequestCredential, CallError> {
        match &self.auth_method {
            AuthMethod::Basic(password) => {
                let pair = format!("{}:{}", self.username(), password.expose_secret());
                Ok(RequestCredential { header: sensitive("Basic", &STANDARD.encode(pair))?, serial: None })
            }
            AuthMethod::OAuth(oauth) => {
                let (header, serial) = oauth.token(http, refused.and_then(|pass| pass.serial)).await?;
                Ok(RequestCredential { header, serial: Some(serial) })
            }
        }
    }

    /// Keeps OAuth's refresh tokens in this store. Basic logins have none.
    pub(super) fn keep_tokens_in(&self, store: Arc<dyn RefreshTokenStore>) {
        if let AuthMethod::OAuth(oauth) = &self.auth_method {
            oauth.keep_tokens_in(store);
        }
    }

    /// The user whose messages are Causeway's own when a conversation is read back. Empty if not configured.
    pub(super) fn username(&self) -> &str {
        self.login.username().unwrap_or_default()
    }

    pub(super) fn kind(&self) -> LoginKind {
        match &self.auth_method {
            AuthMethod::Basic(_) => LoginKind::Basic,
            AuthMethod::OAuth(oauth) if oauth.has_refresh_token() => LoginKind::RefreshToken,
            AuthMethod::OAuth(_) => LoginKind::ClientCredentials,
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

impl ServiceNowLogin {
    fn username(&self) -> Option<&str> {
        match self {
            Self::Basic { username, .. } => Some(username),
            Self::OAuth { username, .. } => username.as_deref(),
        }
    }

    fn refresh_token(&self) -> Option<&str> {
        match self {
            Self::Basic { .. } => None,
            Self::OAuth { refresh_token, .. } => refresh_token.as_ref().map(|token| token.expose_secret()),
        }
    }

    /// The user name, the client id, the password or client secret, and the refresh token.
    fn parts(&self) -> [Option<&str>; 4] {
        let (client, secret) = match self {
            Self::Basic { password, .. } => (None, password),
            Self::OAuth { client_id, client_secret, .. } => (Some(client_id.as_str()), client_secret),
        };
        [self.username(), client, Some(secret.expose_secret()), self.refresh_token()]
    }
}

/// Shows the kind of login, never the credentials.
impl std::fmt::Debug for ServiceNowLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::OAuth { refresh_token: Some(_), .. } => "OAuth by refresh token",
            Self::OAuth { refresh_token: None, .. } => "OAuth by client credentials",
        })
    }
}
