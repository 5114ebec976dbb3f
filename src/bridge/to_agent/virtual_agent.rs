//! Opens chats over ServiceNow's Virtual Agent API, which only accepts a request for an agent.
//!
//! ServiceNow answers 200 before it processes a request (`src/platform/servicenow/FACTS.md`). A start is therefore
//! delivered when a callback has shown an agent's queue or an agent. Until then the start is deferred in its lane.
//!
//! Guarantees: the name of the chat is claimed in the directory before anything is sent. The name follows from the id
//! of the start, so a repeated request (by another worker, or after a crash) names the same chat. A start without a
//! sign is requested again after the watchdog time, until its deadline. A chat that is given up is faulted at
//! ServiceNow.
//!
//! Not responsible for: reading the signs (`to_bot/virtual_agent_callback.rs`), the end of a chat (`handoff.rs`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::to_agent::late_start::origin;
use crate::bridge::to_agent::routing::queue_of;
use crate::bridge::to_agent::user_files::OwnedFile;
use crate::bridge::to_agent::{HandlerResult, HandoffHandler, is_open};
use crate::conversation::{Claim, Conversation, ConversationState, DedupKey};
use crate::delivery::Attempt;
use crate::delivery::classify::Operation;
use crate::message::handoff::{HandoffStart, HandoffText, TranscriptLine, TypingSignal};
use crate::message::routing::is_payload_name;
use crate::message::{DeadReason, Endpoint, Message, MessageId, Outcome};
use crate::platform::servicenow::{ChatOpening, HistoryLine};

const ENDPOINT: Endpoint = Endpoint::ServiceNow;
/// The state that a worker keeps in memory for these chats. After a crash the worker requests again, which names the
/// same chat.
#[derive(Debug, Default)]
pub(in crate::bridge) struct VirtualAgentStarts {
    /// The time of the last request of each start.
    requested_at: Mutex<HashMap<MessageId, Instant>>,
}

impl VirtualAgentStarts {
    /// Whether the agent of this start must be requested (again).
    fn is_due(&self, start: MessageId, watchdog: Duration) -> bool {
        let requested_at = self.requested_at.lock().unwrap_or_else(PoisonError::into_inner);
        requested_at.get(&start).is_none_or(|at| at.elapsed() >= watchdog)
    }

    fn note(&self, start: MessageId, watchdog: Duration) {
        let mut requested_at = self.requested_at.lock().unwrap_or_else(PoisonError::into_inner);
        // An older entry makes its start due anyway.
        requested_at.retain(|_, at| at.elapsed() < watchdog);
        requested_at.insert(start, Instant::now());
    }
}

/// The name that we give to the chat of a start. A replay requests a new chat, because the old chat was given up.
fn chat_name(start: &Message) -> String {
    MessageId::derived_from("chat", &[&start.id.to_string(), &start.replays.to_string()]).to_string()
}

/// Whether the bot side has already received the notice that no agent comes for this start.
pub(in crate::bridge) fn has_failed(known: Option<&Conversation>, start: &Message) -> bool {
    known.is_some_and(|known| {
        known.state == ConversationState::Failed && known.group.as_deref() == Some(chat_name(start).as_str())
    })
}

/// Whether the end of this chat is known and the state of its conversation is not recorded yet. The callback of the end records the
/// state last, and the state says whether a record of the handoff is wanted.
fn is_ending(known: Option<&Conversation>, group: &str) -> bool {
    known.is_some_and(|known| {
        known.state == ConversationState::Requested && known.group.as_deref() == Some(group)
    })
}

