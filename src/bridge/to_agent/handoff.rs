//! Makes one attempt toward ServiceNow: start, message, typing or end of a handoff.
//!
//! Guarantees: a start never opens a second chat for a conversation that has one, also after a crash between
//! ServiceNow's answer and the record in our directory. An attempt that may repeat another one reads back first,
//! because Connect Support has no idempotency key (`src/platform/servicenow/FACTS.md`). A request of the handoff API
//! never reaches a conversation of a bot.
//!
//! Not responsible for: HTTP (`platform/servicenow`), the state machine (`conversation/`).

use crate::bridge::end_reason::ended_by;
use crate::bridge::notices::instance_of;
use crate::bridge::to_agent::late_start::origin;
use crate::bridge::to_agent::routing::queue_of;
use crate::bridge::to_agent::transcript::{begins_with, first_words};
use crate::bridge::to_agent::{HandlerResult, HandoffHandler, is_foreign, is_open, open_group};
use crate::conversation::{Changes, Claim, Conversation, ConversationState, LastSent, OpenedChat};
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError};
use crate::message::handoff::{EndCause, EndReason, HandoffEnd, HandoffStart, HandoffText};
use crate::message::{ConversationId, DeadReason, Endpoint, Handoff, Notice, NoticeEvent, Outcome};
use crate::platform::servicenow::{PostedMessage, ReadSince, StartText};
use crate::platform::{CallError, ChatApi, QueueEntry, StartedChat};
use crate::telemetry::logged_conversation;

const ENDPOINT: Endpoint = Endpoint::ServiceNow;

