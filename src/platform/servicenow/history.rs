//! Reads back what others wrote in a chat and where the chat continued, because ServiceNow never repeats a failed
//! callback.
//!
//! Guarantees: our own messages are left out. Messages among agents are marked. The order is ServiceNow's.
//! Not responsible for: which of the messages were relayed already (`bridge/missing_message.rs`).

use super::readback::Pages;
use super::wire::{OneOrMany, WireFile, WireSession};
use super::{ApiRequest, QueueEntry, ServiceNow};
use crate::message::ConversationId;
use crate::platform::error::CallError;

/// A message that another participant wrote.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteMessage {
    /// sys_id of the `live_message`.
    pub sys_id: String,
    /// User name of the author; `system` for system messages.
    pub created_by: Option<String>,
    /// The text as ServiceNow stores it, with Connect's mark-up.
    pub text: String,
    /// Visible to agents only, so not relayed to any user.
    pub internal: bool,
    /// The files of the message.
    pub files: Vec<AgentFile>,
}

/// A file of an agent.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentFile {
    /// sys_id of the `sys_attachment`.
    pub sys_id: String,
    /// Its name; empty for some images.
    pub name: String,
    /// Its media type, if ServiceNow states it.
    pub content_type: Option<String>,
    /// Whether our user may read it.
    pub can_read: bool,
}

impl std::fmt::Debug for AgentFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentFile").field("sys_id", &self.sys_id).finish_non_exhaustive()
    }
}

fn file(wire: WireFile) -> Option<AgentFile> {
    let refused =
        |can: &serde_json::Value| can == &serde_json::Value::Bool(false) || can.as_str() == Some("false");
    Some(AgentFile {
        sys_id: wire.sys_id?,
        name: wire.file_name.unwrap_or_default(),
        content_type: wire.content_type,
        can_read: !wire.can_read.as_ref().is_some_and(refused),
    })
}

/// The messages that were read from a chat.
#[derive(Debug)]
pub struct History {
    /// The messages of others, oldest first.
    pub messages: Vec<RemoteMessage>,
    /// Whether all messages after `since` were read; in a very long chat, all messages of the newest pages. It is false
    /// if the instance shows only the newest page, or no row at all.
    pub is_complete: bool,
    /// The number of requests.
    pub requests: u64,
}

impl std::fmt::Debug for RemoteMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteMessage").field("sys_id", &self.sys_id).finish_non_exhaustive()
    }
}

impl ServiceNow {
    /// Returns the messages of others after the message `since`, or from the beginning, oldest first. In a very long
    /// chat only the newest pages are read.
    pub async fn messages_since(
        &self,
        conversation: &ConversationId,
        group: &str,
        since: Option<&str>,
    ) -> Result<History, CallError> {
        let mut heard = Vec::new();
        let mut pages = Pages::of(self, conversation, group);
        let mut is_complete = false;
        'pages: while let Some(page) = pages.next().await? {
            for message in page {
                let Some(sys_id) = message.sys_id.clone() else { continue };
                if since == Some(sys_id.as_str()) {
                    is_complete = true;
                    break 'pages;
                }
                if !self.is_own(&message) {
                    let internal = message.internal || message.private_message;
                    let text = message.formatted_message.or(message.message).unwrap_or_default();
                    let files = message.attachments.into_iter().filter_map(file).collect();
                    heard.push(RemoteMessage {
                        sys_id,
                        created_by: message.created_by,
                        text,
                        internal,
                        files,
                    });
                }
            }
        }
        heard.reverse();
        Ok(History {
            messages: heard,
            is_complete: is_complete || pages.is_complete(),
            requests: pages.requests(),
        })
    }

    /// Returns the author and the text of every message that the user may see, oldest first. The author of our own
    /// messages is `None`.
    pub async fn transcript(
        &self,
        conversation: &ConversationId,
        group: &str,
    ) -> Result<Vec<(Option<String>, String)>, CallError> {
        let mut said = Vec::new();
        let mut pages = Pages::of(self, conversation, group);
        while let Some(page) = pages.next().await? {
            for message in page.into_iter().filter(|message| !message.internal && !message.private_message) {
                let author = if self.is_own(&message) { None } else { message.created_by };
                said.push((author, message.formatted_message.or(message.message).unwrap_or_default()));
            }
        }
        said.reverse();
        Ok(said)
    }

    /// Finds the chat in which an escalated chat (state 4) continues under another group. This is an open chat of our
    /// user with the same text, in the queue to which the queue of the old chat escalates. ServiceNow does not document
    /// whether the group stays the same (`src/platform/servicenow/FACTS.md`). If it does, [`ServiceNow::state`] finds
    /// the open entry.
    pub async fn find_escalated(
        &self,
        conversation: &ConversationId,
        from: &QueueEntry,
    ) -> Result<Vec<QueueEntry>, CallError> {
        let Some(queue) = &from.queue else { return Ok(Vec::new()) };
        let Some(next) = self.queue(queue).await?.escalates_to else { return Ok(Vec::new()) };
        let path = ["api", "now", "connect", "support", "sessions"];
        let query = [("group_id", from.group.as_str())];
        let closed: OneOrMany<WireSession> =
            self.in_session(conversation, ApiRequest::get(&path, &query)).await?;
        let words = closed.into_vec().into_iter().find_map(|session| session.entry().short_description);
        let Some(words) = words else { return Ok(Vec::new()) };
        let path = ["api", "now", "connect", "support", "queues", &next, "sessions"];
        let open: OneOrMany<WireSession> = self.in_session(conversation, ApiRequest::get(&path, &[])).await?;
        let same = open.into_vec().into_iter().filter_map(|session| {
            let mut entry = session.entry();
            let shown = entry.short_description.take();
            entry.parse().filter(|entry| entry.is_open() && shown.as_ref() == Some(&words))
        });
        let mut found: Vec<QueueEntry> = same.filter(|entry| entry.group != from.group).collect();
        found.sort_by(|left, right| super::readback::age(right).cmp(&super::readback::age(left)));
        Ok(found)
    }
}
