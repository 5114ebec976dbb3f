//! The course of a turn: the bot reads a text that was passed on and performs the steps of its script. The user reads
//! the bot's messages that were passed on in turn. Each step waits for the call that XO waits for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::payload::{self, EventParts};
use super::posting::post;
use super::script::BotStep;
use super::state::{BotKitInner, HeardMessage, HistoryMessage, PostedEvent, SessionKey};
use super::switches::BotKitSwitches;
use crate::sandbox::state::SandboxState;

/// The message that a call shows to the user.
#[derive(Debug, Clone, Default)]
pub(super) struct ShownText {
    pub(super) text: String,
    template: Option<Value>,
    as_agent: bool,
    /// The text in the history of `getMessages`. For a template this is JSON text.
    raw: String,
}

impl ShownText {
    /// Reads the body of a call; `None` if there is nothing to show.
    pub(super) fn read(body: &Value) -> Option<Self> {
        let plain = body.get("message").and_then(Value::as_str);
        let inside = body.pointer("/overrideMessagePayload/body").and_then(Value::as_str);
        let parsed = inside.or(plain).and_then(|text| serde_json::from_str::<Value>(text).ok());
        let template = parsed.filter(|value| value.get("payload").is_some_and(Value::is_object));
        let words = template.as_ref().and_then(|template| template.pointer("/payload/text")?.as_str());
        let text = match (inside, words) {
            (Some(_), Some(words)) => words,
            _ => plain.or(words).unwrap_or_default(),
        };
        let as_agent = inside.is_some()
            && template.as_ref().and_then(|template| template.pointer("/payload/template_type")?.as_str())
                == Some("live_agent");
        let shown = Self {
            text: text.to_owned(),
            as_agent,
            raw: inside.or(plain).unwrap_or_default().to_owned(),
            template,
        };
        (!shown.text.is_empty() || shown.template.is_some()).then_some(shown)
    }

    fn words(text: &str) -> Self {
        Self::read(&json!({ "message": text })).unwrap_or_default()
    }
}

/// The user reads this message.
pub(super) fn user_reads(
    state: &mut BotKitInner,
    key: &SessionKey,
    shown: ShownText,
    handle: &str,
    event: &str,
) {
    let session = state.session(key);
    session.heard.push(HeardMessage {
        text: shown.text,
        template: shown.template,
        as_agent: shown.as_agent,
        with_agent: session.with_agent(),
        handle: handle.to_owned(),
        event: event.to_owned(),
    });
    remember(state, key, false, &shown.raw, Vec::new());
}

/// Adds a message to the history.
pub(super) fn remember(
    state: &mut BotKitInner,
    key: &SessionKey,
    incoming: bool,
    text: &str,
    attachments: Vec<Value>,
) {
    let id = format!("ms-{}-h{}", key.user, state.number());
    let at = crate::clock::now();
    state.session(key).history.push(HistoryMessage { id, incoming, at, text: text.to_owned(), attachments });
}

/// The bot reads this text. Its answer becomes steps; [`go_on`] performs them.
pub(super) fn bot_reads(
    world: &SandboxState,
    state: &mut BotKitInner,
    key: &SessionKey,
    words: Option<&str>,
    connects: bool,
) {
    let script = world.settings.bots.iter().find(|bot| bot.bot_id == key.bot).map(|bot| bot.script.clone());
    let script = script.unwrap_or_default();
    let session = state.session(key);
    match words.filter(|words| !words.is_empty()) {
        None if connects => session.steps.extend(script.welcome()),
        // Observed by a public adapter: a message without text stops the dialog, and the next text gets no answer.
        None => session.stalled = true,
        Some(words) => {
            session.bot_read.push(words.to_owned());
            if !std::mem::take(&mut session.stalled) {
                session.steps.extend(script.steps(words));
            }
        }
    }
}

