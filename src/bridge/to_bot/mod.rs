//! Carries an agent's side of a chat to the bot's user: callbacks, notices, events and the end.
//!
//! Guarantees: each file is about one kind of message or one way to the bot side.
//! Not responsible for: the user's messages (`to_agent/`), open chats without a callback (`watch/`).

mod agent_files;
mod agent_joins;
mod bot_turn;
mod botkit;
mod botkit_relay;
mod callback;
mod callback_relay;
mod callback_routing;
mod callback_row;
pub(super) mod closing_sentence;
mod events;
mod gap_check;
mod known_chats;
mod missed_messages;
mod missing_rows;
mod recent_rows;
mod relay;
mod relayed_message;
pub(super) mod texts;
mod user_return;
mod virtual_agent_callback;
mod wait_updates;

use std::sync::Arc;
use std::time::Duration;

use crate::bridge::best_effort::BestEffortCalls;
use crate::bridge::context::BridgeContext;
use crate::bridge::conversation_rows::ConversationRows;
use crate::bridge::notices::Notices;
use crate::message::Message;
use crate::tasks::CancellationToken;
use agent_joins::AgentJoins;
use botkit::BotKitCalls;
use botkit_relay::BotKitRelay;
use callback_relay::CallbackRelay;
use known_chats::KnownChats;
use missed_messages::MissedMessages;
use missing_rows::MissingRows;
use relay::BotRelay;
use user_return::UserReturn;
use virtual_agent_callback::VirtualAgentCallbacks;

/// Makes the attempts toward the events URL, the bots and XO's Callback URL.
#[derive(Debug)]
pub(super) struct ToBot {
    context: Arc<BridgeContext>,
    relay: Arc<BotRelay>,
    chats: KnownChats,
    callbacks: CallbackRelay,
    virtual_agent: VirtualAgentCallbacks,
    calls: Arc<BotKitCalls>,
    user_return: Arc<UserReturn>,
}

impl ToBot {
    pub(super) fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        best_effort: Arc<BestEffortCalls>,
        rows: Arc<ConversationRows>,
    ) -> Self {
        let calls = Arc::new(BotKitCalls::new(context.clone()));
        let user_return = Arc::new(UserReturn::new(context.clone(), calls.clone()));
        let botkit = BotKitRelay::new(context.clone(), calls.clone(), user_return.clone());
        let relay = Arc::new(BotRelay::new(context.clone(), notices.clone(), botkit));
        let missed = Arc::new(MissedMessages::new(context.clone()));
        let joins = AgentJoins::new(context.clone(), notices.clone(), relay.clone(), missed.clone());
        let joins = Arc::new(joins);
        let before =
            MissingRows::new(context.clone(), rows, best_effort.clone(), relay.clone(), missed.clone());
        let virtual_agent = VirtualAgentCallbacks::new(
            context.clone(),
            notices,
            best_effort,
            relay.clone(),
            joins.clone(),
            before,
        );
        let callbacks = CallbackRelay::new(context.clone(), relay.clone(), joins, missed);
        let chats = KnownChats::default();
        Self { context, relay, chats, callbacks, virtual_agent, calls, user_return }
    }

    /// Whether the attempt of this message only moves the message to the queue of its destination.
    pub(super) fn only_routes(&self, message: &Message) -> bool {
        self.chats.knows(message)
    }

    /// Extends the reply handles of live conversations until the cancellation.
    pub(super) async fn keep_alive(&self, every: Duration, stop: CancellationToken) -> Result<(), String> {
        self.calls.keep_alive(every, stop).await
    }
}
