//! What the bot side asks of the human side: the body of every `handoff.*` message to ServiceNow.
//!
//! Guarantees: the same shape on the public API and on the queue, so that a stored message of an older version
//! still reads. Leaves to others: the checks of a caller's input (`ingress/handoffs.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ConversationId, Kind, ReplyHandle};

/// One handoff request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Handoff {
    /// Opens a chat.
    Start(Start),
    /// The user wrote something.
    Message(Text),
    /// The user is typing.
    Typing(Typing),
    /// The user left.
    End(End),
}

/// Opens a chat with a human.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The caller's name for the conversation.
    pub conversation_id: ConversationId,
    /// ServiceNow's Queue ID; the configured one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<String>,
    /// The first words for the agent.
    pub message: String,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// What was said before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transcript: Vec<Line>,
    /// Free strings of the caller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Where XO takes answers, for conversations of its BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

/// Who asks for a human.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The caller's name for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// As the agent should see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For account linking where the platform does that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// A language tag such as `ko`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// One line of the transcript.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `user` or `bot`, or what the caller says.
    pub from: String,
    /// What was said.
    pub text: String,
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Something the user wrote.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The caller's name for the conversation.
    pub conversation_id: ConversationId,
    /// The text; may be empty where there are attachments.
    #[serde(default)]
    pub message: String,
    /// Files that came with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Where XO takes answers, for conversations of its BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

/// A file, by its address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Where it can be fetched; empty if nobody said where.
    #[serde(default)]
    pub url: String,
    /// What to call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// The user is typing, or has stopped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typing {
    /// The caller's name for the conversation.
    pub conversation_id: ConversationId,
    /// Not any more: the user only looks on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

/// The user left.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The caller's name for the conversation.
    pub conversation_id: ConversationId,
    /// Why, in the caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where XO takes answers, for conversations of its BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

impl Handoff {
    /// The conversation that it belongs to.
    pub const fn conversation(&self) -> &ConversationId {
        match self {
            Self::Start(start) => &start.conversation_id,
            Self::Message(text) => &text.conversation_id,
            Self::Typing(typing) => &typing.conversation_id,
            Self::End(end) => &end.conversation_id,
        }
    }

    /// The kind of message that carries it.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Start(_) => Kind::HandoffStart,
            Self::Message(_) => Kind::HandoffMessage,
            Self::Typing(_) => Kind::HandoffTyping,
            Self::End(_) => Kind::HandoffEnd,
        }
    }
}

/// What people wrote stays out of every log: only the name of the type is shown.
macro_rules! shown_by_name {
    ($($name:ident),+) => {
        $(impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        })+
    };
}
shown_by_name!(Start, User, Line, Text, Attachment, Typing, End);

impl std::fmt::Debug for Handoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handoff({} of {})", self.kind(), self.conversation())
    }
}
