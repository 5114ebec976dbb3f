//! The route `GET /v1/files/{token}`: streams one file from ServiceNow or from XO.
//!
//! Guarantees: every token that is not ours gets the same answer. A browser saves a file and never shows it as a page
//! of this origin (`Content-Disposition: attachment`, `nosniff`, and a content type derived from the name). A file that
//! exceeds the limit is cut off. Neither a credential nor a platform's words reach the caller. Every answer carries
//! `x-request-id`.
//!
//! Not responsible for: creating links (`link.rs`).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::routing::any;
use axum::{RequestExt, Router};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::Semaphore;

use super::{FileLinks, FileSource, LinkProblem, content_type_of};
use crate::http_server::request_id::{self, request_id};
use crate::message::safe_file_name;
use crate::platform::servicenow::StoredFile;
use crate::platform::{AnswerKind, CallError, ServiceNow, StreamedBody, Xo};
use crate::telemetry::logged_conversation;

/// The most files that are streamed at the same time. Each file holds a connection on both sides.
const AT_ONCE: usize = 32;
/// The time limit of one file, long enough for a slow phone.
const TRANSFER: Duration = Duration::from_secs(300);

/// The clients and settings of the route.
#[derive(Debug)]
pub struct FileServer {
    /// Verifies tokens.
    pub links: FileLinks,
    /// The client for agents' files.
    pub servicenow: Option<ServiceNow>,
    /// The client for users' files.
    pub xo: Xo,
    /// `files.max_size`, in bytes.
    pub max_size: u64,
}

struct ServerState {
    server: FileServer,
    places: Arc<Semaphore>,
}

/// The methods of the route.
const METHODS: &str = "GET, HEAD";

/// The reason why no file is returned.
enum FileError {
    WrongMethod,
    Forged,
    Expired,
    Gone,
    TooLarge,
    Busy,
    Away,
}

impl FileError {
    const fn facts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::WrongMethod => (
                StatusCode::METHOD_NOT_ALLOWED,
                "wrong_method",
                "This address does not take this method. Use GET, HEAD.",
            ),
            Self::Forged => (
                StatusCode::NOT_FOUND,
                "unknown_file",
                "No file has this link. Open the link as it was sent.",
            ),
            Self::Expired => {
                (StatusCode::GONE, "expired", "The link has expired. Ask for the file again in the chat.")
            }
            Self::Gone => {
                (StatusCode::NOT_FOUND, "file_gone", "The file is not there any more, or may not be read.")
            }
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The file is larger than files.max_size.")
            }
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Too many files at once. Try again in a few seconds.",
            ),
            Self::Away => (
                StatusCode::BAD_GATEWAY,
                "platform_away",
                "The platform that holds the file does not give it now. Try again later.",
            ),
        }
    }

    fn into_response(self, request_id: &str) -> Response<Body> {
        let (status, slug, detail) = self.facts();
        let field = if matches!(self, Self::WrongMethod) { "method" } else { "token" };
        let problem = json!({
            "type": format!("urn:causeway:problem:{slug}"), "title": status.canonical_reason(), "status": status.as_u16(),
            "detail": detail, "request_id": request_id, "field": field,
            "errors": [{"field": field, "reason": detail}],
        });
        let mut response = Response::new(Body::from(problem.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            Self::Busy | Self::Away => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("5"))),
            Self::WrongMethod => drop(headers.insert(ALLOW, HeaderValue::from_static(METHODS))),
            Self::Forged | Self::Expired | Self::Gone | Self::TooLarge => {}
        }
        response
    }
}

impl From<CallError> for FileError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Answer(answer) if matches!(answer.kind, AnswerKind::Gone | AnswerKind::Permanent) => {
                Self::Gone
            }
            CallError::Answer(_) | CallError::NoAnswer(_) => Self::Away,
        }
    }
}

