//! Toward ServiceNow over the Virtual Agent API: a start is only *asked* for.
//!
//! ServiceNow answers 200 before it looks at a request (FACTS.md SN-33), so a start is delivered when a callback has shown
//! an agent's queue or an agent, and is held in its lane until then. Guarantees: our name for the chat is claimed before
//! anything is sent, and follows from the start's id, so that asking again, by another worker or after a crash, names the
//! same chat; a start without a sign is asked again after the watchdog's time, until its deadline; a chat that is given up
//! is faulted at ServiceNow. Leaves to others: reading the signs (`agent_chat_callback.rs`), the end (`handoff.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::attachments::OwnedFile;
use super::handoff::{Desk, Done, is_open};
use super::late::origin;
use super::{Attempt, Deliverer};
use crate::conversation::{Claim, Conversation, DedupKey, State};
use crate::delivery::classify::Operation;
use crate::message::handoff::{Line, Start, Text, Typing};
use crate::message::routing::is_payload_name;
use crate::message::{ConversationId, DeadReason, Destination, Endpoint, Message, MessageId, Outcome};
use crate::platform::servicenow::{HistoryLine, Opening, Receipt};
use crate::platform::{CallError, ChatApi, ServiceNow};

const HERE: Endpoint = Endpoint::ServiceNow;
/// Calls that nobody waits for, in the air at once.
const ERRANDS: usize = 8;
/// Such a call is worth no more time than this: it keeps the chat's other calls waiting.
const ERRAND_TAKES: Duration = Duration::from_secs(3);

/// How chats over the Virtual Agent API are held.
#[derive(Debug, Clone)]
pub struct AgentChatSettings {
    /// `servicenow.watchdog`: how long a start waits for a sign before it is asked again.
    pub watchdog: Duration,
    /// `servicenow.context_variables`
    pub context_variables: BTreeMap<String, String>,
    /// `servicenow.queue_variable`: the context variable that takes a start's Queue ID.
    pub queue_variable: String,
    /// `servicenow.receipts`: whether the agent sees what the user's side got.
    pub receipts: bool,
}

impl Default for AgentChatSettings {
    fn default() -> Self {
        Self {
            watchdog: Duration::from_secs(15),
            context_variables: BTreeMap::new(),
            queue_variable: "LiveAgent_queue".to_owned(),
            receipts: true,
        }
    }
}

/// What a worker keeps of these chats. After a crash it asks again, which names the same chat.
#[derive(Debug)]
pub(super) struct AgentChats {
    /// When each start was asked for last.
    asked: Mutex<HashMap<MessageId, Instant>>,
    errands: Arc<Semaphore>,
}

impl Default for AgentChats {
    fn default() -> Self {
        Self { asked: Mutex::default(), errands: Arc::new(Semaphore::new(ERRANDS)) }
    }
}

impl AgentChats {
    /// Whether a start must be asked for (again).
    fn is_due(&self, start: MessageId, watchdog: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(&start).is_none_or(|at| at.elapsed() >= watchdog)
    }

    fn note(&self, start: MessageId, watchdog: Duration) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        // Whatever is older is due anyway.
        asked.retain(|_, at| at.elapsed() < watchdog);
        asked.insert(start, Instant::now());
    }
}

/// What we call the chat of a start. A replay asks for a new chat: the old one was given up.
fn chat_name(start: &Message) -> String {
    MessageId::derived_from("chat", &[&start.id.to_string(), &start.replays.to_string()]).to_string()
}

/// Whether the bot side knows already that no agent comes for this start.
pub(super) fn has_failed(known: Option<&Conversation>, start: &Message) -> bool {
    known.is_some_and(|known| {
        known.state == State::Failed && known.group.as_deref() == Some(chat_name(start).as_str())
    })
}

