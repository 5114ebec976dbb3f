//! One attempt toward ServiceNow: start, message, typing, end of a handoff.
//!
//! Guarantees: a start never opens a second chat for a conversation that has one, also after a crash between ServiceNow's
//! answer and our note of it: an attempt that may repeat another reads back first (Connect Support has no idempotency key,
//! FACTS.md SN-61). Leaves to others: the HTTP (`platform/servicenow`), the state machine (`conversation/`).

use super::late::origin;
use super::{Attempt, Deliverer, OwnTrouble};
use crate::conversation::{Claim, Conversation, DedupKey, Directory, LastSent, Opened, State};
use crate::delivery::classify::Operation;
use crate::delivery::notices::instance_of;
use crate::delivery::patience::WAITED_TOO_LONG;
use crate::delivery::poll::ended_by;
use crate::message::handoff::{Attachment, End, Line, Start, Text};
use crate::message::{ConversationId, DeadReason, Endpoint, Handoff, Message, Notice, NoticeEvent, Outcome};
use crate::platform::servicenow::{Posted, Since, StartText};
use crate::platform::{CallError, ChatApi, QueueEntry, ServiceNow, Started};

const HERE: Endpoint = Endpoint::ServiceNow;

/// What every step of this file needs.
pub(super) struct Desk<'a> {
    pub(super) deliverer: &'a Deliverer,
    pub(super) servicenow: &'a ServiceNow,
    pub(super) directory: &'a Directory,
    pub(super) message: &'a Message,
    pub(super) maybe_taken: bool,
}

impl Deliverer {
    pub(super) async fn to_servicenow(&self, message: &Message, maybe_taken: bool) -> Attempt {
        let Ok(handoff) = serde_json::from_slice::<Handoff>(&message.body) else {
            return Attempt::dead(
                HERE,
                DeadReason::Unreadable,
                "its body is not a handoff request of this version",
            );
        };
        let (Some(servicenow), Some(directory)) = (&self.servicenow, &self.directory) else {
            return Attempt::dead(
                HERE,
                DeadReason::Rejected,
                "servicenow.host_url is not set on this worker",
            );
        };
        let desk = Desk { deliverer: self, servicenow, directory, message, maybe_taken };
        let done = match &handoff {
            // The end is the same for both APIs: `ServiceNow::leave` knows how each is left.
            Handoff::Typing(typing) if servicenow.api() == ChatApi::VirtualAgent => desk.typing(typing).await,
            Handoff::Start(start) => desk.start(start).await,
            Handoff::Message(text) => desk.message(text).await,
            // Connect Support has no REST call for it (FACTS.md SN-25).
            Handoff::Typing(_) => Ok(Attempt::of(HERE, Outcome::Dropped, "")),
            Handoff::End(end) => desk.end(end).await,
        };
        // Whatever had been sent by then, the next try looks before it sends.
        done.unwrap_or_else(|OwnTrouble(trouble)| Attempt::own_trouble(HERE, true, trouble))
    }
}

pub(super) type Done = Result<Attempt, OwnTrouble>;