/// XO passes the message of an event on by itself, because no call came or because a skip call passes it on.
pub(super) fn passes_on(world: &SandboxState, state: &mut BotKitInner, event: &PostedEvent, connects: bool) {
    match event.event.as_str() {
        "on_user_message" => bot_reads(world, state, &event.key, event.text.as_deref(), connects),
        "on_bot_message" | "on_alert" => {
            if let Some(text) = event.text.as_deref().filter(|text| !text.is_empty()) {
                user_reads(state, &event.key, ShownText::words(text), "", &event.event);
            }
        }
        _ => {}
    }
}

/// Closes the session: agent mode and dialog end, and the next message belongs to a new session.
pub(super) fn close_session(state: &mut BotKitInner, key: &SessionKey, keeps_agent_mode: bool) {
    remember(state, key, true, "#session_closed", Vec::new());
    let number = state.number();
    let session = state.session(key);
    if !keeps_agent_mode {
        (session.agent_transfer, session.agent_session) = (false, false);
    }
    session.stalled = false;
    session.steps.clear();
    session.id = format!("5f1c4ac4c0a8010e{number:08x}");
}

/// Performs the bot's next steps until a step has to wait for a call.
pub(super) fn go_on(world: &Arc<SandboxState>, key: &SessionKey) {
    let think = {
        let bot = world.settings.bots.iter().find(|bot| bot.bot_id == key.bot);
        bot.map_or(Duration::ZERO, |bot| bot.script.think())
    };
    if think.is_zero() {
        return next_steps(world, key);
    }
    let (later, key) = (world.clone(), key.clone());
    world.task_group.start(async move {
        tokio::time::sleep(think).await;
        next_steps(&later, &key);
    });
}

fn next_steps(world: &Arc<SandboxState>, key: &SessionKey) {
    loop {
        let posting = {
            let mut state = world.botkit.lock();
            let switches = state.switches;
            if !switches.bot_messages_at_once && state.waits_for_bot_message(key) {
                break;
            }
            let Some(step) = state.session(key).steps.pop_front() else { break };
            take_step(&mut state, key, step, switches)
        };
        world.botkit.notify();
        let Some((event, body)) = posting else { continue };
        // The event is recorded before the next step begins, because the next step may have to wait for this event.
        let posting = post(world, key, event, body);
        world.task_group.start(async move { drop(posting.await) });
    }
}

/// The event of this step; `None` if XO performs the step without the BotKit server.
fn take_step(
    state: &mut BotKitInner,
    key: &SessionKey,
    step: BotStep,
    switches: BotKitSwitches,
) -> Option<(&'static str, Value)> {
    let connection = state.session(key).connection.clone()?;
    let (words, payload) = match &step {
        BotStep::Say(text) => (Some(text.clone()), None),
        BotStep::SayWith { message, payload } => (Some(message.clone()), Some(payload.clone())),
        BotStep::Alert(text) => (Some(text.clone()), None),
        BotStep::EndTask(_) => (None, None),
        BotStep::HandOver => (state.session(key).bot_read.last().cloned(), None),
    };
    let is_message = matches!(step, BotStep::Say(_) | BotStep::SayWith { .. });
    if is_message && !switches.on_message {
        let mut body = json!({ "message": words });
        body["overrideMessagePayload"] = payload.unwrap_or_default();
        if let Some(shown) = ShownText::read(&body) {
            user_reads(state, key, shown, "", "on_bot_message");
        }
        return None;
    }
    if step == BotStep::HandOver {
        state.session(key).agent_transfer = true;
    }
    let is_transfer = step == BotStep::HandOver;
    let parts = EventParts { words: words.as_deref(), is_transfer, names_message: false };
    let mut event = payload::event(state, key, &connection, &parts);
    if let Some(payload) = payload {
        event["overrideMessagePayload"] = payload;
    }
    if let BotStep::EndTask(name) = &step {
        event["event"] = json!({ "eventType": "endDialog", "completedTaskName": name });
    }
    let name = match step {
        BotStep::Say(_) | BotStep::SayWith { .. } => "on_bot_message",
        BotStep::Alert(_) => "on_alert",
        BotStep::EndTask(_) => "on_event",
        BotStep::HandOver => "on_agent_transfer",
    };
    Some((name, event))
}
