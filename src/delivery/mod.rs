//! Makes one delivery attempt: calls the platform, classifies the answer, records the result. The caller passes the
//! gate first.
//!
//! Guarantees: an attempt always ends in an [`Outcome`]. It never sleeps before a retry and never decides the fate of
//! its message (`worker/policy.rs` does). An attempt may be repeated, so its other writes are safe to repeat: the
//! directory, notices to the bot side, and missing messages that gap repair relays first.
//!
//! Not responsible for: order, backoff and settling (`worker/`).

mod agent_joins;
mod attachments;
pub mod backoff;
mod bot_turn;
mod botkit;
pub mod breaker;
mod bulk_read;
mod callback;
mod callback_routing;
mod callback_row;
pub mod classify;
mod closing_sentence;
mod deduplication;
mod escalation;
mod events;
mod gaps;
mod gate;
mod handoff;
mod incident;
mod late_start;
mod lifecycle_metrics;
mod notices;
pub mod poll;
mod recent_keys;
mod relay;
mod routing;
mod texts;
mod time_limits;
mod transcript;
mod user_return;
mod virtual_agent;
mod virtual_agent_callback;
mod wait_updates;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::conversation::{Changes, ConversationState, Directory, DirectoryError, DirectorySettings, Origin};
use crate::message::routing::QueueRoutes;
use crate::message::{
    BotSide, ConversationId, DeadLetter, DeadReason, Destination, Endpoint, Handoff, Kind, Message,
    MessageId, Outcome, PlatformWords, RetryReason, TripReason,
};
use crate::platform::{CallError, ServiceNow, Xo};
use crate::queue::{BrokerLease, Queue, QueueError};
use crate::telemetry::Metrics;
pub use attachments::FileSettings;
use breaker::{BreakerSignal, CircuitBreaker};
pub use callback::UnknownGroup;
use classify::{Operation, classify};
use deduplication::ReplayNotes;
pub use deduplication::SettledBefore;
pub(crate) use deduplication::{settled_by, settling_keys};
use gaps::MissedHistories;
pub use gaps::ReadBack;
use gate::RateLimiter;
pub use gate::{Gate, GateSettings};
pub use incident::IncidentSettings;
use notices::instance_of;
pub(crate) use recent_keys::RecentKeys;
pub use texts::{AgentTemplate, BotKitSettings, LanguageTexts, NoticeTexts};
pub use time_limits::TimeLimits;
use user_return::ClosingTexts;
pub use virtual_agent::VirtualAgentOptions;
use virtual_agent::VirtualAgentStarts;
use wait_updates::WaitUpdates;

/// A bot that accepted its credential within this time is not paused as a whole when one of its addresses refuses the
/// credential.
const CREDENTIAL_WORKED: Duration = Duration::from_secs(60);
/// If this many conversations are refused without a success between them, the credential itself is wrong.
const UNAUTHORIZED_LANES: usize = 3;

/// Settings of delivery attempts.
#[derive(Debug, Clone)]
pub struct DeliverySettings {
    /// `servicenow.queue_id`
    pub queue_id: Option<String>,
    /// `servicenow.routes`
    pub routes: QueueRoutes,
    /// `delivery.unknown_group`
    pub unknown_group: UnknownGroup,
    /// How long a callback waits for the start that may be opening its group.
    pub unknown_group_wait: Duration,
    /// The destination of each conversation.
    pub bot_side: BotSide,
    /// XO's Callback URL is configured: unknown groups are forwarded there.
    pub relays_callbacks: bool,
    /// `handoffs.events_url` is configured.
    pub tells_events: bool,
    /// BotKit credentials of at least one bot are configured.
    pub serves_bots: bool,
    /// `servicenow.read_back`
    pub read_back: ReadBack,
    /// `servicenow.bulk_read`: tables show which of many chats need a poll, if the user may read them.
    pub bulk_read: bool,
    /// `servicenow.read_rate`: the limit of requests in a second that poll the chats.
    pub read_rate: f64,
    /// Settings of the texts and calls for a bot's users.
    pub botkit: BotKitSettings,
    /// Settings of the transfer of files.
    pub files: FileSettings,
    /// Settings of chats over the Virtual Agent API.
    pub virtual_agent: VirtualAgentOptions,
    /// `servicenow.incident`: the record of a handoff that found no agent; `None` creates none.
    pub incident: Option<IncidentSettings>,
}

