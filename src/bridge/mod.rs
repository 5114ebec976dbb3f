//! Makes one delivery attempt: calls the platform, classifies the answer, records the result. The caller passes the
//! gate first.
//!
//! Guarantees: an attempt always ends in an [`Outcome`](crate::message::Outcome). It never sleeps before a retry and never
//! decides the fate of its message (`worker/policy.rs` does). An attempt may be repeated, so its other writes are safe to
//! repeat: the directory, notices to the bot side, and missing messages that gap repair relays first.
//!
//! Each part holds the caches that only this part uses. The parts call each other in one direction: [`ToAgent`], [`ToBot`] and
//! [`ChatWatcher`] use [`Notices`]; [`ToAgent`] and [`ChatWatcher`] use [`GapRepair`]; [`ToBot`] and [`ChatWatcher`] use
//! [`ConversationRows`].
//!
//! Not responsible for: order, backoff, deduplication and settling (`worker/`).

mod best_effort;
mod context;
mod conversation_rows;
mod end_reason;
mod incident_request;
mod lifecycle_metrics;
mod missing_message;
mod notices;
mod settings;
mod table_reading;
mod to_agent;
mod to_bot;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{DeadLetter, Destination, Endpoint, Kind, Message};
use crate::tasks::CancellationToken;
use best_effort::BestEffortCalls;
use context::BridgeContext;
pub use context::DelivererParts;
use conversation_rows::ConversationRows;
use notices::Notices;
pub use settings::{
    DeliverySettings, FileSettings, IncidentSettings, ReadBack, UnknownGroup, VirtualAgentOptions,
};
use to_agent::ToAgent;
use to_bot::ToBot;
pub use to_bot::texts::{AgentTemplate, BotKitSettings, LanguageTexts, NoticeTexts};
use watch::ChatWatcher;
use watch::gaps::GapRepair;
pub use watch::{PollSettings, TimeLimits};

/// Passes each message to the part that makes its attempt; one for each worker.
#[derive(Debug)]
pub struct Deliverer {
    context: Arc<BridgeContext>,
    to_agent: ToAgent,
    to_bot: ToBot,
    watcher: ChatWatcher,
}

impl Deliverer {
    /// Creates the deliverer.
    pub fn new(parts: DelivererParts, settings: DeliverySettings) -> Arc<Self> {
        let context = BridgeContext::new(parts, settings);
        let notices = Notices::new(context.clone());
        let best_effort = BestEffortCalls::new(context.clone());
        let gaps = GapRepair::new(context.clone());
        let rows = ConversationRows::new(context.clone());
        Arc::new(Self {
            to_agent: ToAgent::new(context.clone(), notices.clone(), best_effort.clone(), gaps.clone()),
            to_bot: ToBot::new(context.clone(), notices.clone(), best_effort, rows.clone()),
            watcher: ChatWatcher::new(context.clone(), notices, gaps, rows),
            context,
        })
    }

    /// Whether the attempt of this message only moves the message to the queue of its destination, where a repeat is recognised.
    /// An internal message is dropped instead, and a repeat changes nothing.
    pub fn only_routes(&self, message: &Message) -> bool {
        self.to_bot.only_routes(message)
    }

    /// Makes one attempt.
    pub async fn attempt(&self, message: &Message, past: PriorAttempts) -> Attempt {
        let started = Instant::now();
        // Boxed, so that the future of a pure relay message stays small.
        let attempt = match message.destination {
            Destination::Xo => self.to_bot.forward(message).await,
            Destination::ServiceNow => Box::pin(self.to_agent.attempt(message, past)).await,
            Destination::Events | Destination::Bot(_) => {
                own(Box::pin(self.to_bot.attempt(message, past)).await)
            }
            Destination::Callbacks => own(Box::pin(self.to_bot.route(message, past)).await),
        };
        let attempt = self.context.gates.check_credentials(message, attempt);
        self.context.gates.record(message, past, &attempt, started.elapsed());
        attempt
    }

    /// Must run before a dead letter is written. A dead start marks its conversation as failed and notifies the bot
    /// side. A dead Virtual Agent callback still applies its state. A dead end still gives the bot its user back. A
    /// dead bot turn is skipped at XO.
    pub async fn before_dead_letter(&self, dead: &DeadLetter) -> Result<(), String> {
        let done = match dead.message.kind {
            Kind::HandoffStart | Kind::HandoffMessage => self.to_agent.before_dead_letter(dead).await,
            _ => self.to_bot.before_dead_letter(&dead.message).await,
        };
        done.map_err(|error| error.trouble)
    }

    /// Polls the state of every open conversation until the cancellation.
    pub async fn poll(
        self: Arc<Self>,
        settings: PollSettings,
        stop: CancellationToken,
    ) -> Result<(), String> {
        self.watcher.poll(settings, stop).await
    }

    /// Extends the reply handles of live conversations until the cancellation.
    pub async fn keep_alive(self: Arc<Self>, every: Duration, stop: CancellationToken) -> Result<(), String> {
        self.to_bot.keep_alive(every, stop).await
    }

    /// Asks ServiceNow once about each queue, and repeats the questions that got no answer. `queues`: the settings key
    /// and the Queue ID.
    pub async fn check_queues(
        self: Arc<Self>,
        queues: Vec<(String, String)>,
        stop: CancellationToken,
    ) -> Result<(), String> {
        to_agent::check_queues(&self.context, queues, stop).await
    }
}

/// Turns an internal error into the attempt of a message to the bot side.
fn own(done: Result<Attempt, InternalError>) -> Attempt {
    done.unwrap_or_else(|error| Attempt::internal(Endpoint::Events, false, error))
}
