//! XO, and whoever takes its place for conversations of the API.
//!
//! Guarantees: addresses are shown by their host alone, since XO's Callback URL is its own secret.
//! Leaves to others: what is posted (`message/`), what an error means (`delivery/classify.rs`). Today's posts stand in
//! `callback.rs`; those of the BotKit protocol, with their own credential for each call, in `botkit.rs`.

mod botkit;
mod callback;
mod files;
mod history;
mod template;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use secrecy::SecretString;
use url::Url;

use crate::message::{AllowedHosts, PlatformWords};

pub use botkit::{SessionStep, TokenAlgorithm, Words, XoBot};
pub use history::Spoken;

use super::error::{Answer, AnswerKind, CallError, NotReady};
use super::http::{Call, Http, Reply};

/// Where XO listens.
#[derive(Clone, Default)]
pub struct XoSettings {
    /// XO's Callback URL (in XO: Webhook URL).
    pub callback_url: Option<Url>,
    /// Where events of API conversations go.
    pub events_url: Option<Url>,
    /// The bearer token that they go with.
    pub events_token: Option<SecretString>,
    /// The bots of the BotKit protocol.
    pub bots: Vec<XoBot>,
    /// Where their reply addresses may point.
    pub allowed_hosts: AllowedHosts,
    /// How long one call to the events URL may take; `None`: as long as one to the Callback URL.
    pub events_timeout: Option<Duration>,
    /// How long one call to a bot may take; `None`: as long as one to the Callback URL.
    pub bots_timeout: Option<Duration>,
}

/// The bot side. Cheap to clone.
#[derive(Clone)]
pub struct Xo {
    http: Http,
    settings: Arc<XoSettings>,
}

impl Xo {
    /// A client of the bot side.
    pub fn new(http: Http, settings: XoSettings) -> Self {
        Self { http, settings: Arc::new(settings) }
    }

    fn timed(&self, timeout: Option<Duration>) -> Self {
        let http = timeout.map_or_else(|| self.http.clone(), |timeout| self.http.with_timeout(timeout));
        Self { http, settings: Arc::clone(&self.settings) }
    }

    /// XO's Callback URL.
    pub fn callback_url(&self) -> Option<&Url> {
        self.settings.callback_url.as_ref()
    }

    /// Where events of API conversations go.
    pub fn events_url(&self) -> Option<&Url> {
        self.settings.events_url.as_ref()
    }

    /// The bots, and the hosts that they may be answered at.
    pub fn bots(&self) -> (&[XoBot], Vec<String>) {
        let hosts = self.settings.allowed_hosts.hosts().map(str::to_owned);
        (&self.settings.bots, hosts.collect())
    }

    /// Whether anything answers there, and what time it is there. Asks for nothing and sends nothing.
    pub(crate) async fn knock(&self, url: &Url) -> Result<(u16, Option<Timestamp>), CallError> {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let reply = self.http.call(Call { method, url: url.clone(), headers, body: None }).await?;
        Ok((reply.status.as_u16(), reply.date()))
    }

    /// Posts JSON and reads nothing but whether it was taken: nobody documents what comes back.
    async fn post(&self, url: &Url, mut headers: HeaderMap, body: Bytes) -> Result<(), CallError> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
        let call = Call { method: Method::POST, url: url.clone(), headers, body: Some(body) };
        taken(&self.http.call(call).await?)
    }
}

fn taken(reply: &Reply) -> Result<(), CallError> {
    let status = reply.status.as_u16();
    let kind = if !reply.status.is_success() {
        AnswerKind::of_status(status)
    } else if reply.begins_like_a_page() {
        // A proxy or a login page answers so. A bot server of Express says `text/html` of every text, so the type says nothing.
        AnswerKind::NotReady(NotReady::Html)
    } else {
        // The body of a success may break off or be anything: the status has been said.
        return Ok(());
    };
    // What it says is not repeated: it could be our text.
    let (detail, said) = (String::new(), PlatformWords::default());
    Err(CallError::Answer(Answer { status, retry_after: reply.retry_after(), kind, detail, said }))
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
        self.settings.fmt(f)
    }
}