/// The clients and the shared state of delivery attempts; one for each worker.
#[derive(Debug)]
pub struct Deliverer {
    settings: DeliverySettings,
    servicenow: Option<ServiceNow>,
    xo: Xo,
    /// `None` in the pure callback relay, which has no directory.
    directory: Option<Directory>,
    replay_notes: ReplayNotes,
    queue: Queue,
    metrics: Arc<Metrics>,
    gates: BTreeMap<Destination, Gate>,
    virtual_agent_starts: VirtualAgentStarts,
    /// Limits the polls of all chats together.
    reads: RateLimiter,
    transfers: attachments::TransferSlots,
    /// The gate of a destination that the settings do not know. No message is sent there.
    no_gate: Gate,
    /// The time of the last success of each destination.
    served: Mutex<BTreeMap<Destination, Instant>>,
    /// The lanes whose calls were refused as unauthorized since the last success of their destination.
    unauthorized: Mutex<BTreeMap<Destination, BTreeSet<u64>>>,
    /// The messages that gap repair published recently.
    read: Mutex<RecentKeys<MessageId, ()>>,
    /// The failed attempts of missing messages.
    missed_histories: Mutex<MissedHistories>,
    /// The first failed reading of each chat that could not be read back since then.
    unread: Mutex<callback_row::UnreadSince>,
    /// The time of the last text about the wait, for each waiting user.
    wait_updates: WaitUpdates,
    /// The closing texts that failed.
    closing_texts: ClosingTexts,
    /// Since when each chat is absent from ServiceNow's answers, or escalated without a new chat.
    in_doubt: Mutex<HashMap<ConversationId, Instant>>,
}

/// The result of one attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The outcome, which decides the next step.
    pub outcome: Outcome,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The error, without the chat's text and without the platform's words.
    pub error: String,
    /// The platform's words, which may repeat the chat's text.
    pub said: PlatformWords,
    /// The endpoint that was called.
    pub endpoint: Endpoint,
    /// The attempt has recorded its outcome in the directory, together with its other changes.
    pub is_recorded: bool,
}

impl Attempt {
    fn of(endpoint: Endpoint, outcome: Outcome, error: impl Into<String>) -> Self {
        let (error, said) = (error.into(), PlatformWords::default());
        Self { outcome, status: None, error, said, endpoint, is_recorded: false }
    }

    fn delivered(endpoint: Endpoint) -> Self {
        Self::of(endpoint, Outcome::Delivered, "")
    }

    fn recorded(self) -> Self {
        Self { is_recorded: true, ..self }
    }

    /// The destination that answered or failed in an attempt of a message to `destination`.
    pub fn remote(&self, destination: Destination) -> Destination {
        if self.endpoint == Endpoint::ServiceNow { Destination::ServiceNow } else { destination }
    }

    fn dead(endpoint: Endpoint, reason: DeadReason, why: impl Into<String>) -> Self {
        Self::of(endpoint, Outcome::Dead(reason), why)
    }

    fn called(endpoint: Endpoint, error: &CallError, operation: Operation) -> Self {
        Self {
            outcome: classify(error, operation),
            status: error.status(),
            error: error.to_string(),
            said: error.said(),
            endpoint,
            is_recorded: false,
        }
    }

    /// An attempt that failed for a reason inside Causeway. `ambiguous`: the platform may have been called already.
    fn internal(endpoint: Endpoint, ambiguous: bool, error: InternalError) -> Self {
        if error.is_final {
            return Self::dead(endpoint, DeadReason::Rejected, error.trouble);
        }
        Self::internal_error(endpoint, ambiguous, error.trouble)
    }

    /// A temporary failure inside Causeway.
    fn internal_error(endpoint: Endpoint, ambiguous: bool, error: impl Into<String>) -> Self {
        let outcome = Outcome::Retry { reason: RetryReason::Internal, ambiguous, floor: None };
        Self::of(endpoint, outcome, error)
    }
}

/// An internal error. The attempt is repeated, unless the error is final.
#[derive(Debug)]
struct InternalError {
    trouble: String,
    /// A repeat fails in the same way: the message is given up at once.
    is_final: bool,
}

impl InternalError {
    /// The directory or the queue is unavailable.
    fn temporary(trouble: impl ToString) -> Self {
        Self { trouble: trouble.to_string(), is_final: false }
    }
}

impl From<DirectoryError> for InternalError {
    fn from(error: DirectoryError) -> Self {
        Self::temporary(error)
    }
}

impl From<QueueError> for InternalError {
    fn from(error: QueueError) -> Self {
        Self { is_final: matches!(error, QueueError::TooLarge(_)), ..Self::temporary(error) }
    }
}

/// The clients and stores that a worker is built from.
#[derive(Debug, Clone)]
pub struct DelivererParts {
    /// The client of ServiceNow, if one is configured.
    pub servicenow: Option<ServiceNow>,
    /// The client of XO.
    pub xo: Xo,
    /// The directory of conversations; `None` in the pure callback relay.
    pub directory: Option<Directory>,
    /// The store for the results of replays, if there is no `directory`.
    pub replay_notes: Option<DirectorySettings>,
    /// The queue that notices are published to.
    pub queue: Queue,
    /// The metrics of attempts.
    pub metrics: Arc<Metrics>,
}

