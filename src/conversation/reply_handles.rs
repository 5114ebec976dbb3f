//! XO's reply handles: the newest one of each conversation.
//!
//! Guarantees: an older event never replaces the handle of a newer one, in any order of arrival. Each handle is given to
//! one caller in its interval for extension. Not responsible for: using the handles (`bridge/to_bot/botkit.rs`).

use std::time::Duration;

use jiff::Timestamp;

use super::database::{Database, run};
use super::directory::Directory;
use super::row::named;
use super::{DirectoryError, StoredReply, snapshot, statements};
use crate::message::{ConversationId, ReplyHandle};

impl Directory {
    /// Saves the handle of an event. Does nothing if the conversation is not known.
    pub async fn save_reply_handle(
        &self,
        id: &ConversationId,
        handle: &ReplyHandle,
        at: Timestamp,
    ) -> Result<(), DirectoryError> {
        if snapshot::has_reply_handle(id, handle, at) {
            return Ok(());
        }
        let text = serde_json::to_string(handle).map_err(|error| {
            DirectoryError::Mismatch(format!("a reply handle cannot be written: {error}"))
        })?;
        let values = [id.as_str().into(), text.as_str().into(), handle.request_id.as_str().into(), at.into()];
        self.execute(statements::SAVE_REPLY_HANDLE, values).await.map(|_| ())
    }

    /// The newest handle of a conversation.
    pub async fn reply_handle(&self, id: &ConversationId) -> Result<Option<StoredReply>, DirectoryError> {
        if let Some(known) = snapshot::reply_handle(id) {
            return Ok(known);
        }
        let row: Option<(String, i64)> = run!(self, |pool| {
            self.query_as(statements::READ_REPLY_HANDLE).bind(id.as_str()).fetch_optional(pool)
        })?;
        row.map(|(text, expired)| Ok(StoredReply { handle: handle(&text)?, expired: expired != 0 }))
            .transpose()
    }

    /// XO reported that this handle has expired. A newer handle does not change.
    pub async fn mark_reply_expired(
        &self,
        id: &ConversationId,
        request_id: &str,
    ) -> Result<(), DirectoryError> {
        self.execute(statements::MARK_REPLY_EXPIRED, [id.as_str().into(), request_id.into()])
            .await
            .map(|_| ())
    }

    /// The handles of open conversations that were neither saved nor extended within `every`.
    pub async fn find_sessions_to_extend(
        &self,
        now: Timestamp,
        every: Duration,
        limit: u32,
    ) -> Result<Vec<(ConversationId, ReplyHandle)>, DirectoryError> {
        let sql = match self.database {
            Database::Sqlite(_) => statements::FIND_TO_EXTEND_SQLITE,
            Database::Postgres(_) => statements::FIND_TO_EXTEND_POSTGRES,
        };
        let before =
            now.as_millisecond().saturating_sub(i64::try_from(every.as_millis()).unwrap_or(i64::MAX));
        let rows: Vec<(String, String)> = run!(self, writer, |pool| {
            self.query_as(sql).bind(now.as_millisecond()).bind(before).bind(i64::from(limit)).fetch_all(pool)
        })?;
        let read = |(id, text): (String, String)| {
            Ok((named(&id, |id| ConversationId::parse(id).ok())?, handle(&text)?))
        };
        rows.into_iter().map(read).collect()
    }
}

pub(super) fn handle(text: &str) -> Result<ReplyHandle, DirectoryError> {
    serde_json::from_str(text).map_err(|_| {
        DirectoryError::Mismatch("the directory holds a reply handle that cannot be read".to_owned())
    })
}
