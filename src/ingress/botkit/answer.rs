//! The answers of a BotKit server to XO (`src/platform/xo/FACTS.md`).
//!
//! Guarantees: an event is returned as received, with the acknowledgement mark. A refusal is
//! `{"errors":[{"msg","code"}]}`.
//! Not responsible for: when to refuse (`mod.rs`), the status and the reason (`ingress/problem.rs`).

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use serde_json::json;

use crate::http_server::problem::ApiError;

const SUPPORTS_ACK: HeaderName = HeaderName::from_static("supportsmessageack");
const ERROR_DESCRIPTION: HeaderName = HeaderName::from_static("response-error-description");

/// Acknowledges an event: returns the event with the mark.
pub(super) fn acknowledged(payload: &[u8]) -> Response {
    taken(Body::from(marked(payload)))
}

/// Acknowledges a handoff.
pub(super) fn handed_off() -> Response {
    taken(Body::from(json!({ "headers": { "supportsMessageAck": true } }).to_string()))
}

/// Returns the payload of a webhook node unchanged, so that the node continues with it.
pub(super) fn unchanged(payload: Bytes) -> Response {
    taken(Body::from(payload))
}

fn taken(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SUPPORTS_ACK, HeaderValue::from_static("true"));
    response
}

/// Appends a field to a JSON object without parsing the object, which may be a megabyte.
fn marked(payload: &[u8]) -> Vec<u8> {
    let body = payload.trim_ascii_end();
    let open = body.strip_suffix(b"}").unwrap_or(body).trim_ascii_end();
    let mut marked = open.to_vec();
    marked.extend_from_slice(if open.ends_with(b"{") { b"" } else { b"," });
    marked.extend_from_slice(br#""ackMessage":true}"#);
    marked
}

/// A refusal with the usual status and headers, and with BotKit's body.
pub(in crate::ingress) fn refused(refusal: ApiError, request_id: &str) -> Response {
    let (code, msg) = match &refusal {
        ApiError::Unauthorized(_) => (json!(4002), "Invalid apikey".to_owned()),
        ApiError::Insufficient(_) => (json!("INSUFFICIENT_ARGUMENTS"), refusal.to_string()),
        ApiError::UnknownRoute | ApiError::NotEnabled(_) => (json!("NOT_FOUND"), refusal.to_string()),
        ApiError::Invalid(errors) => {
            let errors: Vec<String> =
                errors.iter().map(|fault| format!("{} {}", fault.field, fault.reason)).collect();
            (json!("VALIDATION_ERROR"), errors.join("; "))
        }
        ApiError::TooLarge(_) | ApiError::TooLargeForQueue(_) => {
            (json!("PAYLOAD_TOO_LARGE"), refusal.to_string())
        }
        ApiError::SlowBody => (json!("REQUEST_TIMEOUT"), refusal.to_string()),
        ApiError::QueueAway
        | ApiError::QueueFull
        | ApiError::QueueUnfit
        | ApiError::DirectoryAway
        | ApiError::Overloaded => (json!("SERVICE_UNAVAILABLE"), refusal.to_string()),
        _ => (json!("INVALID_ARGUMENTS"), refusal.to_string()),
    };
    let is_credentials = matches!(refusal, ApiError::Unauthorized(_));
    let is_invalid = matches!(refusal, ApiError::Invalid(_));
    let (mut parts, _) = refusal.into_response(request_id).into_parts();
    if is_invalid {
        parts.status = axum::http::StatusCode::PRECONDITION_FAILED;
    }
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if is_credentials {
        parts.headers.insert(ERROR_DESCRIPTION, HeaderValue::from_static("Invalid apikey"));
    }
    let body = json!({ "errors": [{ "msg": msg, "code": code }] });
    Response::from_parts(parts, Body::from(body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_fits_into_every_object() {
        for (payload, expected) in [
            ("{}", r#"{"ackMessage":true}"#),
            (" { } \n", r#" {"ackMessage":true}"#),
            (r#"{"a":{"b":1}}"#, r#"{"a":{"b":1},"ackMessage":true}"#),
            ("{\"a\":[]\n}\n", r#"{"a":[],"ackMessage":true}"#),
        ] {
            let marked = String::from_utf8(marked(payload.as_bytes())).unwrap();
            assert_eq!(marked, expected);
            serde_json::from_str::<serde_json::Value>(&marked).unwrap();
        }
    }

    #[tokio::test]
    async fn refusals_are_told_as_botkit_tells_them() {
        for (refusal, status, code) in [
            (ApiError::Unauthorized("x"), 401, json!(4002)),
            (ApiError::UnknownRoute, 404, json!("NOT_FOUND")),
            (ApiError::Insufficient("user"), 400, json!("INSUFFICIENT_ARGUMENTS")),
            (ApiError::BadArgument("baseUrl", "is foreign"), 400, json!("INVALID_ARGUMENTS")),
            (ApiError::NotJson { line: 1, column: 1 }, 400, json!("INVALID_ARGUMENTS")),
            (ApiError::Invalid(Vec::new()), 412, json!("VALIDATION_ERROR")),
            (ApiError::TooLarge(1), 413, json!("PAYLOAD_TOO_LARGE")),
            (ApiError::TooLargeForQueue(1), 413, json!("PAYLOAD_TOO_LARGE")),
            (ApiError::QueueAway, 503, json!("SERVICE_UNAVAILABLE")),
            (ApiError::QueueFull, 503, json!("SERVICE_UNAVAILABLE")),
            (ApiError::QueueUnfit, 503, json!("SERVICE_UNAVAILABLE")),
            (ApiError::DirectoryAway, 503, json!("SERVICE_UNAVAILABLE")),
            (ApiError::Overloaded, 503, json!("SERVICE_UNAVAILABLE")),
        ] {
            let response = refused(refusal, "r");
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().contains_key("retry-after"), status == 503);
            assert_eq!(response.headers().contains_key("response-error-description"), status == 401);
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["errors"][0]["code"], code);
        }
    }
}
