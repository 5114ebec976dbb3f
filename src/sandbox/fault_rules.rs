//! Faults by rule. A test or an operator defines which requests fail, how, and how often. The sandbox checks the
//! rules before it serves a request. The first matching rule applies, so narrow rules must come before wide ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};

/// The simulator that a request reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The ServiceNow instance.
    ServiceNow,
    /// XO's Callback URL.
    Xo,
    /// XO's BotKit API.
    BotKit,
    /// The receiver of the events of API conversations.
    Events,
}

/// The requested operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Open a chat in a queue.
    Start,
    /// A message of the user.
    Message,
    /// The user ends the chat.
    Leave,
    /// Read the state of a session.
    State,
    /// Read messages or a conversation back.
    Read,
    /// Read queues.
    Queue,
    /// A `live_message` callback: at XO one that arrived, at ServiceNow one that the instance posted.
    Callback,
    /// An event of an API conversation.
    Event,
    /// Get a token.
    Token,
    /// Read or write records over the Table API.
    Table,
    /// BotKit: a message for the user (`sendUserMessage`).
    Tell,
    /// BotKit: the user's message for the bot (`sendBotMessage`).
    #[serde(rename = "bot_message")]
    BotMessage,
    /// BotKit: XO continues without this message (`skipUserMessage`, `skipBotMessage`).
    Skip,
    /// BotKit: an alert for the user (`sendAlertMessage`).
    Alert,
    /// BotKit: the answer to a survey (`sendFeedbackMessage`).
    Feedback,
    /// BotKit: an event for the user's client (`sendBotEvent`).
    #[serde(rename = "client_event")]
    ClientEvent,
    /// BotKit: a download of a file that a user has sent.
    File,
    /// BotKit: the agent session begins.
    Session,
    /// BotKit: the user returns to the bot (`clearAgentSession`).
    Clear,
    /// BotKit: a reply handle is kept alive (`extendcallid`).
    Extend,
    /// Anything else (rejoin, transfer, unknown paths…).
    Other,
}

impl Operation {
    /// Whether the operation changes something, so that its order matters.
    pub fn moves(self) -> bool {
        matches!(
            self,
            Self::Start
                | Self::Message
                | Self::Leave
                | Self::Callback
                | Self::Event
                | Self::Tell
                | Self::BotMessage
                | Self::Skip
                | Self::Alert
                | Self::Feedback
                | Self::Session
                | Self::Clear
        )
    }
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum InjectedFault {
    /// An answer with this status and body (default: the platform's own error shape).
    Status {
        /// The HTTP status.
        status: u16,
        /// The body, sent unchanged.
        #[serde(default)]
        body: Option<String>,
        /// More headers, or other values for the usual headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// The normal answer, delayed.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// No answer; the connection stays open.
    Hang,
    /// The connection is closed instead of an answer.
    Cut,
    /// 200 with an HTML page, like the answer of a hibernating instance.
    HtmlPage,
    /// 302 to a login page.
    Redirect,
    /// ServiceNow's 202: the request was queued or dropped.
    Accepted,
    /// 429.
    TooMany {
        /// The value of its `Retry-After`.
        #[serde(default)]
        retry_after: RetryAfter,
    },
    /// The queue is closed.
    ClosedQueue,
}

impl InjectedFault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Delay { .. } => "delay",
            Self::Hang => "hang",
            Self::Cut => "cut",
            Self::HtmlPage => "html_page",
            Self::Redirect => "redirect",
            Self::Accepted => "accepted",
            Self::TooMany { .. } => "too_many",
            Self::ClosedQueue => "closed_queue",
        }
    }
}

/// The `Retry-After` of a 429.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// There is none.
    #[default]
    None,
    /// This number of seconds.
    Seconds(u64),
    /// An HTTP date this number of seconds ahead.
    Date(u64),
}

