//! What the simulated XO knows: sessions of users with a bot, reply handles, the events it has posted, and the calls that came
//! for them.
//!
//! Guarantees: one lock; nothing in here waits. Not responsible for: what a call means (`calls.rs`) and how a turn goes on
//! (`turns.rs`).

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
use super::files::StoredFile;
use super::script::BotStep;
use super::switches::{AgentFlags, BotKitSwitches};
use crate::sandbox::settings::BotSettings;

/// Reply handles above this number are cleared of those that have lapsed long ago.
const HANDLES_BEFORE_CLEARING: usize = 4_096;

/// XO's state behind its lock, and the client that posts its events.
pub(in crate::sandbox) struct BotKitState {
    inner: Mutex<State>,
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
        door: Option<String>,
        keep: Option<usize>,
    ) -> Self {
        let state = State {
            switches,
            door,
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

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells those who wait that something has changed.
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

/// What the user has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// The words. Of a template these are its text, or the JSON text if it came as the plain message.
    pub text: String,
    /// The template, if the message is one.
    pub template: Option<Value>,
    /// Shown as an agent's.
    pub as_agent: bool,
    /// The user was with an agent, as XO knew.
    pub with_agent: bool,
    /// The reply handle that it came by; empty if XO told it by itself.
    pub handle: String,
    /// The event whose handle that was, as `on_bot_message`.
    pub event: String,
}

/// One message in the history that `getMessages` shows.
#[derive(Debug, Clone)]
pub(super) struct HistoryMessage {
    pub(super) id: String,
    pub(super) incoming: bool,
    pub(super) at: Timestamp,
    pub(super) text: String,
    pub(super) attachments: Vec<Value>,
}

/// Where a session's events go.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The address of the BotKit server.
    pub(super) door: String,
    /// XO's own address, which the reply URLs begin with.
    pub(super) xo: String,
    pub(super) bot: BotSettings,
    /// The shape of `channel`; none: nested for a transfer, flat for the rest.
    pub(super) shape: Option<ChannelShape>,
    /// Merged into the `context` of each event.
    pub(super) context: Value,
}

/// A session of a user with a bot.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) connection: Option<Connection>,
    /// The bot has handed the user over, or XO has put the user into agent mode.
    pub(super) agent_transfer: bool,
    /// The BotKit server has begun an agent session.
    pub(super) agent_session: bool,
    pub(super) agent_sessions: u32,
    pub(super) clears: u32,
    pub(super) heard: Vec<Heard>,
    pub(super) bot_read: Vec<String>,
    /// The bot was given a message without words: its dialog stands still.
    pub(super) stalled: bool,
    /// What the bot still has to do in its answer.
    pub(super) steps: VecDeque<BotStep>,
    /// The numbers of the events for which XO waits.
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

impl Session {
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

    /// `agent_transfer` and `agent_session`, as an event shows them; none: the key is absent.
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
pub(super) struct Handle {
    pub(super) key: SessionKey,
    pub(super) fresh_at: Instant,
    pub(super) context: Arc<Value>,
    /// The number of the posted event, once it was posted.
    pub(super) event: Option<u64>,
}

/// A call that came for an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BotKitCall {
    /// As in the path: `sendBotMessage`.
    pub call: String,
    /// The words that it brought.
    pub text: Option<String>,
}

/// An event that XO has posted.
#[derive(Debug, Clone, Serialize)]
pub struct PostedEvent {
    /// Its number, in order of posting.
    pub number: u64,
    /// When it was posted first.
    pub at: Timestamp,
    /// The bot.
    pub bot: String,
    /// The user.
    pub user: String,
    /// The type of the channel.
    pub channel: &'static str,
    /// As in the path: `on_user_message`.
    pub event: String,
    /// Its reply handle.
    pub request_id: String,
    /// The words in it.
    pub text: Option<String>,
    /// The statuses of its answers; 0 if there was none.
    pub answers: Vec<u16>,
    /// XO still waits for a call: the turn stands still.
    pub waiting: bool,
    /// What ended the wait: the name of a call, `ack`, `timeout` or `refusal`.
    pub ended_by: Option<String>,
    /// The calls that came for it, in order, those that were refused left out.
    pub calls: Vec<BotKitCall>,
    #[serde(skip)]
    pub(super) key: SessionKey,
}

impl PostedEvent {
    /// The calls that came twice with the same words. A handle may be extended again and again.
    pub fn repeated_calls(&self) -> Vec<BotKitCall> {
        let counted = self.calls.iter().enumerate().filter(|(_, call)| call.call != "extendcallid");
        counted.filter(|(at, call)| self.calls[..*at].contains(call)).map(|(_, call)| call.clone()).collect()
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) switches: BotKitSwitches,
    /// Where the BotKit server of users stands that are played over HTTP.
    pub(super) door: Option<String>,
    keep: Option<usize>,
    next: u64,
    sessions: BTreeMap<SessionKey, Session>,
    handles: HashMap<String, Handle>,
    clear_at: usize,
    events: VecDeque<PostedEvent>,
    first_event: u64,
    pub(super) files: HashMap<String, StoredFile>,
}

impl State {
    pub(super) fn session(&mut self, key: &SessionKey) -> &mut Session {
        self.sessions.entry(key.clone()).or_insert_with(Session::new)
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (&SessionKey, &Session)> {
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
        let handle = Handle { key: key.clone(), fresh_at: Instant::now(), context, event: None };
        self.handles.insert(request_id, handle);
    }

    /// The handle of this bot, whether or not it has lapsed.
    pub(super) fn handle(&mut self, bot: &str, request_id: &str) -> Option<&mut Handle> {
        self.handles.get_mut(request_id).filter(|handle| handle.key.bot == bot)
    }

    pub(super) fn is_live(&self, handle: &Handle) -> bool {
        handle.fresh_at.elapsed() < Duration::from_millis(self.switches.handle_life_ms)
    }

    /// Every reply handle of this session lapses.
    pub(super) fn lapse(&mut self, key: &SessionKey) {
        self.handles.retain(|_, handle| handle.key != *key);
    }

    /// Notes an event that is posted now; one that is posted again keeps its number.
    pub(super) fn posted(&mut self, key: &SessionKey, posting: Posting<'_>) -> u64 {
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

    /// XO waits for a call after all, unless it came already.
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

    /// XO waits no longer for a call; the event, if it did wait.
    pub(super) fn end_wait(&mut self, number: u64, by: &str) -> Option<PostedEvent> {
        let event = self.event(number).filter(|event| event.waiting)?;
        event.waiting = false;
        event.ended_by = Some(by.to_owned());
        let event = event.clone();
        self.session(&event.key).waiting.remove(&number);
        Some(event)
    }

    /// XO waits for a call about something that the bot has said.
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

/// What is noted of an event when it is posted.
#[derive(Debug)]
pub(super) struct Posting<'a> {
    pub(super) event: &'a str,
    pub(super) request_id: &'a str,
    pub(super) text: Option<String>,
    pub(super) waits: bool,
}
