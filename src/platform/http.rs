//! The only HTTP client. Every request to a platform goes through this module.
//!
//! Guarantees: each call ends within its timeout. No redirect is followed. Requests go through the proxy of the settings
//! (`http/proxy.rs`); reqwest itself reads no environment. No answer is read beyond [`ANSWER_BYTES_MAX`]. A failure says
//! whether the request may have left (`http/failure.rs`). Connections are pooled for a limited time (`http/pool.rs`). If a
//! pooled connection died before the request was written, the client silently opens another one. If the connection dies
//! later, the error is [`SentState::Maybe`]. The client uses HTTP/2 if the platform offers it over TLS, and HTTP/1.1
//! otherwise. With HTTP/2 all requests share one connection, so the client pings a silent connection and closes it if the
//! ping is not answered. A request that the platform refused unread was certainly not acted on. If a precondition is set
//! ([`HttpClient::allowed_while`]), it is checked again right before each request leaves. The header fields of an answer are
//! not judged: up to [`HEADERS_MAX`] are read, and a field without a valid name is skipped.
//! Not responsible for: what a status means (`servicenow/wire.rs`, `xo/`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use url::Url;

mod failure;
mod pool;
mod proxy;
mod transfer;

use failure::{failure, refused_by_proxy};
use pool::ConnectionPool;
pub use proxy::{HostPattern, ProxyAddress, ProxyRules};
pub use transfer::{BodyError, StreamedBody};

use super::error::{NoAnswer, NoAnswerKind, SentState};
use crate::live::Live;
use crate::message::current_trace;
use crate::tls::{self, TlsFileProblem, TlsFiles, TlsPeer};

/// The maximum size in bytes of an answer that is read.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The upper limit of `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// A connection that was idle longer is not used again, because load balancers drop idle connections silently.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// The longest time for establishing a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// An HTTP/2 connection without traffic for this time is pinged, and closed if the answer to the ping is late.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of header fields in an answer over HTTP/1.1. The parser's own limit is 100.
pub const HEADERS_MAX: usize = 1000;

/// The limit of an answer's header fields over HTTP/2, in bytes as RFC 9113 counts them. The library's own limit is 16
/// KiB.
const HEADER_BYTES_MAX: u32 = 256 * 1024;

/// The header of W3C Trace Context.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The settings of the client.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// The time limit of a call, from opening the connection to the last byte of the answer.
    pub timeout: Duration,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// The network path to the destination.
    pub network: NetworkSettings,
}

/// The network path from this machine to a destination. The default is a direct connection with the system's
/// certificate authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// The proxies.
    pub proxy: ProxyRules,
    /// Certificate authorities, and our own certificate.
    pub tls: TlsFiles,
    /// The destination, for the expiry of its certificate.
    pub peer: TlsPeer,
}

/// The reason why the client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpProblem {
    /// The settings or the system do not allow a client.
    #[error("the HTTP client cannot be built: {0}")]
    Unusable(String),
    /// A file for TLS cannot be used.
    #[error("{0}")]
    TlsFile(TlsFileProblem),
}

/// The client: a pool of connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpClient {
    pool: Arc<ConnectionPool>,
    proxy: Live<ProxyRules>,
    timeout: Duration,
    right: CallPermission,
    #[cfg(test)]
    model: Option<model::Model>,
}

/// The precondition of a call.
#[derive(Clone)]
struct CallPermission(Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for CallPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallPermission")
    }
}

/// One request.
pub(crate) struct HttpCall {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
}

/// One answer of any status.
pub(crate) struct HttpReply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The body, or an error if the body ended early or was too large.
    pub(crate) body: Result<Bytes, NoAnswer>,
}

/// The media type of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Html,
    Other,
}

impl HttpClient {
    /// Builds the pool.
    pub fn new(settings: &HttpSettings) -> Result<Self, HttpProblem> {
        // The call fails only if a provider is already installed. That provider is sufficient.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut tls =
            tls::config(&settings.network.tls, settings.network.peer).map_err(HttpProblem::TlsFile)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (proxy, settings_of_pool) = (Live::new(settings.network.proxy.clone()), settings.clone());
        let rules = proxy.clone();
        let pool = ConnectionPool::new(move || build(&settings_of_pool, &rules.get(), tls.clone()));
        let pool = pool.map_err(|error| HttpProblem::Unusable(failure(&error, false).detail))?;
        Ok(Self {
            pool: Arc::new(pool),
            proxy,
            timeout: settings.timeout,
            right: CallPermission(Arc::new(|| true)),
            #[cfg(test)]
            model: None,
        })
    }

    /// The same pool with a precondition: a call is made only if `right` returns true. The check is the last step
    /// before the request. So a process that was suspended before a call does not make the call after it resumes.
    #[must_use]
    pub fn allowed_while(self, right: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { right: CallPermission(Arc::new(right)), ..self }
    }

