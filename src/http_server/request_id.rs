//! The id of one HTTP request, which connects the logs of a caller with the logs of Causeway.
//!
//! Guarantees: an id is safe in a header and in a log line.
//!
//! Not responsible for: the answers that carry the id (`ingress/`, `files/`).

use axum::http::{HeaderMap, HeaderValue};

use crate::message::RequestId;

/// The header with the id.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// The caller's request id if it is safe in a log line, and a new one otherwise.
pub(crate) fn request_id(headers: Option<&HeaderMap>) -> RequestId {
    let given = headers.and_then(|headers| headers.get(REQUEST_ID)?.to_str().ok());
    given.and_then(RequestId::parse).unwrap_or_else(RequestId::fresh)
}

/// Adds the id to an answer.
pub(crate) fn add_to(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
}
