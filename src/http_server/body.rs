//! Reads the body of a request within its limits.
//!
//! Guarantees: never holds more bytes than the limit. A body whose `Content-Length` exceeds the limit is refused
//! before any byte is read. A body that does not arrive within the read timeout is refused. A body is read only after
//! the budget has room.
//! Not responsible for: what the bytes mean.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, Request};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::problem::ApiError;
use super::read_budget::{ReadBudget, ReservedBytes, SenderTrust};
use crate::tasks;

/// Limits in time and bytes for draining a refused body. The sender sees the answer only if its body is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const DRAIN_BYTES_MAX: usize = 64 << 20;

/// The limits of one listener.
#[derive(Debug, Clone)]
pub(crate) struct BodyLimits {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
    /// The budget that all bodies of the listener share, and whether this sender is authenticated already.
    pub(crate) budget: Option<(Arc<ReadBudget>, SenderTrust)>,
}

/// Accepts JSON in UTF-8. A missing `Content-Type` counts as JSON.
pub(crate) fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(ApiError::WrongEncoding);
    }
    let Some(given) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let given = given.to_str().unwrap_or("?").to_ascii_lowercase();
    let mut parts = given.split(';').map(str::trim);
    let named = parts.next().unwrap_or_default();
    let json = named == "application/json" || (named.starts_with("application/") && named.ends_with("+json"));
    let utf8 = parts
        .filter_map(|part| part.strip_prefix("charset="))
        .all(|charset| matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"));
    if json && utf8 { Ok(()) } else { Err(ApiError::WrongContentType) }
}

/// Reads the whole body.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: &mut Body,
    limits: BodyLimits,
) -> Result<Bytes, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limits.bytes as u64) {
        return Err(ApiError::TooLarge(limits.bytes));
    }
    let length = announced.and_then(|length| usize::try_from(length).ok());
    let reserved: Option<ReservedBytes> = match &limits.budget {
        Some((budget, sender)) => Some(budget.reserve(*sender, length.unwrap_or(limits.bytes)).await?),
        None => None,
    };
    let deadline = Instant::now() + limits.time;
    let mut whole = Vec::with_capacity(length.unwrap_or(0));
    loop {
        let frame = tokio::time::timeout_at(deadline, body.frame()).await.map_err(|_| ApiError::SlowBody)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| ApiError::CutBody)?.into_data() else { continue };
        if whole.len() + data.len() > limits.bytes {
            return Err(ApiError::TooLarge(limits.bytes));
        }
        whole.extend_from_slice(&data);
    }
    if whole.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::EmptyBody);
    }
    Ok(match reserved {
        Some(reserved) => reserved.hold(whole),
        None => whole.into(),
    })
}

/// Drains the body of a refused request. A socket that is closed with unread bytes would lose the answer.
pub(crate) fn drain_body(request: Request<Body>) {
    // A sender with `Expect: 100-continue` has sent no body yet, and reading would ask it to send the body.
    if request.headers().contains_key(EXPECT) {
        return;
    }
    let mut body = request.into_body();
    if axum::body::HttpBody::is_end_stream(&body) {
        return;
    }
    let drain = async move {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    drop(tasks::spawn(tokio::time::timeout(DRAIN_TIMEOUT, drain)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &'static str, value: &str) -> Option<&'static str> {
        let name = axum::http::HeaderName::from_static(name);
        let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
        is_json(&headers).err().map(|refusal| refusal.slug())
    }

    #[test]
    fn only_json_is_taken() {
        for json in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/vnd.x+json;charset=\"utf-8\"",
        ] {
            assert_eq!(refusal("content-type", json), None, "{json}");
        }
        for other in
            ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""]
        {
            assert_eq!(refusal("content-type", other), Some("wrong_content_type"), "{other}");
        }
        assert_eq!(refusal("content-encoding", "gzip"), Some("wrong_encoding"));
        assert_eq!(refusal("content-encoding", "Identity"), None);
        assert!(is_json(&HeaderMap::new()).is_ok());
    }
}