impl Desk<'_> {
    pub(super) async fn ask(&self, start: &Start, known: Option<&Conversation>) -> Done {
        let (id, group) = (&start.conversation_id, chat_name(self.message));
        if let Some(known) = known {
            let ours = known.group.as_deref() == Some(group.as_str());
            match known.state {
                State::Waiting | State::Active if ours => return Ok(Attempt::delivered(HERE)),
                State::Failed if ours => return Ok(Attempt::of(HERE, Outcome::Answered, "no agent")),
                State::Ended if ours => {
                    return Ok(Attempt::of(HERE, Outcome::Repeated, "its chat is over already"));
                }
                _ if is_open(known) => {
                    self.heard(id, start.reply.as_deref()).await?;
                    return Ok(Attempt::of(HERE, Outcome::Repeated, "the conversation is open already"));
                }
                _ if !ours && self.user_went(Some(known)) => {
                    let why = "the user has gone before anybody was asked";
                    return Ok(Attempt::of(HERE, Outcome::Repeated, why));
                }
                _ => {}
            }
        }
        // Its chat came and went: its end is remembered by itself, since the conversation may be asked for anew before its start looks
        // again, and the bot side has asked anew meanwhile: that is another start's business.
        if known.is_some() && self.directory.is_done(DedupKey::closed_chat(&group)).await? {
            return Ok(Attempt::of(HERE, Outcome::Answered, "its chat is over already"));
        }
        let settings = &self.deliverer.settings.agent_chat;
        let sign = Outcome::Held { at_most: Duration::MAX, then: DeadReason::Expired };
        let held = Attempt::of(HERE, sign, "asked for, and no sign of an agent's queue yet");
        if !self.deliverer.agent_chats.is_due(self.message.id, settings.watchdog) {
            return Ok(held);
        }
        let queue_id = self.queue_of(start);
        self.directory.requested(id, origin(start), queue_id).await?;
        self.heard(id, start.reply.as_deref()).await?;
        if self.directory.asked(id, &group).await? == Claim::TakenByAnother {
            return Ok(Attempt::dead(
                HERE,
                DeadReason::Rejected,
                "another conversation has a chat of this name",
            ));
        }
        let before = self.said_before(start).await;
        let opening = self.opening(start, queue_id, &before);
        match self.servicenow.ask_for_agent(id, &group, self.message.id, &opening).await {
            Ok(()) => {
                self.deliverer.agent_chats.note(self.message.id, settings.watchdog);
                // The attempt is held, which says nothing of the destination; yet it answered.
                self.deliverer.tell_breaker(Destination::ServiceNow, None, &Attempt::delivered(HERE));
                Ok(held)
            }
            Err(error) => Ok(Attempt::called(HERE, &error, Operation::Start)),
        }
    }

    fn opening(&self, start: &Start, queue_id: Option<&str>, before: &[Line]) -> Opening {
        let settings = &self.deliverer.settings.agent_chat;
        let user = start.user.clone().unwrap_or_default();
        let mut context = start.metadata.clone();
        context.retain(|name, _| !is_payload_name(name));
        context.extend(settings.context_variables.clone());
        if let Some(route) = self.deliverer.settings.routes.choose(start) {
            context.extend(route.context_variables.clone());
        }
        context.insert("live_agent_only".to_owned(), "true".to_owned());
        if let Some(queue_id) = queue_id {
            context.insert(settings.queue_variable.clone(), queue_id.to_owned());
        }
        if let Some(language) = &user.language {
            context.insert("requester_session_language".to_owned(), language.clone());
        }
        let at = |line: &Line| {
            line.at.as_deref().and_then(|at| at.parse().ok()).unwrap_or(self.message.accepted_at)
        };
        let name = |line: &Line| match (line.from.as_str(), &user.name) {
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
        Opening { text, email: user.email.clone(), context, history: history.collect() }
    }

    pub(super) async fn tell_agent(&self, text: &Text, group: &str) -> Done {
        let id = &text.conversation_id;
        let (words, file) = self.in_one_message(text);
        let file = file.as_ref().map(OwnedFile::as_file);
        // No call tells whether an earlier try was taken: rather repeat than lose (FACTS.md SN-49).
        match self.servicenow.tell_agent(id, group, self.message.id, &words, file.as_ref()).await {
            Ok(()) => {
                self.directory.sent(group, self.message.id, None).await?;
                Ok(Attempt::delivered(HERE))
            }
            Err(error) => {
                let attempt = Attempt::called(HERE, &error, Operation::Send);
                if attempt.outcome == Outcome::Dead(DeadReason::ConversationOver) {
                    self.deliverer.end(id, Some(group), "gone").await?;
                }
                Ok(attempt)
            }
        }
    }

    /// Worth one try: the next one would come too late.
    pub(super) async fn typing(&self, typing: &Typing) -> Done {
        let id = &typing.conversation_id;
        let conversation = self.directory.find(id).await?;
        let held = conversation.as_ref().filter(|known| known.state == State::Active);
        let Some(group) = held.and_then(|known| known.group.as_deref()) else {
            return Ok(Attempt::of(HERE, Outcome::Dropped, "no agent who could see it"));
        };
        match self.servicenow.user_types(id, group, self.message.id, typing.stopped).await {
            Ok(()) => Ok(Attempt::delivered(HERE)),
            Err(error) => Ok(Attempt::of(HERE, Outcome::Dropped, error.to_string())),
        }
    }
}

impl Deliverer {
    /// Tells the agent what became of their messages, as long as that costs nobody else anything.
    pub(super) fn receipt(
        &self,
        conversation: &Conversation,
        group: &str,
        messages: Vec<String>,
        receipt: Receipt,
    ) {
        if messages.is_empty() || !self.settings.agent_chat.receipts {
            return;
        }
        let (id, group) = (conversation.id.clone(), group.to_owned());
        self.errand("receipt", async move |servicenow: ServiceNow| {
            servicenow.note_receipts(&id, &group, &messages, receipt).await
        });
    }

    /// Nobody of ours speaks in this chat any more: no agent should wait in it.
    pub(super) fn give_up_agent_chat(&self, id: &ConversationId, known: Option<&Conversation>) {
        let Some(group) = known.and_then(|known| known.group.clone()) else { return };
        let id = id.clone();
        self.errand("fault", async move |servicenow: ServiceNow| servicenow.fault(&id, &group).await);
    }

    /// A call that nobody waits for and nothing depends on.
    fn errand<F>(&self, what: &'static str, call: impl FnOnce(ServiceNow) -> F)
    where
        F: Future<Output = Result<(), CallError>> + Send + 'static,
    {
        let Some(servicenow) = self.servicenow.as_ref().filter(|known| known.api() == ChatApi::VirtualAgent)
        else {
            return;
        };
        if !self.gate(Destination::ServiceNow).breaker().passes() {
            return;
        }
        let Ok(seat) = self.agent_chats.errands.clone().try_acquire_owned() else { return };
        let call = call(servicenow.clone());
        crate::tasks::spawn(async move {
            match tokio::time::timeout(ERRAND_TAKES, call).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(what, %error, "ServiceNow was not told; nothing depends on it")
                }
                Err(_) => tracing::debug!(what, "ServiceNow was not told in time; nothing depends on it"),
            }
            drop(seat);
        });
    }
}
