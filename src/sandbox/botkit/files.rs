//! The files that simulated users send. They are kept in memory. Their URL requires the `auth` token of the bot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::calls::{RefusedCall, log_in};
use super::switches::FileShape;
use crate::sandbox::state::SandboxState;

/// A file that a user sends.
#[derive(Debug, Clone)]
pub struct UserFile {
    /// Its name on the user's device.
    pub name: String,
    /// The content type of the download.
    pub content_type: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// More headers of the download, or other values for the usual headers.
    pub headers: Vec<(String, String)>,
}

impl UserFile {
    /// A file of this name, type and content.
    pub fn new(name: &str, content_type: &str, bytes: impl Into<Bytes>) -> Self {
        Self {
            name: name.to_owned(),
            content_type: content_type.to_owned(),
            bytes: bytes.into(),
            headers: Vec::new(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct HostedFile {
    pub(super) bot: String,
    pub(super) file: UserFile,
    pub(super) at: Instant,
}

/// The item of `channel.attachments[]` for a file at this URL.
pub(super) fn attachment(file: &UserFile, address: &str, shape: FileShape) -> Value {
    match shape {
        FileShape::Flat => json!({ "fileName": file.name, "fileUrl": address }),
        FileShape::Nested => json!({ "fileName": file.name, "url": { "fileUrl": address } }),
        FileShape::NameOnly => json!({ "fileName": file.name }),
    }
}

/// `GET /xo/files/{id}`
pub(super) async fn file(
    State(world): State<Arc<SandboxState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, RefusedCall> {
    let (stored, switches) = {
        let state = world.botkit.lock();
        (state.files.get(&id).cloned(), state.switches)
    };
    let stored = stored.ok_or_else(|| RefusedCall::new(StatusCode::NOT_FOUND, "there is no such file"))?;
    if !switches.files_without_token {
        log_in(&world, &stored.bot, &headers)?;
    }
    let life = Duration::from_millis(switches.file_life_ms);
    if !life.is_zero() && stored.at.elapsed() > life {
        return Err(RefusedCall::new(StatusCode::GONE, "the address has lapsed"));
    }
    let UserFile { content_type, bytes, headers, .. } = stored.file;
    let mut response = ([(header::CONTENT_TYPE, content_type)], bytes).into_response();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), value.try_into()) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
