//! Builds all answers to callers. Only this file knows status codes.
//!
//! Guarantees: each refusal is `application/problem+json` (RFC 9457) with the field, the reason and an instruction. A
//! refusal never contains a body, the value of a header or a query string.
//! Not responsible for: when to refuse (the routes), `x-request-id` (`mod.rs`).

use axum::body::Body;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::json;

use crate::conversation::DirectoryError;
use crate::queue::QueueError;

/// The maximum number of faults in one answer, so that a large wrong body does not cause a large answer.
pub(crate) const FIELD_ERRORS_MAX: usize = 100;

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// The path of the field, such as `transcript[2].text`.
    pub(crate) field: String,
    /// The reason, which also tells how to correct the field.
    pub(crate) reason: String,
}

/// Why a request is refused. The text tells the caller how to proceed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The challenge is the same with any configuration, so that it reveals nothing.
    #[error("The credentials are missing or wrong. Send the credentials that were set up for this address.")]
    Unauthorized(&'static str),
    #[error("Nothing was done: the token may only view. Use a token with the role {0}.")]
    NeedsRole(&'static str),
    #[error(
        "The callback comes from another ServiceNow instance than servicenow.instance names, so nothing was accepted. \
         If that instance is a clone, remove the address from its REST Message; else correct servicenow.instance."
    )]
    OtherInstance,
    #[error(
        "There is nothing at this address. Check the path against the documentation of the HTTP interface."
    )]
    UnknownRoute,
    #[error("This interface is not enabled. Set {0} and start again to enable it.")]
    NotEnabled(&'static str),
    #[error(
        "No conversation of this name is known. Check the id, or start it with POST /v1/handoffs; a start that was \
         just accepted may take a moment to appear."
    )]
    UnknownConversation,
    #[error(
        "ServiceNow has no queue of this id, or does not show it to Causeway's user. `causeway servicenow queues` lists \
         the ids."
    )]
    UnknownQueue,
    #[error(
        "This deployment has no login for ServiceNow, so it cannot ask about a queue. Set servicenow.host_url and its \
         login."
    )]
    NoServiceNowLogin,
    #[error("ServiceNow does not answer. Ask again after the time in Retry-After.")]
    ServiceNowAway,
    #[error("This address does not take this method. Use {0}.")]
    WrongMethod(&'static str),
    #[error("The body must be JSON in UTF-8. Send Content-Type: application/json.")]
    WrongContentType,
    #[error("The body must not be compressed. Send it without Content-Encoding.")]
    WrongEncoding,
    #[error("The body is larger than {0} bytes. Send less, or raise ingress.body_limit.")]
    TooLarge(usize),
    #[error(
        "The body is larger than the {0} bytes that the queue takes. Send less, or raise max_message_size of RabbitMQ."
    )]
    TooLargeForQueue(usize),
    #[error("The body is empty. Send one JSON object.")]
    EmptyBody,
    #[error("The body ended before it was complete. Send it again.")]
    CutBody,
    #[error("The request body was not received within the time limit (ingress.read_timeout). Send it again.")]
    SlowBody,
    #[error(
        "Too many large bodies are being read, so nothing was accepted. Send it again after the time in Retry-After."
    )]
    Overloaded,
    #[error("The body is not JSON: it breaks at line {line}, column {column}. Send one JSON object.")]
    NotJson { line: usize, column: usize },
    #[error("The body was read, but it cannot be used. Correct what `errors` lists and send it again.")]
    Invalid(Vec<FieldError>),
    #[error(
        "This key was used in this conversation for another request. Send that request again as it was, or choose a new key."
    )]
    KeyReused(&'static str),
    #[error("The body lacks {0}. Send it.")]
    Insufficient(&'static str),
    #[error("{0} {1}. Correct it and send it again.")]
    BadArgument(&'static str, &'static str),
    #[error(
        "The queue cannot be reached, so nothing was accepted. Send it again after the time in Retry-After."
    )]
    QueueAway,
    #[error("The queue is full, so nothing was accepted. Send it again after the time in Retry-After.")]
    QueueFull,
    #[error(
        "The queue cannot be used until an operator looks at it, so nothing was accepted. Send it again after the \
         time in Retry-After."
    )]
    QueueUnfit,
    #[error("There is no dead letter of this id. It may have been replayed or discarded since.")]
    UnknownDeadLetter,
    #[error("Nothing was done: {0}. Then ask again.")]
    Busy(String),
    #[error(
        "Nothing was removed: `confirm` is {confirmed}, but {found} dead letters match now. Look at them again and \
         confirm that number."
    )]
    Recounted { confirmed: u64, found: u64 },
    #[error(
        "The request failed inside Causeway. Look at the log, and at the dead letters before you repeat the request."
    )]
    Panicked,
    #[error("The directory of conversations cannot be reached. Ask again after the time in Retry-After.")]
    DirectoryAway,
}

