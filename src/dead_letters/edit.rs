//! Makes an edited copy of a dead letter's message.
//!
//! Guarantees: the copy has another id, so that it counts as another message. The same edit of the same dead letter has the same id
//! until its message dies, so that a repeated edit is not a second message. The dead letter stays unchanged. Only an unreadable
//! message and a message that the platform refused can be edited.
//! Not responsible for: publishing the copy and removing the dead letter after its delivery (`admin/console/edit.rs`).

use super::{DeadLetterFilter, DeadLetterKey, group_of, look};
use crate::clock;
use crate::message::{DeadLetter, DeadReason, LaneKey, Message, MessageId};
use crate::queue::{Queue, QueueError};

/// Whether a message with this reason can be edited. Every other message can be delivered as it is.
pub(crate) const fn is_editable(reason: DeadReason) -> bool {
    matches!(reason, DeadReason::Unreadable | DeadReason::Rejected)
}

/// The message with another body and another id, accepted now. `died` is the number of the messages of the same edit that
/// died. The error names the fault, without the text.
pub(crate) fn edited(dead: &DeadLetter, body: &str, died: u32) -> Result<Message, String> {
    if !is_editable(dead.reason) {
        return Err(format!("has the reason {}: replay it as it is", dead.reason));
    }
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(body) {
        return Err(format!("is not JSON: it breaks at line {}, column {}", error.line(), error.column()));
    }
    if body.as_bytes() == dead.message.body {
        return Err("is not changed: replay it as it is".to_owned());
    }
    let (original, died_at) = (dead.message.id.to_string(), dead.died_at.to_string());
    let id = MessageId::derived_from("edited-dead-letter", &[&original, &died_at, &died.to_string(), body]);
    let message = Message {
        id,
        accepted_at: clock::now(),
        replays: 0,
        digest: None,
        body: body.to_owned().into(),
        ..dead.message.clone()
    };
    // An unreadable callback was alone in its lane, because its chat could not be read.
    if dead.message.lane != LaneKey::alone(dead.message.id) {
        return Ok(message);
    }
    let of_chat = group_of(&DeadLetter { message: message.clone(), ..dead.clone() });
    let lane = of_chat.and_then(|group| LaneKey::parse(&group).ok()).unwrap_or_else(|| LaneKey::alone(id));
    Ok(Message { lane, ..message })
}

/// The dead letter of this message: the one that died at `died_at`, or the newest one.
pub(crate) async fn one(
    queue: &Queue,
    id: MessageId,
    died_at: Option<jiff::Timestamp>,
) -> Result<Option<DeadLetter>, QueueError> {
    let filter = DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() };
    let mut found: Option<DeadLetter> = None;
    look::<QueueError>(queue, &filter, |dead| {
        let is_meant = died_at.is_none_or(|at| at == dead.died_at);
        if is_meant && found.as_ref().is_none_or(|found| found.died_at <= dead.died_at) {
            found = Some(dead.clone());
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

/// The key of a dead letter.
pub(crate) fn key(dead: &DeadLetter) -> DeadLetterKey {
    DeadLetterKey { id: dead.message.id, died_at: dead.died_at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AttemptHistory, Destination, Kind};

    fn dead(reason: DeadReason, lane: Option<&str>) -> DeadLetter {
        let id = MessageId::fresh();
        let lane = lane.map_or_else(|| LaneKey::alone(id), |lane| LaneKey::parse(lane).unwrap());
        let message = Message::new(id, Kind::CallbackMessage, Destination::Callbacks, lane, "{broken");
        let message = Message { replays: 2, ..message };
        DeadLetter::new(message, reason, "", AttemptHistory::default())
    }

    #[test]
    fn an_edited_message_is_another_message_in_the_lane_of_its_chat() {
        let refused = dead(DeadReason::Rejected, Some("g-1"));
        let message = edited(&refused, r#"{"group":"g-2"}"#, 0).unwrap();
        assert_ne!(message.id, refused.message.id);
        assert_eq!(edited(&refused, r#"{"group":"g-2"}"#, 0).unwrap().id, message.id, "it is the same edit");
        for (body, died) in [(r#"{"group":"g-3"}"#, 0), (r#"{"group":"g-2"}"#, 1)] {
            assert_ne!(edited(&refused, body, died).unwrap().id, message.id);
        }
        assert_eq!((message.replays, message.lane.as_str(), message.digest), (0, "g-1", None));
        let unreadable = dead(DeadReason::Unreadable, None);
        assert_eq!(edited(&unreadable, r#"{"group":"g-2"}"#, 0).unwrap().lane.as_str(), "g-2");
        let message = edited(&unreadable, "{}", 0).unwrap();
        assert_eq!(message.lane, LaneKey::alone(message.id));
    }

    #[test]
    fn an_edit_that_would_die_again_is_refused() {
        let why = |reason, body| edited(&dead(reason, Some("g-1")), body, 0).unwrap_err();
        assert!(why(DeadReason::Expired, "{}").contains("expired"));
        assert!(why(DeadReason::Rejected, "{\n  private words").contains("line 2"));
        assert!(!why(DeadReason::Rejected, "{\n  private words").contains("private"));
        let same = DeadLetter::refused(b"{}");
        assert!(edited(&same, "{}", 0).unwrap_err().contains("not changed"));
    }
}
