//! Faults, by rule. A test or an operator says which requests go wrong, how, and how often; the sandbox asks
//! here before it serves each request. The first rule that fits is used, so narrow rules go before wide ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};

/// Which simulator a request reached.
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

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Open a chat in a queue.
    Start,
    /// The user's words.
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
    /// BotKit: something for the user (`sendUserMessage`).
    Tell,
    /// BotKit: the user's words for the bot (`sendBotMessage`).
    #[serde(rename = "bot_message")]
    BotMessage,
    /// BotKit: XO goes on without these words (`skipUserMessage`, `skipBotMessage`).
    Skip,
    /// BotKit: an alert for the user (`sendAlertMessage`).
    Alert,
    /// BotKit: the answer to a survey (`sendFeedbackMessage`).
    Feedback,
    /// BotKit: an event for the user's client (`sendBotEvent`).
    #[serde(rename = "client_event")]
    ClientEvent,
    /// BotKit: a file that a user has sent is fetched.
    File,
    /// BotKit: the agent session begins.
    Session,
    /// BotKit: the bot gets its user back (`clearAgentSession`).
    Clear,
    /// BotKit: a reply handle is kept alive (`extendcallid`).
    Extend,
    /// Anything else (rejoin, transfer, unknown paths…).
    Other,
}

impl Operation {
    /// Whether it changes something, so that its order matters.
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

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// This status, with this body (default: the platform's own error shape).
    Status {
        /// The HTTP status.
        status: u16,
        /// The body, as it is.
        #[serde(default)]
        body: Option<String>,
        /// More headers, or other values for the usual ones.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// The answer takes this long, and is then what it would have been.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// No answer, ever; the connection stays open.
    Hang,
    /// The connection is closed instead of an answer.
    Cut,
    /// 200 with an HTML page, as a hibernating instance gives.
    HtmlPage,
    /// 302 to a login page.
    Redirect,
    /// ServiceNow's 202: queued or dropped.
    Accepted,
    /// 429.
    TooMany {
        /// What its `Retry-After` says.
        #[serde(default)]
        retry_after: RetryAfter,
    },
    /// The queue is closed.
    ClosedQueue,
}

impl Fault {
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
    /// So many seconds.
    Seconds(u64),
    /// An HTTP date so many seconds ahead.
    Date(u64),
}

/// Which requests go wrong, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// At which simulator.
    pub side: Side,
    /// Doing what; none: anything.
    #[serde(default, with = "any_operation")]
    pub operation: Option<Operation>,
    /// Of which conversation: its group, its conversation id, or a part of the text; none: any.
    #[serde(default)]
    pub conversation: Option<String>,
    /// How many requests; none: every one.
    #[serde(default)]
    pub times: Option<u64>,
    /// The share of the requests that fit; none: all of them.
    #[serde(default)]
    pub probability: Option<f64>,
    /// What the dice start from.
    #[serde(default)]
    pub seed: u64,
    /// Do what was asked first, and only then go wrong: the caller cannot know.
    #[serde(default)]
    pub after: bool,
    /// What happens.
    pub fault: Fault,
}

/// JSON says `any` where Rust says `None`.
mod any_operation {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Operation;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Any(Any),
        One(Operation),
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Any {
        Any,
    }

    pub(super) fn serialize<S: Serializer>(operation: &Option<Operation>, out: S) -> Result<S::Ok, S::Error> {
        operation.map_or(Written::Any(Any::Any), Written::One).serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Operation>, D::Error> {
        match Written::deserialize(input) {
            Ok(Written::Any(Any::Any)) => Ok(None),
            Ok(Written::One(operation)) => Ok(Some(operation)),
            Err(_) => Err(serde::de::Error::custom(
                "operation must be one of any, start, message, leave, state, read, queue, callback, event, token, table, \
                 tell, bot_message, skip, alert, feedback, client_event, file, session, clear, extend, other",
            )),
        }
    }
}

/// Builds a rule; without a fault named it answers 503.
impl Rule {
    /// Every request at this side.
    pub fn new(side: Side) -> Self {
        let fault = Fault::Status { status: 503, body: None, headers: BTreeMap::new() };
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

    /// Only so many requests.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only this share, 0 to 1.
    #[must_use]
    pub fn probability(self, probability: f64, seed: u64) -> Self {
        Self { probability: Some(probability), seed, ..self }
    }

    /// Do what was asked, then go wrong.
    #[must_use]
    pub fn after(self) -> Self {
        Self { after: true, ..self }
    }

    /// What goes wrong.
    #[must_use]
    pub fn fault(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// This status, with the platform's own error body.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        self.fault(Fault::Status { status, body: None, headers: BTreeMap::new() })
    }

    /// This status, with this body.
    #[must_use]
    pub fn status_with(self, status: u16, body: impl Into<String>) -> Self {
        self.fault(Fault::Status { status, body: Some(body.into()), headers: BTreeMap::new() })
    }

    /// A late answer.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.fault(Fault::Delay { ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) })
    }