/// A rule: the requests that fail, and the fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// The simulator.
    pub side: Side,
    /// The operation; `None`: any.
    #[serde(default, with = "any_operation")]
    pub operation: Option<Operation>,
    /// The conversation: its group, its conversation id, or a part of the text; `None`: any.
    #[serde(default)]
    pub conversation: Option<String>,
    /// The number of requests; `None`: no limit.
    #[serde(default)]
    pub times: Option<u64>,
    /// The share of the matching requests; `None`: every matching request.
    #[serde(default)]
    pub probability: Option<f64>,
    /// Seed of the random decisions.
    #[serde(default)]
    pub seed: u64,
    /// Perform the action first, then fail. The caller cannot know that the action happened.
    #[serde(default)]
    pub after: bool,
    /// The fault.
    pub fault: InjectedFault,
}

/// JSON writes `any` for Rust's `None`.
mod any_operation {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Operation;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum WrittenOperation {
        Any(AnyOperation),
        One(Operation),
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum AnyOperation {
        Any,
    }

    pub(super) fn serialize<S: Serializer>(operation: &Option<Operation>, out: S) -> Result<S::Ok, S::Error> {
        operation.map_or(WrittenOperation::Any(AnyOperation::Any), WrittenOperation::One).serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Operation>, D::Error> {
        match WrittenOperation::deserialize(input) {
            Ok(WrittenOperation::Any(AnyOperation::Any)) => Ok(None),
            Ok(WrittenOperation::One(operation)) => Ok(Some(operation)),
            Err(_) => Err(serde::de::Error::custom(
                "operation must be one of any, start, message, leave, state, read, queue, callback, event, token, table, \
                 tell, bot_message, skip, alert, feedback, client_event, file, session, clear, extend, other",
            )),
        }
    }
}

/// Builds a rule. The default fault is a 503.
impl FaultRule {
    /// Every request at this side.
    pub fn new(side: Side) -> Self {
        let fault = InjectedFault::Status { status: 503, body: None, headers: BTreeMap::new() };
        Self {
            side,
            operation: None,
            conversation: None,
            times: None,
            probability: None,
            seed: 0,
            after: false,
            fault,
        }
    }

    /// Only this operation.
    #[must_use]
    pub fn operation(self, operation: Operation) -> Self {
        Self { operation: Some(operation), ..self }
    }

    /// Only this conversation.
    #[must_use]
    pub fn conversation(self, conversation: impl Into<String>) -> Self {
        Self { conversation: Some(conversation.into()), ..self }
    }

    /// Only this number of requests.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only this share of the requests, 0 to 1.
    #[must_use]
    pub fn probability(self, probability: f64, seed: u64) -> Self {
        Self { probability: Some(probability), seed, ..self }
    }

    /// Perform the action, then fail.
    #[must_use]
    pub fn after(self) -> Self {
        Self { after: true, ..self }
    }

    /// Sets the fault.
    #[must_use]
    pub fn fault(self, fault: InjectedFault) -> Self {
        Self { fault, ..self }
    }

    /// An answer with this status and the platform's own error body.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        self.fault(InjectedFault::Status { status, body: None, headers: BTreeMap::new() })
    }

    /// An answer with this status and this body.
    #[must_use]
    pub fn status_with(self, status: u16, body: impl Into<String>) -> Self {
        self.fault(InjectedFault::Status { status, body: Some(body.into()), headers: BTreeMap::new() })
    }

    /// A delayed answer.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.fault(InjectedFault::Delay { ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) })
    }

    /// No answer.
    #[must_use]
    pub fn hang(self) -> Self {
        self.fault(InjectedFault::Hang)
    }

    /// A closed connection instead of an answer.
    #[must_use]
    pub fn cut(self) -> Self {
        self.fault(InjectedFault::Cut)
    }

    /// The answer of a hibernating instance.
    #[must_use]
    pub fn html_page(self) -> Self {
        self.fault(InjectedFault::HtmlPage)
    }

    /// A redirect to a login page.
    #[must_use]
    pub fn redirect(self) -> Self {
        self.fault(InjectedFault::Redirect)
    }

    /// ServiceNow's 202.
    #[must_use]
    pub fn accepted(self) -> Self {
        self.fault(InjectedFault::Accepted)
    }

