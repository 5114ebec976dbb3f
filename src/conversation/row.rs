//! Converts rows of the tables to conversations and back.
//!
//! Guarantees: a value of another version that this version cannot read is an error, never a guess.

use std::borrow::Cow;

use jiff::Timestamp;

use super::{Conversation, ConversationState, DirectoryError, Origin};
use crate::message::ConversationId;

/// PostgreSQL cannot store NUL in a text, and JSON from a platform may contain NUL.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "")) } else { Cow::Borrowed(text) }
}

/// In the order of `columns!` in `statements`.
pub(super) type RowColumns = (
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<String>,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
);

/// A conversation and its revision.
pub(super) struct StoredConversation {
    pub(super) conversation: Conversation,
    /// See `schema.sql`.
    pub(super) revision: i64,
}

pub(super) fn conversation(row: RowColumns) -> Result<Conversation, DirectoryError> {
    stored(row).map(|stored| stored.conversation)
}

pub(super) fn stored(row: RowColumns) -> Result<StoredConversation, DirectoryError> {
    let (
        id,
        origin,
        state,
        group,
        number,
        queue_id,
        position,
        wait,
        agent,
        reason,
        opened,
        updated,
        revision,
        released,
        waiting_since,
    ) = row;
    let conversation = Conversation {
        id: named(&id, |id| ConversationId::parse(id).ok())?,
        origin: named(&origin, Origin::parse)?,
        state: named(&state, ConversationState::parse)?,
        group,
        number,
        queue_id,
        position: position.and_then(|position| u32::try_from(position).ok()),
        wait,
        agent,
        reason,
        opened_at: time(opened)?,
        waiting_since: time(waiting_since.unwrap_or(opened))?,
        updated_at: time(updated)?,
        released_at: released.map(time).transpose()?,
    };
    Ok(StoredConversation { conversation, revision })
}

pub(super) fn named<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, DirectoryError> {
    parse(text)
        .ok_or_else(|| DirectoryError::Mismatch(format!("the directory holds {text:?}, which is invalid")))
}

pub(super) fn time(milliseconds: i64) -> Result<Timestamp, DirectoryError> {
    Timestamp::from_millisecond(milliseconds).map_err(|_| {
        DirectoryError::Mismatch(format!("the directory holds the time {milliseconds}, out of range"))
    })
}
