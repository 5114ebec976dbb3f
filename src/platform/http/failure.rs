//! Classifies a failed request: whether the request may have left, and the reason of the failure.
//!
//! Guarantees: only a failure to connect, a refusal by a proxy or an HTTP/2 refusal counts as proof that the platform
//! did not read the request. No text of the remote side is repeated, except the names in its certificate.
//! Not responsible for: the reaction to a failure (`delivery/classify.rs`).

use std::error::Error;
use std::io;

use crate::message::platform_words::one_line;
use crate::platform::error::{NoAnswer, NoAnswerKind, SentState};
use crate::tls::{self, TlsFault};

/// hyper-util does not export the error of a tunnel, so its text identifies it.
const TUNNEL: &str = "tunnel error";
const TUNNEL_CREDENTIALS: &str = "tunnel error: proxy authorization required";
const TUNNEL_REFUSED: &str = "tunnel error: unsuccessful";

/// Translates an error of reqwest. `proxied`: the request was to go through a proxy.
pub(super) fn failure(error: &reqwest::Error, proxied: bool) -> NoAnswer {
    if error.is_builder() {
        return NoAnswer { sent: SentState::No, kind: NoAnswerKind::Connect, detail: root_cause(error) };
    }
    let sent = if error.is_connect() || is_refused_unread(error) { SentState::No } else { SentState::Maybe };
    if let Some(detail) = of_proxy(error, proxied) {
        return NoAnswer { sent, kind: NoAnswerKind::Proxy, detail };
    }
    if let Some((fault, detail)) = of_tls(error) {
        return NoAnswer { sent, kind: NoAnswerKind::Tls(fault), detail };
    }
    let kind = if error.is_connect() {
        NoAnswerKind::Connect
    } else if error.is_timeout() {
        NoAnswerKind::Timeout
    } else if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
        NoAnswerKind::NotHttp
    } else {
        NoAnswerKind::Reset
    };
    NoAnswer { sent, kind, detail: root_cause(error) }
}

/// The answer 407 comes from a proxy, never from the platform, so the platform did not read the request.
pub(super) fn refused_by_proxy() -> NoAnswer {
    let detail = "the proxy refuses the credentials (status 407)".to_owned();
    NoAnswer { sent: SentState::No, kind: NoAnswerKind::Proxy, detail }
}

/// The reason if the request failed before or at the proxy. `None` if the platform was reached.
fn of_proxy(error: &reqwest::Error, proxied: bool) -> Option<String> {
    if !proxied || !error.is_connect() {
        return None;
    }
    let tunnel = causes(error).map(ToString::to_string).find(|text| text.starts_with(TUNNEL));
    match tunnel.as_deref() {
        Some(TUNNEL_CREDENTIALS) => Some(refused_by_proxy().detail),
        Some(TUNNEL_REFUSED) => Some("the proxy refuses to connect to the address".to_owned()),
        Some(_) => Some(root_cause(error)),
        // The tunnel is open, so TLS failed with the platform.
        None if find::<rustls::Error>(error).is_some() => None,
        None => Some(root_cause(error)),
    }
}

fn of_tls(error: &reqwest::Error) -> Option<(TlsFault, String)> {
    if let Some(error) = find::<rustls::Error>(error) {
        return Some(tls::fault(error));
    }
    // The remote side closed the connection in the middle of the handshake.
    let is_end = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof)
    };
    let closed = error.is_connect() && causes(error).any(is_end);
    closed.then(|| (TlsFault::Other, tls::CLOSED.to_owned()))
}

/// True if the remote side closed its connection gracefully without taking this request, or refused the stream (RFC
/// 9113, section 8.7: safe to retry).
fn is_refused_unread(error: &reqwest::Error) -> bool {
    find::<h2::Error>(error).filter(|h2| h2.is_remote()).is_some_and(|h2| match h2.reason() {
        Some(h2::Reason::NO_ERROR) => h2.is_go_away(),
        reason => reason == Some(h2::Reason::REFUSED_STREAM),
    })
}

fn find<T: Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    causes(error).find_map(|cause| cause.downcast_ref::<T>())
}

/// The causes from the outermost to the innermost. `io::Error::source` skips the error inside of an `io::Error`, so this
/// function does not use it.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| {
        let cause: &(dyn Error + 'static) = *cause;
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => cause.source(),
        }
    })
}

/// The innermost error, as the operating system describes it. The outer errors repeat the URL, which may hold a
/// secret. An HTTP/2 error may hold text of the remote side, so only its reason code is used.
fn root_cause(error: &reqwest::Error) -> String {
    if let Some(reason) = find::<h2::Error>(error).and_then(h2::Error::reason) {
        return format!("HTTP/2: {}", reason.description());
    }
    let innermost = causes(error).last();
    innermost.map_or_else(|| "the request cannot be built".into(), |cause| one_line(&cause.to_string()))
}
