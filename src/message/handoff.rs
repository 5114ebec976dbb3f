//! Defines the bodies of requests from the bot side to the human side: every `handoff.*` message to ServiceNow.
//!
//! Guarantees: the public API and the queue use the same JSON, and a stored message of an older version can be read.
//!
//! Not responsible for: validating a caller's input (`ingress/handoffs.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ConversationId, Kind, ReplyHandle};

/// One handoff request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Handoff {
    /// Opens a chat.
    Start(Start),
    /// A message of the user.
    Message(Text),
    /// The user is typing.
    Typing(Typing),
    /// The user left.
    End(End),
}

/// Opens a chat with an agent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// ServiceNow's Queue ID; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<String>,
    /// The first message for the agent.
    pub message: String,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The messages before the handoff.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transcript: Vec<Line>,
    /// Free strings of the caller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The reply handle, for conversations of XO's BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

/// The user who asks for an agent.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The caller's id of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name that the agent sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address for account linking, if the platform supports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// A language tag such as `ko`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// One line of the transcript.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `user` or `bot`, or another word of the caller.
    pub from: String,
    /// The text of the line.
    pub text: String,
    /// The time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// A message of the user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// The text; may be empty if there are attachments.
    #[serde(default)]
    pub message: String,
    /// The files of the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// The reply handle, for conversations of XO's BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

/// A file, by its address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The address of the file; empty if unknown.
    #[serde(default)]
    pub url: String,
    /// The name of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The media type of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// The user is typing, or has stopped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typing {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// Whether the user has stopped typing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

/// The user left.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// The reason, in the caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reply handle, for conversations of XO's BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

impl Handoff {
    /// The conversation of the request.
    pub const fn conversation(&self) -> &ConversationId {
        match self {
            Self::Start(start) => &start.conversation_id,
            Self::Message(text) => &text.conversation_id,
            Self::Typing(typing) => &typing.conversation_id,
            Self::End(end) => &end.conversation_id,
        }
    }

    /// The kind of the message that carries the request.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Start(_) => Kind::HandoffStart,
            Self::Message(_) => Kind::HandoffMessage,
            Self::Typing(_) => Kind::HandoffTyping,
            Self::End(_) => Kind::HandoffEnd,
        }
    }
}

/// `Debug` shows only the name of the type, so that chat text never reaches a log.
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
