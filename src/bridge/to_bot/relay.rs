//! Relays messages and notices to the bot side: to the events URL or to the bot, by the origin of the conversation.
//!
//! Guarantees: everything that is relayed carries an id of its own, so that the receiver can recognise a repeat.
//!
//! Not responsible for: finding the messages to relay (`callback_relay.rs`, `virtual_agent_callback.rs`), the format for
//! each receiver (`events.rs`, `botkit_relay.rs`).

use std::sync::Arc;

use crate::bridge::context::BridgeContext;
use crate::bridge::notices::Notices;
use crate::bridge::to_bot::botkit_relay::BotKitRelay;
use crate::bridge::to_bot::events::EventsApi;
use crate::bridge::to_bot::relayed_message::{RelayedMessage, TYPING_LASTS};
use crate::clock;
use crate::conversation::{Conversation, Origin};
use crate::delivery::{Attempt, InternalError};
use crate::message::{Endpoint, Message, Notice, NoticeEvent, Outcome};

/// The ways to the bot side.
#[derive(Debug)]
pub(in crate::bridge) struct BotRelay {
    context: Arc<BridgeContext>,
    notices: Arc<Notices>,
    events: EventsApi,
    botkit: BotKitRelay,
}

impl BotRelay {
    pub(in crate::bridge) fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        botkit: BotKitRelay,
    ) -> Self {
        Self { events: EventsApi::new(context.clone()), context, notices, botkit }
    }

    /// Relays a message of the chat to the bot side.
    pub(in crate::bridge) async fn relay(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
    ) -> Result<Attempt, InternalError> {
        match conversation.origin {
            Origin::Api => Ok(self.events.post_message(message, conversation, said).await),
            Origin::BotKit => self.botkit.relay(message, conversation, said).await,
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
        let Some(directory) = &self.context.directory else {
            return Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, "this worker has no directory"));
        };
        let notice = match self.notices.with_number(directory, message, notice).await? {
            Ok(notice) => notice,
            Err(attempt) => return Ok(attempt),
        };
        match directory.find(&notice.conversation_id).await? {
            Some(conversation) if conversation.origin == Origin::BotKit => {
                self.botkit.notice(message, &conversation, &notice).await
            }
            None if self.context.xo.is_of_a_bot(&notice.conversation_id) => {
                let why = "its conversation is not in the directory yet: the end publishes it again";
                Ok(Attempt::of(Endpoint::XoBotKit, Outcome::Repeated, why))
            }
            _ => self.events.post_notice(message, &notice).await,
        }
    }
}
