//! Relays messages and notices to the bot side: to the events URL or to the bot, by the origin of the conversation.
//!
//! Guarantees: everything that is relayed carries an id of its own, so that the receiver can recognise a repeat.
//!
//! Not responsible for: finding the messages to relay (`callback.rs`, `watch/poll.rs`), the format for each receiver
//! (`events.rs`, `botkit.rs`).

use std::time::Duration;

use crate::bridge::Deliverer;
use crate::clock;
use crate::conversation::{Conversation, Origin};
use crate::delivery::{Attempt, InternalError};
use crate::message::{Endpoint, Message, MessageId, Notice, NoticeEvent, Outcome};
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

impl Deliverer {
    /// Relays a message of the chat to the bot side.
    pub(in crate::bridge) async fn relay(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
    ) -> Result<Attempt, InternalError> {
        match conversation.origin {
            Origin::Api => Ok(self.post_message_event(message, conversation, said).await),
            Origin::BotKit => self.relay_to_botkit(message, conversation, said).await,
        }
    }

    /// Relays a notice of Causeway to the bot side.
    pub(in crate::bridge) async fn notice(&self, message: &Message) -> Result<Attempt, InternalError> {
        let Ok(notice) = serde_json::from_slice::<Notice>(&message.body) else {
            let why = "its body is not a notice of this version";
            return Ok(Attempt::dead(Endpoint::Events, crate::message::DeadReason::Unreadable, why));
        };
        if notice.event == Some(NoticeEvent::Typing) && clock::since(message.accepted_at) > TYPING_LASTS {
            return Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, "the typing notice is too old"));
        }
        let Some(directory) = &self.directory else {
            return Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, "this worker has no directory"));
        };
        let notice = match self.with_number(directory, message, notice).await? {
            Ok(notice) => notice,
            Err(attempt) => return Ok(attempt),
        };
        match directory.find(&notice.conversation_id).await? {
            Some(conversation) if conversation.origin == Origin::BotKit => {
                self.botkit_notice(message, &conversation, &notice).await
            }
            None if self.xo.is_of_a_bot(&notice.conversation_id) => {
                let why = "its conversation is not in the directory yet: the end publishes it again";
                Ok(Attempt::of(Endpoint::XoBotKit, Outcome::Repeated, why))
            }
            _ => self.notice_event(message, &notice).await,
        }
    }
}
