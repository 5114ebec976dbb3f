//! A user of a bot, for tests and the demo. The user's actions become events of XO, and the messages that the user
//! has read can be queried.
//!
//! Guarantees: in bot mode a turn continues only after the calls that XO waits for. This file makes no call in place of
//! the BotKit server.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ROOT;
use super::channel::{ChannelKind, ChannelShape};
use super::files::{HostedFile, UserFile, attachment};
use super::payload::{self, EventParts};
use super::posting::{self, BotAnswer};
use super::state::{
    BotConnection, BotKitCall, BotKitInner, BotSession, HeardMessage, PostedEvent, SessionKey,
};
use super::turns;
use crate::sandbox::settings::BotSettings;
use crate::sandbox::state::SandboxState;

/// One user of a bot. Clones are the same user.
#[derive(Clone)]
pub struct BotUser {
    world: Arc<SandboxState>,
    connection: BotConnection,
    user: String,
    channel: ChannelKind,
    last: Arc<Mutex<Option<(String, Value)>>>,
}

impl fmt::Debug for BotUser {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BotUser").field("user", &self.user).finish_non_exhaustive()
    }
}

impl BotUser {
    pub(in crate::sandbox) fn new(
        world: &Arc<SandboxState>,
        xo: &str,
        ingress_url: &str,
        user: &str,
    ) -> Self {
        let connection = BotConnection {
            ingress_url: ingress_url.trim_end_matches('/').to_owned(),
            xo: xo.to_owned(),
            bot: world.settings.bots.first().cloned().unwrap_or_default(),
            shape: None,
            context: Value::Null,
        };
        let (channel, last) = (ChannelKind::default(), Arc::default());
        Self { world: world.clone(), connection, user: user.to_owned(), channel, last }
    }

    /// The same user with another bot.
    #[must_use]
    pub fn at(mut self, bot: &BotSettings) -> Self {
        self.connection.bot = bot.clone();
        self
    }

    /// The same user on this channel.
    #[must_use]
    pub fn on_channel(mut self, channel: ChannelKind) -> Self {
        self.channel = channel;
        self
    }

    /// Sets the shape of the channel in all events of the user.
    #[must_use]
    pub fn with_shape(mut self, shape: ChannelShape) -> Self {
        self.connection.shape = Some(shape);
        self
    }

    /// Merges this value into the `context` of all events of the user. A null removes a key.
    #[must_use]
    pub fn with_context(mut self, context: Value) -> Self {
        self.connection.context = context;
        self
    }

    /// XO's id of the user.
    pub fn id(&self) -> &str {
        &self.user
    }

    /// The bot hands the user over.
    pub async fn transfers(&self, last_words: &str) -> BotAnswer {
        let event = {
            let (key, mut state) = self.state();
            if state.session(&key).history.last().is_none_or(|last| !last.incoming || last.text != last_words)
            {
                turns::remember(&mut state, &key, true, last_words, Vec::new());
            }
            state.session(&key).agent_transfer = true;
            self.transfer_event(&mut state, last_words)
        };
        self.post("on_agent_transfer", &event).await
    }

    /// The user writes to the agent or to the bot. The turn continues when the calls come.
    pub async fn says(&self, text: &str) -> BotAnswer {
        let event = {
            let (key, mut state) = self.state();
            self.acts(&mut state, &key, text, Vec::new());
            let switches = state.switches;
            if !switches.on_message && !state.session(&key).with_agent() {
                turns::bot_reads(&self.world, &mut state, &key, Some(text), false);
                drop(state);
                turns::go_on(&self.world, &key);
                return BotAnswer::default();
            }
            if !switches.on_message && !switches.agent_mode_without_subscription {
                return BotAnswer::default();
            }
            self.message_event(&mut state, Some(text))
        };
        self.post("on_user_message", &event).await
    }

    /// The user sends a file, with or without a text.
    pub async fn sends_file(&self, file: &UserFile, words: Option<&str>) -> BotAnswer {
        let event = {
            let (key, mut state) = self.state();
            let id = format!("f-{}", state.number());
            let address = format!("{}/xo/files/{id}", self.connection.xo);
            let item = attachment(file, &address, state.switches.file_shape);
            let stored = HostedFile { bot: key.bot.clone(), file: file.clone(), at: Instant::now() };
            state.files.insert(id, stored);
            self.acts(&mut state, &key, words.unwrap_or_default(), vec![item.clone()]);
            let mut event = self.message_event(&mut state, words);
            event["channel"]["attachments"] = json!([item]);
            event
        };
        self.post("on_user_message", &event).await
    }