    /// No answer.
    #[must_use]
    pub fn hang(self) -> Self {
        self.fault(Fault::Hang)
    }

    /// A closed connection.
    #[must_use]
    pub fn cut(self) -> Self {
        self.fault(Fault::Cut)
    }

    /// A hibernating instance.
    #[must_use]
    pub fn html_page(self) -> Self {
        self.fault(Fault::HtmlPage)
    }

    /// A login page.
    #[must_use]
    pub fn redirect(self) -> Self {
        self.fault(Fault::Redirect)
    }

    /// ServiceNow's 202.
    #[must_use]
    pub fn accepted(self) -> Self {
        self.fault(Fault::Accepted)
    }

    /// 429.
    #[must_use]
    pub fn too_many(self, retry_after: RetryAfter) -> Self {
        self.fault(Fault::TooMany { retry_after })
    }

    /// A closed queue.
    #[must_use]
    pub fn closed_queue(self) -> Self {
        self.fault(Fault::ClosedQueue)
    }

    /// What is wrong with it as written, in words.
    pub(super) fn mistake(&self) -> Option<String> {
        if let Some(share) = self.probability.filter(|share| !(0.0..=1.0).contains(share)) {
            return Some(format!("probability: {share} is not between 0 and 1"));
        }
        match self.fault {
            Fault::Status { status, .. } if !(200..=599).contains(&status) => {
                Some(format!("fault.status: {status} is not between 200 and 599"))
            }
            _ => None,
        }
    }
}

/// One rule as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct ActiveRule {
    /// Its number, for removal.
    pub id: u64,
    /// How many requests it has spoiled.
    pub used: u64,
    /// What it says.
    #[serde(flatten)]
    pub rule: Rule,
    #[serde(skip)]
    dice: Xoshiro256PlusPlus,
}

/// What a request looks like to a rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) side: Side,
    pub(super) operation: Operation,
    pub(super) names: [Option<&'a str>; 2],
    pub(super) text: Option<&'a str>,
}

/// What to do to a request.
#[derive(Debug, Clone)]
pub(super) struct Spoil {
    pub(super) after: bool,
    pub(super) fault: Fault,
}

/// The rules in force. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Script {
    rules: Arc<Mutex<Rules>>,
}

#[derive(Debug, Default)]
struct Rules {
    next_id: u64,
    active: Vec<ActiveRule>,
}

impl Script {
    /// Adds a rule; the number that comes back removes it.
    pub fn fail(&self, rule: Rule) -> u64 {
        let mut rules = self.lock();
        rules.next_id += 1;
        let id = rules.next_id;
        let dice = Xoshiro256PlusPlus::seed_from_u64(rule.seed);
        rules.active.push(ActiveRule { id, used: 0, rule, dice });
        id
    }

    /// Removes one rule; false when there is none of that number.
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

    /// The rules, used up or not.
    pub fn rules(&self) -> Vec<ActiveRule> {
        self.lock().active.clone()
    }

    /// The fault for this request, counted as used.
    pub(super) fn judge(&self, seen: Seen<'_>) -> Option<Spoil> {
        let mut rules = self.lock();
        let active = rules.active.iter_mut().find_map(|active| active.fits(seen).then_some(active))?;
        active.used += 1;
        Some(Spoil { after: active.rule.after, fault: active.rule.fault.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveRule {
    fn fits(&mut self, seen: Seen<'_>) -> bool {
        let rule = &self.rule;
        let named = rule.conversation.as_deref().is_none_or(|wanted| {
            seen.names.into_iter().flatten().any(|name| name == wanted)
                || seen.text.is_some_and(|text| text.contains(wanted))
        });
        // "The instance is down" does not mean that its agents fall silent: that has to be said.
        let lost_callback = seen.side == Side::ServiceNow && seen.operation == Operation::Callback;
        rule.side == seen.side
            && rule.operation.map_or(!lost_callback, |wanted| wanted == seen.operation)
            && rule.times.is_none_or(|times| self.used < times)
            && named
            && rule.probability.is_none_or(|share| self.dice.random_bool(share.clamp(0.0, 1.0)))
    }
}
