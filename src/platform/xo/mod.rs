//! The client of XO, and of the events URL for conversations of the handoff API.
//!
//! Guarantees: `Debug` shows an address only by its host, because XO's Callback URL is a secret.
//! Not responsible for: what is posted (`message/`), what an error means (`delivery/classify.rs`). `callback.rs`
//! posts callbacks and events, which `webhook_key.rs` signs. `botkit.rs` makes the calls of the BotKit protocol, with a credential for each bot.

mod botkit;
mod callback;
mod files;
mod history;
mod template;
mod webhook_key;

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::SecretString;
use url::Url;

use crate::live::Live;
use crate::message::{AllowedHosts, PlatformWords};

pub use botkit::{BotKitText, SessionStep, TokenAlgorithm, XoBot};
pub use history::HistoryEntry;
pub use webhook_key::WebhookKey;

use super::error::{AnswerKind, CallError, ErrorAnswer, NotReady};
use super::http::{HttpCall, HttpClient, HttpReply};

/// The addresses and credentials of the bot side.
#[derive(Clone, Default)]
pub struct XoSettings {
    /// XO's Callback URL (in XO: Webhook URL).
    pub callback_url: Option<Url>,
    /// The address for events of API conversations.
    pub events_url: Option<Url>,
    /// The bearer token for the events URL.
    pub events_token: Option<SecretString>,
    /// The keys that sign events. Two keys while the key is being changed.
    pub events_keys: Vec<WebhookKey>,
    /// The bots of the BotKit protocol.
    pub bots: Vec<XoBot>,
    /// The hosts that their reply addresses may have.
    pub allowed_hosts: AllowedHosts,
    /// The timeout of one call to a bot. `None`: the same as for the Callback URL.
    pub bots_timeout: Option<Duration>,
}

/// The client of the bot side. Cheap to clone.
#[derive(Clone)]
pub struct Xo {
    http: HttpClient,
    /// The client for the events URL, which may have its own proxy and its own timeout.
    events: HttpClient,
    settings: Live<XoSettings>,
}

impl Xo {
    /// A client of the bot side.
    pub fn new(http: HttpClient, settings: XoSettings) -> Self {
        Self { events: http.clone(), http, settings: settings.into() }
    }

    /// The same client with another way to the events URL.
    #[must_use]
    pub fn with_events_client(self, events: HttpClient) -> Self {
        Self { events, ..self }
    }

    fn timed(&self, timeout: Option<Duration>) -> Self {
        let http = timeout.map_or_else(|| self.http.clone(), |timeout| self.http.with_timeout(timeout));
        Self { http, ..self.clone() }
    }

    /// Uses these addresses and credentials from now on. A call that has begun finishes with the old ones.
    pub fn replace(&self, settings: XoSettings) {
        self.settings.set(settings);
    }

    /// XO's Callback URL.
    pub fn callback_url(&self) -> Option<Url> {
        self.settings.get().callback_url.clone()
    }

    /// The address for events of API conversations.
    pub fn events_url(&self) -> Option<Url> {
        self.settings.get().events_url.clone()
    }

    /// The bots, and the allowed hosts of their reply addresses.
    pub fn bots(&self) -> (Vec<XoBot>, Vec<String>) {
        let settings = self.settings.get();
        let hosts = settings.allowed_hosts.hosts().map(str::to_owned);
        (settings.bots.clone(), hosts.collect())
    }

    /// Sends a GET without credentials. Returns the status and the time of the remote side.
    pub(crate) async fn probe_url(&self, url: &Url) -> Result<(u16, Option<Timestamp>), CallError> {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let http = if Some(url) == self.events_url().as_ref() { &self.events } else { &self.http };
        let reply = http.call(HttpCall { method, url: url.clone(), headers, body: None }).await?;
        Ok((reply.status.as_u16(), reply.date()))
    }

    /// Posts JSON and checks only whether it was accepted, because the body of the answer is not documented.
    async fn post(
        http: &HttpClient,
        url: &Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), CallError> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
        let call = HttpCall { method: Method::POST, url: url.clone(), headers, body: Some(body) };
        taken(&http.call(call).await?)
    }
}

fn taken(reply: &HttpReply) -> Result<(), CallError> {
    let status = reply.status.as_u16();
    let kind = if !reply.status.is_success() {
        AnswerKind::of_status(status)
    } else if reply.begins_like_a_page() {
        // A proxy or a login page answers like this. An Express bot server labels each text `text/html`, so the type
        // proves nothing.
        AnswerKind::NotReady(NotReady::Html)
    } else {
        // The body of a success may be incomplete or have any content, because the status is sufficient.
        return Ok(());
    };
    // The error does not repeat the body, which could hold our text.
    let (detail, said) = (String::new(), PlatformWords::default());
    Err(CallError::Answer(ErrorAnswer { status, retry_after: reply.retry_after(), kind, detail, said }))
}

impl std::fmt::Debug for XoSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = |url: &Option<Url>| url.as_ref().and_then(|url| url.host_str().map(str::to_owned));
        f.debug_struct("XoSettings")
            .field("callback_host", &host(&self.callback_url))
            .field("events_host", &host(&self.events_url))
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Xo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.settings.get().fmt(f)
    }
}
