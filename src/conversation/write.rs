//! The statements of a write, and the changes that one message makes together.
//!
//! Guarantees: a value holds no NUL. Not responsible for: running the statements (`writer.rs`).

use jiff::Timestamp;
use serde::Serialize;

use super::JournalEntry;
use super::dedup::DedupKey;
use super::row::storable;
use super::statements::{self, ManyText};
use crate::clock;
use crate::message::{ConversationId, MessageId, PayloadDigest};

/// A value of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum SqlValue {
    Text(Option<String>),
    Integer(Option<i64>),
}

impl From<&str> for SqlValue {
    fn from(text: &str) -> Self {
        Self::Text(Some(storable(text).into_owned()))
    }
}

impl From<Option<&str>> for SqlValue {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(|text| storable(text).into_owned()))
    }
}

impl From<i64> for SqlValue {
    fn from(number: i64) -> Self {
        Self::Integer(Some(number))
    }
}

impl From<Option<i64>> for SqlValue {
    fn from(number: Option<i64>) -> Self {
        Self::Integer(number)
    }
}

impl From<Timestamp> for SqlValue {
    fn from(at: Timestamp) -> Self {
        at.as_millisecond().into()
    }
}

/// One statement with its values.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) sql: &'static str,
    pub(super) many: Option<ManyRows>,
    pub(super) values: Vec<SqlValue>,
    /// Runs only if the first statement of the write has changed a row.
    pub(super) needs_change: bool,
}

/// The same statement for many rows. It runs once for a whole batch, and no caller gets a number of changed rows. The first
/// value of a row is the key of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ManyRows {
    /// The first row of a key stays.
    Insert(ManyText),
    /// The last row of a key stays.
    Update(ManyText),
}

impl Statement {
    pub(super) fn new<const N: usize>(sql: &'static str, values: [SqlValue; N]) -> Self {
        Self { sql, many: None, values: values.into(), needs_change: false }
    }

    pub(super) fn after_change(self) -> Self {
        Self { needs_change: true, ..self }
    }

    /// Whether the statement runs in a write whose first statement changed this number of rows.
    pub(super) const fn applies(&self, changed: u64) -> bool {
        changed > 0 || !self.needs_change
    }

    fn with_many(self, many: ManyRows) -> Self {
        Self { many: Some(many), ..self }
    }
}

/// The changes that one message makes. All changes are written in one transaction, or no change is written.
#[derive(Debug, Default)]
pub struct Changes(Vec<Statement>);

impl Changes {
    /// Writes a row of the journal.
    #[must_use]
    pub fn settled(self, entry: &JournalEntry) -> Self {
        let statement = Statement::new(statements::JOURNAL, entry.values());
        self.with(statement.with_many(ManyRows::Insert(statements::JOURNAL_MANY)))
    }

    /// Records a fact, as [`super::Directory::mark_done`] does.
    #[must_use]
    pub fn done(self, key: DedupKey, digest: Option<PayloadDigest>) -> Self {
        if let Some(entry) = JournalEntry::bare(key, digest, clock::now()) {
            return self.settled(&entry);
        }
        let digest = digest.map(|digest| digest.to_string());
        let values = [key.stored().as_str().into(), clock::now().into(), digest.as_deref().into()];
        self.with(
            Statement::new(statements::MARK_DONE, values)
                .with_many(ManyRows::Insert(statements::MARK_DONE_MANY)),
        )
    }

    /// Records the last message that was delivered into a chat, and its `sys_id` at ServiceNow.
    #[must_use]
    pub fn sent(self, group: &str, message: MessageId, sys_id: Option<&str>) -> Self {
        let sys_id = sys_id.unwrap_or_default().into();
        let values = [group.into(), sys_id, message.to_string().as_str().into(), clock::now().into()];
        self.with(
            Statement::new(statements::MARK_SENT, values)
                .with_many(ManyRows::Update(statements::MARK_SENT_MANY)),
        )
    }

    /// Records that the other side's message `sys_id` and all messages before it were relayed.
    #[must_use]
    pub fn relayed(self, group: &str, sys_id: &str) -> Self {
        let values = [group.into(), sys_id.into(), clock::now().into()];
        self.with(
            Statement::new(statements::MARK_RELAYED, values)
                .with_many(ManyRows::Update(statements::MARK_RELAYED_MANY)),
        )
    }

    /// Records a message in this chat, without a position for the relay progress.
    #[must_use]
    pub fn touched(self, group: &str) -> Self {
        self.with(Statement::new(statements::TOUCH, [group.into(), clock::now().into()]))
    }

    /// Makes the next poll of this conversation due at once, because an event happened in the conversation.
    #[must_use]
    pub fn poll_soon(self, id: &ConversationId) -> Self {
        self.with(Statement::new(statements::POLL_SOON, [id.as_str().into()]))
    }

    fn with(mut self, statement: Statement) -> Self {
        self.0.push(statement);
        self
    }

    pub(super) fn into_statements(self) -> Vec<Statement> {
        self.0
    }
}
