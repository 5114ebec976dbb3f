//! Posts what happens in API conversations to `handoffs.events_url`.
//!
//! Guarantees: an event carries the id of its message or notice.
//!
//! Not responsible for: HTTP (`platform/xo`).

use std::sync::Arc;

use serde::Serialize;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::agent_files::{RelayedFile, relayed_files};
use crate::bridge::to_bot::relayed_message::RelayedMessage;
use crate::conversation::Conversation;
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError};
use crate::message::{ConversationId, DeadReason, Endpoint, Kind, Message, MessageId, Notice};

/// The JSON body of an event.
#[derive(Serialize)]
struct EventBody<'a> {
    id: MessageId,
    #[serde(rename = "type")]
    kind: Kind,
    conversation_id: &'a ConversationId,
    group: Option<&'a str>,
    at: jiff::Timestamp,
    #[serde(flatten)]
    about: EventContent<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EventContent<'a> {
    Said {
        message: &'a str,
        from: &'static str,
        agent: Option<&'a str>,
        sys_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        attachments: Vec<EventFile>,
    },
    Noticed(serde_json::Map<String, serde_json::Value>),
}

/// A file of an agent, with a link that opens it if `files.public_url` is set.
#[derive(Serialize)]
struct EventFile {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
}

impl From<RelayedFile> for EventFile {
    fn from(told: RelayedFile) -> Self {
        Self { name: told.name, url: told.url, content_type: told.content_type }
    }
}

/// Posts events.
#[derive(Debug)]
pub(in crate::bridge) struct EventsApi {
    context: Arc<BridgeContext>,
}

impl EventsApi {
    pub(in crate::bridge) const fn new(context: Arc<BridgeContext>) -> Self {
        Self { context }
    }

    pub(in crate::bridge) async fn post_message(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
    ) -> Attempt {
        let files = relayed_files(&self.context, &conversation.id, said, message.accepted_at).into_iter();
        let about = EventContent::Said {
            message: &said.text,
            from: said.author.as_str(),
            agent: said.agent,
            sys_id: said.sys_id,
            attachments: files.map(EventFile::from).collect(),
        };
        self.post_event(&EventBody {
            id: said.id,
            kind: Kind::CallbackMessage,
            conversation_id: &conversation.id,
            group: Some(said.group),
            at: message.accepted_at,
            about,
        })
        .await
    }

    pub(in crate::bridge) async fn post_notice(
        &self,
        message: &Message,
        notice: &Notice,
    ) -> Result<Attempt, InternalError> {
        if !self.context.settings.tells_events {
            let why = "handoffs.events_url is not set: no receiver";
            return Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why));
        }
        let value = serde_json::to_value(notice).map_err(InternalError::temporary)?;
        let mut fields = value.as_object().cloned().unwrap_or_default();
        fields.remove("conversation_id");
        fields.remove("group");
        fields.remove("incident");
        let event = EventBody {
            id: message.id,
            kind: message.kind,
            conversation_id: &notice.conversation_id,
            group: notice.group.as_deref(),
            at: message.accepted_at,
            about: EventContent::Noticed(fields),
        };
        Ok(self.post_event(&event).await)
    }

    async fn post_event(&self, event: &EventBody<'_>) -> Attempt {
        let body = match serde_json::to_vec(event) {
            Ok(body) => body,
            Err(error) => return Attempt::dead(Endpoint::Events, DeadReason::Unreadable, error.to_string()),
        };
        match self.context.xo.post_event(body, event.id).await {
            Ok(()) => Attempt::delivered(Endpoint::Events),
            Err(error) => Attempt::called(Endpoint::Events, &error, Operation::Event),
        }
    }
}
