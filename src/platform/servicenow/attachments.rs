//! Uploads a user's file into the record of a chat, and downloads an agent's file.
//!
//! Guarantees: a repeated upload leaves at most an orphaned file. A download calls only the instance, with the usual
//! login, and follows no redirect.
//! Not responsible for: the size limit of files, the message that shows the file.
//! Source: `src/platform/servicenow/FACTS.md`.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::{JSON, ServiceNow, wire};
use crate::platform::error::{AnswerKind, CallError};
use crate::platform::http::{HttpCall, StreamedBody};

/// The table in which the browser client of Connect Support stores a chat's files.
const RECORD_OF_A_CHAT: &str = "live_group_profile";

/// A file at ServiceNow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFile<'a> {
    /// A `sys_attachment`, identified by its sys_id.
    Attachment(&'a str),
    /// A file of a Virtual Agent chat, identified by the token of its address.
    Media(&'a str),
}

/// The Attachment API's answer to an upload.
#[derive(Deserialize)]
struct WireStored {
    sys_id: String,
}

impl ServiceNow {
    /// Uploads a file into the record of a chat and returns its sys_id. The whole call must end within `time`.
    pub async fn upload(
        &self,
        group: &str,
        name: &str,
        content_type: &str,
        content: StreamedBody,
        time: Duration,
    ) -> Result<String, CallError> {
        let path = ["api", "now", "attachment", "file"];
        let query = [("table_name", RECORD_OF_A_CHAT), ("table_sys_id", group), ("file_name", name)];
        let url = self.address(&path, &query)?;
        let pass = self.inner.auth.get().pass(&self.inner.http, None).await?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, JSON);
        let kind = HeaderValue::try_from(content_type);
        headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
        headers.insert(AUTHORIZATION, pass.header.clone());
        let http = self.inner.http.with_timeout(time);
        let reply =
            http.pass_on(HttpCall { method: Method::POST, url, headers, body: None }, content).await?;
        if reply.status == StatusCode::UNAUTHORIZED && pass.renewable() {
            // The body is consumed. The next attempt uses the new token.
            self.inner.auth.get().pass(&self.inner.http, Some(&pass)).await?;
            return Err(CallError::answered(401, None, AnswerKind::Temporary));
        }
        Ok(wire::read::<WireStored>(reply, name, &self.inner.base)?.sys_id)
    }

    /// Opens a file. The whole file must arrive within `time`.
    pub async fn download(&self, file: StoredFile<'_>, time: Duration) -> Result<StreamedBody, CallError> {
        let url = match file {
            StoredFile::Attachment(sys_id) => {
                self.address(&["api", "now", "attachment", sys_id, "file"], &[])?
            }
            StoredFile::Media(token) => self.address(&["api", "now", "v1", "cs", "media", token], &[])?,
        };
        let http = self.inner.http.with_timeout(time);
        let mut pass = self.inner.auth.get().pass(&self.inner.http, None).await?;
        let mut renewed = false;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
            headers.insert(AUTHORIZATION, pass.header.clone());
            let call = HttpCall { method: Method::GET, url: url.clone(), headers, body: None };
            let opened = http.open(call).await?;
            let status = opened.status.as_u16();
            // A 202 and an HTML page are never a file (`src/platform/servicenow/FACTS.md`).
            if opened.status.is_success() && status != 202 {
                return Ok(opened.content);
            }
            if status == 401 && pass.renewable() && !renewed {
                renewed = true;
                pass = self.inner.auth.get().pass(&self.inner.http, Some(&pass)).await?;
                continue;
            }
            let kind = if status == 202 { AnswerKind::Temporary } else { AnswerKind::of_status(status) };
            return Err(CallError::answered(status, None, kind));
        }
    }
}
