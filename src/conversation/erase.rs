//! Erases one conversation from the directory.
//!
//! Guarantees: the conversation is erased with its chats and its reply handle, in one transaction. The rows of the journal stay, without
//! the name of the conversation. An open conversation is erased only on
//! request. The free space of a SQLite file keeps no copy of the rows.
//! Not responsible for: deduplication keys. A key contains only digests and ids of messages, and [`Directory::forget`] deletes
//! the key.

use super::database::run;
use super::directory::Directory;
use super::row::storable;
use super::write::Statement;
use super::{DirectoryError, statements};

/// What the directory holds about one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasableRows {
    /// The id of the conversation.
    pub id: String,
    /// All chats that the conversation has had.
    pub groups: Vec<String>,
    /// The reply handles, 0 or 1.
    pub reply_handles: u64,
}

impl Directory {
    /// The ids of the conversations with this id, chat or number.
    pub async fn ids(&self, name: &str) -> Result<Vec<String>, DirectoryError> {
        let rows: Vec<(String,)> =
            run!(self, |pool| { self.query_as(statements::IDS).bind(storable(name)).fetch_all(pool) })?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// The rows of a conversation.
    pub async fn rows(&self, id: &str) -> Result<ErasableRows, DirectoryError> {
        let groups: Vec<(String,)> =
            run!(self, |pool| { self.query_as(statements::GROUPS_OF).bind(storable(id)).fetch_all(pool) })?;
        let handles: (i64,) = run!(self, |pool| {
            self.query_as(statements::COUNT_REPLY_HANDLES).bind(storable(id)).fetch_one(pool)
        })?;
        Ok(ErasableRows {
            id: id.to_owned(),
            groups: groups.into_iter().map(|(group,)| group).collect(),
            reply_handles: u64::try_from(handles.0).unwrap_or(0),
        })
    }

    /// Erases a conversation. Returns false if the conversation is unknown, or if the conversation is open and `also_open` is
    /// false.
    pub async fn erase(&self, id: &str, also_open: bool) -> Result<bool, DirectoryError> {
        let sql = if also_open { statements::ERASE } else { statements::ERASE_CLOSED };
        let rows = self.rows(id).await?;
        let names = std::iter::once(id).chain(rows.groups.iter().map(String::as_str));
        let from_journal =
            names.map(|name| Statement::new(statements::ERASE_FROM_JOURNAL, [name.into()]).after_change());
        let statements = std::iter::once(Statement::new(sql, [id.into()])).chain(from_journal).collect();
        let erased = self.write(statements).await?;
        self.empty_log().await?;
        Ok(erased > 0)
    }
}
