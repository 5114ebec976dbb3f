//! The Connect Support API: open a chat in a queue, write into it, read its state, leave it.
//!
//! Guarantees: the text is sent unchanged.
//! Not responsible for: finding out the result of a call without an answer (`readback.rs`).
//! Source: ServiceNow's own browser client. No public reference of this API exists.

use serde::de::IgnoredAny;
use serde_json::json;

use super::wire::{OneOrMany, WireEntry, WireMessage, WireQueue, WireSession};
use super::{ApiRequest, ChatApi, PostedMessage, QueueEntry, QueueState, ServiceNow};
use crate::message::ConversationId;
use crate::platform::error::CallError;

const QUEUES: [&str; 5] = ["api", "now", "connect", "support", "queues"];

impl ServiceNow {
    /// Opens a chat. Not idempotent: after an error that is [`SentState::Maybe`](crate::platform::SentState::Maybe), call
    /// [`ServiceNow::find_started`] before the next attempt.
    pub async fn start(
        &self,
        conversation: &ConversationId,
        queue_id: &str,
        text: &str,
    ) -> Result<QueueEntry, CallError> {
        let path = ["api", "now", "connect", "support", "queues", queue_id, "sessions"];
        let request = ApiRequest::post(&path, &json!({ "message": text }), text);
        let entry: WireEntry = self.in_session(conversation, request).await?;
        entry.parse().ok_or_else(|| CallError::bad_body("a start without `group`"))
    }

    /// Writes into the chat and returns the sys_id that ServiceNow gave to the message. `files`: sys_ids of uploaded
    /// files. After an error that is [`SentState::Maybe`](crate::platform::SentState::Maybe), call [`ServiceNow::find_sent`]
    /// before the next attempt.
    pub async fn send(
        &self,
        conversation: &ConversationId,
        group: &str,
        text: &str,
        files: &[String],
    ) -> Result<PostedMessage, CallError> {
        let path = ["api", "now", "connect", "conversations", group, "messages"];
        let mut body = json!({ "message": text, "group": group, "reflected_field": "comments" });
        if !files.is_empty() {
            body["attachments"] = json!(files);
        }
        let stored: WireMessage = self.in_session(conversation, ApiRequest::post(&path, &body, text)).await?;
        Ok(PostedMessage { sys_id: stored.sys_id })
    }

    /// Leaves the chat for the user, with either API. A chat that is over or does not exist counts as left.
    pub async fn leave(&self, conversation: &ConversationId, group: &str) -> Result<(), CallError> {
        if self.api() == ChatApi::VirtualAgent {
            return self.end_conversation(conversation, group).await;
        }
        let path = ["api", "now", "connect", "support", "sessions", group, "leave"];
        let mut lease = self.inner.sessions.lock(conversation).await;
        let request = ApiRequest::post(&path, &json!({}), "");
        match self.exchange::<IgnoredAny>(Some(&mut lease), request).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => {
                lease.end();
                Ok(())
            }
        }
    }

    /// Returns the state of the chat, or `None` if ServiceNow has no queue entry for the chat. After an escalation
    /// one group can have several entries. An open entry is preferred, then the newest.
    pub async fn state(
        &self,
        conversation: &ConversationId,
        group: &str,
    ) -> Result<Option<QueueEntry>, CallError> {
        let path = ["api", "now", "connect", "support", "sessions"];
        let query = [("group_id", group)];
        let found: OneOrMany<WireSession> =
            self.in_session(conversation, ApiRequest::get(&path, &query)).await?;
        let entries = found.into_vec().into_iter().filter_map(|session| session.entry().parse());
        Ok(newest_open(entries.filter(|entry| entry.group == group)))
    }

    /// Returns a queue with its name and whether it is open.
    pub async fn queue(&self, queue_id: &str) -> Result<QueueState, CallError> {
        let path = ["api", "now", "connect", "support", "queues", queue_id];
        let found: OneOrMany<WireQueue> = self.exchange(None, ApiRequest::get(&path, &[])).await?;
        let queue = found.into_vec().into_iter().find_map(|queue| queue.parse(self.instance()));
        queue.ok_or_else(|| CallError::bad_body("no queue in the answer"))
    }

    /// Returns all queues that the user may see.
    pub async fn queues(&self) -> Result<Vec<QueueState>, CallError> {
        let found: OneOrMany<WireQueue> = self.exchange(None, ApiRequest::get(&QUEUES, &[])).await?;
        Ok(found.into_vec().into_iter().filter_map(|queue| queue.parse(self.instance())).collect())
    }
}

/// The entry that counts among those of one chat: an open one, then the newest.
pub(super) fn newest_open(entries: impl IntoIterator<Item = QueueEntry>) -> Option<QueueEntry> {
    entries.into_iter().max_by(|left, right| {
        (left.is_open(), super::readback::age(left)).cmp(&(right.is_open(), super::readback::age(right)))
    })
}
