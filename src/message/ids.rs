//! The ids of messages, conversations and lanes. Each id has its own type and can only be created by parsing.
//!
//! Guarantees: an id is within its length limit, and is safe in a header, a log line or a URL query.
//!
//! Not responsible for: the meaning of an id.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest conversation id or lane key, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// The namespace of ids that are derived from a platform's or a caller's id.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f2a_3c1e_9d54_4b7a_8f60_1c5d_2e8b_7a90);

/// The reason why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdProblem {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text is longer than [`ID_BYTES_MAX`].
    #[error("must be at most {ID_BYTES_MAX} bytes long, is {0}")]
    TooLong(usize),
    /// The text contains a control character.
    #[error("must not hold control characters")]
    ControlCharacter,
    /// The text is not a UUID.
    #[error("must be a UUID")]
    NotUuid,
}

/// The id of one message for its whole life: the same event always has the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(Uuid);

impl MessageId {
    /// A new id, for a message without an id of its own. These ids sort by time.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of an event with one name. `source` contains no colon and separates the namespaces of the callers
    /// (`servicenow:<sys_id>` for a callback).
    pub fn derived(source: &str, name: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("{source}:{name}").as_bytes()))
    }

    /// The id of an event that is named by several texts. Two different lists of texts never have the same id: the
    /// length of each text is written before the text, and the byte after the source differs from the colon of
    /// [`Self::derived`].
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

    /// The id of a handoff request with a key of its caller. The same key in another conversation is another request.
    pub fn of_key(conversation: &ConversationId, key: &str) -> Self {
        Self::derived_from("handoff", &[conversation.as_str(), key])
    }

    /// Parses an id in the form of [`fmt::Display`].
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

/// The id of one user's handoff, from request to end, as the caller chose it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ConversationId(String);

impl ConversationId {
    /// Accepts 1 to 256 bytes without control characters.
    pub fn parse(text: &str) -> Result<Self, IdProblem> {
        bounded(text).map(|()| Self(text.to_owned()))
    }

    /// The id as the caller wrote it.
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

/// The lane of a message: the strict order of one conversation's messages to one destination.
///
/// Toward ServiceNow the key is the conversation id. Toward XO the key is ServiceNow's `group` if there is one (the
/// ingress of a callback knows nothing else), otherwise the conversation id. Cheap to clone: each stage keeps a copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey(Arc<str>);

impl LaneKey {
    /// Accepts 1 to 256 bytes without control characters.
    pub fn parse(text: &str) -> Result<Self, IdProblem> {
        bounded(text).map(|()| Self(text.into()))
    }

    /// The lane of a message without a known conversation: the message is alone in its lane.
    pub fn alone(id: MessageId) -> Self {
        Self(id.to_string().into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ConversationId> for LaneKey {
    fn from(conversation: &ConversationId) -> Self {
        Self(conversation.as_str().into())
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
