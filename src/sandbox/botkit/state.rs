//! The state of the simulated XO: sessions of users with a bot, reply handles, posted events, and the calls for these
//! events.
//!
//! Guarantees: one lock covers everything, and no function here waits.
//! Not responsible for: the effect of a call (`calls.rs`) and the course of a turn (`turns.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::Client;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::channel::{ChannelKind, ChannelShape};
use super::files::HostedFile;
use super::script::BotStep;
use super::switches::{AgentFlags, BotKitSwitches};
use crate::sandbox::settings::BotSettings;

/// Above this number, reply handles that expired long ago are removed.
const HANDLES_BEFORE_CLEARING: usize = 4_096;

/// XO's state behind its lock, and the client that posts XO's events.
pub(in crate::sandbox) struct BotKitState {
    inner: Mutex<BotKitInner>,
    changed: watch::Sender<u64>,
    pub(super) client: Option<Client>,
}

impl fmt::Debug for BotKitState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("BotKitState")
    }
}

impl BotKitState {
    pub(in crate::sandbox) fn new(
        switches: BotKitSwitches,
        ingress_url: Option<String>,
        keep: Option<usize>,
    ) -> Self {
        let state = BotKitInner {
            switches,
            ingress_url,
            keep,
            next: 1,
            sessions: BTreeMap::new(),
            handles: HashMap::new(),
            clear_at: HANDLES_BEFORE_CLEARING,
            events: VecDeque::new(),
            first_event: 0,
            files: HashMap::new(),
        };
        Self {
            inner: Mutex::new(state),
            changed: watch::Sender::new(0),
            client: crate::sandbox::http::client("Koreai"),
        }
    }

    pub(in crate::sandbox) fn switches(&self) -> BotKitSwitches {
        self.lock().switches
    }

    pub(in crate::sandbox) fn set(&self, switches: BotKitSwitches) {
        self.lock().switches = switches;
        self.notify();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BotKitInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes the tasks that wait for a change.
    pub(super) fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

/// One user with one bot on one channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionKey {
    pub(super) bot: String,
    pub(super) user: String,
    pub(super) channel: ChannelKind,
}

/// A message that the user has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeardMessage {
    /// The text. For a template this is its text, or the JSON text if the template came as the plain message.
    pub text: String,
    /// The template, if the message is one.
    pub template: Option<Value>,
    /// Whether it is shown as a message of an agent.
    pub as_agent: bool,
    /// Whether XO had the user in agent mode.
    pub with_agent: bool,
    /// The reply handle of the call; empty if XO passed the message on by itself.
    pub handle: String,
    /// The event of this handle, for example `on_bot_message`.
    pub event: String,
}

/// One message in the history of `getMessages`.
#[derive(Debug, Clone)]
pub(super) struct HistoryMessage {
    pub(super) id: String,
    pub(super) incoming: bool,
    pub(super) at: Timestamp,
    pub(super) text: String,
    pub(super) attachments: Vec<Value>,
}

/// The destination of a session's events.
#[derive(Debug, Clone)]
pub(super) struct BotConnection {
    /// The address of the BotKit server.
    pub(super) ingress_url: String,
    /// XO's own address, the prefix of the reply URLs.
    pub(super) xo: String,
    pub(super) bot: BotSettings,
    /// The shape of `channel`; `None`: nested for a transfer, flat for other events.
    pub(super) shape: Option<ChannelShape>,
    /// Merged into the `context` of each event.
    pub(super) context: Value,
}

/// A session of a user with a bot.
#[derive(Debug, Clone)]
pub(super) struct BotSession {
    pub(super) connection: Option<BotConnection>,
    /// Whether the bot has handed the user over, or XO has put the user into agent mode.
    pub(super) agent_transfer: bool,
    /// Whether the BotKit server has begun an agent session.
    pub(super) agent_session: bool,
    pub(super) agent_sessions: u32,
    pub(super) clears: u32,
    pub(super) heard: Vec<HeardMessage>,
    pub(super) bot_read: Vec<String>,
    /// Whether the bot got a message without text, which stops its dialog.
    pub(super) stalled: bool,
    /// The remaining steps of the bot's answer.
    pub(super) steps: VecDeque<BotStep>,
    /// The numbers of the events that wait for a call.
    pub(super) waiting: BTreeSet<u64>,
    pub(super) history: Vec<HistoryMessage>,
    /// The context of the last transfer.
    pub(super) transferred: Value,
    /// `conversationSessionId`
    pub(super) id: String,
    pub(super) message_id: String,
    pub(super) active_at: Instant,
    pub(super) client_events: Vec<Value>,
    pub(super) feedback: Vec<Value>,
}

