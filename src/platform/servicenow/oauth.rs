//! Gets, keeps and renews the OAuth token of one instance.
//!
//! Guarantees: only one request for a token is in flight at a time. All waiting calls share its result, a token or a
//! refusal. A refused token is replaced only while it is the current one, so a burst of 401s leads to one renewal. A
//! renewal continues if its caller is dropped: the instance may have just exchanged the refresh token, and the new
//! one must not be lost. With a [`RefreshTokenStore`] the newest refresh token is used, whichever process received it.
//! If two processes use one refresh token at once, the process that is refused reads the store and asks once more. Each
//! error says that the call itself was not made. No error holds a secret.
//! Not responsible for: retrying later (`delivery/`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::Serializer;

use super::auth::sensitive;
use crate::message::{PlatformWords, json};
use crate::platform::error::{
    AnswerKind, CallError, ErrorAnswer, NoAnswer, NoAnswerKind, NotReady, SentState,
};
use crate::platform::http::{HttpCall, HttpClient, HttpReply, MediaType};

/// ServiceNow's default lifetime of a token, if the answer does not state one.
const LIFE: Duration = Duration::from_secs(1800);
/// ServiceNow returns the same token again while it is valid, with its remaining seconds, which can be zero.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// The upper limit of a lifetime. An answer may state any number, and adding a very large one to a time would
/// overflow.
const LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest time before its end at which a token is renewed. For a short-lived token it is a tenth of the
/// lifetime.
const AHEAD_MAX: Duration = Duration::from_secs(30);

/// Keeps the newest refresh token for all processes and for the next start.
pub trait RefreshTokenStore: Send + Sync {
    /// The newest token; `None` if none was kept yet.
    fn newest(&self) -> BoxFuture<'_, Option<SecretString>>;

    /// The newest token, if it is another one than this one, which was refused. Another process may have used the refused
    /// token a moment ago, so the store waits a short time for its result.
    fn other_than<'a>(&'a self, refused: &'a SecretString) -> BoxFuture<'a, Option<SecretString>>;

    /// Keeps a new token. Returns false if it could not be kept.
    fn keep(&self, token: SecretString) -> BoxFuture<'_, bool>;
}

/// The number of a token, counting up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenSerial(u64);

pub(super) struct OAuth {
    shared: Arc<TokenSource>,
    by_refresh_token: bool,
}

struct TokenSource {
    address: Option<Url>,
    client_id: String,
    client_secret: SecretString,
    held: Arc<Mutex<TokenStore>>,
    /// The store for refresh tokens, if there is one.
    kept: OnceLock<Arc<dyn RefreshTokenStore>>,
    /// The number of token requests that have ended.
    ended: AtomicU64,
}

struct TokenStore {
    refresh_token: Option<SecretString>,
    /// The refresh token is new and could not be kept yet.
    is_unkept: bool,
    token: Option<AccessToken>,
    /// The error of the last request, if it failed.
    failure: Option<CallError>,
    next: u64,
}

struct AccessToken {
    header: HeaderValue,
    serial: TokenSerial,
    renew_at: Instant,
}

