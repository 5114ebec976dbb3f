//! A dead letter as one line of a list: all that an operator needs to choose, without text and history.
//!
//! Guarantees: the list has the newest dead letter at its end, over all destinations. Memory holds no text.
//! Not responsible for: the layout (`cli/dead/list.rs`).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{DeadLetterError, DeadLetterFilter, conversation_of, group_of, look};
use crate::message::{DeadLetter, DeadReason, Destination, Kind, MessageId};
use crate::queue::Queue;

/// The facts of one dead letter for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) id: MessageId,
    pub(crate) destination: Destination,
    pub(crate) kind: Kind,
    /// `None` for a callback, which names only its chat.
    pub(crate) conversation_id: Option<String>,
    /// ServiceNow's id of the chat, if the message names it.
    pub(crate) group: Option<String>,
    pub(crate) reason: DeadReason,
    pub(crate) detail: String,
    pub(crate) died_at: Timestamp,
    pub(crate) attempts: u32,
    lane: String,
}

impl From<&DeadLetter> for Brief {
    fn from(dead: &DeadLetter) -> Self {
        let message = &dead.message;
        let lane = message.lane.to_string();
        // The lane of a message to ServiceNow is its conversation, also if the body cannot be read.
        let by_lane = || message.kind.is_for_servicenow().then(|| lane.clone());
        Self {
            id: message.id,
            destination: message.destination,
            kind: message.kind,
            conversation_id: conversation_of(dead).or_else(by_lane),
            group: group_of(dead),
            reason: dead.reason,
            detail: dead.detail.clone(),
            died_at: dead.died_at,
            attempts: dead.story.count(),
            lane,
        }
    }
}

impl Brief {
    /// The conversation for a person: its id, else the chat, else the lane.
    pub(crate) fn conversation(&self) -> &str {
        self.conversation_id.as_deref().or(self.group.as_deref()).unwrap_or(&self.lane)
    }

    /// The element of `dead_letters` in `causeway dead list --json`.
    pub(crate) fn json(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "destination": self.destination.as_str(),
            "kind": self.kind.as_str(),
            "conversation_id": self.conversation_id,
            "group": self.group,
            "reason": self.reason.as_str(),
            "detail": self.detail,
            "died_at": self.died_at.to_string(),
            "attempts": self.attempts,
        })
    }
}

/// The matching dead letters, newest last.
pub(crate) async fn briefs(queue: &Queue, filter: &DeadLetterFilter) -> Result<Vec<Brief>, DeadLetterError> {
    let mut briefs = Vec::new();
    look::<DeadLetterError>(queue, filter, |dead| {
        briefs.push(Brief::from(dead));
        Ok(())
    })
    .await?;
    // The sort is stable: dead letters of one destination and one millisecond keep their order.
    briefs.sort_by_key(|brief| brief.died_at);
    Ok(briefs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AttemptHistory, LaneKey, Message};

    fn brief(kind: Kind, destination: Destination, lane: &str, body: &'static str) -> Brief {
        let lane = LaneKey::parse(lane).unwrap();
        let message = Message::new(MessageId::fresh(), kind, destination, lane, body);
        Brief::from(&DeadLetter::new(message, DeadReason::Rejected, "refused", AttemptHistory::default()))
    }

    #[test]
    fn a_line_names_the_conversation_as_well_as_it_can() {
        let unreadable = brief(Kind::HandoffMessage, Destination::ServiceNow, "c-1", "no json");
        assert_eq!((unreadable.conversation_id.as_deref(), unreadable.group.as_deref()), (Some("c-1"), None));
        let callback = brief(Kind::CallbackMessage, Destination::Xo, "g-1", r#"{"group":"g-1"}"#);
        assert_eq!((callback.conversation_id.as_deref(), callback.group.as_deref()), (None, Some("g-1")));
        let alone = brief(Kind::CallbackMessage, Destination::Xo, "alone", "no json");
        let shown = [&unreadable, &callback, &alone].map(Brief::conversation);
        assert_eq!(shown, ["c-1", "g-1", "alone"]);
    }
}
