//! The route for XO's BotKit protocol. XO uses Causeway as the BotKit server of the bot.
//!
//! Guarantees: an event is acknowledged only after the queue has its message. Queued messages are small, regardless
//! of the event's size. If the user types an end word, the user returns to the bot at once, without waiting for
//! ServiceNow.
//! Not responsible for: the credential (`ingress/bot_token.rs`), reading the payload (`event.rs`), the format of the
//! answers (`answer.rs`), everything after the queue has the message.

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

use super::bot_token::{self, BotCredential};
use super::{IngressState, SenderRepeats};
use crate::clock;
use crate::conversation::{Conversation, ConversationState, DedupKey, Directory, DirectoryError, Origin};
use crate::http_server::body;
use crate::http_server::problem::ApiError;
use crate::message::handoff::{EndCause, Handoff, HandoffEnd, HandoffStart, HandoffText, TypingSignal};
use crate::message::{
    AllowedHosts, ConversationId, Destination, Kind, LaneKey, Message, MessageId, Notice, ReplyHandle, named,
};
use crate::tasks;
pub(super) use answer::refused;
use event::EventPayload;

/// The timeout for the directory. Its answer only saves time, because the worker looks up the conversation itself.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(1);
/// The smallest body limit of this route. XO's payloads hold a context of up to a megabyte.
const BODY_BYTES_MIN: usize = 2 << 20;

/// The settings of the route.
#[derive(Debug, Clone, Default)]
pub struct BotKitIngress {
    /// The bots whose events are accepted. The route is off without a bot.
    pub bots: Vec<BotCredential>,
    /// Whether XO's older `apikey` is accepted, too.
    pub allow_apikey: bool,
    /// The hosts that reply addresses may have.
    pub allowed_hosts: AllowedHosts,
    /// Which part of an event's context is returned with replies.
    pub context: ReplyContextMode,
    /// The words with which a user ends the chat.
    pub end_words: Vec<String>,
    /// The first text for the agent if an event has no text of the user.
    pub first_words: String,
    /// Whether the bot's messages to a user who is with an agent are suppressed.
    pub drops_bot_messages: bool,
    /// The places of the user's data in an event.
    pub user: UserPaths,
    /// Whether "end chat" in XO's web widget also ends the chat with the agent.
    pub end_on_session_closure: bool,
    /// The paths in a transfer's payload whose values select the queue.
    pub routing_paths: BTreeSet<String>,
}

/// `xo.user.*`: JSON pointers into an event. The entries of a list are tried in order. If an entry has several
/// pointers, their values are joined by blanks.
#[derive(Debug, Clone, Default)]
pub struct UserPaths {
    /// XO's id of the user.
    pub id: Vec<Vec<String>>,
    /// The name that the agent sees.
    pub name: Vec<Vec<String>>,
    /// The email address. A value without an @ is ignored.
    pub email: Vec<Vec<String>>,
    /// A language tag such as `ko`.
    pub language: Vec<Vec<String>>,
}

named! {
    /// `xo.reply_context`
    #[derive(Default)]
    ReplyContextMode {
        /// Only the ids of the user and the session.
        #[default]
        Trimmed = "trimmed",
        /// The whole context, which may add a megabyte to each message.
        Full = "full",
        /// Nothing.
        None = "none",
    }
}

/// The kinds of XO's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BotKitEvent {
    AgentTransfer,
    UserMessage,
    BotMessage,
    Task,
    Client,
    Webhook,
    Alert,
    VariableUpdate,
}