/// The properties of one kind of refusal.
struct ProblemFacts {
    status: StatusCode,
    slug: &'static str,
    field: &'static str,
    title: &'static str,
}

impl ApiError {
    const fn facts(&self) -> ProblemFacts {
        let (status, slug, field, title) = match self {
            Self::Unauthorized(_) => (401, "unauthorized", "credentials", "Missing or wrong credentials"),
            Self::NeedsRole(_) => (403, "needs_role", "credentials", "Another role is needed"),
            Self::OtherInstance => (403, "other_instance", "instance", "Another instance"),
            Self::UnknownRoute => (404, "unknown_route", "path", "Unknown route"),
            Self::NotEnabled(_) => (404, "not_enabled", "path", "Not enabled"),
            Self::UnknownConversation => {
                (404, "unknown_conversation", "conversation_id", "Unknown conversation")
            }
            Self::UnknownQueue => (404, "unknown_queue", "queue", "Unknown queue"),
            Self::NoServiceNowLogin => (404, "no_servicenow_login", "path", "No login for ServiceNow"),
            Self::ServiceNowAway => (503, "servicenow_away", "servicenow", "ServiceNow not reachable"),
            Self::UnknownDeadLetter => (404, "unknown_dead_letter", "id", "Unknown dead letter"),
            Self::Busy(_) => (409, "busy", "dead-letters", "Dead letters are in use"),
            Self::Recounted { .. } => (409, "recounted", "confirm", "Not the number that was confirmed"),
            Self::WrongMethod(_) => (405, "wrong_method", "method", "Wrong method"),
            Self::SlowBody => (408, "slow_body", "body", "Body not complete in time"),
            Self::TooLarge(_) => (413, "too_large", "body", "Body too large"),
            Self::TooLargeForQueue(_) => (413, "too_large_for_queue", "body", "Body too large for the queue"),
            Self::WrongContentType => (415, "wrong_content_type", "content-type", "Wrong content type"),
            Self::WrongEncoding => (415, "wrong_encoding", "content-encoding", "Wrong content encoding"),
            Self::EmptyBody => (400, "empty_body", "body", "Empty body"),
            Self::CutBody => (400, "cut_body", "body", "Incomplete body"),
            Self::NotJson { .. } => (400, "not_json", "body", "Not JSON"),
            Self::Invalid(_) => (422, "invalid", "body", "Invalid content"),
            Self::KeyReused(field) => (422, "idempotency_key_reused", *field, "Key used for another request"),
            Self::Insufficient(_) => (400, "insufficient", "body", "Something is missing"),
            Self::BadArgument(field, _) => (400, "bad_argument", *field, "Content that is not allowed"),
            Self::Panicked => (500, "internal_error", "dead-letters", "Internal error"),
            Self::Overloaded => (503, "overloaded", "body", "Too many large bodies"),
            Self::QueueAway => (503, "queue_away", "queue", "Queue not reachable"),
            Self::QueueFull => (503, "queue_full", "queue", "Queue full"),
            Self::QueueUnfit => (503, "queue_unfit", "queue", "Queue not usable"),
            Self::DirectoryAway => (503, "directory_away", "directory", "Directory not reachable"),
        };
        let status = match StatusCode::from_u16(status) {
            Ok(status) => status,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ProblemFacts { status, slug, field, title }
    }

    /// The status and the title, for an HTML page.
    pub(crate) const fn status_and_title(&self) -> (StatusCode, &'static str) {
        let facts = self.facts();
        (facts.status, facts.title)
    }

    /// The name for the log and for the problem type.
    pub(crate) const fn slug(&self) -> &'static str {
        self.facts().slug
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let fixed = |name, value| Some((name, HeaderValue::from_static(value)));
        match self {
            Self::Unauthorized(challenge) => fixed(WWW_AUTHENTICATE, challenge),
            Self::WrongMethod(allow) => fixed(ALLOW, allow),
            Self::QueueAway | Self::DirectoryAway | Self::ServiceNowAway => fixed(RETRY_AFTER, "2"),
            Self::QueueFull | Self::Overloaded => fixed(RETRY_AFTER, "5"),
            Self::QueueUnfit => fixed(RETRY_AFTER, "10"),
            // The rest of the body is not read, so the connection cannot be used again.
            Self::TooLarge(_) | Self::SlowBody | Self::CutBody => fixed(CONNECTION, "close"),
            _ => None,
        }
    }

