//! The door for XO's BotKit protocol: what XO posts to a BotKit server it posts here.
//!
//! Guarantees: an event is acknowledged only after the queue has what it became; what is queued is small whatever came; a user
//! who types an end word is given back to the bot at once, without waiting for ServiceNow. Leaves to others: the credential
//! (`ingress/token.rs`), reading the payload (`event.rs`), the words of the answers (`answer.rs`), everything after the queue.

mod answer;
mod attachments;
mod bot_mode;
mod event;
mod json_paths;
mod routing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::Value;

use super::problem::Refusal;
use super::token::{self, BotDoor};
use super::{IngressState, body};
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory, DirectoryError, Origin, State};
use crate::message::handoff::{End, Handoff, Start, Text, Typing};
use crate::message::{
    AllowedHosts, ConversationId, Destination, Kind, LaneKey, Message, MessageId, Notice, ReplyHandle,
};
pub(super) use answer::refused;
use event::Payload;

/// How long XO may wait for the directory, which only helps: the worker finds out by itself.
const DIRECTORY_PATIENCE: Duration = Duration::from_secs(1);
/// Why a chat ended whose user pressed "end chat" in XO's web widget. `delivery/user_return.rs` knows the word, too.
const SESSION_CLOSED: &str = "session_closed";
/// XO's payloads hold a context of up to a megabyte, whatever limit the other doors have.
const BODY_BYTES_MIN: usize = 2 << 20;

/// How the door behaves.
#[derive(Debug, Clone, Default)]
pub struct BotKitDoor {
    /// Whose events are taken; none: the door is shut.
    pub bots: Vec<BotDoor>,
    /// Whether XO's older `apikey` opens it, too.
    pub allow_apikey: bool,
    /// Where reply addresses may point.
    pub allowed_hosts: AllowedHosts,
    /// How much of an event's context goes back with the replies.
    pub context: Kept,
    /// What a user types to end the chat.
    pub end_words: Vec<String>,
    /// What the agent reads first where an event holds no words of the user.
    pub first_words: String,
    /// Whether the bot's words to a user who is with an agent are not shown.
    pub drops_bot_messages: bool,
    /// Where an event says who the user is.
    pub user: UserPaths,
    /// Whether "end chat" in XO's web widget ends the chat with the agent.
    pub end_on_session_closure: bool,
    /// The paths into a transfer's payload whose values choose the queue.
    pub routing_paths: BTreeSet<String>,
}

/// `xo.user.*`: JSON pointers into an event. The entries of a list are tried in turn; the values of an entry with several pointers
/// are joined by blanks.
#[derive(Debug, Clone, Default)]
pub struct UserPaths {
    /// What XO calls the user.
    pub id: Vec<Vec<String>>,
    /// The name that the agent sees.
    pub name: Vec<Vec<String>>,
    /// The e-mail address; a value without an @ is none.
    pub email: Vec<Vec<String>>,
    /// A language tag such as `ko`.
    pub language: Vec<Vec<String>>,
}

/// `xo.reply_context`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kept {
    /// The names of the user and the session.
    #[default]
    Trimmed,
    /// All of it, which may be a megabyte with every message.
    Full,
    /// Nothing.
    None,
}

/// What XO tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    AgentTransfer,
    UserMessage,
    BotMessage,
    Task,
    Client,
    Webhook,
    Alert,
    VariableUpdate,
}

impl Event {
    /// As the last part of the address.
    const NAMES: &'static [(&'static str, Self)] = &[
        ("on_agent_transfer", Self::AgentTransfer),
        ("on_user_message", Self::UserMessage),
        ("on_bot_message", Self::BotMessage),
        ("on_event", Self::Task),
        ("on_client_event", Self::Client),
        ("on_webhook", Self::Webhook),
        ("on_alert", Self::Alert),
        ("on_variable_update", Self::VariableUpdate),
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, event)| *event)
    }
}

/// What an address says.
#[derive(Debug)]
struct Door {
    bot_id: String,
    component_id: String,
    event: Event,
}

impl Door {
    fn read(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (bot_id, component_id, event) = match parts.as_slice() {
            ["sdk", "bots", bot_id, event] => (bot_id, "default", event),
            ["sdk", "bots", bot_id, "components", component_id, event] => (bot_id, *component_id, event),
            _ => return None,
        };
        // The component goes back in every reply.
        ConversationId::parse(component_id).ok()?;
        Some(Self {
            bot_id: (*bot_id).to_owned(),
            component_id: component_id.to_owned(),
            event: Event::parse(event)?,
        })
    }
}

