//! Processes callbacks of the Virtual Agent API: the state of the chat, and the messages of the chat.
//!
//! Guarantees: flags and actions decide the state of the chat before any text is relayed; a sentence never decides.
//! Each item is relayed once, even if the callback is tried again after some items, or arrives twice. The end is
//! relayed after all messages. Before there is a sign of an agent, texts of ServiceNow's own bot are not relayed,
//! because the user asked for a human agent.
//!
//! Not responsible for: reading the JSON (`platform/servicenow`), the calls to the bot side (`relay.rs`).

use std::sync::Arc;

use crate::bridge::best_effort::BestEffortCalls;
use crate::bridge::context::BridgeContext;
use crate::bridge::conversation_rows::agent_text_digest;
use crate::bridge::notices::{Notices, joined_instance};
use crate::bridge::to_bot::agent_files::with_media_links;
use crate::bridge::to_bot::agent_joins::{AgentJoins, is_settled};
use crate::bridge::to_bot::closing_sentence::confirms_end;
use crate::bridge::to_bot::missing_rows::MissingRows;
use crate::bridge::to_bot::relay::BotRelay;
use crate::bridge::to_bot::relayed_message::{MessageAuthor, RelayedMessage, TYPING_LASTS};
use crate::clock;
use crate::conversation::{Changes, Conversation, ConversationState, DedupKey, Directory, Observation};
use crate::delivery::{Attempt, InternalError};
use crate::message::{Endpoint, Kind, Message, MessageId, Notice, NoticeEvent, Outcome};
use crate::platform::servicenow::{
    CallbackItem, ChatSign, ItemMeaning, Receipt, VirtualAgentCallback, end_request,
};

/// The chat that a callback is about.
struct CallbackContext<'a> {
    callbacks: &'a VirtualAgentCallbacks,
    directory: &'a Directory,
    message: &'a Message,
    callback: &'a VirtualAgentCallback,
    group: &'a str,
    conversation: Conversation,
    /// The chat is over: a sentence announced its end, and this callback confirms it.
    ended_by_sentence: bool,
}

/// Processes the callbacks of the Virtual Agent API.
#[derive(Debug)]
pub(in crate::bridge) struct VirtualAgentCallbacks {
    context: Arc<BridgeContext>,
    notices: Arc<Notices>,
    best_effort: Arc<BestEffortCalls>,
    relay: Arc<BotRelay>,
    joins: Arc<AgentJoins>,
    missing: MissingRows,
}

impl VirtualAgentCallbacks {
    pub(in crate::bridge) const fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        best_effort: Arc<BestEffortCalls>,
        relay: Arc<BotRelay>,
        joins: Arc<AgentJoins>,
        missing: MissingRows,
    ) -> Self {
        Self { context, notices, best_effort, relay, joins, missing }
    }

    /// Processes a callback about the chat of this conversation.
    pub(in crate::bridge) async fn record(
        &self,
        message: &Message,
        directory: &Directory,
        callback: &VirtualAgentCallback,
        conversation: Conversation,
    ) -> Result<Attempt, InternalError> {
        let group = callback.group.as_deref().unwrap_or_default();
        let is_heard = self.context.is_heard(&conversation);
        let mut chat = CallbackContext {
            callbacks: self,
            directory,
            message,
            callback,
            group,
            conversation,
            ended_by_sentence: false,
        };
        chat.ended_by_sentence = chat.confirms_end().await?;
        if is_heard {
            return chat.record().await;
        }
        // No text can be relayed. But a start may wait for the state that this callback reports.
        chat.apply().await?;
        chat.over().await?;
        chat.note_applied().await?;
        let why = "handoffs.events_url is not set: this conversation's messages cannot be relayed";
        Ok(Attempt::of(Endpoint::Events, Outcome::Dropped, why))
    }

    /// Applies the state that a dead-lettered callback reports. Only the texts of the callback are lost.
    pub(in crate::bridge) async fn dead_lettered(
        &self,
        message: &Message,
        directory: &Directory,
    ) -> Result<(), InternalError> {
        let Some(callback) = VirtualAgentCallback::read(&message.body, self.context.instance()) else {
            return Ok(());
        };
        let Some(group) = callback.group.as_deref() else { return Ok(()) };
        let Some(conversation) = directory.find_by_group(group).await? else { return Ok(()) };
        let mut chat = CallbackContext {
            callbacks: self,
            directory,
            message,
            callback: &callback,
            group,
            conversation,
            ended_by_sentence: false,
        };
        chat.ended_by_sentence = chat.confirms_end().await?;
        chat.apply().await?;
        chat.over().await?;
        chat.note_applied().await?;
        let mut lost = Vec::new();
        for item in callback.items.iter().filter(|item| item.from_agent) {
            if let Some(id) = &item.message_id
                && !directory.is_done(DedupKey::named_item(group, id)).await?
            {
                lost.push(id.clone());
            }
        }
        self.best_effort.receipt(&chat.conversation, group, lost, Receipt::Failed);
        Ok(())
    }
}

