//! A message of a chat on its way to the bot side.
//!
//! Guarantees: the id of a message is the same for a callback and for gap repair.
//! Not responsible for: relaying (`relay.rs`).

use std::time::Duration;

use crate::message::MessageId;
use crate::platform::servicenow::{AgentFile, Choice};

/// How long a typing notice is valid, counted from its acceptance.
pub(in crate::bridge) const TYPING_LASTS: Duration = Duration::from_secs(5);

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bridge) enum MessageAuthor {
    Agent,
    /// ServiceNow itself, in a text that repeats a notice of Causeway.
    System,
    /// ServiceNow itself, in a text that no notice repeats, for example that a chat is about to time out.
    Announcement,
}

impl MessageAuthor {
    pub(in crate::bridge) const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::System | Self::Announcement => "system",
        }
    }
}

/// A message of a chat. The type has no `Debug`, because it holds the text.
pub(in crate::bridge) struct RelayedMessage<'a> {
    /// The id that follows from ServiceNow's id of the message. It is the same for a callback and for gap repair.
    pub(in crate::bridge) id: MessageId,
    /// The chat of the message, possibly an earlier chat of the conversation.
    pub(in crate::bridge) group: &'a str,
    /// The text as a person reads it.
    pub(in crate::bridge) text: String,
    /// The possible answers, if the message is a question with choices.
    pub(in crate::bridge) choices: &'a [Choice],
    pub(in crate::bridge) author: MessageAuthor,
    /// The agent's name or user name, if known.
    pub(in crate::bridge) agent: Option<&'a str>,
    /// ServiceNow's id of the message.
    pub(in crate::bridge) sys_id: Option<&'a str>,
    /// The files of the message.
    pub(in crate::bridge) files: &'a [AgentFile],
}