/// The router with this route.
pub fn router(server: FileServer) -> Router {
    let shared = ServerState { server, places: Arc::new(Semaphore::new(AT_ONCE)) };
    Router::new().route("/v1/files/{token}", any(answer)).with_state(Arc::new(shared))
}

async fn answer(State(shared): State<Arc<ServerState>>, mut request: Request) -> Response<Body> {
    let id = request_id(Some(request.headers()));
    let mut response = match serve(&shared, &mut request, &id).await {
        Ok(response) => response,
        Err(none) => {
            let (status, reason, _) = none.facts();
            tracing::info!(status = status.as_u16(), reason, request_id = &*id, "a file was not returned");
            none.into_response(&id)
        }
    };
    request_id::add_to(response.headers_mut(), &id);
    response
}

async fn serve(shared: &ServerState, request: &mut Request, id: &str) -> Result<Response<Body>, FileError> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(FileError::WrongMethod);
    }
    let server = &shared.server;
    // A token that is not UTF-8 is a token of no file.
    let Path(token) = request.extract_parts::<Path<String>>().await.map_err(|_| FileError::Forged)?;
    let file = server.links.open(&token, crate::clock::now()).map_err(|problem| match problem {
        LinkProblem::Forged => FileError::Forged,
        LinkProblem::Expired => FileError::Expired,
    })?;
    let place = shared.places.clone().try_acquire_owned().map_err(|_| FileError::Busy)?;
    let content = match &file.source {
        FileSource::Attachment(sys_id) => stored(server, StoredFile::Attachment(sys_id)).await?,
        FileSource::Media(token) => stored(server, StoredFile::Media(token)).await?,
        FileSource::Xo(bot, address) => server.xo.open_file(bot, address, TRANSFER).await?,
    };
    if content.length.is_some_and(|length| length > server.max_size) {
        return Err(FileError::TooLarge);
    }
    let length = content.length;
    let body = content.limited(server.max_size).into_stream().map(move |piece| {
        // The permit is released after the last chunk.
        let _held = &place;
        piece
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type_of(&file.name)));
    headers.insert(CONTENT_DISPOSITION, disposition(&file.name));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    tracing::info!(
        conversation = logged_conversation(&file.conversation),
        request_id = id,
        "a file is being returned"
    );
    Ok(response)
}

async fn stored(server: &FileServer, file: StoredFile<'_>) -> Result<StreamedBody, FileError> {
    let servicenow = server.servicenow.as_ref().ok_or(FileError::Away)?;
    let content = servicenow.download(file, TRANSFER).await?;
    // A hibernating instance answers 200 with a page. A page that an agent attached has a length.
    let page = content.content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html"));
    if page && content.length.is_none() { Err(FileError::Away) } else { Ok(content) }
}

/// The `StreamedBody-Disposition` of RFC 6266: an ASCII name for old clients, and the full name.
fn disposition(name: &str) -> HeaderValue {
    let name = safe_file_name(name);
    let plain: String = name
        .chars()
        .map(|letter| {
            if letter.is_ascii_graphic() && !"\"\\%;".contains(letter) || letter == ' ' {
                letter
            } else {
                '_'
            }
        })
        .collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let value = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}");
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_a_header_or_a_page() {
        let shown = |name: &str| disposition(name).to_str().unwrap().to_owned();
        assert_eq!(shown("a b.png"), "attachment; filename=\"a b.png\"; filename*=UTF-8''a%20b.png");
        assert_eq!(shown("x\"\r\ny.txt"), "attachment; filename=\"x_y.txt\"; filename*=UTF-8''x%22y.txt");
        assert!(shown("네.pdf").ends_with("filename*=UTF-8''%EB%84%A4.pdf"));
        for (name, kind) in [
            ("a.html", "application/octet-stream"),
            ("a.svg", "application/octet-stream"),
            ("a.PNG", "image/png"),
        ] {
            assert_eq!(content_type_of(name), kind);
        }
    }
}