    /// The page of the web channel was loaded, or the widget has reconnected.
    pub async fn connects(&self) -> BotAnswer {
        let event = {
            let (key, mut state) = self.state();
            turns::remember(&mut state, &key, true, "INITIAL DIALOG", Vec::new());
            let mut event = self.message_event(&mut state, None);
            event["channel"]["botEvent"] = json!("ON_CONNECT_EVENT");
            event
        };
        self.post("on_user_message", &event).await
    }

    /// The user types.
    pub async fn types(&self) -> BotAnswer {
        self.client_event("TYPING_STARTED").await
    }

    /// The client sends `TYPING_STARTED`, `TYPING_STOPPED` or `MESSAGE_READ`.
    pub async fn client_event(&self, what: &str) -> BotAnswer {
        let mut event = self.flat("");
        event["preDefinedEvent"] = json!({ "type": what });
        self.add_address(&mut event, "sendBotEventUrl", "sendBotEvent");
        self.post("on_client_event", &event).await
    }

    /// The user presses "end chat" in the web widget.
    pub async fn ends_in_widget(&self) -> BotAnswer {
        let event = {
            let (key, mut state) = self.state();
            let mut event = self.message_event(&mut state, None);
            event["event"] = json!({ "eventType": "sessionClosure" });
            let keeps = state.switches.closure_keeps_agent_mode;
            turns::close_session(&mut state, &key, keeps);
            event
        };
        self.post("on_event", &event).await
    }

    /// XO closes the session after a long idle time, without an event.
    pub fn session_expires(&self) {
        let (key, mut state) = self.state();
        turns::close_session(&mut state, &key, false);
    }

    /// The bot sends a message without a preceding user message.
    pub async fn bot_says(&self, text: &str) -> BotAnswer {
        self.unasked("on_bot_message", text).await
    }

    /// The bot sends an alert.
    pub async fn alert(&self, text: &str) -> BotAnswer {
        self.unasked("on_alert", text).await
    }

    /// The bot sends a feedback survey: a bot message that names the survey.
    pub async fn survey(&self, question: &str) -> BotAnswer {
        let event = {
            let (_, mut state) = self.state();
            let mut event = self.event_of(&mut state, Some(question), false, false);
            event["isTemplate"] = json!(false);
            event["feedbackData"] = json!({ "name": "CSAT", "channel": self.channel.type_name() });
            event
        };
        self.post("on_bot_message", &event).await
    }

    /// A webhook node of a dialog. The BotKit server answers directly, or later by `callbackUrl`.
    pub async fn webhook(&self, words: &str) -> BotAnswer {
        let event = {
            let (_, mut state) = self.state();
            let mut event = self.event_of(&mut state, Some(words), false, false);
            self.add_address(&mut event, "callbackUrl", "serviceCallback");
            event
        };
        self.post("on_webhook", &event).await
    }

    fn add_address(&self, event: &mut Value, field: &str, call: &str) {
        let request_id = event["requestId"].as_str().unwrap_or_default().to_owned();
        event[field] = payload::address(&self.connection, &self.key(), call, &request_id);
    }

    async fn unasked(&self, event: &str, text: &str) -> BotAnswer {
        let body = {
            let (_, mut state) = self.state();
            self.event_of(&mut state, Some(text), false, false)
        };
        self.post(event, &body).await
    }

    /// Posts the last event again, byte for byte.
    pub async fn repeats(&self) -> BotAnswer {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (event, body) = last.unwrap_or_default();
        self.post(&event, &body).await
    }

    /// XO ends or begins the user's agent mode by itself, as after some idle time.
    pub fn set_with_agent(&self, with_agent: bool) {
        let (key, mut state) = self.state();
        let session = state.session(&key);
        session.agent_transfer = with_agent;
        session.agent_session &= with_agent;
    }

    /// Whether XO has the user in agent mode.
    pub fn is_with_agent(&self) -> bool {
        self.look(|session| session.with_agent())
    }

    /// The messages that the user has read, in order.
    pub fn heard(&self) -> Vec<HeardMessage> {
        self.look(|session| session.heard.clone())
    }

    /// The texts of these messages.
    pub fn heard_texts(&self) -> Vec<String> {
        self.look(|session| session.heard.iter().map(|heard| heard.text.clone()).collect())
    }

    /// The texts that the bot has read, in order.
    pub fn bot_read(&self) -> Vec<String> {
        self.look(|session| session.bot_read.clone())
    }

    /// The payloads of `sendBotEvent`.
    pub fn client_events(&self) -> Vec<Value> {
        self.look(|session| session.client_events.clone())
    }