impl BotKitEvent {
    /// The last part of the URL.
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

/// The parts of an event's URL.
#[derive(Debug)]
struct BotKitRoute {
    bot_id: String,
    component_id: String,
    event: BotKitEvent,
}

impl BotKitRoute {
    fn read(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (bot_id, component_id, event) = match parts.as_slice() {
            ["sdk", "bots", bot_id, event] => (bot_id, "default", event),
            ["sdk", "bots", bot_id, "components", component_id, event] => (bot_id, *component_id, event),
            _ => return None,
        };
        // The component id is returned in each reply.
        ConversationId::parse(component_id).ok()?;
        Some(Self {
            bot_id: (*bot_id).to_owned(),
            component_id: component_id.to_owned(),
            event: BotKitEvent::parse(event)?,
        })
    }
}

/// Answers an event.
pub(super) async fn answer(state: &Arc<IngressState>, request: &mut Request) -> Result<Response, ApiError> {
    let settings = &state.settings.get().botkit;
    let route = BotKitRoute::read(request.uri().path()).ok_or(ApiError::UnknownRoute)?;
    let bot = settings.bots.iter().find(|bot| bot.bot_id == route.bot_id).ok_or(ApiError::UnknownRoute)?;
    if !bot_token::holds(bot, request.headers(), settings.allow_apikey, clock::machine()) {
        return Err(ApiError::Unauthorized(r#"BotKit realm="causeway""#));
    }
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let limits = state.limits();
    let limits = body::BodyLimits { bytes: limits.bytes.max(BODY_BYTES_MIN), ..limits };
    let raw = body::read(&headers, request.body_mut(), limits).await?;
    let payload = EventPayload::read(&route, &raw)?;
    payload.check_addresses(&settings.allowed_hosts)?;
    match route.event {
        BotKitEvent::AgentTransfer => {
            handle_transfer(state, &payload, &raw).await?;
            return Ok(answer::handed_off());
        }
        BotKitEvent::Webhook => return Ok(answer::unchanged(raw)),
        BotKitEvent::UserMessage if payload.is_with_agent() => handle_message(state, &payload).await?,
        BotKitEvent::UserMessage => {
            let accepted_at = clock::now();
            pass_on(state, &payload, Kind::BotUserMessage).await?;
            pass_to_bot(state, &payload, accepted_at).await?;
        }
        BotKitEvent::BotMessage if payload.is_with_agent() && settings.drops_bot_messages => {
            keep_turn(state, &payload, bot_mode::skipped(&payload)?).await?;
        }
        BotKitEvent::BotMessage => pass_on(state, &payload, Kind::BotBotMessage).await?,
        BotKitEvent::Alert => pass_on(state, &payload, Kind::BotAlert).await?,
        BotKitEvent::Client if payload.is_with_agent() => touch_conversation(state, &payload).await?,
        BotKitEvent::Client => pass_on(state, &payload, Kind::BotClientEvent).await?,
        BotKitEvent::Task if payload.is_session_closure() => handle_closure(state, &payload).await?,
        BotKitEvent::Task | BotKitEvent::VariableUpdate => {}
    }
    Ok(answer::acknowledged(&raw))
}

/// Publishes the event of bot mode. XO waits until a worker has passed it on.
async fn pass_on(state: &Arc<IngressState>, payload: &EventPayload<'_>, kind: Kind) -> Result<(), ApiError> {
    match bot_mode::message(payload, kind)? {
        Some(turn) => keep_turn(state, payload, turn).await,
        None => Ok(()),
    }
}

async fn keep_turn(
    state: &Arc<IngressState>,
    payload: &EventPayload<'_>,
    turn: bot_mode::BotTurnMessage,
) -> Result<(), ApiError> {
    let bot = state.settings.get().bot_side.bot(&payload.route.bot_id).ok_or(ApiError::UnknownRoute)?;
    Ok(state.publish_to_completion(turn.into_message(bot), SenderRepeats::Never).await?)
}

/// Handles a transfer of the user to an agent.
async fn handle_transfer(
    state: &Arc<IngressState>,
    payload: &EventPayload<'_>,
    raw: &[u8],
) -> Result<(), ApiError> {
    let settings = &state.settings.get().botkit;
    let conversation_id = payload.conversation()?;
    let reply = payload.reply(settings)?;
    let id = payload.id(&conversation_id, "transfer");
    let mut metadata = routing::values_at(raw, settings.routing_paths.iter().map(String::as_str));
    metadata.insert("streamId".to_owned(), payload.route.bot_id.clone());
    let start = HandoffStart {
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
        directory.mark_accepted(&conversation_id, Origin::BotKit, None, accepted_at).await?;
        directory.save_reply_handle(&conversation_id, &reply, accepted_at).await
    };
    query_directory(state, known).await;
    Ok(())
}

/// Handles a message of a user in agent mode: publishes the text, or ends the chat after an end word.
async fn handle_message(state: &Arc<IngressState>, payload: &EventPayload<'_>) -> Result<(), ApiError> {
    let settings = &state.settings.get().botkit;
    let conversation_id = payload.conversation()?;
    let (reply, message) = (payload.reply(settings)?, payload.message()?);
    let id = payload.id(&conversation_id, "message");
    if is_end_word(&settings.end_words, &message) {
        return publish_end(state, id, conversation_id, Some(reply), EndCause::User).await;
    }
    let attachments = payload.attachments();
    if message.trim().is_empty() && attachments.is_empty() {
        return Ok(());
    }
    let text = HandoffText {
        conversation_id: conversation_id.clone(),
        message,
        attachments,
        reply: Some(Box::new(reply.clone())),
    };
    let at = publish(state, id, &Handoff::Message(text)).await?;
    // The worker saves the handle, too. If the message has to wait, agents are answered with this handle meanwhile. XO does
    // not wait for the directory.
    let state = Arc::clone(state);
    drop(tasks::spawn(async move {
        let save = |directory: Directory| async move {
            directory.save_reply_handle(&conversation_id, &reply, at).await
        };
        query_directory(&state, save).await;
    }));
    Ok(())
}

fn is_end_word(words: &[String], message: &str) -> bool {
    let message = message.trim().to_lowercase();
    words.iter().any(|word| word.trim().to_lowercase() == message)
}

/// Handles "end chat" in XO's web widget: the user's session with the bot is over, and the chat with the agent ends,
/// too. The event may not tell whether the user is with an agent, and users without an agent send it as well.
async fn handle_closure(state: &Arc<IngressState>, payload: &EventPayload<'_>) -> Result<(), ApiError> {
    let settings = &state.settings.get().botkit;
    if !settings.end_on_session_closure {
        return Ok(());
    }
    let Ok(conversation_id) = payload.conversation() else { return Ok(()) };
    let (id, reply) = (payload.id(&conversation_id, "closure"), payload.reply(settings).ok());
    let asked = conversation_id.clone();
    match query_directory(state, |directory| async move { directory.find(&asked).await }).await {
        Some(Some(known)) if is_open(&known) => {
            publish_end(state, id, conversation_id, reply, EndCause::SessionClosed).await
        }
        Some(_) if !payload.is_with_agent() => Ok(()),
        Some(_) => publish_end(state, id, conversation_id, reply, EndCause::SessionClosed).await,
        // The directory is unreachable. The worker finds out whether there is a chat to leave.
        None => {
            let reason = Some(EndCause::SessionClosed.into());
            publish(state, id, &Handoff::End(HandoffEnd { conversation_id, reason, reply: None }))
                .await
                .map(|_| ())
        }
    }
}

/// Returns the user to the bot at once and ends the chat in ServiceNow later. The worker sends the same notice after
/// it has left the chat. Both notices have the same id, so the second one is a repeat.
async fn publish_end(
    state: &Arc<IngressState>,
    id: MessageId,
    conversation_id: ConversationId,
    reply: Option<ReplyHandle>,
    cause: EndCause,
) -> Result<(), ApiError> {
    let known = {
        let (conversation_id, reply) = (conversation_id.clone(), reply.clone());
        query_directory(state, |directory| async move {
            let (now, known) = (clock::now(), directory.find(&conversation_id).await?);
            if known.is_none() {
                // No chat was requested yet, but the user must be returned to the bot nevertheless.
                directory.mark_accepted(&conversation_id, Origin::BotKit, None, now).await?;
            }
            if let Some(reply) = &reply {
                directory.save_reply_handle(&conversation_id, reply, now).await?;
            }
            Ok(known)
        })
        .await
        .flatten()
    };
    let group = known.filter(is_open).and_then(|open| open.group);
    // Without a chat only the id of the message separates this end from the next one.
    let instance = if group.is_some() { String::new() } else { id.to_string() };
    let chat = group.as_deref().and_then(|group| LaneKey::parse(group).ok());
    let reason = Some(cause.as_str().to_owned());
    let notice = Notice { group, reason, ..Notice::about(conversation_id.clone()) };
    let body = serde_json::to_vec(&notice).map_err(|_| ApiError::CutBody)?;
    let side = &state.settings.get().bot_side;
    // The notice is ordered after the callbacks of the chat, if there is a chat.
    let (destination, lane) = match chat {
        Some(lane) => (side.of_chat(), lane),
        None => (side.of_conversation(&conversation_id), LaneKey::from(&conversation_id)),
    };
    let ended = notice.id(Kind::CallbackEnded, &instance);
    // The end is published first. If the notice is then lost, the worker sends the notice later. A notice without an
    // end would leave the agent in a chat without a user.
    let end = HandoffEnd { conversation_id, reason: Some(cause.into()), reply: reply.map(Box::new) };
    publish(state, id, &Handoff::End(end)).await?;
    Ok(state
        .publish_to_completion(
            Message::new(ended, Kind::CallbackEnded, destination, lane, body),
            SenderRepeats::Never,
        )
        .await?)
}

/// Handles a message to the bot from a user who is with an agent according to the directory: XO has taken the user
/// back.
async fn pass_to_bot(
    state: &Arc<IngressState>,
    payload: &EventPayload<'_>,
    accepted_at: Timestamp,
) -> Result<(), ApiError> {
    // A page load sends an empty message, which does not show the user's mode.
    if payload.is_without_words() && payload.file_names().is_none() {
        return Ok(());
    }
    // A bot that never hands users over sends the same events, with or without a user id.
    let Ok(conversation_id) = payload.conversation() else { return Ok(()) };
    let asked = conversation_id.clone();
    let known = query_directory(state, |directory| async move {
        let known = directory.find(&asked).await?.filter(|known| known.released_at.is_none());
        let Some(known) = known else { return Ok(None) };
        Ok(Some((known, directory.reply_handle(&asked).await?)))
    })
    .await;
    match known {
        // The directory is unreachable or has no open conversation. The event's flags decide, and the user's next
        // message is checked again.
        None | Some(None) => return Ok(()),
        // The bot handed the user over while this message was on its way to the bot.
        Some(Some((known, _))) if known.opened_at >= accepted_at => return Ok(()),
        // This message caused the transfer and arrived late.
        Some(Some((_, Some(reply))))
            if payload.user_message().is_some()
                && message_of(&reply.handle) == payload.user_message().as_deref() =>
        {
            return Ok(());
        }
        Some(Some((known, _))) if !is_open(&known) => {
            // The chat has ended and the user could not be reached since. The user gets no more messages.
            query_directory(
                state,
                |directory| async move { directory.mark_released(&conversation_id).await },
            )
            .await;
            return Ok(());
        }
        Some(Some(_)) => {}
    }
    let id = payload.id(&conversation_id, "message");
    let end = HandoffEnd {
        conversation_id: conversation_id.clone(),
        reason: Some(EndCause::Xo.into()),
        reply: None,
    };
    publish(state, id, &Handoff::End(end)).await?;
    query_directory(state, |directory| async move { directory.mark_released(&conversation_id).await }).await;
    Ok(())
}

fn message_of(handle: &ReplyHandle) -> Option<&str> {
    handle.channel.pointer("/channelInfos/requestId").and_then(Value::as_str)
}

fn is_open(conversation: &Conversation) -> bool {
    matches!(
        conversation.state,
        ConversationState::Requested | ConversationState::Waiting | ConversationState::Active
    )
}

/// Handles typing, the end of typing and read receipts of the user.
async fn touch_conversation(state: &Arc<IngressState>, payload: &EventPayload<'_>) -> Result<(), ApiError> {
    let stopped = match payload.client_event().as_deref() {
        Some("TYPING_STARTED") => false,
        Some("TYPING_STOPPED" | "MESSAGE_READ") => true,
        _ => return Ok(()),
    };
    let typing = TypingSignal { conversation_id: payload.conversation()?, stopped, from_xo: true };
    publish(state, MessageId::fresh(), &Handoff::Typing(typing)).await.map(|_| ())
}

/// Publishes a handoff. Returns the time at which it was accepted.
async fn publish(state: &Arc<IngressState>, id: MessageId, handoff: &Handoff) -> Result<Timestamp, ApiError> {
    let body = serde_json::to_vec(handoff).map_err(|_| ApiError::CutBody)?;
    let lane = LaneKey::from(handoff.conversation());
    let message = Message::new(id, handoff.kind(), Destination::ServiceNow, lane, body);
    let accepted_at = message.accepted_at;
    state.publish_to_completion(message, SenderRepeats::Never).await?;
    Ok(accepted_at)
}

/// Calls the directory with a timeout. `None` if the directory does not answer in time or fails.
async fn query_directory<T, F: Future<Output = Result<T, DirectoryError>>>(
    state: &IngressState,
    question: impl FnOnce(Directory) -> F,
) -> Option<T> {
    let directory = state.directory.clone()?;
    match tokio::time::timeout(DIRECTORY_TIMEOUT, question(directory)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "could not reach the directory; the worker will look up the conversation");
            None
        }
        Err(_) => {
            tracing::warn!(
                "the directory did not answer within 1 s; the worker will look up the conversation"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_botkit_reads_them() {
        let read =
            |path: &str| BotKitRoute::read(path).map(|route| (route.bot_id, route.component_id, route.event));
        let bot = || "st-1".to_owned();
        assert_eq!(
            read("/sdk/bots/st-1/on_agent_transfer"),
            Some((bot(), "default".to_owned(), BotKitEvent::AgentTransfer))
        );
        assert_eq!(
            read("/sdk/bots/st-1/components/dg-7/on_user_message"),
            Some((bot(), "dg-7".to_owned(), BotKitEvent::UserMessage))
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