impl HandoffHandler<'_> {
    pub(super) async fn deliver(&self, handoff: &Handoff) -> HandlerResult {
        // Connect Support has no REST call for typing (`src/platform/servicenow/FACTS.md`).
        if matches!(handoff, Handoff::Typing(_)) && self.servicenow.api() == ChatApi::ConnectSupport {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, ""));
        }
        let known = self.directory.find(handoff.conversation()).await?;
        if is_foreign(&self.to_agent.context.xo, handoff, known.as_ref()) {
            let why = "its conversation was not opened over the handoff API";
            // A typing indicator is not worth a dead letter.
            return Ok(match handoff {
                Handoff::Typing(_) => Attempt::of(ENDPOINT, Outcome::Dropped, why),
                _ => Attempt::dead(ENDPOINT, DeadReason::Rejected, why),
            });
        }
        match handoff {
            Handoff::Start(start) => self.start(start, known).await,
            Handoff::Message(text) => self.message(text, known).await,
            Handoff::Typing(typing) => self.typing(typing, known.as_ref()).await,
            // Both APIs share this end, because `ServiceNow::leave` handles both kinds of chats.
            Handoff::End(end) => self.end(end, known).await,
        }
    }

    async fn start(&self, start: &HandoffStart, known: Option<Conversation>) -> HandlerResult {
        let id = &start.conversation_id;
        let gone = self.user_went(known.as_ref());
        if self.servicenow.api() == ChatApi::VirtualAgent {
            return self.request_agent(start, known.as_ref()).await;
        }
        if let Some(open) = known.filter(is_open) {
            // The start is a duplicate, or the process crashed before the bot side was notified.
            self.save_reply_handle(id, start.reply.as_deref()).await?;
            self.publish_waiting(id, &open).await?;
            return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "the conversation is open already"));
        }
        if gone && !self.possibly_delivered {
            return Ok(user_left());
        }
        let Some(queue_id) = queue_of(&self.to_agent.context.settings, start) else {
            let why = "no Queue ID: set servicenow.queue_id, or queue_id in the start";
            return self.failed(start, Attempt::dead(ENDPOINT, DeadReason::Rejected, why)).await;
        };
        self.directory.mark_requested(id, origin(start), Some(queue_id)).await?;
        self.save_reply_handle(id, start.reply.as_deref()).await?;
        if self.possibly_delivered {
            match self.taken_start(start, queue_id).await? {
                Ok(Some(attempt)) => return Ok(attempt),
                Ok(None) => {}
                Err(error) => return Ok(Attempt::called(ENDPOINT, &error, Operation::State)),
            }
        }
        if gone {
            return Ok(user_left());
        }
        let text = first_words(start, &self.read_transcript(start).await);
        self.note_opening(start, &text).await?;
        match self.servicenow.start(id, queue_id, &text).await {
            Ok(entry) => Ok(self.claim(id, queue_id, &entry).await?.unwrap_or_else(|| {
                Attempt::internal_error(ENDPOINT, true, "another conversation claimed this chat")
            })),
            Err(error) => {
                let attempt = Attempt::called(ENDPOINT, &error, Operation::Start);
                match attempt.outcome {
                    Outcome::Declined => {
                        let words = error.business().map(str::to_owned);
                        let instance = instance_of(self.message);
                        let answered =
                            Changes::default().with_outcome(self.message, &attempt.outcome, self.attempts);
                        let (words, start) = (words.as_deref(), Some(start));
                        self.to_agent.notices.fail(id, "no_agent", words, &instance, start, answered).await?;
                        Ok(attempt)
                    }
                    _ => Ok(attempt),
                }
            }
        }
    }

    /// Whether the user went back to the bot after this message was accepted.
    pub(in crate::bridge) fn user_went(&self, known: Option<&Conversation>) -> bool {
        known.is_some_and(|known| {
            let since = known.released_at.is_some_and(|at| at >= self.message.accepted_at);
            known.state == ConversationState::Requested && since
        })
    }

    /// Looks for the chat that an earlier attempt without an answer may have opened, and claims the chat.
    async fn taken_start(
        &self,
        start: &HandoffStart,
        queue_id: &str,
    ) -> Result<Result<Option<Attempt>, CallError>, InternalError> {
        let id = &start.conversation_id;
        let (whole, begins) = (first_words(start, &start.transcript), begins_with(start));
        let text = StartText { whole: &whole, begins: self.reads_history(start).then_some(&*begins) };
        let found = match self.servicenow.find_started(id, queue_id, text).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let mut looks = 0;
        for StartedChat { entry, certain } in &found {
            // A chat that is ours already was claimed by an attempt that was interrupted.
            let owner = self.directory.find_by_group(&entry.group).await?.map(|owner| owner.id);
            if owner.as_ref().is_some_and(|owner| owner != id) {
                continue;
            }
            if !certain && owner.is_none() {
                looks += 1;
                if looks > StartedChat::LOOKS_MAX {
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

    /// Records a start that can never succeed. The bot side is notified when the message is dead-lettered.
    async fn failed(&self, start: &HandoffStart, attempt: Attempt) -> HandlerResult {
        self.directory.mark_requested(&start.conversation_id, origin(start), None).await?;
        self.save_reply_handle(&start.conversation_id, start.reply.as_deref()).await?;
        Ok(attempt)
    }

    /// Records that this chat belongs to this conversation; `None` if the chat belongs to another conversation.
    async fn claim(
        &self,
        id: &ConversationId,
        queue_id: &str,
        entry: &QueueEntry,
    ) -> Result<Option<Attempt>, InternalError> {
        let goes_on_elsewhere = |known: &Conversation| is_open(known) && !is_in(known, &entry.group);
        if self.directory.find(id).await?.as_ref().is_some_and(goes_on_elsewhere) {
            return Ok(Some(self.too_late(id, &entry.group).await));
        }
        // The order is: claim the chat, publish the notice, set the state to `waiting`. A waiting conversation lets an
        // agent's messages through, and these could otherwise overtake the notice.
        if self.directory.claim_group(id, &entry.group).await? == Claim::TakenByAnother {
            return Ok(None);
        }
        let known = self.directory.find(id).await?;
        if known.is_some_and(|known| known.state == ConversationState::Requested) {
            self.publish_position(id, &entry.group, entry.position, entry.wait.as_deref()).await?;
        }
        let opened = OpenedChat {
            group: entry.group.clone(),
            number: entry.number.clone(),
            queue_id: entry.queue.clone().unwrap_or_else(|| queue_id.to_owned()),
            position: entry.position,
            wait: entry.wait.clone(),
            agent: entry.assigned_to.clone(),
            // The bot side has not been notified of an agent who is in the chat already. The first poll of the state
            // notifies and records the agent.
            active: false,
        };
        if matches!(self.directory.mark_opened(id, &opened).await?, Claim::TakenByAnother) {
            return Ok(None);
        }
        match self.directory.find(id).await?.filter(|known| is_open(known) && is_in(known, &entry.group)) {
            Some(open) => {
                self.publish_waiting(id, &open).await?;
                Ok(Some(Attempt::delivered(ENDPOINT)))
            }
            None => Ok(Some(self.too_late(id, &entry.group).await)),
        }
    }

    /// Leaves a chat that the conversation does not use: the conversation ended, or got another chat from another
    /// worker, before ServiceNow answered.
    async fn too_late(&self, id: &ConversationId, group: &str) -> Attempt {
        if let Err(error) = self.servicenow.leave(id, group).await {
            let (conversation, group) = (logged_conversation(id), logged_conversation(group));
            tracing::warn!(conversation, group, %error, "could not leave a superseded chat; an agent may see an orphaned chat");
        }
        Attempt::of(ENDPOINT, Outcome::Repeated, "the conversation went on without this chat")
    }

    async fn publish_waiting(&self, id: &ConversationId, open: &Conversation) -> Result<(), InternalError> {
        match &open.group {
            Some(group) if open.state == ConversationState::Waiting => {
                self.publish_position(id, group, open.position, open.wait.as_deref()).await
            }
            _ => Ok(()),
        }
    }

    async fn publish_position(
        &self,
        id: &ConversationId,
        group: &str,
        position: Option<u32>,
        wait: Option<&str>,
    ) -> Result<(), InternalError> {
        let notice = Notice {
            group: Some(group.to_owned()),
            position,
            wait: wait.map(str::to_owned),
            ..Notice::about(id.clone())
        };
        self.to_agent.notices.publish_event(notice, NoticeEvent::Waiting, "").await
    }

    async fn message(&self, text: &HandoffText, conversation: Option<Conversation>) -> HandlerResult {
        let id = &text.conversation_id;
        if let Some(start) = self.late_start(text, conversation.as_ref()).await? {
            return Box::pin(self.start(&start, conversation)).await;
        }
        self.save_reply_handle(id, text.reply.as_deref()).await?;
        let group = match open_group(conversation.as_ref()) {
            Ok(group) => group,
            Err(reason) => return Ok(Attempt::dead(ENDPOINT, reason, not_open(reason))),
        };
        if self.possibly_delivered && self.directory.was_sent(group, self.message.id).await? {
            self.delivered(Changes::default()).await?;
            return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "it was sent before and not recorded"));
        }
        if self.servicenow.api() == ChatApi::VirtualAgent {
            return self.send_to_agent(text, group).await;
        }
        if self.possibly_delivered {
            for words in self.texts_with_files(text) {
                match self.taken_message(id, group, &words).await? {
                    Ok(Some(posted)) => return self.sent(group, posted.sys_id.as_deref()).await,
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
            Ok(posted) => self.sent(group, posted.sys_id.as_deref()).await,
            Err(error) => self.or_over(id, group, &error, Operation::Send).await,
        }
    }

    /// Looks for the message that an earlier attempt without an answer may have posted.
    async fn taken_message(
        &self,
        id: &ConversationId,
        group: &str,
        words: &str,
    ) -> Result<Result<Option<PostedMessage>, CallError>, InternalError> {
        let last = self.directory.last_sent(group).await?;
        let since = match &last {
            LastSent::Nothing => ReadSince::Start,
            LastSent::Message(sys_id) => ReadSince::Message(sys_id),
            // An older message with the same text could be taken for this one. A repeated message is better than a lost
            // message.
            LastSent::Unknown => return Ok(Ok(None)),
        };
        Ok(self.servicenow.find_sent(id, group, words, since).await)
    }

    /// Records the message as the last one of its chat, from which a later search starts, and as delivered.
    pub(in crate::bridge) async fn sent(&self, group: &str, sys_id: Option<&str>) -> HandlerResult {
        self.delivered(Changes::default().sent(group, self.message.id, sys_id)).await
    }

    async fn delivered(&self, changes: Changes) -> HandlerResult {
        let changes = changes.with_outcome(self.message, &Outcome::Delivered, self.attempts);
        self.directory.record(changes).await?;
        Ok(Attempt::delivered(ENDPOINT).recorded())
    }

    /// Ends the conversation if ServiceNow answers 404, 410 or "you are not a member": the chat is over.
    async fn or_over(
        &self,
        id: &ConversationId,
        group: &str,
        error: &CallError,
        operation: Operation,
    ) -> HandlerResult {
        let attempt = Attempt::called(ENDPOINT, error, operation);
        if attempt.outcome == Outcome::Dead(DeadReason::ConversationOver) {
            // Usually the poll has not seen the end yet. The state of the chat still says which side closed it.
            let seen = self.servicenow.state(id, group).await.ok().flatten();
            let by = seen.and_then(|entry| entry.state).and_then(ended_by).unwrap_or("gone");
            self.to_agent.notices.end(id, Some(group), by).await?;
        }
        Ok(attempt)
    }

    /// Reads the agent's last messages, if ServiceNow allows. An end does not wait for a failed reading.
    async fn read_last_messages(
        &self,
        conversation: Option<&Conversation>,
        group: &str,
    ) -> Result<(), InternalError> {
        let Some(conversation) = conversation.filter(|known| known.state == ConversationState::Active) else {
            return Ok(());
        };
        let read = self.to_agent.gaps.repair(self.directory, self.servicenow, conversation, group).await?;
        if let Err(error) = read {
            tracing::debug!(conversation = %conversation.id, %error, "cannot read the chat back before its end");
        }
        Ok(())
    }

    /// Leaves the chat. `Some` with the attempt if the call failed.
    async fn leave(&self, id: &ConversationId, group: &str) -> Option<Attempt> {
        let error = self.servicenow.leave(id, group).await.err()?;
        let attempt = Attempt::called(ENDPOINT, &error, Operation::Leave);
        (attempt.outcome != Outcome::Delivered).then_some(attempt)
    }

    async fn leave_failed(&self, id: &ConversationId, conversation: Option<&Conversation>) -> HandlerResult {
        let Some(group) = conversation.and_then(|known| known.group.as_deref()) else {
            return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "the conversation never had a chat"));
        };
        Ok(self.leave(id, group).await.unwrap_or_else(|| Attempt::delivered(ENDPOINT)))
    }

    async fn end(&self, end: &HandoffEnd, conversation: Option<Conversation>) -> HandlerResult {
        let id = &end.conversation_id;
        let group = match open_group(conversation.as_ref()) {
            Ok(group) => group,
            Err(_) if self.to_agent.context.xo.is_of_a_bot(id) => {
                return self.end_without_chat(end, conversation).await;
            }
            Err(reason @ DeadReason::UnknownConversation) => {
                return Ok(Attempt::dead(ENDPOINT, reason, not_open(reason)));
            }
            // The conversation was given up while it waited, so its chat must still be left.
            Err(DeadReason::ConversationFailed) => return self.leave_failed(id, conversation.as_ref()).await,
            // Both sides may end a conversation at the same time. It is over, as requested.
            Err(_) => {
                return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "the conversation is over already"));
            }
        };
        if let Some(waiting) = conversation.as_ref().filter(|known| known.state == ConversationState::Waiting)
            && end.reason.as_ref().and_then(EndReason::cause) == Some(EndCause::WaitedTooLong)
        {
            self.to_agent.notices.give_up_waiting(waiting).await?;
            return self.leave_failed(id, conversation.as_ref()).await;
        }
        // After leaving, a user may not read the chat any more.
        self.read_last_messages(conversation.as_ref(), group).await?;
        if let Some(attempt) = self.leave(id, group).await {
            return Ok(attempt);
        }
        self.to_agent.notices.end_as(id, Some(group), end.reason_text(), end.metric_label()).await?;
        Ok(Attempt::delivered(ENDPOINT))
    }
}

fn user_left() -> Attempt {
    Attempt::of(ENDPOINT, Outcome::Repeated, "the user left before an agent was requested")
}

fn is_in(conversation: &Conversation, group: &str) -> bool {
    conversation.group.as_deref() == Some(group)
}

fn not_open(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::ConversationFailed => "its conversation never opened",
        DeadReason::ConversationOver => "its conversation is over",
        _ => "no start has opened its conversation",
    }
}