    /// Builds the answer.
    pub(crate) fn into_response(self, request_id: &str) -> Response {
        let facts = self.facts();
        let header = self.header();
        let detail = self.to_string();
        let errors = match self {
            Self::Invalid(mut errors) => {
                errors.truncate(FIELD_ERRORS_MAX);
                errors
            }
            _ => vec![FieldError { field: facts.field.to_owned(), reason: detail.clone() }],
        };
        let mut problem = json!({
            "type": format!("urn:causeway:problem:{}", facts.slug),
            "title": facts.title,
            "status": facts.status.as_u16(),
            "detail": detail,
            "request_id": request_id,
        });
        if let [only] = errors.as_slice() {
            problem["field"] = json!(only.field);
        }
        problem["errors"] = json!(errors);
        let mut response = answer(facts.status, "application/problem+json", problem.to_string());
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Unavailable(_) => Self::QueueAway,
            QueueError::Full => Self::QueueFull,
            QueueError::Busy(_) | QueueError::Mismatch(_) | QueueError::Refused(_) => Self::QueueUnfit,
            QueueError::TooLarge(limit) => Self::TooLargeForQueue(limit),
        }
    }
}

impl From<DirectoryError> for ApiError {
    fn from(_: DirectoryError) -> Self {
        Self::DirectoryAway
    }
}

/// Builds any answer: the JSON of a route or a page of the admin console.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A cached answer would hide that the queue is unreachable.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The queue has the message, or the message is not needed.
pub(crate) fn accepted(body: &serde_json::Value) -> Response {
    answer(StatusCode::ACCEPTED, "application/json", body.to_string())
}

/// The requested data.
pub(crate) fn found(body: &serde_json::Value) -> Response {
    answer(StatusCode::OK, "application/json", body.to_string())
}

/// A success of the admin listener.
pub(crate) fn healthy(content_type: &'static str, body: String) -> Response {
    answer(StatusCode::OK, content_type, body)
}

/// A failure of the admin listener.
pub(crate) fn unhealthy(reason: &str) -> Response {
    answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", format!("{reason}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn json_of(response: Response) -> serde_json::Value {
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn a_single_fault_is_also_the_field() {
        let errors = vec![FieldError { field: "user.email".into(), reason: "must be a string".into() }];
        let response = ApiError::Invalid(errors).into_response("r-1");
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let body = json_of(response).await;
        assert_eq!(body["field"], "user.email");
        assert_eq!(body["errors"][0]["reason"], "must be a string");
        assert_eq!(body["request_id"], "r-1");
    }

    #[tokio::test]
    async fn a_million_faults_are_not_a_million_lines() {
        let fault = FieldError { field: "transcript[0]".into(), reason: "must be an object".into() };
        let body = json_of(ApiError::Invalid(vec![fault; 5000]).into_response("r")).await;
        assert_eq!(body["errors"].as_array().unwrap().len(), FIELD_ERRORS_MAX);
        assert_eq!(body.get("field"), None);
    }

    #[test]
    fn every_queue_trouble_says_when_to_come_back() {
        let troubles = [
            QueueError::Unavailable("gone".into()),
            QueueError::Full,
            QueueError::Busy("held".into()),
            QueueError::Mismatch("odd".into()),
            QueueError::Refused("no right".into()),
        ];
        for trouble in troubles {
            let response = ApiError::from(trouble).into_response("r");
            assert_eq!(response.status(), 503);
            let seconds: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((1..=30).contains(&seconds));
        }
    }

    #[test]
    fn a_message_that_the_queue_never_takes_gets_no_retry_after() {
        let response = ApiError::from(QueueError::TooLarge(65_536)).into_response("r");
        assert_eq!((response.status().as_u16(), response.headers().get(RETRY_AFTER)), (413, None));
    }
}
