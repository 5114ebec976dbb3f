//! The Attachment API of the simulated instance, and the media of the Virtual Agent: files of chats in both
//! directions.
//!
//! Guarantees: an upload needs an existing chat, a name and a content type (`src/platform/servicenow/FACTS.md`). A
//! switch refuses uploads, because it is not documented whether an integration user may attach files.
//! Not responsible for: the login (`session.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shapes;
use super::workspace::{AgentWorkspace, MessageRow, RefusedAction, record_id};
use crate::sandbox::state::SandboxState;

/// `com.glide.attachment.max_size` is far higher, which is too much for a test machine.
const BODY_MAX: usize = 64 << 20;

/// The path of uploads.
pub(super) const UPLOAD: &str = "/api/now/attachment/file";

/// A `sys_attachment` record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedFile {
    /// Its name.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// The chat that it belongs to.
    pub group: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// All files of the instance, by `sys_id`.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct StoredFiles(Mutex<BTreeMap<String, UploadedFile>>);

impl StoredFiles {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, UploadedFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::sandbox) fn keep(&self, file: UploadedFile) -> String {
        let id = record_id();
        self.all().insert(id.clone(), file);
        id
    }

    pub(in crate::sandbox) fn get(&self, id: &str) -> Option<UploadedFile> {
        self.all().get(id).cloned()
    }

    pub(in crate::sandbox) fn list(&self) -> Vec<UploadedFile> {
        self.all().values().cloned().collect()
    }

    /// The attachment objects of a message, in the shape that the browser client reads.
    pub(super) fn shown(&self, ids: &[String]) -> Value {
        let all = self.all();
        let shown = ids.iter().filter_map(|id| {
            let file = all.get(id)?;
            Some(json!({"sys_id": id, "file_name": file.name, "content_type": file.content_type,
                "size_bytes": file.bytes.len(), "can_read": true, "image": file.content_type.starts_with("image/")}))
        });
        Value::Array(shown.collect())
    }
}

impl AgentWorkspace {
    /// The agent sends a file: writes a row whose text contains the file name.
    pub(in crate::sandbox) fn agent_sends(
        &mut self,
        group: &str,
        name: &str,
        id: &str,
    ) -> Result<MessageRow, RefusedAction> {
        let mut row = self.agent_says(group, &format!("File: {name}"))?;
        row.attachments = vec![id.to_owned()];
        if let Some(kept) = self.chats.get_mut(group).and_then(|chat| chat.rows.last_mut()) {
            kept.attachments.clone_from(&row.attachments);
        }
        Ok(row)
    }
}

pub(super) fn router() -> Router<Arc<SandboxState>> {
    Router::new()
        .route(UPLOAD, post(upload))
        .route("/api/now/attachment/{id}/file", get(download))
        .route("/api/now/v1/cs/media/{id}", get(download))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

#[derive(Deserialize)]
struct UploadTarget {
    table_name: Option<String>,
    table_sys_id: Option<String>,
    file_name: Option<String>,
}

async fn upload(
    State(world): State<Arc<SandboxState>>,
    Query(target): Query<UploadTarget>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let (Some(table), Some(group), Some(name), Some(content_type)) =
        (target.table_name, target.table_sys_id, target.file_name, content_type)
    else {
        return shapes::error(StatusCode::BAD_REQUEST, "Missing parameter", None);
    };
    if table != "live_group_profile" || world.workspace().chat(&group).is_err() {
        return shapes::refused(RefusedAction::NotFound);
    }
    let shown = json!({"file_name": name, "content_type": content_type, "size_bytes": body.len().to_string(),
        "table_name": table, "table_sys_id": group});
    let file = UploadedFile { name, content_type: content_type.to_owned(), group, bytes: body.to_vec() };
    let mut result = shown;
    result["sys_id"] = json!(world.files.keep(file));
    shapes::result(StatusCode::CREATED, &result)
}

async fn download(State(world): State<Arc<SandboxState>>, Path(id): Path<String>) -> Response<Body> {
    match world.files.get(&id) {
        Some(file) => ([(CONTENT_TYPE, file.content_type)], file.bytes).into_response(),
        None => shapes::refused(RefusedAction::NotFound),
    }
}