    /// Uses these proxies for the next requests. Equal ones change nothing.
    pub fn replace_proxy(&self, rules: &ProxyRules) {
        if *self.proxy.get() != *rules {
            self.proxy.set(rules.clone());
            self.pool.renew();
        }
    }

    /// The same pool with another timeout.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Makes one call. An answer of any status is `Ok`.
    pub(crate) async fn call(&self, call: HttpCall) -> Result<HttpReply, NoAnswer> {
        if !(self.right.0)() {
            return Err(NoAnswer { sent: SentState::No, kind: NoAnswerKind::NoRight, detail: String::new() });
        }
        let call = HttpCall { headers: traced(call.headers), ..call };
        #[cfg(test)]
        if let Some(model) = &self.model {
            return model.answer(call, self.timeout).await;
        }
        let body = call.body.map(reqwest::Body::from);
        let mut response = self.send(call.method, call.url, call.headers, body).await?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        Ok(HttpReply { status, headers, body: read(response).await })
    }

    /// Sends one request and reads the head of the answer.
    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<reqwest::Response, NoAnswer> {
        let proxied = self.proxy.get().proxy_of(&url).is_some();
        let request = self.pool.client().request(method, url).headers(headers).timeout(self.timeout);
        let request = match body {
            Some(body) => request.body(body),
            None => request,
        };
        let answer = match request.send().await {
            Ok(response) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(refused_by_proxy())
            }
            Ok(response) => {
                // A load balancer without a backend answers like this, also if the destination has moved away.
                if matches!(response.status().as_u16(), 502..=504) {
                    self.pool.note_failure();
                }
                return Ok(response);
            }
            Err(error) => Err(failure(&error, proxied)),
        };
        self.pool.note_failure();
        answer
    }
}

/// Adds the `traceparent` of the message that causes the call. The parent id stays, because Causeway records no spans.
fn traced(mut headers: HeaderMap) -> HeaderMap {
    let value =
        current_trace::with_current(|trace| HeaderValue::from_str(trace.parent.as_ref()?.as_str()).ok());
    if let Some(value) = value.flatten() {
        headers.insert(TRACE_PARENT, value);
    }
    headers
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that builds the HTTP client")]
fn build(
    settings: &HttpSettings,
    proxy: &ProxyRules,
    tls: rustls::ClientConfig,
) -> Result<reqwest::Client, reqwest::Error> {
    let builder = reqwest::Client::builder()
        .user_agent(&settings.user_agent)
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_MAX.min(settings.timeout / 2))
        .tcp_keepalive(Duration::from_secs(30))
        .http1_max_headers(HEADERS_MAX)
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .tls_backend_preconfigured(tls);
    proxy.to_reqwest().into_iter().fold(builder, reqwest::ClientBuilder::proxy).build()
}

async fn read(mut response: reqwest::Response) -> Result<Bytes, NoAnswer> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, false))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            let detail = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(NoAnswer { sent: SentState::Maybe, kind: NoAnswerKind::TooLarge, detail });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

impl HttpReply {
    /// The media type of the body. An HTML page with another content type still counts as a page.
    pub(crate) fn media(&self) -> MediaType {
        let claimed =
            self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = claimed.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence == "application/json" || essence.ends_with("+json") {
            MediaType::Json
        } else if matches!(essence.as_str(), "text/html" | "application/xhtml+xml")
            || self.begins_like_a_page()
        {
            MediaType::Html
        } else {
            MediaType::Other
        }
    }

    /// Whether the body is an HTML page, regardless of the content type.
    pub(crate) fn begins_like_a_page(&self) -> bool {
        let Ok(body) = &self.body else { return false };
        let mut start = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
        // A page may start with an XML declaration or with comments.
        for (open, close) in [(&b"<?xml"[..], &b"?>"[..]), (b"<!--", b"-->"), (b"<!--", b"-->")] {
            let Some(rest) = start.strip_prefix(open) else { continue };
            let Some(end) = rest.windows(close.len()).position(|window| window == close) else { break };
            start = rest[end + close.len()..].trim_ascii_start();
        }
        [&b"<!doctype html"[..], b"<html", b"<head", b"<body"]
            .iter()
            .any(|page| start.get(..page.len()).is_some_and(|head| head.eq_ignore_ascii_case(page)))
    }

    /// The time on the remote side's clock.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        let date = self.headers.get(DATE)?.to_str().ok()?;
        Timestamp::try_from(httpdate::parse_http_date(date).ok()?).ok()
    }

    /// The delay that the platform asks for: from `Retry-After` (seconds or a date), or on a 429 from ServiceNow's
    /// `X-RateLimit-Reset` (unix time).
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        let now = crate::clock::machine();
        header(RETRY_AFTER.as_str()).and_then(|value| retry_after(value, now)).or_else(|| {
            let reset =
                header("x-ratelimit-reset").filter(|_| self.status == StatusCode::TOO_MANY_REQUESTS)?;
            let reset: i64 = reset.trim().parse().ok()?;
            Some(seconds(reset.saturating_sub(now.as_second())))
        })
    }
}