    /// 429.
    #[must_use]
    pub fn too_many(self, retry_after: RetryAfter) -> Self {
        self.fault(InjectedFault::TooMany { retry_after })
    }

    /// A closed queue.
    #[must_use]
    pub fn closed_queue(self) -> Self {
        self.fault(InjectedFault::ClosedQueue)
    }

    /// The mistake in the rule, as text.
    pub(super) fn mistake(&self) -> Option<String> {
        if let Some(share) = self.probability.filter(|share| !(0.0..=1.0).contains(share)) {
            return Some(format!("probability: {share} is not between 0 and 1"));
        }
        match self.fault {
            InjectedFault::Status { status, .. } if !(200..=599).contains(&status) => {
                Some(format!("fault.status: {status} is not between 200 and 599"))
            }
            _ => None,
        }
    }
}

/// An active rule.
#[derive(Debug, Clone, Serialize)]
pub struct ActiveRule {
    /// Its id, for removal.
    pub id: u64,
    /// The number of requests to which the rule was applied.
    pub used: u64,
    /// The rule itself.
    #[serde(flatten)]
    pub rule: FaultRule,
    #[serde(skip)]
    dice: Xoshiro256PlusPlus,
}

/// The facts of a request that a rule can match.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeenCall<'a> {
    pub(super) side: Side,
    pub(super) operation: Operation,
    pub(super) names: [Option<&'a str>; 2],
    pub(super) text: Option<&'a str>,
}

/// The fault to apply to a request.
#[derive(Debug, Clone)]
pub(super) struct SpoiledCall {
    pub(super) after: bool,
    pub(super) fault: InjectedFault,
}

/// The active rules. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct FaultScript {
    rules: Arc<Mutex<ActiveRules>>,
}

#[derive(Debug, Default)]
struct ActiveRules {
    next_id: u64,
    active: Vec<ActiveRule>,
}

impl FaultScript {
    /// Adds a rule. Returns its id, for removal.
    pub fn fail(&self, rule: FaultRule) -> u64 {
        let mut rules = self.lock();
        rules.next_id += 1;
        let id = rules.next_id;
        let dice = Xoshiro256PlusPlus::seed_from_u64(rule.seed);
        rules.active.push(ActiveRule { id, used: 0, rule, dice });
        id
    }

    /// Removes one rule. Returns false if there is no rule with this id.
    pub fn remove(&self, id: u64) -> bool {
        let mut rules = self.lock();
        let before = rules.active.len();
        rules.active.retain(|active| active.id != id);
        rules.active.len() < before
    }

    /// Removes every rule.
    pub fn clear(&self) {
        self.lock().active.clear();
    }

    /// The rules, including used-up ones.
    pub fn rules(&self) -> Vec<ActiveRule> {
        self.lock().active.clone()
    }

    /// The fault for this request. Counts the rule as used.
    pub(super) fn judge(&self, seen: SeenCall<'_>) -> Option<SpoiledCall> {
        let mut rules = self.lock();
        let active = rules.active.iter_mut().find_map(|active| active.fits(seen).then_some(active))?;
        active.used += 1;
        Some(SpoiledCall { after: active.rule.after, fault: active.rule.fault.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, ActiveRules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveRule {
    fn fits(&mut self, seen: SeenCall<'_>) -> bool {
        let rule = &self.rule;
        let named = rule.conversation.as_deref().is_none_or(|wanted| {
            seen.names.into_iter().flatten().any(|name| name == wanted)
                || seen.text.is_some_and(|text| text.contains(wanted))
        });
        // A rule for a failing instance does not stop the callbacks of the instance. To stop callbacks, a rule must
        // name the operation `callback`.
        let lost_callback = seen.side == Side::ServiceNow && seen.operation == Operation::Callback;
        rule.side == seen.side
            && rule.operation.map_or(!lost_callback, |wanted| wanted == seen.operation)
            && rule.times.is_none_or(|times| self.used < times)
            && named
            && rule.probability.is_none_or(|share| self.dice.random_bool(share.clamp(0.0, 1.0)))
    }
}