impl HandoffHandler<'_> {
    pub(in crate::bridge) async fn request_agent(
        &self,
        start: &HandoffStart,
        known: Option<&Conversation>,
    ) -> HandlerResult {
        let (id, group) = (&start.conversation_id, chat_name(self.message));
        if let Some(known) = known {
            let ours = known.group.as_deref() == Some(group.as_str());
            match known.state {
                ConversationState::Waiting | ConversationState::Active if ours => {
                    return Ok(Attempt::delivered(ENDPOINT));
                }
                ConversationState::Failed if ours => {
                    // The callback that failed the handoff did not have the words of the start.
                    self.to_agent.notices.request_incident(id, "no_agent", "", Some(start)).await?;
                    return Ok(Attempt::of(ENDPOINT, Outcome::Declined, "no agent"));
                }
                ConversationState::Ended if ours => {
                    return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "its chat is over already"));
                }
                _ if is_open(known) => {
                    self.save_reply_handle(id, start.reply.as_deref()).await?;
                    return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "the conversation is open already"));
                }
                _ if !ours && self.user_went(Some(known)) => {
                    let why = "the user left before an agent was requested";
                    return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, why));
                }
                _ => {}
            }
        }
        // The chat of this start was opened and has ended. The end is stored under a separate key. A new start of the
        // same conversation may change the conversation's state before this start is tried again.
        let sign = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
        if known.is_some() && self.directory.is_done(DedupKey::closed_chat(&group)).await? {
            return Ok(if is_ending(known, &group) {
                Attempt::of(ENDPOINT, sign, "the end of its chat is being recorded")
            } else {
                Attempt::of(ENDPOINT, Outcome::Declined, "its chat is over already")
            });
        }
        let settings = &self.to_agent.context.settings.virtual_agent;
        let held = Attempt::of(ENDPOINT, sign, "agent requested; no sign of an agent's queue yet");
        if !self.to_agent.starts.is_due(self.message.id, settings.watchdog) {
            return Ok(held);
        }
        let queue_id = queue_of(&self.to_agent.context.settings, start);
        self.directory.mark_requested(id, origin(start), queue_id).await?;
        self.save_reply_handle(id, start.reply.as_deref()).await?;
        if self.directory.mark_agent_requested(id, &group).await? == Claim::TakenByAnother {
            return Ok(Attempt::dead(
                ENDPOINT,
                DeadReason::Rejected,
                "another conversation has a chat of this name",
            ));
        }
        let before = self.read_transcript(start).await;
        let opening = self.opening(start, queue_id, &before);
        match self.servicenow.ask_for_agent(id, &group, self.message.id, &opening).await {
            Ok(()) => {
                self.to_agent.starts.note(self.message.id, settings.watchdog);
                // The attempt is deferred, which is no signal for the breaker. But ServiceNow did answer.
                self.to_agent.context.record_call_to_servicenow(&Attempt::delivered(ENDPOINT));
                Ok(held)
            }
            Err(error) => Ok(Attempt::called(ENDPOINT, &error, Operation::Start)),
        }
    }

    fn opening(
        &self,
        start: &HandoffStart,
        queue_id: Option<&str>,
        before: &[TranscriptLine],
    ) -> ChatOpening {
        let settings = &self.to_agent.context.settings.virtual_agent;
        let user = start.user.clone().unwrap_or_default();
        let mut context = start.metadata.clone();
        context.retain(|name, _| !is_payload_name(name));
        context.extend(settings.context_variables.clone());
        if let Some(route) = self.to_agent.context.settings.routes.choose(start) {
            context.extend(route.context_variables.clone());
        }
        context.insert("live_agent_only".to_owned(), "true".to_owned());
        if let Some(queue_id) = queue_id {
            context.insert(settings.queue_variable.clone(), queue_id.to_owned());
        }
        if let Some(language) = &user.language {
            context.insert("requester_session_language".to_owned(), language.clone());
        }
        let at = |line: &TranscriptLine| {
            line.at.as_deref().and_then(|at| at.parse().ok()).unwrap_or(self.message.accepted_at)
        };
        let name = |line: &TranscriptLine| match (line.from.as_str(), &user.name) {
            ("user", Some(name)) => name.clone(),
            _ => line.from.clone(),
        };
        let history = before.iter().map(|line| HistoryLine {
            from_bot: line.from != "user",
            name: name(line),
            text: line.text.clone(),
            at: at(line),
        });
        let who = [user.name.clone(), user.email.as_ref().map(|email| format!("<{email}>"))];
        let who = who.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let text =
            if who.is_empty() { start.message.clone() } else { format!("{}\n\nFrom: {who}", start.message) };
        ChatOpening { text, email: user.email.clone(), context, history: history.collect() }
    }

    pub(in crate::bridge) async fn send_to_agent(&self, text: &HandoffText, group: &str) -> HandlerResult {
        let id = &text.conversation_id;
        let (words, file) = self.in_one_message(text);
        let file = file.as_ref().map(OwnedFile::as_file);
        // No call shows whether ServiceNow accepted an earlier attempt. A repeated text is better than a lost text
        // (`src/platform/servicenow/FACTS.md`).
        match self.servicenow.send_to_agent(id, group, self.message.id, &words, file.as_ref()).await {
            Ok(()) => self.sent(group, None).await,
            Err(error) => {
                let attempt = Attempt::called(ENDPOINT, &error, Operation::Send);
                if attempt.outcome == Outcome::Dead(DeadReason::ConversationOver) {
                    self.to_agent.notices.end(id, Some(group), "gone").await?;
                }
                Ok(attempt)
            }
        }
    }

    /// Makes a single attempt. A retry would come too late to be useful.
    pub(in crate::bridge) async fn typing(
        &self,
        typing: &TypingSignal,
        known: Option<&Conversation>,
    ) -> HandlerResult {
        let id = &typing.conversation_id;
        let held = known.filter(|known| known.state == ConversationState::Active);
        let Some(group) = held.and_then(|known| known.group.as_deref()) else {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "no agent is in the chat"));
        };
        match self.servicenow.user_types(id, group, self.message.id, typing.stopped).await {
            Ok(()) => Ok(Attempt::delivered(ENDPOINT)),
            Err(error) => Ok(Attempt::of(ENDPOINT, Outcome::Dropped, error.to_string())),
        }
    }
}
