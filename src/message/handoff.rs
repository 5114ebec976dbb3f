//! Defines the bodies of requests from the bot side to the human side: every `handoff.*` message to ServiceNow.
//!
//! Guarantees: the public API and the queue use the same JSON, and a stored message of an older version can be read.
//!
//! Not responsible for: validating a caller's input (`ingress/handoffs.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ConversationId, Kind, ReplyHandle, named};

/// One handoff request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Handoff {
    /// Opens a chat.
    Start(HandoffStart),
    /// A message of the user.
    Message(HandoffText),
    /// The user is typing.
    Typing(TypingSignal),
    /// The user left.
    End(HandoffEnd),
}

/// Opens a chat with an agent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffStart {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// ServiceNow's Queue ID; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<String>,
    /// The first message for the agent.
    pub message: String,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<ChatUser>,
    /// The messages before the handoff.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transcript: Vec<TranscriptLine>,
    /// Free strings of the caller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The reply handle, for conversations of XO's BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

/// The user who asks for an agent.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatUser {
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
pub struct TranscriptLine {
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
pub struct HandoffText {
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
pub struct TypingSignal {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// Whether the user has stopped typing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Whether XO reported the typing. The handoff API never sets this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_xo: bool,
}

named! {
    /// Causeway's own reasons of an end.
    EndCause {
        /// A bot's user wrote an end word.
        User = "user",
        /// XO took the user back.
        Xo = "xo",
        /// The user closed the session in XO's web widget.
        SessionClosed = "session_closed",
        /// Neither side wrote within `servicenow.idle_limit`.
        Idle = "idle",
        /// No agent came within `servicenow.wait_limit`.
        WaitedTooLong = "waited_too_long",
    }
}

/// The reason of an end. On the queue a cause is an object and a caller's text is a string, so a text never becomes a
/// cause.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndReason {
    /// Causeway ended the conversation.
    Internal {
        /// The cause.
        cause: EndCause,
    },
    /// The text of a caller.
    Other(String),
}

impl EndReason {
    /// The text for notices and the directory.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Internal { cause } => cause.as_str(),
            Self::Other(text) => text,
        }
    }

    /// Causeway's own reason, if this is one.
    pub const fn cause(&self) -> Option<EndCause> {
        match self {
            Self::Internal { cause } => Some(*cause),
            Self::Other(_) => None,
        }
    }
}

impl From<EndCause> for EndReason {
    fn from(cause: EndCause) -> Self {
        Self::Internal { cause }
    }
}

/// The user left.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffEnd {
    /// The caller's id of the conversation.
    pub conversation_id: ConversationId,
    /// The reason; absent if the caller gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// The reply handle, for conversations of XO's BotKit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<ReplyHandle>>,
}

impl HandoffEnd {
    /// The reason as text. An end without a reason is an end by the user.
    pub fn reason_text(&self) -> &str {
        self.reason.as_ref().map_or(EndCause::User.as_str(), EndReason::as_str)
    }

    /// The label of this end in metrics. A caller's text selects no label, except the documented `user`.
    pub fn metric_label(&self) -> &'static str {
        match &self.reason {
            None => EndCause::User.as_str(),
            Some(EndReason::Internal { cause }) => cause.as_str(),
            Some(EndReason::Other(text)) if text == EndCause::User.as_str() => EndCause::User.as_str(),
            Some(EndReason::Other(_)) => "other",
        }
    }
}

impl Handoff {
    /// Whether a caller of the handoff API made the request. Such a caller can write neither a reply handle nor a cause.
    pub const fn is_from_api(&self) -> bool {
        match self {
            Self::Start(start) => start.reply.is_none(),
            Self::Message(text) => text.reply.is_none(),
            Self::Typing(typing) => !typing.from_xo,
            Self::End(end) => end.reply.is_none() && !matches!(end.reason, Some(EndReason::Internal { .. })),
        }
    }

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
shown_by_name!(
    HandoffStart,
    ChatUser,
    TranscriptLine,
    HandoffText,
    Attachment,
    TypingSignal,
    HandoffEnd,
    EndReason
);

impl std::fmt::Debug for Handoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handoff({} of {})", self.kind(), self.conversation())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: serde_json::Value) -> Handoff {
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn a_text_is_never_a_cause() {
        for cause in EndCause::ALL {
            let words = read(json!({"type": "end", "conversation_id": "c", "reason": cause.as_str()}));
            let Handoff::End(end) = &words else { panic!() };
            assert!(end.reason.as_ref().is_some_and(|reason| reason.cause().is_none()), "{cause}");
            assert_eq!(end.reason_text(), cause.as_str());
            let label = if *cause == EndCause::User { "user" } else { "other" };
            assert_eq!(end.metric_label(), label);
            assert!(words.is_from_api());

            let own = Handoff::End(HandoffEnd { reason: Some((*cause).into()), ..end.clone() });
            let stored = serde_json::to_value(&own).unwrap();
            assert_eq!(stored["reason"], json!({"cause": cause.as_str()}));
            assert!(!own.is_from_api());
            assert!(read(stored) == own, "{cause}");
        }
    }

    #[test]
    fn only_requests_without_a_mark_of_causeway_are_of_the_api() {
        let reply = json!({
            "bot_id": "st-1", "component_id": "default", "request_id": "1", "base_url": "https://xo.example",
            "send_user_message_url": "https://xo.example/sendUserMessage/1", "channel": {},
        });
        for (kind, mark) in
            [("start", "reply"), ("message", "reply"), ("end", "reply"), ("typing", "from_xo")]
        {
            let mut body = json!({"type": kind, "conversation_id": "c", "message": "m"});
            assert!(read(body.clone()).is_from_api(), "{kind}");
            body[mark] = if mark == "reply" { reply.clone() } else { json!(true) };
            assert!(!read(body).is_from_api(), "{kind}");
        }
    }
}
