//! One attempt toward the bot side: callbacks forwarded to XO's Callback URL, events of API conversations.
//!
//! Guarantees: what ServiceNow posted reaches XO's Callback URL byte for byte; an event carries the id of its message, so
//! that a repeat can be recognised. Leaves to others: the HTTP (`platform/xo`).

use serde::Serialize;

use super::{Attempt, Deliverer, OwnTrouble, UnknownGroup};
use crate::clock;
use crate::conversation::Conversation;
use crate::delivery::classify::Operation;
use crate::message::{
    Callback, ConversationId, DeadReason, Endpoint, Kind, Message, MessageId, Notice, Outcome,
};

/// What is posted to `handoffs.events_url`.
#[derive(Serialize)]
struct Event<'a> {
    id: MessageId,
    #[serde(rename = "type")]
    kind: Kind,
    conversation_id: &'a ConversationId,
    group: Option<&'a str>,
    at: jiff::Timestamp,
    #[serde(flatten)]
    about: About<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum About<'a> {
    Said { message: String, from: &'static str, agent: Option<&'a str>, sys_id: Option<&'a str> },
    Noticed(serde_json::Map<String, serde_json::Value>),
}

impl Deliverer {
    pub(super) async fn to_xo(&self, message: &Message) -> Attempt {
        let done = match message.kind {
            Kind::CallbackMessage => self.callback(message).await,
            _ => self.notice(message).await,
        };
        done.unwrap_or_else(|OwnTrouble(trouble)| Attempt::own_trouble(Endpoint::Events, false, trouble))
    }

    async fn callback(&self, message: &Message) -> Result<Attempt, OwnTrouble> {
        // The pure relay knows no conversations: nothing is looked up, nothing is even read.
        let Some(directory) = &self.directory else {
            return Ok(self.forward(message).await);
        };
        let Ok(callback) = serde_json::from_slice::<Callback>(&message.body) else {
            if self.settings.relays_callbacks
                && serde_json::from_slice::<serde_json::Value>(&message.body).is_ok()
            {
                return Ok(self.forward(message).await);
            }
            let why = "its body is not a callback of this version";
            return Ok(Attempt::dead(Endpoint::XoCallback, DeadReason::Unreadable, why));
        };
        match directory.find_by_group(&callback.group).await? {
            // Also where its chat is an earlier one of the conversation: what an agent said is not withheld because it
            // comes late. It is told under its own group, in the lane of that group, so before that chat's `ended`.
            Some(conversation) if self.settings.tells_events => {
                Ok(self.said(message, &callback, &conversation).await)
            }
            _ if self.settings.relays_callbacks => Ok(self.forward(message).await),
            Some(_) => {
                let why = "handoffs.events_url is not set: nobody to tell";
                Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why))
            }
            None => Ok(self.unknown(message)),
        }
    }

    /// The start that opens this group may still be on its way; after that the group is none of ours.
    fn unknown(&self, message: &Message) -> Attempt {
        let at_most = self.settings.unknown_group_wait;
        let over = clock::since(message.accepted_at) >= at_most;
        let outcome = if over && self.settings.unknown_group == UnknownGroup::Drop {
            Outcome::Dropped
        } else {
            Outcome::Held { at_most, then: DeadReason::UnknownConversation }
        };
        Attempt::of(Endpoint::Events, outcome, "nobody opened its group")
    }

    async fn forward(&self, message: &Message) -> Attempt {
        match self.xo.forward_callback(message.body.clone()).await {
            Ok(()) => Attempt::delivered(Endpoint::XoCallback),
            Err(error) => Attempt::called(Endpoint::XoCallback, &error, Operation::Callback),
        }
    }

    async fn said(&self, message: &Message, callback: &Callback, conversation: &Conversation) -> Attempt {
        let writer = callback.sys_created_by.as_deref();
        let from = if writer == Some("system") { "system" } else { "agent" };
        let about =
            About::Said { message: callback.text(), from, agent: writer, sys_id: callback.sys_id.as_deref() };
        self.post(message, &conversation.id, Some(&callback.group), about).await
    }

    async fn notice(&self, message: &Message) -> Result<Attempt, OwnTrouble> {
        let Ok(notice) = serde_json::from_slice::<Notice>(&message.body) else {
            let why = "its body is not a notice of this version";
            return Ok(Attempt::dead(Endpoint::Events, DeadReason::Unreadable, why));
        };
        if !self.settings.tells_events {
            let why = "handoffs.events_url is not set: nobody to tell";
            return Ok(Attempt::dead(Endpoint::Events, DeadReason::Rejected, why));
        }
        let value = serde_json::to_value(&notice).map_err(|error| OwnTrouble(error.to_string()))?;
        let mut fields = value.as_object().cloned().unwrap_or_default();
        fields.remove("conversation_id");
        fields.remove("group");
        let about = About::Noticed(fields);
        Ok(self.post(message, &notice.conversation_id, notice.group.as_deref(), about).await)
    }

    async fn post(
        &self,
        message: &Message,
        id: &ConversationId,
        group: Option<&str>,
        about: About<'_>,
    ) -> Attempt {
        let event = Event {
            id: message.id,
            kind: message.kind,
            conversation_id: id,
            group,
            at: message.accepted_at,
            about,
        };
        let body = match serde_json::to_vec(&event) {
            Ok(body) => body,
            Err(error) => return Attempt::dead(Endpoint::Events, DeadReason::Unreadable, error.to_string()),
        };
        match self.xo.post_event(body, message.id).await {
            Ok(()) => Attempt::delivered(Endpoint::Events),
            Err(error) => Attempt::called(Endpoint::Events, &error, Operation::Event),
        }
    }
}