    /// The payloads of `sendFeedbackMessage`.
    pub fn feedback(&self) -> Vec<Value> {
        self.look(|session| session.feedback.clone())
    }

    /// The number of returns to the bot.
    pub fn clears(&self) -> u32 {
        self.look(|session| session.clears)
    }

    /// The number of agent sessions.
    pub fn sessions(&self) -> u32 {
        self.look(|session| session.agent_sessions)
    }

    /// `conversationSessionId` of the next event.
    pub fn session_id(&self) -> String {
        self.look(|session| session.id.clone())
    }

    /// All events that XO has posted for this user, in order.
    pub fn events(&self) -> Vec<PostedEvent> {
        let (key, state) = self.state();
        state.events().filter(|event| event.key == key).cloned().collect()
    }

    /// The events for which XO still waits, so that their turns are blocked.
    pub fn waiting(&self) -> Vec<PostedEvent> {
        self.events().into_iter().filter(|event| event.waiting).collect()
    }

    /// The calls that came twice for one event with the same text.
    pub fn repeated_calls(&self) -> Vec<BotKitCall> {
        self.events().iter().flat_map(PostedEvent::repeated_calls).collect()
    }

    /// Waits until the condition holds for this user. Returns false after the timeout.
    pub async fn wait_for(&self, condition: impl Fn(&Self) -> bool, timeout: Duration) -> bool {
        let mut changed = self.world.botkit.subscribe();
        let holds = async {
            while !condition(self) {
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(timeout, holds).await.unwrap_or(false)
    }

    /// Expires all reply handles of this user.
    pub fn handles_lapse(&self) {
        let (key, mut state) = self.state();
        state.lapse(&key);
    }

    /// Posts an event of any shape, with XO's signature.
    pub async fn post(&self, event: &str, body: &Value) -> BotAnswer {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((event.to_owned(), body.clone()));
        let (key, state) = self.state();
        drop(state);
        posting::post(&self.world, &key, event, body.clone()).await
    }

    /// Posts an event with this credential header.
    pub async fn post_with(&self, event: &str, body: &Value, header: &str, credential: &str) -> BotAnswer {
        posting::post_once(&self.world, &self.connection, event, body.to_string(), header, credential).await
    }

    /// A transfer in XO's complete, nested shape.
    pub fn nested(&self, last_words: &str) -> Value {
        let (_, mut state) = self.state();
        self.transfer_event(&mut state, last_words)
    }

    /// A later message in the flat shape.
    pub fn flat(&self, text: &str) -> Value {
        let (_, mut state) = self.state();
        self.message_event(&mut state, Some(text))
    }

    fn transfer_event(&self, state: &mut BotKitInner, last_words: &str) -> Value {
        self.event_of(state, Some(last_words), true, true)
    }

    fn message_event(&self, state: &mut BotKitInner, text: Option<&str>) -> Value {
        self.event_of(state, text, false, true)
    }

    fn event_of(
        &self,
        state: &mut BotKitInner,
        words: Option<&str>,
        is_transfer: bool,
        names_message: bool,
    ) -> Value {
        let parts = EventParts { words, is_transfer, names_message };
        payload::event(state, &self.key(), &self.connection, &parts)
    }

    /// Records an action of the user. It resets the idle time of the session; if that time is over, a new session
    /// begins.
    fn acts(&self, state: &mut BotKitInner, key: &SessionKey, words: &str, attachments: Vec<Value>) {
        let idle = Duration::from_millis(state.switches.session_idle_ms);
        if !idle.is_zero() && state.session(key).active_at.elapsed() > idle {
            turns::close_session(state, key, false);
        }
        state.session(key).active_at = Instant::now();
        turns::remember(state, key, true, words, attachments);
    }

    fn key(&self) -> SessionKey {
        SessionKey { bot: self.connection.bot.bot_id.clone(), user: self.user.clone(), channel: self.channel }
    }

    /// Locks XO's state, and sets the BotKit server of this user's session.
    fn state(&self) -> (SessionKey, std::sync::MutexGuard<'_, BotKitInner>) {
        let key = self.key();
        let mut state = self.world.botkit.lock();
        state.session(&key).connection = Some(self.connection.clone());
        (key, state)
    }

    fn look<T>(&self, look: impl FnOnce(&BotSession) -> T) -> T {
        let (key, mut state) = self.state();
        look(state.session(&key))
    }

    /// The base URL of the BotKit API for this user's bot.
    pub fn base_url(&self) -> String {
        format!("{}{ROOT}{}", self.connection.xo, self.connection.bot.bot_id)
    }
}
