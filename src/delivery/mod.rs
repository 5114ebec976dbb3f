//! One attempt: pass the gate, call the platform, classify the answer, record it.
//!
//! Guarantees: an attempt always ends in an [`Outcome`]; it never sleeps, never repeats itself, never decides a message's
//! fate (`worker/settle.rs` does). Everything it writes besides (the directory, notices to the bot side) is safe to
//! repeat, since the attempt may be. Leaves to others: order, backoff and settling (`worker/`).

mod agent_chat;
mod agent_chat_callback;
mod agent_joins;
mod attachments;
pub mod backoff;
mod bot_turn;
mod botkit;
pub mod breaker;
mod callback;
mod callback_routing;
pub mod classify;
mod course;
mod escalation;
mod events;
mod gaps;
mod gate;
mod handoff;
mod late;
mod notices;
mod patience;
pub mod poll;
mod repeats;
mod routing;
mod settled;
mod tell;
mod transcript;
mod user_return;
mod wait_updates;
mod wording;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::conversation::{Directory, DirectoryError, DirectorySettings, Origin, State};
use crate::message::routing::Routes;
use crate::message::{
    BotSide, ConversationId, DeadLetter, DeadReason, Destination, Endpoint, Handoff, Kind, Message,
    MessageId, Outcome, PlatformWords, RetryReason, TripReason,
};
use crate::platform::{CallError, ServiceNow, Xo};
use crate::queue::{Lease, Queue, QueueError};
use crate::telemetry::Metrics;
pub use agent_chat::AgentChatSettings;
use agent_chat::AgentChats;
pub use attachments::FileSettings;
use breaker::{Breaker, Heard};
use classify::{Operation, classify};
use gaps::MissedStories;
pub use gaps::ReadBack;
pub use gate::{Gate, GateSettings};
use notices::instance_of;
pub use patience::Patience;
pub(crate) use repeats::Repeats;
use settled::ReplayNotes;
pub use settled::SettledBefore;
pub(crate) use settled::{settled_by, settling_keys};
use user_return::ClosingTexts;
use wait_updates::WaitUpdates;
pub use wording::{AgentTemplate, BotKitSettings, SpokenTexts, Texts};

/// A credential that a bot took this lately is not refused as a whole by one address of that bot.
const CREDENTIAL_WORKED: Duration = Duration::from_secs(60);
/// Refusals of so many conversations without a success between them are the credential's trouble.
const UNAUTHORIZED_LANES: usize = 3;

/// What becomes of a callback whose `group` nobody opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownGroup {
    /// A dead letter `unknown_conversation`.
    #[default]
    DeadLetter,
    /// Dropped and counted: feeds and private chats are none of our business.
    Drop,
}

/// What an attempt needs to know.
#[derive(Debug, Clone)]
pub struct DeliverySettings {
    /// `servicenow.queue_id`
    pub queue_id: Option<String>,
    /// `servicenow.routes`
    pub routes: Routes,
    /// `delivery.unknown_group`
    pub unknown_group: UnknownGroup,
    /// How long a callback waits for the start that may be opening its group.
    pub unknown_group_wait: Duration,
    /// Which destination a conversation belongs to.
    pub bot_side: BotSide,
    /// XO's Callback URL is configured: unknown groups are forwarded there.
    pub relays_callbacks: bool,
    /// `handoffs.events_url` is configured.
    pub tells_events: bool,
    /// BotKit credentials of a bot are configured.
    pub serves_bots: bool,
    /// `servicenow.read_back`
    pub read_back: ReadBack,
    /// How a bot's users are spoken to.
    pub botkit: BotKitSettings,
    /// How files are carried.
    pub files: FileSettings,
    /// Chats over the Virtual Agent API.
    pub agent_chat: AgentChatSettings,
}

/// Everything that attempts need; one for each worker.
#[derive(Debug)]
pub struct Deliverer {
    settings: DeliverySettings,
    servicenow: Option<ServiceNow>,
    xo: Xo,
    /// Absent in the pure callback relay, which remembers nothing.
    directory: Option<Directory>,
    replay_notes: ReplayNotes,
    queue: Queue,
    metrics: Arc<Metrics>,
    gates: BTreeMap<Destination, Gate>,
    agent_chats: AgentChats,
    transfers: attachments::Transfers,
    /// The gate of every destination that the settings do not know: nothing is sent there.
    no_gate: Gate,
    /// When each destination answered with a success last.
    served: Mutex<BTreeMap<Destination, Instant>>,
    /// The lanes whose calls were refused as unauthorized since their destination last answered with a success.
    unauthorized: Mutex<BTreeMap<Destination, BTreeSet<u64>>>,
    /// What gap repair put on the queue lately.
    read: Mutex<Repeats<MessageId, ()>>,
    /// What gap repair tried in vain lately.
    missed_stories: Mutex<MissedStories>,
    /// Since when each chat is asked in vain what was said in it.
    unread: Mutex<HashMap<String, Instant>>,
    /// When each user who waits was told of the wait last.
    wait_updates: WaitUpdates,
    /// Which closing texts failed.
    closing_texts: ClosingTexts,
    /// Since when each chat is not seen, or seen as escalated without going on anywhere.
    in_doubt: Mutex<HashMap<ConversationId, Instant>>,
}

