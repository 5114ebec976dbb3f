//! Routes a message of a ServiceNow chat to the destination of its conversation.
//!
//! Guarantees: a routed message keeps its id, its time of acceptance and its order. All messages of one conversation to
//! the bot side are in the conversation's own lane at the destination. A message is acked here only after the queue of
//! its destination has confirmed it. No remote endpoint is called, so no endpoint delays the messages of another.
//!
//! Not responsible for: delivery (`callback.rs`, `relay.rs`), the list of destinations (`message/destination.rs`).

use crate::bridge::to_bot::ToBot;
use crate::conversation::{Changes, Conversation, DedupKey, Directory};
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{
    Callback, ConversationId, DeadReason, Destination, Endpoint, Kind, LaneKey, Message, Notice, Outcome,
};
use crate::platform::servicenow::VirtualAgentCallback;

/// The label of the attempt. No remote endpoint is called; the message is about a chat of ServiceNow.
const ENDPOINT: Endpoint = Endpoint::ServiceNow;

/// The ServiceNow chat that a callback is about.
enum ChatGroup {
    Group(String),
    /// The callback is a message among agents in this chat.
    Internal(String),
    /// The callback names no chat that this program can read.
    Unknown,
    Unreadable,
}

impl ToBot {
    /// Makes one attempt to find the destination of a message that only names a ServiceNow chat.
    pub(in crate::bridge) async fn route(
        &self,
        message: &Message,
        past: PriorAttempts,
    ) -> Result<Attempt, InternalError> {
        if message.kind != Kind::CallbackMessage {
            return self.route_notice(message).await;
        }
        let group = match chat_of(message) {
            ChatGroup::Group(group) => group,
            ChatGroup::Internal(group) => return self.note_internal(message, past, &group).await,
            ChatGroup::Unreadable if !self.context.settings.relays_callbacks || !is_json(message) => {
                let why = "its body is not a callback of this version";
                return Ok(Attempt::dead(ENDPOINT, DeadReason::Unreadable, why));
            }
            ChatGroup::Unknown | ChatGroup::Unreadable => return self.route_unknown(message).await,
        };
        if let Some(id) = self.chats.conversation_of(&group) {
            return self.route_to(message, &id).await;
        }
        let known = match &self.context.directory {
            Some(directory) => directory.find_by_group(&group).await?.map(|found| (directory, found)),
            None => None,
        };
        match known {
            Some((_, conversation)) if self.context.is_heard(&conversation) => {
                self.chats.add(&group, &conversation.id);
                self.route_to(message, &conversation.id).await
            }
            Some((directory, conversation)) => self.route_unheard(message, directory, &conversation).await,
            None => self.route_unknown(message).await,
        }
    }

    /// Records that the message is internal, so that gap repair does not relay it. The message is dropped.
    async fn note_internal(
        &self,
        message: &Message,
        past: PriorAttempts,
        group: &str,
    ) -> Result<Attempt, InternalError> {
        let dropped = Attempt::of(ENDPOINT, Outcome::Dropped, "it is an internal message");
        if let Some(directory) = &self.context.directory
            && directory.find_by_group(group).await?.is_some()
        {
            let changes = Changes::default().done(DedupKey::Internal(message.id), None);
            let attempts = past.count.saturating_add(1);
            directory.record(changes.with_outcome(message, &dropped.outcome, attempts)).await?;
            return Ok(dropped.recorded());
        }
        Ok(dropped)
    }

    async fn route_notice(&self, message: &Message) -> Result<Attempt, InternalError> {
        match serde_json::from_slice::<Notice>(&message.body) {
            Ok(notice) => self.route_to(message, &notice.conversation_id).await,
            Err(_) => {
                let why = "its body is not a notice of this version";
                Ok(Attempt::dead(ENDPOINT, DeadReason::Unreadable, why))
            }
        }
    }

    /// Handles a callback of an API conversation although no events URL is configured.
    async fn route_unheard(
        &self,
        message: &Message,
        directory: &Directory,
        conversation: &Conversation,
    ) -> Result<Attempt, InternalError> {
        if let Some(callback) = VirtualAgentCallback::read(&message.body, self.context.instance()) {
            return self.virtual_agent.record(message, directory, &callback, conversation.clone()).await;
        }
        if self.context.settings.relays_callbacks {
            return self.put(message, Destination::Xo, message.lane.clone()).await;
        }
        let why = "handoffs.events_url is not set: this conversation's messages cannot be relayed";
        Ok(Attempt::dead(ENDPOINT, DeadReason::Rejected, why))
    }

    /// Handles a callback of an unknown chat: not ours, or its start is still in flight. In the second case gap repair
    /// relays the message to its user as well.
    async fn route_unknown(&self, message: &Message) -> Result<Attempt, InternalError> {
        if self.context.settings.relays_callbacks {
            return self.put(message, Destination::Xo, message.lane.clone()).await;
        }
        Ok(self.unknown(message))
    }

    async fn route_to(&self, message: &Message, id: &ConversationId) -> Result<Attempt, InternalError> {
        let destination = self.context.settings.bot_side.of_conversation(id);
        self.put(message, destination, LaneKey::from(id)).await
    }

    async fn put(
        &self,
        message: &Message,
        destination: Destination,
        lane: LaneKey,
    ) -> Result<Attempt, InternalError> {
        self.context.queue.publish(&Message { destination, lane, ..message.clone() }).await?;
        Ok(Attempt::of(ENDPOINT, Outcome::Routed, ""))
    }
}

fn is_json(message: &Message) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(&message.body).is_ok()
}

fn chat_of(message: &Message) -> ChatGroup {
    if let Some(callback) = VirtualAgentCallback::read(&message.body, None) {
        return callback.group.map_or(ChatGroup::Unknown, ChatGroup::Group);
    }
    match serde_json::from_slice::<Callback>(&message.body) {
        Ok(callback) if callback.internal => ChatGroup::Internal(callback.group),
        Ok(callback) => ChatGroup::Group(callback.group),
        Err(_) => ChatGroup::Unreadable,
    }
}
