//! The relay progress of each chat: the last message that was relayed to the bot side, and the time of the last message.
//!
//! Not responsible for: reading a chat back (`bridge/watch/gaps.rs`), ending silent chats (`bridge/watch/time_limits.rs`).

use jiff::Timestamp;

use super::database::run;
use super::directory::Directory;
use super::row::{RowColumns, conversation, storable};
use super::write::Changes;
use super::{Conversation, DirectoryError, snapshot, statements};

impl Directory {
    /// Records that the other side's message `sys_id` and all messages before it were relayed.
    pub async fn mark_relayed(&self, group: &str, sys_id: &str) -> Result<(), DirectoryError> {
        self.record(Changes::default().relayed(group, sys_id)).await
    }

    /// The newest relayed message; `None` before the first one.
    pub async fn last_relayed(&self, group: &str) -> Result<Option<String>, DirectoryError> {
        if let Some(known) = snapshot::last_relayed(group) {
            return Ok(known);
        }
        let row: Option<(Option<String>,)> = run!(self, |pool| {
            self.query_as(statements::LAST_RELAYED).bind(storable(group)).fetch_optional(pool)
        })?;
        Ok(row.and_then(|(sys_id,)| sys_id))
    }

    /// Records a message in this chat, without a position for the relay progress.
    pub async fn touch(&self, group: &str) -> Result<(), DirectoryError> {
        self.record(Changes::default().touched(group)).await
    }

    /// Conversations with an agent that have had no message and no change since then.
    pub async fn find_silent(
        &self,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<Conversation>, DirectoryError> {
        self.listed(statements::FIND_SILENT, since, limit).await
    }

    /// Conversations that have waited for an agent since before `since`. If the agent left, the wait begins again.
    pub async fn find_overdue(
        &self,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<Conversation>, DirectoryError> {
        self.listed(statements::FIND_OVERDUE, since, limit).await
    }

    /// The time of the oldest poll of an open chat. A chat whose next poll is due at once is left out.
    pub async fn oldest_poll(&self) -> Result<Option<Timestamp>, DirectoryError> {
        let row: (Option<i64>,) = run!(self, |pool| sqlx::query_as(statements::OLDEST_POLL).fetch_one(pool))?;
        Ok(row.0.and_then(|at| Timestamp::from_millisecond(at).ok()))
    }

    async fn listed(
        &self,
        sql: &'static str,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<Conversation>, DirectoryError> {
        let rows: Vec<RowColumns> = run!(self, |pool| {
            self.query_as(sql).bind(since.as_millisecond()).bind(i64::from(limit)).fetch_all(pool)
        })?;
        rows.into_iter().map(conversation).collect()
    }
}
