//! One attempt toward the bot side: whose callback it is, and where it goes.
//!
//! Guarantees: what ServiceNow posted of chats that are not ours reaches XO's Callback URL byte for byte. Leaves to others:
//! telling what was said in ours (`tell.rs`), the HTTP (`platform/xo`).

use std::sync::PoisonError;

use super::{Attempt, Deliverer, OwnTrouble, UnknownGroup};
use crate::clock;
use crate::conversation::{Conversation, Directory, Origin};
use crate::delivery::classify::Operation;
use crate::message::{Callback, DeadReason, Endpoint, Kind, Message, Outcome};
use crate::platform::servicenow::VirtualAgentCallback;

impl Deliverer {
    pub(super) async fn to_xo(&self, message: &Message) -> Attempt {
        let done = match (message.kind, &self.directory) {
            // The pure relay knows no conversations: nothing is looked up, nothing is even read. What follows is boxed, so
            // that its messages do not carry the room for it.
            (Kind::CallbackMessage, None) => return self.forward(message).await,
            (Kind::CallbackMessage, Some(directory)) => Box::pin(self.callback(message, directory)).await,
            _ => Box::pin(self.notice(message)).await,
        };
        done.unwrap_or_else(|OwnTrouble(trouble)| Attempt::own_trouble(Endpoint::Events, false, trouble))
    }

    async fn callback(&self, message: &Message, directory: &Directory) -> Result<Attempt, OwnTrouble> {
        if let Some(callback) = VirtualAgentCallback::read(&message.body) {
            return self.agent_chat(message, directory, &callback).await;
        }
        let Ok(callback) = serde_json::from_slice::<Callback>(&message.body) else {
            if self.settings.relays_callbacks
                && serde_json::from_slice::<serde_json::Value>(&message.body).is_ok()
            {
                return Ok(self.forward(message).await);
            }
            let why = "its body is not a callback of this version";
            return Ok(Attempt::dead(Endpoint::XoCallback, DeadReason::Unreadable, why));
        };
        match directory.find_by_group(&callback.group).await? {
            // Also where its chat is an earlier one of the conversation: what an agent said is not withheld because it
            // comes late. It is told under its own group, in the lane of that group, so before that chat's `ended`.
            Some(conversation) if self.is_heard(&conversation) => {
                self.said(directory, message, &callback, &conversation).await
            }
            _ if self.settings.relays_callbacks => Ok(self.forward_for_now(message).await),
            Some(_) => {
                let why = "handoffs.events_url is not set: nobody to tell";
                Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why))
            }
            None => Ok(self.unknown(message)),
        }
    }

    /// The chat may turn out to be one of ours, whose start is still on its way: then its user shall be told as well.
    async fn forward_for_now(&self, message: &Message) -> Attempt {
        let attempt = self.forward(message).await;
        if matches!(attempt.outcome, Outcome::Delivered) {
            self.forwarded.lock().unwrap_or_else(PoisonError::into_inner).add(message.id);
        }
        attempt
    }

    pub(super) fn is_heard(&self, conversation: &Conversation) -> bool {
        conversation.origin == Origin::BotKit || self.settings.tells_events
    }

    /// The start that opens this group may still be on its way; after that the group is none of ours.
    pub(super) fn unknown(&self, message: &Message) -> Attempt {
        let at_most = self.settings.unknown_group_wait;
        let over = clock::since(message.accepted_at) >= at_most;
        let outcome = if over && self.settings.unknown_group == UnknownGroup::Drop {
            Outcome::Dropped
        } else {
            Outcome::Held { at_most, then: DeadReason::UnknownConversation }
        };
        Attempt::of(Endpoint::Events, outcome, "nobody opened its group")
    }

    pub(super) async fn forward(&self, message: &Message) -> Attempt {
        match self.xo.forward_callback(message.body.clone()).await {
            Ok(()) => Attempt::delivered(Endpoint::XoCallback),
            Err(error) => Attempt::called(Endpoint::XoCallback, &error, Operation::Callback),
        }
    }
}