/// What one attempt came to.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What is to be done.
    pub outcome: Outcome,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// What went wrong, without the chat's text and without the platform's words.
    pub error: String,
    /// The platform's words. They can repeat the chat's text.
    pub said: PlatformWords,
    /// Whom it spoke to.
    pub endpoint: Endpoint,
}

impl Attempt {
    fn of(endpoint: Endpoint, outcome: Outcome, error: impl Into<String>) -> Self {
        Self { outcome, status: None, error: error.into(), said: PlatformWords::default(), endpoint }
    }

    fn delivered(endpoint: Endpoint) -> Self {
        Self::of(endpoint, Outcome::Delivered, "")
    }

    /// The destination that answered, or did not, in an attempt of a message to `destination`.
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
        }
    }

    /// Something of our own was not there. `ambiguous` where the platform may have been called already.
    fn own_trouble(endpoint: Endpoint, ambiguous: bool, error: impl Into<String>) -> Self {
        let outcome = Outcome::Retry { reason: RetryReason::Internal, ambiguous, floor: None };
        Self::of(endpoint, outcome, error)
    }
}

/// Our own trouble, as an attempt that is repeated: the directory or the queue is away for the moment.
#[derive(Debug)]
struct OwnTrouble(String);

impl From<DirectoryError> for OwnTrouble {
    fn from(error: DirectoryError) -> Self {
        Self(error.to_string())
    }
}

impl From<QueueError> for OwnTrouble {
    fn from(error: QueueError) -> Self {
        Self(error.to_string())
    }
}

/// What a worker is made of, besides its settings.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The client of ServiceNow, where one is configured.
    pub servicenow: Option<ServiceNow>,
    /// The client of XO.
    pub xo: Xo,
    /// What is remembered; absent in the pure callback relay.
    pub directory: Option<Directory>,
    /// Where it is noted how a replay ended if there is no `directory`.
    pub replay_notes: Option<DirectorySettings>,
    /// Where notices go.
    pub queue: Queue,
    /// Where attempts are counted.
    pub metrics: Arc<Metrics>,
}

impl Deliverer {
    /// `gates` says how hard each destination may be driven.
    pub fn new(
        parts: Parts,
        settings: DeliverySettings,
        gates: &BTreeMap<Destination, GateSettings>,
    ) -> Arc<Self> {
        let lease: Lease = parts.queue.lease();
        let gate = |destination: Destination| {
            let breaker = Breaker::new(destination, parts.metrics.clone());
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
            agent_chats: AgentChats::default(),
            transfers: attachments::Transfers::default(),
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
            missed_stories: Mutex::default(),
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

    /// When a destination last answered with a success.
    pub fn served(&self, destination: Destination) -> Option<Instant> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).copied()
    }

    /// Tries once.
    pub async fn attempt(&self, message: &Message, past: Past) -> Attempt {
        let started = Instant::now();
        // Boxed, so that the messages of the pure relay do not carry the room for the rest.
        let attempt = match message.destination {
            Destination::Xo => self.forward(message).await,
            Destination::ServiceNow => Box::pin(self.to_servicenow(message, past.maybe_taken)).await,
            Destination::Events | Destination::Bot(_) => own(Box::pin(self.to_bot_side(message)).await),
            Destination::Callbacks => own(Box::pin(self.route(message)).await),
        };
        let attempt = self.judge_credentials(message, attempt);
        self.record(message, past, &attempt, started.elapsed());
        attempt
    }