/// Parses `Retry-After`. A date in the past gives zero.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with too many digits is still a request for a long delay.
        return Some(seconds(value.parse().unwrap_or(i64::MAX)));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
    Some(seconds(date.as_second().saturating_sub(now.as_second())))
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0)).min(RETRY_AFTER_MAX)
}

/// A model of the remote side that replaces the network in tests on a paused clock.
#[cfg(test)]
mod model {
    use std::sync::Arc;

    use futures_util::future::BoxFuture;

    use super::*;

    type ErrorAnswer = BoxFuture<'static, Result<HttpReply, NoAnswer>>;

    #[derive(Clone)]
    pub(super) struct Model(Arc<dyn Fn(HttpCall) -> ErrorAnswer + Send + Sync>);

    impl Model {
        pub(super) async fn answer(&self, call: HttpCall, timeout: Duration) -> Result<HttpReply, NoAnswer> {
            let late =
                |_| NoAnswer { sent: SentState::Maybe, kind: NoAnswerKind::Timeout, detail: String::new() };
            tokio::time::timeout(timeout, (self.0)(call)).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
        }
    }

    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Model")
        }
    }

    impl HttpClient {
        /// The same client with calls answered by `model`. If the model never answers, the call ends with the
        /// timeout.
        #[must_use]
        pub(crate) fn answered_by(
            &self,
            model: impl Fn(HttpCall) -> ErrorAnswer + Send + Sync + 'static,
        ) -> Self {
            Self { model: Some(Model(Arc::new(model))), ..self.clone() }
        }
    }
}

#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod network_tests;

#[cfg(test)]
mod tests {
    use super::super::peer::{self, Peer};
    use super::*;

    fn get(url: &Url) -> HttpCall {
        HttpCall { method: Method::GET, url: url.clone(), headers: HeaderMap::new(), body: None }
    }

    fn http(timeout: Duration) -> HttpClient {
        HttpClient::new(&HttpSettings {
            timeout,
            user_agent: "causeway-test".into(),
            network: NetworkSettings::default(),
        })
        .unwrap()
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let read = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(read("0"), Some(0));
        assert_eq!(read(" 17 "), Some(17));
        assert_eq!(read("Sun, 22 Nov 2026 10:01:30 GMT"), Some(90));
        assert_eq!(read("Sun, 22 Nov 2026 09:00:00 GMT"), Some(0));
        assert_eq!(read("99999999999999999999999"), Some(86_400));
        assert_eq!(read("-5"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read(""), None);
    }

    #[tokio::test]
    async fn a_refused_connection_was_certainly_not_sent() {
        let error = http(Duration::from_secs(2)).call(get(&peer::nobody().await)).await.err().unwrap();
        assert_eq!((error.sent, error.kind), (SentState::No, NoAnswerKind::Connect));
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn no_call_is_made_without_the_lease() {
        let peer = Peer::cutting().await;
        let http = http(Duration::from_secs(2)).allowed_while(|| false);
        let error = http.call(get(&peer.url)).await.err().unwrap();
        assert_eq!((error.sent, error.kind), (SentState::No, NoAnswerKind::NoRight));
    }

    #[tokio::test]
    async fn a_cut_connection_may_have_been_heard() {
        let error = http(Duration::from_secs(2)).call(get(&Peer::cutting().await.url)).await.err().unwrap();
        assert_eq!((error.sent, error.kind), (SentState::Maybe, NoAnswerKind::Reset));
    }

    #[tokio::test]
    async fn silence_ends_with_the_timeout() {
        let error =
            http(Duration::from_millis(200)).call(get(&Peer::silent().await.url)).await.err().unwrap();
        assert_eq!((error.sent, error.kind), (SentState::Maybe, NoAnswerKind::Timeout));
    }

    #[tokio::test]
    async fn an_answer_has_a_size() {
        let body = "x".repeat(ANSWER_BYTES_MAX + 1);
        let peer = Peer::saying(format!(
            "HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: {}\n\n{body}",
            body.len()
        ))
        .await;
        let reply = http(Duration::from_secs(10)).call(get(&peer.url)).await.unwrap();
        assert_eq!(reply.body.unwrap_err().kind, NoAnswerKind::TooLarge);
    }

    #[tokio::test]
    async fn a_pooled_connection_that_died_is_replaced_or_maybe() {
        // The peer answers one request on each connection and closes the connection without a `Connection: close`
        // header.
        let peer =
            Peer::saying("HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: 2\n\n{}").await;
        let http = http(Duration::from_secs(2));
        for _ in 0..20 {
            match http.call(get(&peer.url)).await {
                Ok(reply) => assert_eq!(reply.status, StatusCode::OK),
                Err(error) => assert_eq!(error.sent, SentState::Maybe),
            }
        }
    }
}