impl BotSession {
    fn new() -> Self {
        Self {
            connection: None,
            agent_transfer: false,
            agent_session: false,
            agent_sessions: 0,
            clears: 0,
            heard: Vec::new(),
            bot_read: Vec::new(),
            stalled: false,
            steps: VecDeque::new(),
            waiting: BTreeSet::new(),
            history: Vec::new(),
            transferred: Value::Null,
            id: "5f1c4ac4c0a8010e01d3e7a1".to_owned(),
            message_id: String::new(),
            active_at: Instant::now(),
            client_events: Vec::new(),
            feedback: Vec::new(),
        }
    }

    pub(super) fn with_agent(&self) -> bool {
        self.agent_transfer || self.agent_session
    }

    /// `agent_transfer` and `agent_session` of an event; `None`: the key is absent.
    pub(super) fn flags(&self, shown: AgentFlags) -> (bool, Option<bool>) {
        match shown {
            AgentFlags::Both => (self.agent_transfer, Some(self.agent_session)),
            AgentFlags::TransferOnly => (self.agent_transfer, None),
            AgentFlags::SessionOnly if self.agent_session => (false, Some(true)),
            AgentFlags::SessionOnly => (self.agent_transfer, Some(false)),
        }
    }
}

/// A reply handle: XO's `requestId`.
#[derive(Debug, Clone)]
pub(super) struct SessionHandle {
    pub(super) key: SessionKey,
    pub(super) fresh_at: Instant,
    pub(super) context: Arc<Value>,
    /// The number of the event, after it was posted.
    pub(super) event: Option<u64>,
}

/// A call for an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BotKitCall {
    /// The name in the path, for example `sendBotMessage`.
    pub call: String,
    /// The text of the call.
    pub text: Option<String>,
}

/// An event that XO has posted.
#[derive(Debug, Clone, Serialize)]
pub struct PostedEvent {
    /// Its number, in order of posting.
    pub number: u64,
    /// Time of the first post.
    pub at: Timestamp,
    /// The bot.
    pub bot: String,
    /// The user.
    pub user: String,
    /// The type of the channel.
    pub channel: &'static str,
    /// The name in the path, for example `on_user_message`.
    pub event: String,
    /// Its reply handle.
    pub request_id: String,
    /// The text of the event.
    pub text: Option<String>,
    /// The statuses of the answers; 0 if there was no answer.
    pub answers: Vec<u16>,
    /// Whether XO still waits for a call, so that the turn is blocked.
    pub waiting: bool,
    /// The reason why the wait ended: the name of a call, `ack`, `timeout` or `refusal`.
    pub ended_by: Option<String>,
    /// The accepted calls for this event, in order.
    pub calls: Vec<BotKitCall>,
    #[serde(skip)]
    pub(super) key: SessionKey,
}

impl PostedEvent {
    /// The calls that came twice with the same text. `extendcallid` may be repeated and does not count.
    pub fn repeated_calls(&self) -> Vec<BotKitCall> {
        let counted = self.calls.iter().enumerate().filter(|(_, call)| call.call != "extendcallid");
        counted.filter(|(at, call)| self.calls[..*at].contains(call)).map(|(_, call)| call.clone()).collect()
    }
}

#[derive(Debug)]
pub(super) struct BotKitInner {
    pub(super) switches: BotKitSwitches,
    /// The BotKit server of users that are simulated over HTTP.
    pub(super) ingress_url: Option<String>,
    keep: Option<usize>,
    next: u64,
    sessions: BTreeMap<SessionKey, BotSession>,
    handles: HashMap<String, SessionHandle>,
    clear_at: usize,
    events: VecDeque<PostedEvent>,
    first_event: u64,
    pub(super) files: HashMap<String, HostedFile>,
}