impl Deliverer {
    /// Creates the deliverer. `gates` holds the limits of each destination.
    pub fn new(
        parts: DelivererParts,
        settings: DeliverySettings,
        gates: &BTreeMap<Destination, GateSettings>,
    ) -> Arc<Self> {
        let lease: BrokerLease = parts.queue.lease();
        let gate = |destination: Destination| {
            let breaker = CircuitBreaker::new(destination, parts.metrics.clone());
            let settings = gates.get(&destination).cloned().unwrap_or_default();
            Gate::new(destination, &settings, breaker, lease.clone(), parts.metrics.clone())
        };
        Arc::new(Self {
            gates: parts
                .queue
                .destinations()
                .iter()
                .map(|destination| (destination, gate(destination)))
                .collect(),
            no_gate: gate(Destination::Callbacks),
            virtual_agent_starts: VirtualAgentStarts::default(),
            reads: RateLimiter::new(settings.read_rate),
            transfers: attachments::TransferSlots::default(),
            settings,
            servicenow: parts.servicenow,
            xo: parts.xo,
            directory: parts.directory,
            replay_notes: ReplayNotes::new(parts.replay_notes),
            queue: parts.queue,
            metrics: parts.metrics,
            served: Mutex::default(),
            unauthorized: Mutex::default(),
            read: Mutex::default(),
            missed_histories: Mutex::default(),
            unread: Mutex::default(),
            wait_updates: WaitUpdates::default(),
            closing_texts: ClosingTexts::default(),
            in_doubt: Mutex::default(),
        })
    }

    /// The gate of a destination.
    pub fn gate(&self, destination: Destination) -> &Gate {
        self.gates.get(&destination).unwrap_or(&self.no_gate)
    }

    /// The time of the last success of a destination.
    pub fn served(&self, destination: Destination) -> Option<Instant> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).copied()
    }

    /// Makes one attempt.
    pub async fn attempt(&self, message: &Message, past: PriorAttempts) -> Attempt {
        let started = Instant::now();
        // Boxed, so that the future of a pure relay message stays small.
        let attempt = match message.destination {
            Destination::Xo => self.forward(message).await,
            Destination::ServiceNow => Box::pin(self.to_servicenow(message, past)).await,
            Destination::Events | Destination::Bot(_) => own(Box::pin(self.to_bot_side(message, past)).await),
            Destination::Callbacks => own(Box::pin(self.route(message, past)).await),
        };
        let attempt = self.check_credentials(message, attempt);
        self.record(message, past, &attempt, started.elapsed());
        attempt
    }

    fn record(&self, message: &Message, past: PriorAttempts, attempt: &Attempt, took: Duration) {
        let destination = message.destination.as_str();
        let label = attempt.outcome.as_str();
        self.metrics.attempts.with_label_values(&[destination, message.kind.as_str(), label]).inc();
        self.metrics.attempt_duration.with_label_values(&[destination]).observe(took.as_secs_f64());
        if let Outcome::Retry { reason, .. } = &attempt.outcome {
            self.metrics.retries.with_label_values(&[destination, reason.as_str()]).inc();
        }
        let fails_again = past.fails_alone
            && matches!(&attempt.outcome, Outcome::Retry { reason, floor: None, .. } if *reason != RetryReason::Connect);
        if !fails_again {
            self.record_in_breaker(message.destination, Some(message), attempt);
        }
    }

    /// Decides whether a refused credential concerns the whole bot. If other addresses of the bot accept the same
    /// credential, only this conversation is tried again, and the bot's other users are not delayed.
    fn check_credentials(&self, message: &Message, attempt: Attempt) -> Attempt {
        let is_refused = matches!(attempt.outcome, Outcome::Pause { reason: TripReason::Credentials, .. });
        if !is_refused || !matches!(message.destination, Destination::Bot(_)) {
            return attempt;
        }
        let lane = lane_number(message.lane.as_str());
        let mut refused = self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = refused.entry(message.destination).or_default();
        lanes.insert(lane);
        let works = self.served(message.destination).is_some_and(|at| at.elapsed() < CREDENTIAL_WORKED);
        if !works || lanes.len() >= UNAUTHORIZED_LANES {
            return attempt;
        }
        let outcome = Outcome::Retry { reason: RetryReason::Unauthorized, ambiguous: false, floor: None };
        Attempt { outcome, ..attempt }
    }

    /// Reports the attempt to the breaker. Only a failure of the destination itself counts as a failure.
    fn record_in_breaker(&self, destination: Destination, message: Option<&Message>, attempt: &Attempt) {
        let breaker = self.gate(destination).breaker();
        let lane = message.map_or(0, |message| lane_number(message.lane.as_str()));
        match &attempt.outcome {
            Outcome::Delivered | Outcome::Declined => {
                let answered = attempt.remote(destination);
                self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(answered, Instant::now());
                self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner).remove(&answered);
                breaker.record(BreakerSignal::Alive);
            }
            // A refusal is an answer of a destination that works.
            Outcome::Dead(_) if attempt.status.is_some() => breaker.record(BreakerSignal::Alive),
            Outcome::Pause { reason, floor } => {
                breaker.record(BreakerSignal::NotReady { reason: *reason, floor: *floor })
            }
            Outcome::Retry { reason: RetryReason::Internal, .. } => {}
            Outcome::Retry { floor: Some(floor), .. } => {
                breaker
                    .record(BreakerSignal::NotReady { reason: TripReason::Throttled, floor: Some(*floor) });
            }
            Outcome::Retry { reason, .. } => {
                breaker.record(BreakerSignal::Failed { lane, unreachable: *reason == RetryReason::Connect });
            }
            Outcome::Dead(_)
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped
            | Outcome::Deferred { .. } => {}
        }
    }
}