impl CallbackContext<'_> {
    async fn record(&self) -> Result<Attempt, InternalError> {
        if let Some(attempt) = self.agent_joins().await? {
            return Ok(attempt);
        }
        let (directory, known) = (self.directory, &self.conversation);
        let missing =
            self.callbacks.missing.relay_before(directory, self.message, self.callback, known, self.group);
        if let Some(attempt) = missing.await? {
            return Ok(attempt);
        }
        self.apply().await?;
        let mut refused = None;
        let mut is_delivered = false;
        let mut agent_spoke = false;
        let mut told = Vec::new();
        for (index, item) in self.callback.items.iter().enumerate() {
            let Some((said, once)) = self.said(index, item) else { continue };
            if self.directory.is_done(once).await? {
                continue;
            }
            let attempt = self.callbacks.relay.relay(self.message, &self.conversation, &said).await?;
            match attempt.outcome {
                Outcome::Delivered => {
                    self.directory.mark_done(once, agent_text_digest(item), clock::now()).await?;
                    is_delivered = true;
                    agent_spoke |= item.from_agent;
                    told.extend(item.message_id.clone().filter(|_| item.from_agent));
                }
                // The other items are still relayed. The callback is dead-lettered at the end, and its replay relays
                // only this item.
                Outcome::Dead(_) => refused = Some(attempt),
                Outcome::Dropped | Outcome::Repeated | Outcome::Declined | Outcome::Routed => {}
                Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Deferred { .. } => {
                    self.callbacks.best_effort.receipt(&self.conversation, self.group, told, Receipt::Sent);
                    return Ok(attempt);
                }
            }
        }
        self.callbacks.missing.note_row(self.directory, self.callback, self.group, agent_spoke).await?;
        self.callbacks.best_effort.receipt(&self.conversation, self.group, told, Receipt::Sent);
        self.typing().await?;
        if refused.is_none() {
            self.over().await?;
        }
        self.count_unknown();
        self.note_applied().await?;
        if self.callback.repaired && is_delivered {
            self.callbacks.context.metrics.repaired.inc();
        }
        let nothing =
            || Attempt::of(Endpoint::Events, Outcome::Dropped, "the callback has no message for the user");
        let said = || if is_delivered { Attempt::delivered(Endpoint::Events) } else { nothing() };
        Ok(refused.unwrap_or_else(said))
    }

    /// Records the state of the chat, unless this callback has been applied before. A replayed or repeated callback is
    /// old, and the chat has changed since then.
    async fn apply(&self) -> Result<(), InternalError> {
        if self.directory.is_done(DedupKey::CallbackApplied(self.message.id)).await? {
            return Ok(());
        }
        self.record_wait().await
    }

    /// Marks the callback as applied. Call this when the callback is settled: until then the chat may still become the
    /// current chat of its conversation.
    async fn note_applied(&self) -> Result<(), InternalError> {
        let applied = DedupKey::CallbackApplied(self.message.id);
        self.directory.mark_done(applied, None, clock::now()).await?;
        Ok(())
    }

    /// Whether the callback is about the current chat of the conversation.
    fn is_current(&self) -> bool {
        self.conversation.group.as_deref() == Some(self.group)
            && matches!(
                self.conversation.state,
                ConversationState::Requested | ConversationState::Waiting | ConversationState::Active
            )
    }

    /// Whether an agent has the chat, or the chat certainly has a place in an agent's queue.
    fn is_human(&self) -> bool {
        self.is_current()
            && (self.conversation.state != ConversationState::Requested
                || self.callback.agent_came()
                || matches!(self.callback.sign(), Some(ChatSign::Queued { .. } | ChatSign::AgentChat)))
    }

    /// Whether no agent has been in the chat.
    fn had_no_agent(&self) -> bool {
        self.conversation.state != ConversationState::Active && !self.callback.agent_came()
    }

    /// Whether the text is the only sign of what the callback reports, so that no notice of ours will report the same.
    fn says_only_that(&self) -> bool {
        !self.is_over() && matches!(self.callback.sign(), None | Some(ChatSign::AgentChat))
    }

    /// Whether items that are not marked as the agent's are relayed. An agent can start a topic of the Virtual Agent
    /// that asks the user questions. The agent then writes nothing until the user has answered
    /// (`src/platform/servicenow/FACTS.md`).
    fn is_topic(&self) -> bool {
        self.callbacks.context.settings.virtual_agent.tell_topics
            && self.is_current()
            && self.conversation.state == ConversationState::Active
            && !self.is_over()
    }

    /// Whether the chat is over with this callback.
    fn is_over(&self) -> bool {
        self.callback.over() || self.ends_without_flag()
    }

    async fn confirms_end(&self) -> Result<bool, InternalError> {
        if !self.is_current() || self.conversation.state != ConversationState::Active || self.callback.over()
        {
            return Ok(false);
        }
        let sentences = &self.callbacks.context.settings.virtual_agent.end_sentences;
        confirms_end(sentences, self.directory, self.message, self.callback, self.group).await
    }

    /// Whether a bot's text without `agentChat` and without `agentInfo` shows that the agent's chat has ended. No
    /// source documents the flags of the topics that an agent starts. So such a text counts after a sentence that
    /// announced the end. Without such a sentence the setting `servicenow.end_without_flag` decides.
    fn ends_without_flag(&self) -> bool {
        let says =
            |item: &CallbackItem| matches!(item.meaning, ItemMeaning::Text(_) | ItemMeaning::Question(_));
        self.ended_by_sentence
            || self.callbacks.context.settings.virtual_agent.end_without_flag
                && self.is_current()
                && self.conversation.state == ConversationState::Active
                && !self.callback.agent_came()
                && self.callback.sign().is_none()
                && self.callback.items.iter().any(says)
    }

    /// The message of an item to the user, and the key under which the message is relayed only once.
    fn said<'a>(&'a self, index: usize, item: &'a CallbackItem) -> Option<(RelayedMessage<'a>, DedupKey)> {
        let no_agent = self.is_over() && self.had_no_agent();
        let text = match &item.meaning {
            ItemMeaning::Text(text) | ItemMeaning::Unknown(Some(text)) => text,
            // After the end the chat belongs to ServiceNow's bot again, and no answer of the user will reach that bot.
            ItemMeaning::Question(question) if item.from_agent || !self.is_over() => &question.text,
            ItemMeaning::Notice(text) => text,
            _ => return None,
        };
        // An agent's message is always relayed, even if it is late. If no agent came, the text becomes the reason of
        // the end.
        let is_of_the_bot = !matches!(item.meaning, ItemMeaning::Notice(_)) && self.ends_without_flag();
        if !item.from_agent && (!self.is_human() || no_agent || is_of_the_bot) {
            return None;
        }
        let agent = item.agent.as_deref().or(self.conversation.agent.as_deref().filter(|_| item.from_agent));
        let (id, once) = match &item.message_id {
            Some(name) => (MessageId::derived("servicenow", name), DedupKey::named_item(self.group, name)),
            None => {
                let parts = [self.message.id.to_string(), index.to_string()];
                let id = MessageId::derived_from("servicenow-item", &[&parts[0], &parts[1]]);
                (id, DedupKey::unnamed_item(self.message.id, index))
            }
        };
        let author = match &item.meaning {
            _ if item.from_agent => MessageAuthor::Agent,
            ItemMeaning::Notice(_) if self.says_only_that() => MessageAuthor::Announcement,
            ItemMeaning::Text(_) | ItemMeaning::Question(_) | ItemMeaning::Unknown(_) if self.is_topic() => {
                MessageAuthor::Announcement
            }
            _ => MessageAuthor::System,
        };
        let choices = match &item.meaning {
            ItemMeaning::Question(question) => question.choices.as_slice(),
            _ => &[],
        };
        let said = RelayedMessage {
            id,
            choices,
            group: self.group,
            text: with_media_links(
                &self.callbacks.context,
                &self.conversation.id,
                text,
                self.message.accepted_at,
            ),
            author,
            agent,
            sys_id: item.message_id.as_deref(),
            files: &[],
        };
        Some((said, once))
    }

    /// Whether the callback shows an agent whose arrival has not been relayed yet.
    fn has_new_agent(&self) -> bool {
        let known = &self.conversation;
        let agent = self.callback.agent().or(known.agent.as_deref());
        let another = known.agent.is_some() && known.agent.as_deref() != agent;
        let came =
            self.callback.agent_came() && !matches!(self.callback.sign(), Some(ChatSign::Queued { .. }));
        came && self.is_current() && (known.state != ConversationState::Active || another)
    }

    /// Relays that a new agent has joined, before the agent's messages. `Some` if the rest must wait.
    async fn agent_joins(&self) -> Result<Option<Attempt>, InternalError> {
        if !self.has_new_agent() {
            return Ok(None);
        }
        let (known, group) = (&self.conversation, self.group);
        let agent = self.callback.agent().map(str::to_owned).or_else(|| known.agent.clone());
        self.callbacks.joins.agent_joins(self.directory, self.message, known, group, agent).await
    }

    /// Records the state of the chat. The notice is published before the state is recorded, under an id that makes a
    /// repeat harmless.
    async fn record_wait(&self) -> Result<(), InternalError> {
        let (known, group) = (&self.conversation, self.group);
        if !self.is_current() {
            if known.state == ConversationState::Failed
                && self.callback.agent_came()
                && known.group.as_deref() == Some(group)
            {
                // An agent came after the user had received the notice that no agent comes.
                self.callbacks.best_effort.give_up_chat(&known.id, Some(known));
            }
            return Ok(());
        }
        let since = known.updated_at.as_millisecond();
        let notice = Notice { group: Some(group.to_owned()), ..Notice::about(known.id.clone()) };
        let agent = self.callback.agent().map(str::to_owned).or_else(|| known.agent.clone());
        let waits = |wait: Option<String>| Observation { wait, ..Observation::default() };
        if self.callback.agent_came() && !matches!(self.callback.sign(), Some(ChatSign::Queued { .. })) {
            // `agent_joins` has relayed a new agent already. This branch is for a dead-lettered callback, and for a
            // conversation without an events URL.
            if self.has_new_agent() {
                let instance = joined_instance(known, agent.as_deref());
                let notice = Notice { agent: agent.clone(), event: Some(NoticeEvent::Joined), ..notice };
                if !is_settled(self.directory, notice.id(Kind::CallbackEvent, &instance)).await? {
                    self.callbacks.notices.publish_event(notice, NoticeEvent::Joined, &instance).await?;
                }
                self.callbacks.notices.agent_came(self.directory, known).await?;
            }
            let seen = Observation { agent, active: true, ..Observation::default() };
            self.directory.record_observation(&known.id, group, &seen).await?;
            return Ok(());
        }
        match (self.callback.sign(), known.state) {
            (Some(ChatSign::Queued { wait }), ConversationState::Active) => {
                let notice = Notice { agent: known.agent.clone(), wait: wait.clone(), ..notice };
                self.callbacks.notices.publish_event(notice, NoticeEvent::Left, &since.to_string()).await?;
                self.directory.record_observation(&known.id, group, &waits(wait)).await?;
            }
            (Some(ChatSign::Queued { wait }), ConversationState::Waiting)
                if wait.is_some() && wait != known.wait =>
            {
                let instance = format!("{since}:{}", wait.as_deref().unwrap_or(""));
                let notice = Notice { wait: wait.clone(), ..notice };
                self.callbacks.notices.publish_event(notice, NoticeEvent::Waiting, &instance).await?;
                self.directory.record_observation(&known.id, group, &waits(wait)).await?;
            }
            (Some(sign @ (ChatSign::Queued { .. } | ChatSign::AgentChat)), ConversationState::Requested)
                if !self.is_over() =>
            {
                let wait = if let ChatSign::Queued { wait } = sign { wait } else { None };
                let notice = Notice { wait: wait.clone(), ..notice };
                self.callbacks.notices.publish_event(notice, NoticeEvent::Waiting, "").await?;
                self.directory.record_observation(&known.id, group, &waits(wait)).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the chat if the callback says so. An end that we requested comes back with the id of our request.
    async fn over(&self) -> Result<(), InternalError> {
        if !self.is_over() || !self.is_current() {
            return Ok(());
        }
        let id = &self.conversation.id;
        self.directory.mark_done(DedupKey::closed_chat(self.group), None, clock::now()).await?;
        if self.callback.request_id.as_deref() == Some(end_request(self.group).as_str()) {
            return self.callbacks.notices.end(id, Some(self.group), "user").await;
        }
        if !self.had_no_agent() {
            return self.callbacks.notices.end(id, Some(self.group), "agent").await;
        }
        let words = self.callback.items.iter().filter_map(|item| match &item.meaning {
            ItemMeaning::Text(text) | ItemMeaning::Notice(text) | ItemMeaning::Unknown(Some(text)) => {
                Some(text.as_str())
            }
            // ServiceNow's bot asks, but the user is back with the other bot.
            ItemMeaning::Question(question) => Some(question.words()),
            _ => None,
        });
        let words = words.collect::<Vec<_>>().join("\n");
        let notice = Notice {
            group: Some(self.group.to_owned()),
            reason: Some("no_agent".to_owned()),
            detail: Some(words).filter(|words| !words.is_empty()),
            // The start is still on the queue. Its next attempt requests the record, because it has the user's words.
            incident: self.callbacks.notices.incident_to_come(&self.conversation),
            ..Notice::about(id.clone())
        };
        self.callbacks.notices.publish_notice(Kind::HandoffFailed, &notice, "").await?;
        let is_first = self.directory.mark_failed(id, "no_agent", Changes::default()).await?;
        self.callbacks.notices.count_end(is_first, "no_agent");
        if let Some(servicenow) = &self.callbacks.context.servicenow {
            servicenow.forget(id);
        }
        Ok(())
    }

    async fn typing(&self) -> Result<(), InternalError> {
        let types = self.callback.items.iter().any(|item| item.meaning == ItemMeaning::Typing);
        let fresh = clock::since(self.message.accepted_at) <= TYPING_LASTS;
        if !types || !fresh || !self.is_current() || self.conversation.state != ConversationState::Active {
            return Ok(());
        }
        let notice = Notice {
            group: Some(self.group.to_owned()),
            agent: self.conversation.agent.clone(),
            ..Notice::about(self.conversation.id.clone())
        };
        self.callbacks.notices.publish_event(notice, NoticeEvent::Typing, &self.message.id.to_string()).await
    }

    fn count_unknown(&self) {
        for item in &self.callback.items {
            if matches!(item.meaning, ItemMeaning::Unknown(_)) {
                self.callbacks.context.metrics.unknown_items.inc();
                tracing::debug!(ui_type = item.ui_type, "unknown item type in a callback");
            }
        }
    }
}
