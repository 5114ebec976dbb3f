//! Makes one attempt toward the bot side: finds the conversation of a callback, and the receiver.
//!
//! Guarantees: a callback of a chat that is not ours reaches XO's Callback URL byte for byte.
//!
//! Not responsible for: relaying the messages of our chats (`relay.rs`), HTTP (`platform/xo`).

use crate::bridge::Deliverer;
use crate::clock;
use crate::conversation::{Conversation, Directory, Origin};
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{Callback, DeadReason, Endpoint, Kind, Message, Outcome, named};
use crate::platform::servicenow::VirtualAgentCallback;

named! {
    /// `delivery.unknown_group`: the treatment of a callback whose `group` no conversation opened.
    #[derive(Default)]
    UnknownGroup {
        /// The callback is dead-lettered as `unknown_conversation`.
        #[default]
        DeadLetter = "dead_letter",
        /// The callback is dropped and counted, because feeds and private chats are not ours.
        Drop = "drop",
    }
}

impl Deliverer {
    /// Makes one attempt toward the events URL or a bot.
    pub(in crate::bridge) async fn to_bot_side(
        &self,
        message: &Message,
        past: PriorAttempts,
    ) -> Result<Attempt, InternalError> {
        match (message.kind, &self.directory) {
            (kind, _) if kind.is_bot_turn() => Ok(self.bot_turn(message).await),
            (Kind::CallbackMessage, Some(directory)) => self.callback(message, directory, past).await,
            (Kind::CallbackMessage, None) => Ok(self.unknown(message)),
            _ => self.notice(message).await,
        }
    }

    async fn callback(
        &self,
        message: &Message,
        directory: &Directory,
        past: PriorAttempts,
    ) -> Result<Attempt, InternalError> {
        if let Some(callback) = VirtualAgentCallback::read(&message.body, self.instance()) {
            return self.virtual_agent_callback(message, directory, &callback).await;
        }
        let Ok(callback) = serde_json::from_slice::<Callback>(&message.body) else {
            let why = "its body is not a callback of this version";
            return Ok(Attempt::dead(Endpoint::XoCallback, DeadReason::Unreadable, why));
        };
        match directory.find_by_group(&callback.group).await? {
            // The callback's chat may be an earlier chat of the conversation: a late message of an agent is still
            // relayed. The message is in the lane of its own group, so it precedes the `ended` of the same chat.
            Some(conversation) if self.is_heard(&conversation) => {
                self.relay_callback(directory, message, past, &callback, &conversation).await
            }
            Some(_) => {
                let why = "handoffs.events_url is not set: no receiver";
                Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why))
            }
            None => Ok(self.unknown(message)),
        }
    }

    pub(in crate::bridge) fn is_heard(&self, conversation: &Conversation) -> bool {
        conversation.origin == Origin::BotKit || self.settings.tells_events
    }

    /// Handles a callback of an unknown group. The start that opens the group may still be in flight; later the group
    /// is not ours.
    pub(in crate::bridge) fn unknown(&self, message: &Message) -> Attempt {
        let at_most = self.settings.unknown_group_wait;
        let over = clock::since(message.accepted_at) >= at_most;
        let outcome = if over && self.settings.unknown_group == UnknownGroup::Drop {
            Outcome::Dropped
        } else {
            Outcome::Deferred { at_most, then: DeadReason::UnknownConversation }
        };
        Attempt::of(Endpoint::Events, outcome, "no conversation opened its group")
    }

    /// Makes one attempt toward XO's Callback URL. The body is neither read nor changed, and the directory is not used.
    pub(in crate::bridge) async fn forward(&self, message: &Message) -> Attempt {
        match self.xo.forward_callback(message.body.clone()).await {
            Ok(()) => Attempt::delivered(Endpoint::XoCallback),
            Err(error) => Attempt::called(Endpoint::XoCallback, &error, Operation::Callback),
        }
    }
}
