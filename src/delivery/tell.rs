//! What the bot side hears of a conversation, by the door that the conversation came through.
//!
//! Guarantees: what is told carries an id of its own, so that a repeat can be recognised. Leaves to others: finding out
//! what there is to tell (`callback.rs`, `poll.rs`), how each door says it (`events.rs`, `botkit.rs`).

use std::time::Duration;

use super::{Attempt, Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, Origin};
use crate::message::{Endpoint, Message, MessageId, Notice, NoticeEvent, Outcome};
use crate::platform::servicenow::AgentFile;

/// What somebody types is of interest this long, counted from when it was seen.
pub(super) const TYPING_LASTS: Duration = Duration::from_secs(5);

/// Whose words they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    Agent,
    /// ServiceNow itself, of what Causeway tells in its own words.
    System,
    /// ServiceNow itself, of what nobody else tells: that a chat is about to time out.
    Announcement,
}

impl Voice {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::System | Self::Announcement => "system",
        }
    }
}

/// Something that was said in a chat. No `Debug`: it holds the text.
pub(super) struct Said<'a> {
    /// Of the message as ServiceNow knows it: the same whichever way it came.
    pub(super) id: MessageId,
    /// The chat that it was said in; possibly an earlier one of the conversation.
    pub(super) group: &'a str,
    /// As a person reads it.
    pub(super) text: String,
    pub(super) voice: Voice,
    /// The agent's name or user name, where known.
    pub(super) agent: Option<&'a str>,
    /// ServiceNow's name for it.
    pub(super) sys_id: Option<&'a str>,
    /// Files that came with it.
    pub(super) files: &'a [AgentFile],
}

impl Deliverer {
    /// Tells the bot side what was said.
    pub(super) async fn say(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &Said<'_>,
    ) -> Result<Attempt, OwnTrouble> {
        match conversation.origin {
            Origin::Api => Ok(self.said_event(message, conversation, said).await),
            Origin::BotKit => self.botkit_says(message, conversation, said).await,
        }
    }

    /// Tells the bot side what Causeway itself has to say.
    pub(super) async fn notice(&self, message: &Message) -> Result<Attempt, OwnTrouble> {
        let Ok(notice) = serde_json::from_slice::<Notice>(&message.body) else {
            let why = "its body is not a notice of this version";
            return Ok(Attempt::dead(Endpoint::Events, crate::message::DeadReason::Unreadable, why));
        };
        if notice.event == Some(NoticeEvent::Typing) && clock::since(message.accepted_at) > TYPING_LASTS {
            return Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, "nobody is typing that long"));
        }
        let Some(directory) = &self.directory else {
            return Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, "this worker knows no conversations"));
        };
        match directory.find(&notice.conversation_id).await? {
            Some(conversation) if conversation.origin == Origin::BotKit => {
                self.botkit_notice(message, &conversation, &notice).await
            }
            None if self.xo.is_of_a_bot(&notice.conversation_id) => {
                let why = "nobody knows its conversation: its end tells it again";
                Ok(Attempt::of(Endpoint::XoBotKit, Outcome::Repeated, why))
            }
            _ => self.notice_event(message, &notice).await,
        }
    }
}