impl Desk<'_> {
    async fn start(&self, start: &Start) -> Done {
        let id = &start.conversation_id;
        let known = self.directory.find(id).await?;
        let gone = self.user_went(known.as_ref());
        if self.servicenow.api() == ChatApi::VirtualAgent {
            return self.ask(start, known.as_ref()).await;
        }
        if let Some(open) = known.filter(is_open) {
            // A duplicate, or we crashed before the bot side was told.
            self.heard(id, start.reply.as_deref()).await?;
            self.tell_waiting(id, &open).await?;
            return Ok(Attempt::of(HERE, Outcome::Repeated, "the conversation is open already"));
        }
        if gone && !self.maybe_taken {
            return Ok(Attempt::of(HERE, Outcome::Repeated, "the user has gone before anybody was asked"));
        }
        let Some(queue_id) = self.queue_of(start) else {
            let why = "no Queue ID: set servicenow.queue_id, or queue_id in the start";
            return self.failed(start, Attempt::dead(HERE, DeadReason::Rejected, why)).await;
        };
        self.directory.requested(id, origin(start), Some(queue_id)).await?;
        self.heard(id, start.reply.as_deref()).await?;
        if self.maybe_taken {
            match self.taken_start(start, queue_id).await? {
                Ok(Some(attempt)) => return Ok(attempt),
                Ok(None) => {}
                Err(error) => return Ok(Attempt::called(HERE, &error, Operation::State)),
            }
        }
        if gone {
            return Ok(Attempt::of(HERE, Outcome::Repeated, "the user has gone before anybody was asked"));
        }
        let text = first_words(start, &self.said_before(start).await);
        self.note_opening(start, &text).await?;
        match self.servicenow.start(id, queue_id, &text).await {
            Ok(entry) => Ok(self.claim(id, queue_id, &entry).await?.unwrap_or_else(|| {
                Attempt::own_trouble(HERE, true, "another conversation claimed this chat")
            })),
            Err(error) => {
                let attempt = Attempt::called(HERE, &error, Operation::Start);
                match attempt.outcome {
                    Outcome::Answered => {
                        let words = error.business().map(str::to_owned);
                        let instance = instance_of(self.message);
                        self.deliverer.fail(id, "no_agent", words.as_deref(), &instance).await?;
                        Ok(attempt)
                    }
                    _ => Ok(attempt),
                }
            }
        }
    }

    /// The user went back to the bot after this was asked for.
    pub(super) fn user_went(&self, known: Option<&Conversation>) -> bool {
        known.is_some_and(|known| {
            let since = known.released_at.is_some_and(|at| at >= self.message.accepted_at);
            known.state == State::Requested && since
        })
    }

    /// Looks for the chat that an earlier, unanswered try may have opened, and claims it.
    async fn taken_start(
        &self,
        start: &Start,
        queue_id: &str,
    ) -> Result<Result<Option<Attempt>, CallError>, OwnTrouble> {
        let id = &start.conversation_id;
        let (whole, begins) = (first_words(start, &start.transcript), begins_with(start));
        let text = StartText { whole: &whole, begins: self.reads_history(start).then_some(&*begins) };
        let found = match self.servicenow.find_started(id, queue_id, text).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let mut looks = 0;
        for Started { entry, certain } in &found {
            // One that is ours already was claimed by a try that came no further.
            let owner = self.directory.find_by_group(&entry.group).await?.map(|owner| owner.id);
            if owner.as_ref().is_some_and(|owner| owner != id) {
                continue;
            }
            if !certain && owner.is_none() {
                looks += 1;
                if looks > Started::LOOKS_MAX {
                    break;
                }
                match self.servicenow.opening_of(id, &entry.group).await {
                    Ok(Some(opening)) if self.is_of_this_start(&opening, &whole).await? => {}
                    Ok(_) => continue,
                    Err(error) => return Ok(Err(error)),
                }
            }
            if let Some(attempt) = self.claim(id, queue_id, entry).await? {
                return Ok(Ok(Some(attempt)));
            }
        }
        Ok(Ok(None))
    }

    /// A start that can never work: the state says so, and the bot side is told when the message is buried.
    async fn failed(&self, start: &Start, attempt: Attempt) -> Done {
        self.directory.requested(&start.conversation_id, origin(start), None).await?;
        self.heard(&start.conversation_id, start.reply.as_deref()).await?;
        Ok(attempt)
    }

    /// Notes that this chat belongs to this conversation; `None` where it belongs to another.
    async fn claim(
        &self,
        id: &ConversationId,
        queue_id: &str,
        entry: &QueueEntry,
    ) -> Result<Option<Attempt>, OwnTrouble> {
        let goes_on_elsewhere = |known: &Conversation| is_open(known) && !is_in(known, &entry.group);
        if self.directory.find(id).await?.as_ref().is_some_and(goes_on_elsewhere) {
            return Ok(Some(self.too_late(id, &entry.group).await));
        }
        // Claimed, told, and only then shown as waiting: whoever sees it wait may let an agent speak.
        if self.directory.claim(id, &entry.group).await? == Claim::TakenByAnother {
            return Ok(None);
        }
        let known = self.directory.find(id).await?;
        if known.is_some_and(|known| known.state == State::Requested) {
            self.tell_place(id, &entry.group, entry.position, entry.wait.as_deref()).await?;
        }
        let opened = Opened {
            group: entry.group.clone(),
            number: entry.number.clone(),
            queue_id: entry.queue.clone().unwrap_or_else(|| queue_id.to_owned()),
            position: entry.position,
            wait: entry.wait.clone(),
            agent: entry.assigned_to.clone(),
            // An agent who is there already has not been told of: the first look at the state does both.
            active: false,
        };
        if matches!(self.directory.opened(id, &opened).await?, Claim::TakenByAnother) {
            return Ok(None);
        }
        match self.directory.find(id).await?.filter(|known| is_open(known) && is_in(known, &entry.group)) {
            Some(open) => {
                self.tell_waiting(id, &open).await?;
                Ok(Some(Attempt::delivered(HERE)))
            }
            None => Ok(Some(self.too_late(id, &entry.group).await)),
        }
    }

    /// The conversation ended, or got another chat from another worker, while ServiceNow was still answering: nobody will
    /// speak in this one, and no agent should wait in it.
    async fn too_late(&self, id: &ConversationId, group: &str) -> Attempt {
        if let Err(error) = self.servicenow.leave(id, group).await {
            tracing::warn!(conversation = %id, group, %error, "an agent may find a chat in which nobody speaks");
        }
        Attempt::of(HERE, Outcome::Repeated, "the conversation went on without this chat")
    }

    async fn tell_waiting(&self, id: &ConversationId, open: &Conversation) -> Result<(), OwnTrouble> {
        match &open.group {
            Some(group) if open.state == State::Waiting => {
                self.tell_place(id, group, open.position, open.wait.as_deref()).await
            }
            _ => Ok(()),
        }
    }

    async fn tell_place(
        &self,
        id: &ConversationId,
        group: &str,
        position: Option<u32>,
        wait: Option<&str>,
    ) -> Result<(), OwnTrouble> {
        let notice = Notice {
            group: Some(group.to_owned()),
            position,
            wait: wait.map(str::to_owned),
            ..Notice::about(id.clone())
        };
        self.deliverer.tell_event(notice, NoticeEvent::Waiting, "").await
    }

    async fn message(&self, text: &Text) -> Done {
        let id = &text.conversation_id;
        let conversation = self.directory.find(id).await?;
        if let Some(start) = self.late_start(text, conversation.as_ref()).await? {
            return Box::pin(self.start(&start)).await;
        }
        self.heard(id, text.reply.as_deref()).await?;
        let group = match open_group(conversation.as_ref()) {
            Ok(group) => group,
            Err(reason) => return Ok(Attempt::dead(HERE, reason, not_open(reason))),
        };
        if self.maybe_taken && self.directory.was_sent(group, self.message.id).await? {
            self.deliverer.note(self.message, DedupKey::Delivered(self.message.id)).await;
            return Ok(Attempt::of(HERE, Outcome::Repeated, "it was sent, and only not noted"));
        }
        if self.servicenow.api() == ChatApi::VirtualAgent {
            return self.tell_agent(text, group).await;
        }
        if self.maybe_taken {
            for words in self.texts_with_files(text) {
                match self.taken_message(id, group, &words).await? {
                    Ok(Some(posted)) => return self.sent(group, &posted).await,
                    Ok(None) => {}
                    Err(error) => return self.or_over(id, group, &error, Operation::State).await,
                }
            }
        }
        let carried = match self.carry_files(text, group).await {
            Ok(carried) => carried,
            Err(attempt) => return Ok(attempt),
        };
        match self.servicenow.send(id, group, &carried.words, &carried.files).await {
            Ok(posted) => self.sent(group, &posted).await,
            Err(error) => self.or_over(id, group, &error, Operation::Send).await,
        }
    }

    /// Looks for the message that an earlier, unanswered try may have posted.
    async fn taken_message(
        &self,
        id: &ConversationId,
        group: &str,
        words: &str,
    ) -> Result<Result<Option<Posted>, CallError>, OwnTrouble> {
        let last = self.directory.last_sent(group).await?;
        let since = match &last {
            LastSent::Nothing => Since::Start,
            LastSent::Message(sys_id) => Since::Message(sys_id),
            // An older message of the same text would pass for the lost one: rather repeat than lose.
            LastSent::Unknown => return Ok(Ok(None)),
        };
        Ok(self.servicenow.find_sent(id, group, words, since).await)
    }

    /// Notes the message as the last one of its chat: whoever reads back later looks behind it.
    async fn sent(&self, group: &str, posted: &Posted) -> Done {
        self.directory.sent(group, self.message.id, posted.sys_id.as_deref()).await?;
        Ok(Attempt::delivered(HERE))
    }

    /// 404, 410 and "you are not a member": the chat is over there, so it is over here.
    async fn or_over(
        &self,
        id: &ConversationId,
        group: &str,
        error: &CallError,
        operation: Operation,
    ) -> Done {
        let attempt = Attempt::called(HERE, error, operation);
        if attempt.outcome == Outcome::Dead(DeadReason::ConversationOver) {
            // Often the poll has not come by since the agent closed it: the state still knows who did.
            let seen = self.servicenow.state(id, group).await.ok().flatten();
            let by = seen.and_then(|entry| entry.state).and_then(ended_by).unwrap_or("gone");
            self.deliverer.end(id, Some(group), by).await?;
        }
        Ok(attempt)
    }

    /// Reads what the agent said last, where ServiceNow lets us; an end waits for nothing.
    async fn last_look(&self, conversation: Option<&Conversation>, group: &str) -> Result<(), OwnTrouble> {
        let Some(conversation) = conversation.filter(|known| known.state == State::Active) else {
            return Ok(());
        };
        let read = self.deliverer.repair(self.directory, self.servicenow, conversation, group).await?;
        if let Err(error) = read {
            tracing::debug!(conversation = %conversation.id, %error, "cannot read the chat back before its end");
        }
        Ok(())
    }

    /// The attempt that failed, where it failed.
    async fn leave(&self, id: &ConversationId, group: &str) -> Option<Attempt> {
        let error = self.servicenow.leave(id, group).await.err()?;
        let attempt = Attempt::called(HERE, &error, Operation::Leave);
        (attempt.outcome != Outcome::Delivered).then_some(attempt)
    }

    async fn leave_failed(&self, id: &ConversationId, conversation: Option<&Conversation>) -> Done {
        let Some(group) = conversation.and_then(|known| known.group.as_deref()) else {
            return Ok(Attempt::of(HERE, Outcome::Repeated, "the conversation never had a chat"));
        };
        Ok(self.leave(id, group).await.unwrap_or_else(|| Attempt::delivered(HERE)))
    }

    async fn end(&self, end: &End) -> Done {
        let id = &end.conversation_id;
        let conversation = self.directory.find(id).await?;
        let group = match open_group(conversation.as_ref()) {
            Ok(group) => group,
            Err(_) if self.deliverer.xo.is_of_a_bot(id) => {
                return self.end_of_nothing(end, conversation).await;
            }
            Err(reason @ DeadReason::UnknownConversation) => {
                return Ok(Attempt::dead(HERE, reason, not_open(reason)));
            }
            // Given up while it waited: its chat is still there to be left.
            Err(DeadReason::ConversationFailed) => return self.leave_failed(id, conversation.as_ref()).await,
            // Both sides may end it at once: it is over, which is what was asked for.
            Err(_) => return Ok(Attempt::of(HERE, Outcome::Repeated, "the conversation is over already")),
        };
        if let Some(waiting) = conversation.as_ref().filter(|known| known.state == State::Waiting)
            && end.reason.as_deref() == Some(WAITED_TOO_LONG)
        {
            self.deliverer.give_up_waiting(waiting).await?;
            return self.leave_failed(id, conversation.as_ref()).await;
        }
        // Whoever has left may not read any more.
        self.last_look(conversation.as_ref(), group).await?;
        if let Some(attempt) = self.leave(id, group).await {
            return Ok(attempt);
        }
        self.deliverer.end(id, Some(group), end.reason.as_deref().unwrap_or("user")).await?;
        Ok(Attempt::delivered(HERE))
    }
}

