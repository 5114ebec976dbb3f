//! The names of things that travel: each id has its own type and can only be parsed into existence.
//!
//! Guarantees: an id that exists is within its bounds and safe to put into a header, a log line or a URL query.
//! Leaves to others: what an id refers to.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest conversation id or lane key, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Namespace of the ids that are derived from what a platform or a caller calls a message.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f2a_3c1e_9d54_4b7a_8f60_1c5d_2e8b_7a90);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdProblem {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// Longer than [`ID_BYTES_MAX`].
    #[error("must be at most {ID_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// Holds a control character.
    #[error("must not hold control characters")]
    ControlCharacter,
    /// Not a UUID.
    #[error("must be a UUID")]
    NotUuid,
}

/// Identifies one message for its whole life: the same event always has the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(Uuid);

impl MessageId {
    /// A new id, for what carries no name of its own. Sorts by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of an event that has one name: `source`, which holds no colon, keeps the name spaces of the callers apart
    /// (`servicenow:<sys_id>` for a callback).
    pub fn derived(source: &str, name: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("{source}:{name}").as_bytes()))
    }

    /// The id of an event that is named by several texts. Two different lists of texts never have the same id: each text is
    /// written behind its length, and the first byte after the source tells this form from that of [`Self::derived`].
    pub fn derived_from(source: &str, parts: &[&str]) -> Self {
        let mut name =
            Vec::with_capacity(source.len() + parts.iter().map(|part| part.len() + 8).sum::<usize>() + 1);
        name.extend_from_slice(source.as_bytes());
        name.push(0);
        for part in parts {
            name.extend_from_slice(&(part.len() as u64).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&NAMESPACE, &name))
    }

    /// The id of a handoff request that its caller gave a key: the same key in another conversation is another request.
    pub fn of_key(conversation: &ConversationId, key: &str) -> Self {
        Self::derived_from("handoff", &[conversation.as_str(), key])
    }

    /// Reads an id as [`fmt::Display`] writes it.
    pub fn parse(text: &str) -> Result<Self, IdProblem> {
        Uuid::parse_str(text).map(Self).map_err(|_| IdProblem::NotUuid)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

fn bounded(text: &str) -> Result<(), IdProblem> {
    if text.is_empty() {
        Err(IdProblem::Empty)
    } else if text.len() > ID_BYTES_MAX {
        Err(IdProblem::TooLong(text.len()))
    } else if text.chars().any(char::is_control) {
        Err(IdProblem::ControlCharacter)
    } else {
        Ok(())
    }
}

/// One user's handoff, from request to end, as its caller named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ConversationId(String);

impl ConversationId {
    /// Accepts 1 to 256 bytes without control characters.
    pub fn parse(text: &str) -> Result<Self, IdProblem> {
        bounded(text).map(|()| Self(text.to_owned()))
    }

    /// The id as its caller wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ConversationId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The strict line that a message stands in: one conversation's messages to one destination.
///
/// Toward ServiceNow it is the conversation id; toward XO it is ServiceNow's `group` where one exists (the ingress
/// of a callback knows nothing else), otherwise the conversation id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey(String);

impl LaneKey {
    /// Accepts 1 to 256 bytes without control characters.
    pub fn parse(text: &str) -> Result<Self, IdProblem> {
        bounded(text).map(|()| Self(text.to_owned()))
    }

    /// The lane of a message that belongs to no known line: it stands alone.
    pub fn alone(id: MessageId) -> Self {
        Self(id.to_string())
    }

    /// The key itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ConversationId> for LaneKey {
    fn from(conversation: &ConversationId) -> Self {
        Self(conversation.0.clone())
    }
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_has_the_same_id() {
        assert_eq!(MessageId::derived("servicenow", "abc"), MessageId::derived("servicenow", "abc"));
        assert_ne!(MessageId::derived("servicenow", "abc"), MessageId::derived("handoff", "abc"));
    }

    #[test]
    fn different_parts_have_different_ids() {
        let lists: &[&[&str]] = &[
            &["a", "b:c"],
            &["a:b", "c"],
            &["a:b:c"],
            &["a", "b", "c"],
            &["ab", "c"],
            &["a", "bc"],
            &["", "abc"],
            &["abc", ""],
            &["abc"],
            &[],
        ];
        let mut ids: Vec<MessageId> = lists.iter().map(|parts| MessageId::derived_from("s", parts)).collect();
        ids.extend(["a:b:c", "abc", ""].map(|name| MessageId::derived("s", name)));
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
    }

    #[test]
    fn ids_have_bounds() {
        assert_eq!(ConversationId::parse(""), Err(IdProblem::Empty));
        assert_eq!(ConversationId::parse(&"x".repeat(257)), Err(IdProblem::TooLong(257)));
        assert_eq!(ConversationId::parse("a\nb"), Err(IdProblem::ControlCharacter));
        assert!(ConversationId::parse(&"x".repeat(256)).is_ok());
    }
}