impl BotKitInner {
    pub(super) fn session(&mut self, key: &SessionKey) -> &mut BotSession {
        self.sessions.entry(key.clone()).or_insert_with(BotSession::new)
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (&SessionKey, &BotSession)> {
        self.sessions.iter()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn add_handle(&mut self, request_id: String, key: &SessionKey, context: Arc<Value>) {
        if self.handles.len() >= self.clear_at {
            let life = Duration::from_millis(self.switches.handle_life_ms).saturating_mul(2);
            self.handles.retain(|_, handle| handle.fresh_at.elapsed() < life);
            self.clear_at = HANDLES_BEFORE_CLEARING.max(self.handles.len() * 2);
        }
        let handle = SessionHandle { key: key.clone(), fresh_at: Instant::now(), context, event: None };
        self.handles.insert(request_id, handle);
    }

    /// The handle of this bot, expired or not.
    pub(super) fn handle(&mut self, bot: &str, request_id: &str) -> Option<&mut SessionHandle> {
        self.handles.get_mut(request_id).filter(|handle| handle.key.bot == bot)
    }

    pub(super) fn is_live(&self, handle: &SessionHandle) -> bool {
        handle.fresh_at.elapsed() < Duration::from_millis(self.switches.handle_life_ms)
    }

    /// Expires all reply handles of this session.
    pub(super) fn lapse(&mut self, key: &SessionKey) {
        self.handles.retain(|_, handle| handle.key != *key);
    }

    /// Records an event that is being posted. A repeated event keeps its number.
    pub(super) fn posted(&mut self, key: &SessionKey, posting: EventPosting<'_>) -> u64 {
        let known = self.handles.get(posting.request_id).and_then(|handle| handle.event);
        if let Some(known) =
            known.filter(|known| self.event(*known).is_some_and(|event| event.event == posting.event))
        {
            return known;
        }
        let number = self.first_event + self.events.len() as u64;
        self.events.push_back(PostedEvent {
            number,
            at: crate::clock::now(),
            bot: key.bot.clone(),
            user: key.user.clone(),
            channel: key.channel.type_name(),
            event: posting.event.to_owned(),
            request_id: posting.request_id.to_owned(),
            text: posting.text,
            answers: Vec::new(),
            waiting: posting.waits,
            ended_by: None,
            calls: Vec::new(),
            key: key.clone(),
        });
        if let Some(handle) = self.handles.get_mut(posting.request_id) {
            handle.event = Some(number);
        }
        if posting.waits {
            self.session(key).waiting.insert(number);
        }
        while self.keep.is_some_and(|keep| self.events.len() > keep) {
            self.events.pop_front();
            self.first_event += 1;
        }
        number
    }

    /// Begins the wait for a call, unless a call has already come.
    pub(super) fn wait(&mut self, number: u64) {
        let Some(event) =
            self.event(number).filter(|event| event.ended_by.is_none() && event.calls.is_empty())
        else {
            return;
        };
        event.waiting = true;
        let key = event.key.clone();
        self.session(&key).waiting.insert(number);
    }

    /// Ends the wait of an event. Returns the event if it was waiting.
    pub(super) fn end_wait(&mut self, number: u64, by: &str) -> Option<PostedEvent> {
        let event = self.event(number).filter(|event| event.waiting)?;
        event.waiting = false;
        event.ended_by = Some(by.to_owned());
        let event = event.clone();
        self.session(&event.key).waiting.remove(&number);
        Some(event)
    }

    /// Whether XO waits for a call for a bot message or an alert.
    pub(super) fn waits_for_bot_message(&mut self, key: &SessionKey) -> bool {
        let waiting = self.session(key).waiting.clone();
        waiting.into_iter().any(|number| {
            self.event(number)
                .is_some_and(|event| matches!(event.event.as_str(), "on_bot_message" | "on_alert"))
        })
    }

    pub(super) fn event(&mut self, number: u64) -> Option<&mut PostedEvent> {
        let at = usize::try_from(number.checked_sub(self.first_event)?).ok()?;
        self.events.get_mut(at)
    }

    pub(super) fn events(&self) -> impl Iterator<Item = &PostedEvent> {
        self.events.iter()
    }
}

/// The recorded data of a posted event.
#[derive(Debug)]
pub(super) struct EventPosting<'a> {
    pub(super) event: &'a str,
    pub(super) request_id: &'a str,
    pub(super) text: Option<String>,
    pub(super) waits: bool,
}
