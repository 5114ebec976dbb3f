//! Reads many chats with one request for each table, over the Table API.
//!
//! Guarantees: only rows of the given chats are returned, because an instance drops an invalid part of a query and answers with
//! rows of other chats. No text of a chat is requested.
//! Not responsible for: whether the user may read the rows. An access rule can silently omit rows, so the absence of a row
//! says nothing (`bridge/watch/bulk_read.rs`).
//! Source: `FACTS.md`, the tables `chat_queue_entry` and `live_message`.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::json;

use super::connect_support::newest_open;
use super::table::TableRow;
use super::wire::WireEntry;
use super::{QueueEntry, ServiceNow};
use crate::message::callback::is_set;
use crate::platform::error::CallError;

const ENTRIES: &str = "chat_queue_entry";
const MESSAGES: &str = "live_message";
const ENTRY_FIELDS: &[&str] = &["sys_id", "group", "number", "queue", "state", "assigned_to", "position"];
const MESSAGE_FIELDS: &[&str] = &["sys_id", "group", "sys_created_by", "internal"];
/// The limit of rows of an answer about messages.
const ROWS_MAX: usize = 1000;

/// A message of another author than our user, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRow {
    /// The chat.
    pub group: String,
    /// sys_id of the `live_message`.
    pub sys_id: String,
}

impl ServiceNow {
    /// The maximum number of chats for one request: a group takes 33 bytes of the URL.
    pub const CHATS_MAX: usize = 100;

    /// Returns the queue entry of each chat, as [`ServiceNow::state`] does. A chat without a readable row is left out.
    pub async fn entries_of(&self, groups: &[&str]) -> Result<HashMap<String, QueueEntry>, CallError> {
        let query = format!("groupIN{}", groups.join(","));
        let rows = self.rows(ENTRIES, &query, ENTRY_FIELDS, 10 * Self::CHATS_MAX).await?;
        let mut entries: BTreeMap<String, Vec<QueueEntry>> = BTreeMap::new();
        for row in rows {
            let wire = serde_json::from_value::<WireEntry>(json!(row));
            if let Some(entry) = wire.ok().and_then(WireEntry::parse)
                && groups.contains(&entry.group.as_str())
            {
                entries.entry(entry.group.clone()).or_default().push(entry);
            }
        }
        let newest = entries.into_iter().filter_map(|(group, all)| Some((group, newest_open(all)?)));
        Ok(newest.collect())
    }

    /// Returns the messages of other authors between two times, without those among agents. `None` if there are too many
    /// for one answer.
    pub async fn messages_between(
        &self,
        groups: &[&str],
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Option<Vec<MessageRow>>, CallError> {
        let stamp = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S").to_string();
        let query = format!(
            "groupIN{}^sys_created_on>={}^sys_created_on<={}^ORDERBYsys_created_on^ORDERBYsys_id",
            groups.join(","),
            stamp(from),
            stamp(to)
        );
        let rows = self.rows(MESSAGES, &query, MESSAGE_FIELDS, ROWS_MAX).await?;
        if rows.len() >= ROWS_MAX {
            return Ok(None);
        }
        let others = rows.into_iter().filter_map(|row| self.others_message(row));
        Ok(Some(others.filter(|row| groups.contains(&row.group.as_str())).collect()))
    }

    /// Whether the user may read this row of another author.
    pub async fn shows_message(&self, group: &str, sys_id: &str) -> Result<bool, CallError> {
        let query = format!("group={group}^sys_id={sys_id}");
        let rows = self.rows(MESSAGES, &query, MESSAGE_FIELDS, 1).await?;
        let is_it = |row: &TableRow| row.get("sys_id").is_some_and(|shown| shown == sys_id);
        Ok(rows.first().is_some_and(is_it))
    }

    /// Whether the user may read at least one row of both tables.
    pub async fn shows_chat_tables(&self) -> Result<bool, CallError> {
        for table in [ENTRIES, MESSAGES] {
            if self.rows(table, "", &["sys_id"], 1).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn others_message(&self, mut row: TableRow) -> Option<MessageRow> {
        let is_internal = row.get("internal").is_some_and(|internal| is_set(Some(&json!(internal))));
        let writer = row.get("sys_created_by")?;
        if is_internal || self.is_own_user(writer) {
            return None;
        }
        Some(MessageRow { group: row.remove("group")?, sys_id: row.remove("sys_id")? })
    }
}
