//! Makes one attempt toward the bot side: finds the conversation of a callback, and the receiver.
//!
//! Guarantees: a callback of a chat that is not ours reaches XO's Callback URL byte for byte.
//!
//! Not responsible for: relaying the messages of our chats (`callback_relay.rs`, `virtual_agent_callback.rs`), HTTP
//! (`platform/xo`).

use crate::bridge::settings::UnknownGroup;
use crate::bridge::to_bot::{ToBot, bot_turn};
use crate::clock;
use crate::conversation::Directory;
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{Callback, DeadReason, Endpoint, Kind, Message, Outcome};
use crate::platform::servicenow::VirtualAgentCallback;

impl ToBot {
    /// Makes one attempt toward the events URL or a bot.
    pub(in crate::bridge) async fn attempt(
        &self,
        message: &Message,
        past: PriorAttempts,
    ) -> Result<Attempt, InternalError> {
        match (message.kind, &self.context.directory) {
            (kind, _) if kind.is_bot_turn() => Ok(bot_turn::pass_on(&self.context.xo, message).await),
            (Kind::CallbackMessage, Some(directory)) => self.callback(message, directory, past).await,
            (Kind::CallbackMessage, None) => Ok(self.unknown(message)),
            _ => self.relay.notice(message).await,
        }
    }

    async fn callback(
        &self,
        message: &Message,
        directory: &Directory,
        past: PriorAttempts,
    ) -> Result<Attempt, InternalError> {
        if let Some(callback) = VirtualAgentCallback::read(&message.body, self.context.instance()) {
            let known = match callback.group.as_deref() {
                Some(group) => directory.find_by_group(group).await?,
                None => None,
            };
            return match known {
                Some(known) => self.virtual_agent.record(message, directory, &callback, known).await,
                None => Ok(self.unknown(message)),
            };
        }
        let Ok(callback) = serde_json::from_slice::<Callback>(&message.body) else {
            let why = "its body is not a callback of this version";
            return Ok(Attempt::dead(Endpoint::XoCallback, DeadReason::Unreadable, why));
        };
        match directory.find_by_group(&callback.group).await? {
            // The callback's chat may be an earlier chat of the conversation: a late message of an agent is still
            // relayed. The message is in the lane of its own group, so it precedes the `ended` of the same chat.
            Some(conversation) if self.context.is_heard(&conversation) => {
                self.callbacks.relay(directory, message, past, &callback, &conversation).await
            }
            Some(_) => {
                let why = "handoffs.events_url is not set: no receiver";
                Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why))
            }
            None => Ok(self.unknown(message)),
        }
    }

    /// Handles a callback of an unknown group. The start that opens the group may still be in flight; later the group
    /// is not ours.
    pub(super) fn unknown(&self, message: &Message) -> Attempt {
        let at_most = self.context.settings.unknown_group_wait;
        let over = clock::since(message.accepted_at) >= at_most;
        let outcome = if over && self.context.settings.unknown_group == UnknownGroup::Drop {
            Outcome::Dropped
        } else {
            Outcome::Deferred { at_most, then: DeadReason::UnknownConversation }
        };
        Attempt::of(Endpoint::Events, outcome, "no conversation opened its group")
    }

    /// Makes one attempt toward XO's Callback URL. The body is neither read nor changed, and the directory is not used.
    pub(in crate::bridge) async fn forward(&self, message: &Message) -> Attempt {
        match self.context.xo.forward_callback(message.body.clone()).await {
            Ok(()) => Attempt::delivered(Endpoint::XoCallback),
            Err(error) => Attempt::called(Endpoint::XoCallback, &error, Operation::Callback),
        }
    }

    /// Must run before a message is dead-lettered. A dead Virtual Agent callback still applies its state. A dead end still
    /// gives the bot its user back. A dead bot turn is skipped at XO.
    pub(in crate::bridge) async fn before_dead_letter(&self, message: &Message) -> Result<(), InternalError> {
        match (message.kind, &self.context.directory) {
            (kind, _) if kind.is_bot_turn() => bot_turn::skip(&self.context.xo, message).await,
            (Kind::CallbackEnded | Kind::HandoffFailed, _) => self.user_return.last_act(message).await?,
            (Kind::CallbackMessage, Some(directory)) => {
                self.virtual_agent.dead_lettered(message, directory).await?;
            }
            _ => {}
        }
        Ok(())
    }
}