/// Answers an event.
pub(super) async fn answer(state: &Arc<IngressState>, request: &mut Request) -> Result<Response, Refusal> {
    let settings = &state.settings.botkit;
    let door = Door::read(request.uri().path()).ok_or(Refusal::UnknownRoute)?;
    let bot = settings.bots.iter().find(|bot| bot.bot_id == door.bot_id).ok_or(Refusal::UnknownRoute)?;
    if !token::holds(bot, request.headers(), settings.allow_apikey, clock::now()) {
        return Err(Refusal::Unauthorized(r#"BotKit realm="causeway""#));
    }
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let limits = state.limits();
    let limits = body::Limits { bytes: limits.bytes.max(BODY_BYTES_MIN), ..limits };
    let raw = body::read(&headers, request.body_mut(), limits).await?;
    let payload = Payload::read(&door, &raw)?;
    payload.check_addresses(&settings.allowed_hosts)?;
    match door.event {
        Event::AgentTransfer => {
            transferred(state, &payload, &raw).await?;
            return Ok(answer::handed_off());
        }
        Event::Webhook => return Ok(answer::unchanged(raw)),
        Event::UserMessage if payload.is_with_agent() => said(state, &payload).await?,
        Event::UserMessage => {
            let accepted_at = clock::now();
            pass_on(state, &payload, Kind::BotUserMessage).await?;
            said_to_the_bot(state, &payload, accepted_at).await?;
        }
        Event::BotMessage if payload.is_with_agent() && settings.drops_bot_messages => {
            keep_turn(state, &payload, bot_mode::skipped(&payload)?).await?;
        }
        Event::BotMessage => pass_on(state, &payload, Kind::BotBotMessage).await?,
        Event::Alert => pass_on(state, &payload, Kind::BotAlert).await?,
        Event::Client if payload.is_with_agent() => stirred(state, &payload).await?,
        Event::Client => pass_on(state, &payload, Kind::BotClientEvent).await?,
        Event::Task if payload.is_session_closure() => closed(state, &payload).await?,
        Event::Task | Event::VariableUpdate => {}
    }
    Ok(answer::acknowledged(&raw))
}

/// XO waits until this is passed on.
async fn pass_on(state: &Arc<IngressState>, payload: &Payload<'_>, kind: Kind) -> Result<(), Refusal> {
    match bot_mode::message(payload, kind)? {
        Some(turn) => keep_turn(state, payload, turn).await,
        None => Ok(()),
    }
}

async fn keep_turn(
    state: &Arc<IngressState>,
    payload: &Payload<'_>,
    turn: bot_mode::Turn,
) -> Result<(), Refusal> {
    let bot = state.settings.bot_side.bot(&payload.door.bot_id).ok_or(Refusal::UnknownRoute)?;
    Ok(state.keep(turn.into_message(bot)).await?)
}

/// The bot hands its user over.
async fn transferred(state: &Arc<IngressState>, payload: &Payload<'_>, raw: &[u8]) -> Result<(), Refusal> {
    let settings = &state.settings.botkit;
    let conversation_id = payload.conversation()?;
    let reply = payload.reply(settings)?;
    let id = payload.id(&conversation_id, "transfer");
    let mut metadata = routing::values_at(raw, settings.routing_paths.iter().map(String::as_str));
    metadata.insert("streamId".to_owned(), payload.door.bot_id.clone());
    let start = Start {
        conversation_id: conversation_id.clone(),
        queue_id: None,
        message: payload.last_words().unwrap_or_else(|| settings.first_words.clone()),
        user: payload.user(&settings.user),
        transcript: payload.transcript(),
        metadata,
        reply: Some(Box::new(reply.clone())),
    };
    let accepted_at = publish(state, id, &Handoff::Start(start)).await?;
    let known = |directory: Directory| async move {
        if !directory.find_done(&[DedupKey::Delivered(id), DedupKey::Answered(id)]).await?.is_empty() {
            return Ok(());
        }
        directory.accepted(&conversation_id, Origin::BotKit, None, accepted_at).await?;
        directory.heard(&conversation_id, &reply, accepted_at).await
    };
    ask(state, known).await;
    Ok(())
}

/// The user wrote to the agent, or wants to go.
async fn said(state: &Arc<IngressState>, payload: &Payload<'_>) -> Result<(), Refusal> {
    let settings = &state.settings.botkit;
    let conversation_id = payload.conversation()?;
    let (reply, message) = (payload.reply(settings)?, payload.message()?);
    let id = payload.id(&conversation_id, "message");
    if is_end_word(&settings.end_words, &message) {
        return quit(state, id, conversation_id, Some(reply), "user").await;
    }
    let attachments = payload.attachments();
    if message.trim().is_empty() && attachments.is_empty() {
        return Ok(());
    }
    let text = Text {
        conversation_id: conversation_id.clone(),
        message,
        attachments,
        reply: Some(Box::new(reply.clone())),
    };
    let at = publish(state, id, &Handoff::Message(text)).await?;
    ask(state, |directory| async move { directory.heard(&conversation_id, &reply, at).await }).await;
    Ok(())
}

fn is_end_word(words: &[String], message: &str) -> bool {
    let message = message.trim().to_lowercase();
    words.iter().any(|word| word.trim().to_lowercase() == message)
}

/// The user pressed "end chat" in XO's web widget: their session with the bot is over, and so is the chat with the agent. The event
/// need not say whether the user is with an agent, and it also comes from users who never asked for one.
async fn closed(state: &Arc<IngressState>, payload: &Payload<'_>) -> Result<(), Refusal> {
    let settings = &state.settings.botkit;
    if !settings.end_on_session_closure {
        return Ok(());
    }
    let Ok(conversation_id) = payload.conversation() else { return Ok(()) };
    let (id, reply) = (payload.id(&conversation_id, "closure"), payload.reply(settings).ok());
    let asked = conversation_id.clone();
    match ask(state, |directory| async move { directory.find(&asked).await }).await {
        Some(Some(known)) if is_open(&known) => quit(state, id, conversation_id, reply, SESSION_CLOSED).await,
        Some(_) if !payload.is_with_agent() => Ok(()),
        Some(_) => quit(state, id, conversation_id, reply, SESSION_CLOSED).await,
        // Directory away: the worker finds out whether there is a chat to leave.
        None => {
            let reason = Some(SESSION_CLOSED.to_owned());
            publish(state, id, &Handoff::End(End { conversation_id, reason, reply: None })).await.map(|_| ())
        }
    }
}

/// The bot has its user back at once; ServiceNow hears of it in its turn. The notice is the one that the worker tells when it
/// has left the chat, so that whoever is first says it and the other is a repeat.
async fn quit(
    state: &Arc<IngressState>,
    id: MessageId,
    conversation_id: ConversationId,
    reply: Option<ReplyHandle>,
    reason: &str,
) -> Result<(), Refusal> {
    let known = {
        let (conversation_id, reply) = (conversation_id.clone(), reply.clone());
        ask(state, |directory| async move {
            let (now, known) = (clock::now(), directory.find(&conversation_id).await?);
            if known.is_none() {
                // Nobody was asked for yet; the user is to be given back all the same.
                directory.accepted(&conversation_id, Origin::BotKit, None, now).await?;
            }
            if let Some(reply) = &reply {
                directory.heard(&conversation_id, reply, now).await?;
            }
            Ok(known)
        })
        .await
        .flatten()
    };
    let group = known.filter(is_open).and_then(|open| open.group);
    // Without a chat there is nothing else that tells this end from the next one.
    let instance = if group.is_some() { String::new() } else { id.to_string() };
    let chat = group.as_deref().and_then(|group| LaneKey::parse(group).ok());
    let notice = Notice { group, reason: Some(reason.to_owned()), ..Notice::about(conversation_id.clone()) };
    let body = serde_json::to_vec(&notice).map_err(|_| Refusal::CutBody)?;
    let side = &state.settings.bot_side;
    // Behind the callbacks of the chat, if there is one.
    let (destination, lane) = match chat {
        Some(lane) => (side.of_chat(), lane),
        None => (side.of_conversation(&conversation_id), LaneKey::from(&conversation_id)),
    };
    let ended = notice.id(Kind::CallbackEnded, &instance);
    // The end first: should nothing come after it, the worker tells the notice as well, only later. The notice alone would
    // leave an agent in a chat whose user is gone.
    let end = End { conversation_id, reason: Some(reason.to_owned()), reply: reply.map(Box::new) };
    publish(state, id, &Handoff::End(end)).await?;
    Ok(state.keep(Message::new(ended, Kind::CallbackEnded, destination, lane, body)).await?)
}

/// A message to the bot of a user who is with an agent, as far as Causeway knows: XO took them back.
async fn said_to_the_bot(
    state: &Arc<IngressState>,
    payload: &Payload<'_>,
    accepted_at: Timestamp,
) -> Result<(), Refusal> {
    // A page that loads says nothing about where its user is.
    if payload.is_without_words() && payload.file_names().is_none() {
        return Ok(());
    }
    // Bots whose users are never handed over have the same events, with or without names.
    let Ok(conversation_id) = payload.conversation() else { return Ok(()) };
    let asked = conversation_id.clone();
    let known = ask(state, |directory| async move {
        let known = directory.find(&asked).await?.filter(|known| known.released_at.is_none());
        let Some(known) = known else { return Ok(None) };
        Ok(Some((known, directory.reply(&asked).await?)))
    })
    .await;
    match known {
        // Directory away: the event's own flags decide, and the user's next words tell it again.
        None | Some(None) => return Ok(()),
        // The bot handed its user over while this message was on its way to the bot.
        Some(Some((known, _))) if known.opened_at >= accepted_at => return Ok(()),
        // The very message that made the bot hand its user over, told late.
        Some(Some((_, Some(reply))))
            if payload.user_message().is_some()
                && message_of(&reply.handle) == payload.user_message().as_deref() =>
        {
            return Ok(());
        }
        Some(Some((known, _))) if !is_open(&known) => {
            // It ended here, too, and the user could not be reached since: nothing more is said to them.
            ask(state, |directory| async move { directory.released(&conversation_id).await }).await;
            return Ok(());
        }
        Some(Some(_)) => {}
    }
    let id = payload.id(&conversation_id, "message");
    let end = End { conversation_id: conversation_id.clone(), reason: Some("xo".to_owned()), reply: None };
    publish(state, id, &Handoff::End(end)).await?;
    ask(state, |directory| async move { directory.released(&conversation_id).await }).await;
    Ok(())
}

fn message_of(handle: &ReplyHandle) -> Option<&str> {
    handle.channel.pointer("/channelInfos/requestId").and_then(Value::as_str)
}

fn is_open(conversation: &Conversation) -> bool {
    matches!(conversation.state, State::Requested | State::Waiting | State::Active)
}

/// The user types, or has stopped, or has read: what an agent sees of a user who says nothing.
async fn stirred(state: &Arc<IngressState>, payload: &Payload<'_>) -> Result<(), Refusal> {
    let stopped = match payload.client_event().as_deref() {
        Some("TYPING_STARTED") => false,
        Some("TYPING_STOPPED" | "MESSAGE_READ") => true,
        _ => return Ok(()),
    };
    let typing = Typing { conversation_id: payload.conversation()?, stopped };
    publish(state, MessageId::fresh(), &Handoff::Typing(typing)).await.map(|_| ())
}

/// Returns when it was accepted.
async fn publish(state: &Arc<IngressState>, id: MessageId, handoff: &Handoff) -> Result<Timestamp, Refusal> {
    let body = serde_json::to_vec(handoff).map_err(|_| Refusal::CutBody)?;
    let lane = LaneKey::from(handoff.conversation());
    let message = Message::new(id, handoff.kind(), Destination::ServiceNow, lane, body);
    let accepted_at = message.accepted_at;
    state.keep(message).await?;
    Ok(accepted_at)
}

/// Asks or tells the directory for as long as XO may wait; `None` where it is away.
async fn ask<T, F: Future<Output = Result<T, DirectoryError>>>(
    state: &IngressState,
    question: impl FnOnce(Directory) -> F,
) -> Option<T> {
    let directory = state.directory.clone()?;
    match tokio::time::timeout(DIRECTORY_PATIENCE, question(directory)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the directory is away: the worker will find out");
            None
        }
        Err(_) => {
            tracing::warn!("the directory is slow: the worker will find out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_botkit_reads_them() {
        let read = |path: &str| Door::read(path).map(|door| (door.bot_id, door.component_id, door.event));
        let bot = || "st-1".to_owned();
        assert_eq!(
            read("/sdk/bots/st-1/on_agent_transfer"),
            Some((bot(), "default".to_owned(), Event::AgentTransfer))
        );
        assert_eq!(
            read("/sdk/bots/st-1/components/dg-7/on_user_message"),
            Some((bot(), "dg-7".to_owned(), Event::UserMessage))
        );
        for wrong in
            ["/sdk/bots/st-1/on_everything", "/sdk/bots/st-1/components//on_event", "/sdk/bots/st-1", "/"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn end_words_are_whole_messages() {
        let words = ["quit".to_owned(), "Stop Chat".to_owned()];
        for (message, ends) in
            [("quit", true), ("  QUIT\n", true), ("stop chat", true), ("I want to quit", false), ("", false)]
        {
            assert_eq!(is_end_word(&words, message), ends, "{message}");
        }
    }
}