/// The history of a message before this attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PriorAttempts {
    /// The number of earlier attempts of this worker.
    pub count: u32,
    /// An earlier attempt may have reached the destination, so the message is possibly delivered: look before sending.
    pub possibly_delivered: bool,
    /// The message failed while other messages succeeded. Another failure says nothing about the destination.
    pub fails_alone: bool,
}

impl Deliverer {
    /// Must run before a dead letter is written. A dead start marks its conversation as failed and notifies the bot
    /// side. A dead Virtual Agent callback still applies its state. A dead end still gives the bot its user back. A
    /// dead bot turn is skipped at XO.
    pub async fn before_dead_letter(&self, dead: &DeadLetter) -> Result<(), String> {
        if dead.message.kind.is_bot_turn() {
            self.skip_turn(&dead.message).await;
            return Ok(());
        }
        if matches!(dead.message.kind, Kind::CallbackEnded | Kind::HandoffFailed) {
            return self.last_act(&dead.message).await.map_err(|error| error.trouble);
        }
        if dead.message.kind == Kind::CallbackMessage {
            let Some(directory) = &self.directory else { return Ok(()) };
            let done = self.virtual_agent_dead_lettered(&dead.message, directory).await;
            return done.map_err(|error| error.trouble);
        }
        if !matches!(dead.message.kind, Kind::HandoffStart | Kind::HandoffMessage) {
            return Ok(());
        }
        let Ok(handoff) = serde_json::from_slice::<Handoff>(&dead.message.body) else { return Ok(()) };
        self.start_died(dead, &handoff).await.map_err(|error| error.trouble)
    }

    async fn start_died(&self, dead: &DeadLetter, handoff: &Handoff) -> Result<(), InternalError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let start = match handoff {
            Handoff::Start(start) => start.clone(),
            // A late start: this message was to open a chat.
            Handoff::Message(text) if self.is_late_start(&dead.message).await? => late_start::start_of(text),
            _ => return Ok(()),
        };
        let id = handoff.conversation();
        if let Some(reply) = &start.reply {
            // The ingress may not have reached the directory, and no attempt may have been made.
            if directory.find(id).await?.is_none() {
                directory.mark_requested(id, Origin::BotKit, None).await?;
            }
            directory.save_reply_handle(id, reply, dead.message.accepted_at).await?;
        }
        let open = directory.find(id).await?;
        if self.is_foreign(handoff, open.as_ref()) {
            return Ok(());
        }
        // The dead letter is a duplicate of a start that succeeded, so the chat goes on.
        if open
            .as_ref()
            .is_some_and(|open| matches!(open.state, ConversationState::Waiting | ConversationState::Active))
        {
            return Ok(());
        }
        let (reason, instance) = (dead.reason.as_str(), instance_of(&dead.message));
        if virtual_agent::has_failed(open.as_ref(), &dead.message) {
            self.request_incident(id, reason, &instance, Some(&start)).await?;
            return Ok(());
        }
        let told = self.fail(id, reason, None, &instance, Some(&start), Changes::default()).await;
        self.give_up_virtual_agent(id, open.as_ref());
        told
    }
}

/// Turns an internal error into the attempt of a message to the bot side.
fn own(done: Result<Attempt, InternalError>) -> Attempt {
    done.unwrap_or_else(|error| Attempt::internal(Endpoint::Events, false, error))
}

fn lane_number(lane: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    lane.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_the_broker_never_takes_is_not_repeated() {
        let attempt = |error: QueueError| Attempt::internal(Endpoint::Events, false, error.into()).outcome;
        assert_eq!(attempt(QueueError::TooLarge(65_536)), Outcome::Dead(DeadReason::Rejected));
        for heals in [QueueError::Full, QueueError::Refused("no right".into())] {
            assert!(matches!(attempt(heals), Outcome::Retry { ambiguous: false, .. }));
        }
    }
}