    fn record(&self, message: &Message, past: Past, attempt: &Attempt, took: Duration) {
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
            self.tell_breaker(message.destination, Some(message), attempt);
        }
    }

    /// A bot's reply address that refuses our credential says something about that one address if the bot's other addresses
    /// take the same credential: then this conversation alone is tried again, and the bot's other users go on.
    fn judge_credentials(&self, message: &Message, attempt: Attempt) -> Attempt {
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

    /// Charges the destination only for what is its fault.
    fn tell_breaker(&self, destination: Destination, message: Option<&Message>, attempt: &Attempt) {
        let breaker = self.gate(destination).breaker();
        let lane = message.map_or(0, |message| lane_number(message.lane.as_str()));
        match &attempt.outcome {
            Outcome::Delivered | Outcome::Answered => {
                let answered = attempt.remote(destination);
                self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(answered, Instant::now());
                self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner).remove(&answered);
                breaker.hear(Heard::Alive);
            }
            // A refusal is an answer of a destination that is well.
            Outcome::Dead(_) if attempt.status.is_some() => breaker.hear(Heard::Alive),
            Outcome::Pause { reason, floor } => {
                breaker.hear(Heard::NotReady { reason: *reason, floor: *floor })
            }
            Outcome::Retry { reason: RetryReason::Throttled, floor: Some(floor), .. } => {
                breaker.hear(Heard::NotReady { reason: TripReason::Throttled, floor: Some(*floor) });
            }
            Outcome::Retry { reason: RetryReason::Internal, .. } => {}
            Outcome::Retry { reason, floor: Some(floor), .. } if *reason != RetryReason::Internal => {
                breaker.hear(Heard::NotReady { reason: TripReason::Throttled, floor: Some(*floor) });
            }
            Outcome::Retry { reason, .. } => {
                breaker.hear(Heard::Failed { lane, unreachable: *reason == RetryReason::Connect });
            }
            Outcome::Dead(_)
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped
            | Outcome::Held { .. } => {}
        }
    }
}

/// What is known of a message before it is tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// An earlier try may have reached the destination: look before sending.
    pub maybe_taken: bool,
    /// It failed, and others were served since. That it fails once more says nothing of the destination.
    pub fails_alone: bool,
}

impl Deliverer {
    /// When a start dies, its conversation has failed and the bot side is told, before the dead letter is written. What a
    /// Virtual Agent callback says beside its texts does not die with it. A bot still gets its user back if the end of the chat dies,
    /// and XO goes on without a bot turn that dies.
    pub async fn before_burial(&self, dead: &DeadLetter) -> Result<(), String> {
        if dead.message.kind.is_bot_turn() {
            self.skip_turn(&dead.message).await;
            return Ok(());
        }
        if matches!(dead.message.kind, Kind::CallbackEnded | Kind::HandoffFailed) {
            return self.last_act(&dead.message).await.map_err(|OwnTrouble(trouble)| trouble);
        }
        if dead.message.kind == Kind::CallbackMessage {
            let Some(directory) = &self.directory else { return Ok(()) };
            let done = self.agent_chat_buried(&dead.message, directory).await;
            return done.map_err(|OwnTrouble(trouble)| trouble);
        }
        if !matches!(dead.message.kind, Kind::HandoffStart | Kind::HandoffMessage) {
            return Ok(());
        }
        let Ok(handoff) = serde_json::from_slice::<Handoff>(&dead.message.body) else { return Ok(()) };
        self.start_died(dead, &handoff).await.map_err(|OwnTrouble(trouble)| trouble)
    }

    async fn start_died(&self, dead: &DeadLetter, handoff: &Handoff) -> Result<(), OwnTrouble> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let reply = match handoff {
            Handoff::Start(start) => start.reply.as_deref(),
            // A message that was to open a chat, as a start does.
            Handoff::Message(text) if self.is_late_start(&dead.message).await? => text.reply.as_deref(),
            _ => return Ok(()),
        };
        let id = handoff.conversation();
        if let Some(reply) = reply {
            // The ingress may not have reached the directory, and nobody else may have tried it.
            if directory.find(id).await?.is_none() {
                directory.requested(id, Origin::BotKit, None).await?;
            }
            directory.heard(id, reply, dead.message.accepted_at).await?;
        }
        let open = directory.find(id).await?;
        // A duplicate of a start that had worked: the chat goes on.
        if open.as_ref().is_some_and(|open| matches!(open.state, State::Waiting | State::Active)) {
            return Ok(());
        }
        if agent_chat::has_failed(open.as_ref(), &dead.message) {
            return Ok(());
        }
        let told = self.fail(id, dead.reason.as_str(), None, &instance_of(&dead.message)).await;
        self.give_up_agent_chat(id, open.as_ref());
        told
    }
}

/// Our own trouble, as the attempt that it makes of a message to the bot side.
fn own(done: Result<Attempt, OwnTrouble>) -> Attempt {
    done.unwrap_or_else(|OwnTrouble(trouble)| Attempt::own_trouble(Endpoint::Events, false, trouble))
}

fn lane_number(lane: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    lane.hash(&mut hasher);
    hasher.finish()
}
