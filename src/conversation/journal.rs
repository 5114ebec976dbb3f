//! The journal: a row for each settled message, by which a repeat is recognised and an operator follows a message.
//!
//! Guarantees: a row holds no text of the chat and no words of a platform. The first row of a message with one outcome stays.
//! [`JournalOutcome::Delivered`] and [`JournalOutcome::Forwarded`] mean that a destination answered 2xx.
//! Not responsible for: when a message is settled (`worker/process.rs`, `delivery/`), how long rows are kept (`app.rs`).

use jiff::Timestamp;

use super::database::run;
use super::dedup::DedupKey;
use super::directory::Directory;
use super::row::{named, storable, time};
use super::write::SqlValue;
use super::{DirectoryError, statements};
use crate::clock;
use crate::message::{DeadReason, Kind, Message, MessageId, PayloadDigest, named};

/// The largest number of rows of one message or of one name.
const ROWS_MAX: i64 = 10_000;

named! {
    /// How a message was settled.
    JournalOutcome {
        /// The destination answered 2xx.
        Delivered = "delivered",
        /// XO's Callback URL answered 2xx, and none of our users got the text.
        Forwarded = "forwarded",
        /// ServiceNow gave a final business answer ("no agent") to a start.
        Answered = "answered",
        /// The message became a dead letter.
        DeadLettered = "dead_lettered",
        /// No call was needed.
        Dropped = "dropped",
    }
}

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The message.
    pub message: MessageId,
    /// How it was settled.
    pub outcome: JournalOutcome,
    /// The number of the replay that died or was dropped; 0 for every other outcome.
    pub replays: u32,
    /// When it was settled.
    pub settled_at: Timestamp,
    /// The conversation, or ServiceNow's chat if only the chat was known.
    pub conversation: Option<String>,
    /// The kind. A row of an older version has none.
    pub kind: Option<Kind>,
    /// The destination, which may have been removed from the settings since.
    pub destination: Option<String>,
    /// When the message was accepted.
    pub accepted_at: Option<Timestamp>,
    /// The number of attempts.
    pub attempts: Option<u32>,
    /// The HTTP status of the last attempt, if that attempt failed with an answer.
    pub status: Option<u16>,
    /// The reason of a dead letter.
    pub reason: Option<DeadReason>,
    /// The `x-request-id` of the request that caused the message.
    pub request_id: Option<String>,
    /// The trace id of the same request.
    pub trace_id: Option<String>,
    /// The digest of the message, if the caller chose the key of the message.
    pub digest: Option<PayloadDigest>,
}

/// The attempts of a message at the time when it was settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledAfter {
    /// The number of attempts.
    pub attempts: u32,
    /// The HTTP status of the last attempt, if there was a failure with an answer.
    pub status: Option<u16>,
    /// The reason of a dead letter.
    pub reason: Option<DeadReason>,
}

impl JournalEntry {
    /// The row of a settled message. `None` if the fact does not settle a message.
    pub fn of(message: &Message, fact: DedupKey, after: SettledAfter) -> Option<Self> {
        let bare = Self::bare(fact, message.digest, clock::now())?;
        Some(Self {
            conversation: message.chat_name().map(str::to_owned),
            kind: Some(message.kind),
            destination: Some(message.destination.as_str().to_owned()),
            accepted_at: Some(message.accepted_at),
            attempts: Some(after.attempts),
            status: after.status,
            reason: after.reason,
            request_id: message.trace.request_id.as_deref().map(str::to_owned),
            trace_id: message.trace.parent.as_ref().map(|parent| parent.trace_id().to_owned()),
            ..bare
        })
    }

    /// The row of a fact without its message.
    pub(super) fn bare(fact: DedupKey, digest: Option<PayloadDigest>, at: Timestamp) -> Option<Self> {
        let (message, outcome, replays) = fact.settled()?;
        Some(Self {
            message,
            outcome,
            replays,
            settled_at: at,
            conversation: None,
            kind: None,
            destination: None,
            accepted_at: None,
            attempts: None,
            status: None,
            reason: None,
            request_id: None,
            trace_id: None,
            digest,
        })
    }

    /// In the order of [`statements::JOURNAL`].
    pub(super) fn values(&self) -> [SqlValue; 14] {
        let number = |number: Option<u32>| number.map(i64::from);
        [
            self.message.to_string().as_str().into(),
            self.outcome.as_str().into(),
            i64::from(self.replays).into(),
            self.settled_at.into(),
            self.conversation.as_deref().into(),
            self.kind.map(Kind::as_str).into(),
            self.destination.as_deref().into(),
            self.accepted_at.map(Timestamp::as_millisecond).into(),
            number(self.attempts).into(),
            self.status.map(i64::from).into(),
            self.reason.map(DeadReason::as_str).into(),
            self.request_id.as_deref().into(),
            self.trace_id.as_deref().into(),
            self.digest.map(|digest| digest.to_string()).as_deref().into(),
        ]
    }
}

/// In the order of `journal_columns!` in `statements`.
type JournalColumns = (
    String,
    String,
    i64,
    i64,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

fn entry(row: JournalColumns) -> Result<JournalEntry, DirectoryError> {
    let (
        message,
        outcome,
        replays,
        settled_at,
        conversation,
        kind,
        destination,
        accepted_at,
        attempts,
        status,
        reason,
        request_id,
        trace_id,
        digest,
    ) = row;
    Ok(JournalEntry {
        message: named(&message, |id| MessageId::parse(id).ok())?,
        outcome: named(&outcome, JournalOutcome::parse)?,
        replays: u32::try_from(replays).unwrap_or(0),
        settled_at: time(settled_at)?,
        conversation,
        // A kind or a reason of a newer version is not shown.
        kind: kind.as_deref().and_then(Kind::parse),
        destination,
        accepted_at: accepted_at.map(time).transpose()?,
        attempts: attempts.and_then(|attempts| u32::try_from(attempts).ok()),
        status: status.and_then(|status| u16::try_from(status).ok()),
        reason: reason.as_deref().and_then(DeadReason::parse),
        request_id,
        trace_id,
        digest: digest.as_deref().and_then(PayloadDigest::parse),
    })
}

impl Directory {
    /// The rows of one message, oldest first.
    pub async fn journal_of_message(&self, message: MessageId) -> Result<Vec<JournalEntry>, DirectoryError> {
        self.entries(statements::JOURNAL_OF_MESSAGE, &message.to_string()).await
    }

    /// The newest rows with this conversation or this chat, oldest first, at most 10,000.
    pub async fn journal_of_chat(&self, name: &str) -> Result<Vec<JournalEntry>, DirectoryError> {
        self.entries(statements::JOURNAL_OF_CHAT, name).await
    }

    /// The newest rows of messages that were settled since `at`, oldest first, at most 10,000.
    pub async fn journal_since(&self, at: Timestamp) -> Result<Vec<JournalEntry>, DirectoryError> {
        let rows: Vec<JournalColumns> = run!(self, |pool| {
            let query = self.query_as(statements::JOURNAL_SINCE).bind(at.as_millisecond());
            query.bind(ROWS_MAX).fetch_all(pool)
        })?;
        rows.into_iter().rev().map(entry).collect()
    }

    async fn entries(&self, sql: &'static str, name: &str) -> Result<Vec<JournalEntry>, DirectoryError> {
        let rows: Vec<JournalColumns> =
            run!(self, |pool| { self.query_as(sql).bind(storable(name)).bind(ROWS_MAX).fetch_all(pool) })?;
        rows.into_iter().rev().map(entry).collect()
    }
}
