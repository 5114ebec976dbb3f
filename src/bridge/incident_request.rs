//! Requests the record of a handoff that found no agent, and adds the number of the record to the notice of the failure.
//!
//! Guarantees: each episode of a conversation requests one record. The request is a message in a lane of its own, so that a
//! failure delays neither the user's return to the bot nor the user's next handoff. The notice of the failure waits at most
//! [`NUMBER_WAIT`] for the number of the record.
//! Not responsible for: creating the record (`to_agent/incident.rs`), when a handoff has failed (`notices.rs`,
//! `to_bot/virtual_agent_callback.rs`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bridge::notices::Notices;
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};
use crate::delivery::{Attempt, InternalError};
use crate::message::handoff::HandoffStart;
use crate::message::{
    ConversationId, DeadReason, Destination, Endpoint, Kind, LaneKey, Message, MessageId, Notice, Outcome,
};

const ENDPOINT: Endpoint = Endpoint::ServiceNow;
/// How long the notice of a failed handoff waits for the number of the record.
const NUMBER_WAIT: Duration = Duration::from_secs(5);

/// The body of a message of kind `handoff.incident`.
#[derive(Serialize, Deserialize)]
pub(in crate::bridge) struct IncidentRequest {
    pub(in crate::bridge) conversation_id: ConversationId,
    pub(in crate::bridge) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::bridge) group: Option<String>,
    /// The start that failed; absent if the user had a chat and waited too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::bridge) start: Option<HandoffStart>,
}

/// The id of the record's message: one for each episode of a conversation.
fn incident_id(id: &ConversationId, known: Option<&Conversation>, instance: &str) -> MessageId {
    let opened = known.map(|known| known.opened_at.as_millisecond().to_string());
    MessageId::derived_from("incident", &[id.as_str(), opened.as_deref().unwrap_or(instance)])
}

impl Notices {
    /// Publishes the message that creates the record of a failed handoff. Returns the id of the message, or `None` if
    /// `servicenow.incident` is off. `instance` names the failure of a conversation that the directory does not know.
    pub(in crate::bridge) async fn request_incident(
        &self,
        id: &ConversationId,
        reason: &str,
        instance: &str,
        start: Option<&HandoffStart>,
    ) -> Result<Option<MessageId>, InternalError> {
        let (Some(_), Some(directory)) = (&self.context.settings.incident, &self.context.directory) else {
            return Ok(None);
        };
        let known = directory.find(id).await?;
        let message_id = incident_id(id, known.as_ref(), instance);
        let request = IncidentRequest {
            conversation_id: id.clone(),
            reason: reason.to_owned(),
            group: known.and_then(|known| known.group),
            start: start.cloned(),
        };
        let body = serde_json::to_vec(&request).map_err(InternalError::temporary)?;
        let lane = LaneKey::parse(&format!("incident {message_id}")).map_err(InternalError::temporary)?;
        let kind = Kind::HandoffIncident;
        self.context
            .queue
            .publish(&Message::new(message_id, kind, Destination::ServiceNow, lane, body))
            .await?;
        Ok(Some(message_id))
    }

    /// The id of the record that the start of this conversation requests when its next attempt finds the failure.
    pub(in crate::bridge) fn incident_to_come(&self, known: &Conversation) -> Option<MessageId> {
        self.context.settings.incident.as_ref().map(|_| incident_id(&known.id, Some(known), ""))
    }

    /// Adds the number of the record to the notice of a failed handoff. `Err` with the attempt if the notice should wait
    /// for the number.
    pub(in crate::bridge) async fn with_number(
        &self,
        directory: &Directory,
        message: &Message,
        notice: Notice,
    ) -> Result<Result<Notice, Attempt>, InternalError> {
        let Some(incident) = notice.incident else { return Ok(Ok(notice)) };
        let number = directory.incident_number(incident).await?;
        let is_young = clock::since(message.accepted_at) < NUMBER_WAIT;
        if number.is_none()
            && is_young
            && self.context.gate(Destination::ServiceNow).breaker().passes()
            && !directory.is_done(DedupKey::DeadLettered { message: incident, replays: 0 }).await?
        {
            let wait = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
            return Ok(Err(Attempt::of(
                ENDPOINT,
                wait,
                "the record of the failed handoff has no number yet",
            )));
        }
        let number = number.filter(|number| !number.is_empty());
        Ok(Ok(Notice { number, ..notice }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_episode_has_one_record() {
        let id = ConversationId::parse("c").unwrap();
        assert_eq!(incident_id(&id, None, "a"), incident_id(&id, None, "a"));
        assert_ne!(incident_id(&id, None, "a"), incident_id(&id, None, "b"));
    }
}