impl OAuth {
    pub(super) fn new(
        base: &Url,
        client_id: String,
        client_secret: SecretString,
        refresh_token: Option<SecretString>,
    ) -> Self {
        let mut address = base.clone();
        let named = address.path_segments_mut().map(|mut path| {
            path.pop_if_empty().push("oauth_token.do");
        });
        let by_refresh_token = refresh_token.is_some();
        let held = TokenStore { refresh_token, is_unkept: false, token: None, failure: None, next: 0 };
        let shared = TokenSource {
            address: named.is_ok().then_some(address),
            client_id,
            client_secret,
            held: Arc::new(Mutex::new(held)),
            kept: OnceLock::new(),
            ended: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), by_refresh_token }
    }

    /// The same client with the tokens of another one.
    pub(super) fn with_tokens_of(self, other: &Self) -> Self {
        let source = TokenSource {
            address: self.shared.address.clone(),
            client_id: self.shared.client_id.clone(),
            client_secret: self.shared.client_secret.clone(),
            held: Arc::clone(&other.shared.held),
            kept: OnceLock::new(),
            ended: AtomicU64::new(0),
        };
        Self { shared: Arc::new(source), ..self }
    }

    /// Uses this store for refresh tokens. Only the first call has an effect.
    pub(super) fn keep_tokens_in(&self, store: Arc<dyn RefreshTokenStore>) {
        let _ = self.shared.kept.set(store);
    }

    pub(super) const fn has_refresh_token(&self) -> bool {
        self.by_refresh_token
    }

    /// Returns the current token as a header. Gets a new one if there is none, if it is about to expire, or if it is
    /// the one that was `refused`.
    pub(super) async fn token(
        &self,
        http: &HttpClient,
        refused: Option<TokenSerial>,
    ) -> Result<(HeaderValue, TokenSerial), CallError> {
        let seen = self.shared.ended.load(Ordering::Acquire);
        let mut held = self.shared.held.clone().lock_owned().await;
        if let Some(token) = &held.token
            && Some(token.serial) != refused
            && Instant::now() < token.renew_at
        {
            return Ok((token.header.clone(), token.serial));
        }
        // A call that waited for a failed request gets that request's error. Asking again at once would cause a storm
        // of requests.
        if self.shared.ended.load(Ordering::Acquire) != seen
            && let Some(failure) = &held.failure
        {
            return Err(failure.clone());
        }
        let (shared, http) = (self.shared.clone(), http.clone());
        let renewal = crate::tasks::spawn(async move {
            let renewed = shared.renew(&http, &mut held).await;
            held.failure = renewed.as_ref().err().cloned();
            shared.ended.fetch_add(1, Ordering::Release);
            renewed
        });
        renewal.await.unwrap_or_else(|_| Err(CallError::not_made("the token request ended without a result")))
    }
}

impl TokenSource {
    async fn renew(
        &self,
        http: &HttpClient,
        held: &mut TokenStore,
    ) -> Result<(HeaderValue, TokenSerial), CallError> {
        held.token = None;
        let store = self.kept.get().filter(|_| held.refresh_token.is_some());
        if let Some(store) = store {
            self.exchange_with(store.as_ref(), held).await;
        }
        let mut asked_at = Instant::now();
        let mut granted = self.ask(http, held.refresh_token.as_ref()).await;
        if let (Err(error), Some(store), Some(used)) = (&granted, store, &held.refresh_token)
            && is_refusal(error)
            && let Some(newer) = store.other_than(used).await
        {
            held.refresh_token = Some(newer);
            asked_at = Instant::now();
            granted = self.ask(http, held.refresh_token.as_ref()).await;
        }
        let granted = granted?;
        let life = granted.expires_in.map_or(LIFE, Duration::from_secs).clamp(LIFE_MIN, LIFE_MAX);
        let header = sensitive("Bearer", granted.access_token.expose_secret())?;
        if let Some(rotated) = granted.refresh_token
            && let Some(used) = &held.refresh_token
        {
            held.is_unkept |= rotated.expose_secret() != used.expose_secret();
            held.refresh_token = Some(rotated);
            if let Some(store) = store {
                self.exchange_with(store.as_ref(), held).await;
            }
        }
        held.next += 1;
        let serial = TokenSerial(held.next);
        let renew_at = asked_at + life.saturating_sub(AHEAD_MAX.min(life / 10));
        held.token = Some(AccessToken { header: header.clone(), serial, renew_at });
        Ok((header, serial))
    }

    /// Keeps a new token that is not kept yet. Otherwise takes the newest token from the store.
    async fn exchange_with(&self, store: &dyn RefreshTokenStore, held: &mut TokenStore) {
        match &held.refresh_token {
            Some(token) if held.is_unkept => held.is_unkept = !store.keep(token.clone()).await,
            _ => {
                if let Some(newest) = store.newest().await {
                    held.refresh_token = Some(newest);
                }
            }
        }
    }