pub(super) fn is_open(conversation: &Conversation) -> bool {
    open_group(Some(conversation)).is_ok()
}

fn is_in(conversation: &Conversation, group: &str) -> bool {
    conversation.group.as_deref() == Some(group)
}

pub(super) fn open_group(conversation: Option<&Conversation>) -> Result<&str, DeadReason> {
    let conversation = conversation.ok_or(DeadReason::UnknownConversation)?;
    match (conversation.state, &conversation.group) {
        (State::Waiting | State::Active, Some(group)) => Ok(group),
        (State::Failed, _) => Err(DeadReason::ConversationFailed),
        (State::Ended, _) => Err(DeadReason::ConversationOver),
        (State::Requested | State::Waiting | State::Active, _) => Err(DeadReason::UnknownConversation),
    }
}

pub(super) fn not_open(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::ConversationFailed => "its conversation never opened",
        DeadReason::ConversationOver => "its conversation is over",
        _ => "no start opened its conversation",
    }
}

/// What stands before the transcript in a chat's first message.
const BEFORE: &str = "\n\nBefore:";

/// How the first message of the chat begins: the user's words, then who it is.
fn head(start: &Start) -> String {
    let mut text = start.message.clone();
    let user = start.user.clone().unwrap_or_default();
    let who: Vec<String> =
        [user.name, user.email.map(|email| format!("<{email}>"))].into_iter().flatten().collect();
    if !who.is_empty() {
        text.push_str(&format!("\n\nFrom: {}", who.join(" ")));
    }
    text
}

/// The same, up to a transcript.
fn begins_with(start: &Start) -> String {
    head(start) + BEFORE
}

/// The first message of the chat: the user's words, then who it is and what was said before, for the agent.
fn first_words(start: &Start, before: &[Line]) -> String {
    let mut text = head(start);
    if !before.is_empty() {
        text.push_str(BEFORE);
        for line in before {
            text.push_str(&format!("\n{}: {}", line.from, line.text));
        }
    }
    text
}

pub(super) fn with_attachments(text: &Text) -> String {
    let files = text.attachments.iter().map(named_file);
    std::iter::once(text.message.clone())
        .filter(|words| !words.is_empty())
        .chain(files)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A file that the agent gets as words: its name and where it is.
pub(super) fn named_file(file: &Attachment) -> String {
    let words = [file.name.as_ref().map(|_| file.safe_name()), Some(file.url.clone())];
    let words = words.into_iter().flatten().filter(|word| !word.is_empty()).collect::<Vec<_>>();
    format!("File: {}", words.join(" "))
}
