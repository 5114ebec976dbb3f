//! XO's reply handles: the newest one of each conversation.
//!
//! Guarantees: an older event never replaces the handle of a newer one, in any order of arrival. Each handle is given to
//! one caller in its interval for extension. Not responsible for: using the handles (`delivery/botkit.rs`).

use std::time::Duration;

use jiff::Timestamp;

use super::directory::{Directory, SqliteDirectory, run};
use super::row::{named, storable};
use super::{DirectoryError, StoredReply, statements};
use crate::message::{ConversationId, ReplyHandle};

impl Directory {
    /// Saves the handle of an event. Does nothing if the conversation is not known.
    pub async fn save_reply_handle(
        &self,
        id: &ConversationId,
        handle: &ReplyHandle,
        at: Timestamp,
    ) -> Result<(), DirectoryError> {
        let text = serde_json::to_string(handle).map_err(|error| {
            DirectoryError::Mismatch(format!("a reply handle cannot be written: {error}"))
        })?;
        run!(self, state, changed by |pool| {
            sqlx::query(statements::SAVE_REPLY_HANDLE)
                .bind(id.as_str())
                .bind(storable(&text))
                .bind(storable(&handle.request_id))
                .bind(at.as_millisecond())
                .execute(pool)
        })
        .map(|_| ())
    }

    /// The newest handle of a conversation.
    pub async fn reply_handle(&self, id: &ConversationId) -> Result<Option<StoredReply>, DirectoryError> {
        let row: Option<(String, i64)> = run!(self, |pool| {
            sqlx::query_as(statements::READ_REPLY_HANDLE).bind(id.as_str()).fetch_optional(pool)
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
        run!(self, state, changed by |pool| {
            sqlx::query(statements::MARK_REPLY_EXPIRED).bind(id.as_str()).bind(storable(request_id)).execute(pool)
        })
        .map(|_| ())
    }

    /// The handles of open conversations that were neither saved nor extended within `every`.
    pub async fn find_sessions_to_extend(
        &self,
        now: Timestamp,
        every: Duration,
        limit: u32,
    ) -> Result<Vec<(ConversationId, ReplyHandle)>, DirectoryError> {
        let sql = match self {
            Self::Sqlite(_) => statements::FIND_TO_EXTEND_SQLITE,
            Self::Postgres(_) => statements::FIND_TO_EXTEND_POSTGRES,
        };
        let before =
            now.as_millisecond().saturating_sub(i64::try_from(every.as_millis()).unwrap_or(i64::MAX));
        let rows: Vec<(String, String)> = run!(self, |pool| {
            sqlx::query_as(sql).bind(now.as_millisecond()).bind(before).bind(i64::from(limit)).fetch_all(pool)
        })?;
        let read = |(id, text): (String, String)| {
            Ok((named(&id, |id| ConversationId::parse(id).ok())?, handle(&text)?))
        };
        rows.into_iter().map(read).collect()
    }
}

fn handle(text: &str) -> Result<ReplyHandle, DirectoryError> {
    serde_json::from_str(text).map_err(|_| {
        DirectoryError::Mismatch("the directory holds a reply handle that cannot be read".to_owned())
    })
}