    fn form(&self, refresh_token: Option<&SecretString>) -> Bytes {
        let mut form = Serializer::new(String::new());
        match refresh_token {
            Some(token) => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("refresh_token", token.expose_secret());
            }
            None => {
                form.append_pair("grant_type", "client_credentials");
            }
        }
        form.append_pair("client_id", &self.client_id);
        form.append_pair("client_secret", self.client_secret.expose_secret());
        form.finish().into()
    }

    async fn ask(
        &self,
        http: &HttpClient,
        refresh_token: Option<&SecretString>,
    ) -> Result<TokenGrant, CallError> {
        let url =
            self.address.clone().ok_or_else(|| CallError::not_made("Host URL must be an http address"))?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // ServiceNow answers a request in JSON with an error that gives no reason.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let body = Some(self.form(refresh_token));
        let reply = http.call(HttpCall { method: Method::POST, url, headers, body }).await;
        read(reply.map_err(not_sent)?)
    }
}

/// The answer to a token request.
#[derive(Deserialize)]
struct TokenGrant {
    access_token: SecretString,
    #[serde(default, deserialize_with = "seconds")]
    expires_in: Option<u64>,
    #[serde(default)]
    refresh_token: Option<SecretString>,
}

/// A number, or a number written as text.
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()))
}

/// Whether the instance refused the refresh token.
fn is_refusal(error: &CallError) -> bool {
    matches!(error, CallError::Answer(ErrorAnswer { kind: AnswerKind::Credentials, .. }))
}

/// The call that needed the token was not made, even if the request for the token was.
fn not_sent(no_answer: NoAnswer) -> CallError {
    let detail = format!("while asking for an OAuth token: {}", no_answer.detail);
    NoAnswer { sent: SentState::No, detail, ..no_answer }.into()
}

fn read(reply: HttpReply) -> Result<TokenGrant, CallError> {
    let (status, retry_after) = (reply.status.as_u16(), reply.retry_after());
    let words = if reply.status.is_success() { PlatformWords::default() } else { said(&reply) };
    let answer = |status, kind, detail| {
        CallError::Answer(ErrorAnswer { status, retry_after, kind, detail, said: words.clone() })
    };
    if reply.status == StatusCode::ACCEPTED {
        return Err(answer(status, AnswerKind::NotReady(NotReady::Accepted), String::new()));
    }
    if reply.status.is_success() {
        if reply.media() == MediaType::Html {
            return Err(answer(status, AnswerKind::NotReady(NotReady::Html), String::new()));
        }
        let body = reply.body.map_err(not_sent)?;
        let granted = serde_json::from_slice::<TokenGrant>(&body).ok();
        let usable = granted.filter(|granted| !granted.access_token.expose_secret().is_empty());
        let (kind, detail) = (NoAnswerKind::BadBody, "an OAuth answer without `access_token`".to_owned());
        return usable.ok_or_else(|| NoAnswer { sent: SentState::No, kind, detail }.into());
    }
    let codes = standard_codes(&words);
    Err(match AnswerKind::of_status(status) {
        kind @ (AnswerKind::NotReady(_) | AnswerKind::Throttled) => answer(status, kind, String::new()),
        // Another 5xx would leave it open whether the call was made.
        AnswerKind::Temporary => {
            answer(503, AnswerKind::Temporary, format!("no OAuth token: status {status}{codes}"))
        }
        // The instance will not grant a token. Its own status could be mistaken for the status of the call.
        _ => answer(401, AnswerKind::Credentials, format!("no OAuth token: status {status}{codes}")),
    })
}

/// The error codes of RFC 6749. They hold no data of a user.
const STANDARD_CODES: [&str; 9] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "access_denied",
    "server_error",
    "temporarily_unavailable",
];

/// The standard codes in the text, each after a comma.
fn standard_codes(words: &PlatformWords) -> String {
    let codes = words.reveal().split([',', ' ']).filter(|word| STANDARD_CODES.contains(word));
    codes.map(|code| format!(", {code}")).collect()
}

/// The `error` and `error_description` of a refusal.
fn said(reply: &HttpReply) -> PlatformWords {
    let body: Value = reply.body.as_ref().ok().and_then(|body| json::bounded(body).ok()).unwrap_or_default();
    let words = [&body["error"], &body["error_description"], &body["error"]["message"]];
    let words = words.into_iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    PlatformWords::new(&words, "")
}

#[cfg(test)]
mod tests;
