//! Makes one delivery attempt: calls the platform, classifies the answer, records the result. The caller passes the
//! gate first.
//!
//! Guarantees: an attempt always ends in an [`Outcome`]. It never sleeps before a retry and never decides the fate of
//! its message (`worker/policy.rs` does). An attempt may be repeated, so its other writes are safe to repeat: the
//! directory, notices to the bot side, and missing messages that gap repair relays first.
//!
//! Not responsible for: order, backoff and settling (`worker/`).

mod attachments;
mod deduplication;
mod end_reason;
mod to_agent;
mod to_bot;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::conversation::{Changes, ConversationState, Directory, DirectorySettings, Origin};
use crate::delivery::breaker::{BreakerSignal, CircuitBreaker};
use crate::delivery::{Attempt, Gate, GateSettings, InternalError, PriorAttempts, RateLimiter, RecentKeys};
use crate::message::routing::QueueRoutes;
use crate::message::{
    BotSide, ConversationId, DeadLetter, Destination, Endpoint, Handoff, Kind, Message, MessageId, Outcome,
    RetryReason, TripReason,
};
use crate::platform::{ServiceNow, Xo};
use crate::queue::{BrokerLease, Queue};
use crate::telemetry::Metrics;
pub use attachments::FileSettings;
use attachments::TransferSlots;
use deduplication::ReplayNotes;
pub use deduplication::SettledBefore;
pub(crate) use deduplication::{settled_by, settling_keys};
use to_agent::late_start;
use to_agent::virtual_agent::{self, VirtualAgentStarts};
pub use to_agent::{IncidentSettings, VirtualAgentOptions};
use to_bot::callback_row::UnreadSince;
use to_bot::notices::instance_of;
use to_bot::recent_rows::RecentRows;
use to_bot::user_return::ClosingTexts;
use to_bot::wait_updates::WaitUpdates;
pub use to_bot::{AgentTemplate, BotKitSettings, LanguageTexts, NoticeTexts, UnknownGroup};
use watch::gaps::MissedHistories;
pub use watch::{PollSettings, ReadBack, TimeLimits};

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
    transfers: TransferSlots,
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
    unread: Mutex<UnreadSince>,
    /// Readings that show rows whose callbacks follow.
    recent_rows: Mutex<RecentRows>,
    /// The time of the last text about the wait, for each waiting user.
    wait_updates: WaitUpdates,
    /// The closing texts that failed.
    closing_texts: ClosingTexts,
    /// Since when each chat is absent from ServiceNow's answers, or escalated without a new chat.
    in_doubt: Mutex<HashMap<ConversationId, Instant>>,
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
            transfers: TransferSlots::default(),
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
            recent_rows: Mutex::default(),
            wait_updates: WaitUpdates::default(),
            closing_texts: ClosingTexts::default(),
            in_doubt: Mutex::default(),
        })
    }

    /// The gate of a destination.
    pub fn gate(&self, destination: Destination) -> &Gate {
        self.gates.get(&destination).unwrap_or(&self.no_gate)
    }

    /// Probes these destinations at once if their breakers tripped because of the credentials, which were replaced.
    pub fn credentials_replaced(&self, is_meant: impl Fn(Destination) -> bool) {
        let gates = self.gates.iter().filter(|(destination, _)| is_meant(**destination));
        gates.for_each(|(_, gate)| gate.breaker().credential_replaced());
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
