//! One dead letter, for a person or a program.
//!
//! As JSON: `{"id", "destination", "kind", "lane", "conversation_id", "reason", "detail", "accepted_at", "died_at",
//! "replays", "attempts", "story": [{"at", "status", "outcome", "error"}], "body_bytes"}`, and where the text was asked
//! for `"body"`, the message exactly as it came, as a string (or `"body_base64"` where it is not UTF-8).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::{Failure, output};
use crate::dead::{self, Filter};
use crate::message::DeadLetter;
use crate::queue::Queue;

/// `causeway dead show`.
pub(super) async fn show(
    queue: &Queue,
    filter: &Filter,
    json: bool,
    reveal: bool,
    limit: usize,
) -> Result<(), Failure> {
    let mut matching = 0_usize;
    let mut documents = Vec::new();
    dead::look::<Failure>(queue, filter, |dead| {
        matching += 1;
        if limit != 0 && matching > limit {
            return Ok(());
        }
        if json {
            documents.push(document(dead, reveal));
            return Ok(());
        }
        let gap = if matching > 1 { "\n" } else { "" };
        Ok(output::line(format_args!("{gap}{}", story(dead, reveal)))?)
    })
    .await?;
    if json {
        return Ok(output::json(&json!({ "matching": matching, "dead_letters": documents }))?);
    }
    match matching {
        0 => Ok(output::line("no dead letters")?),
        more if limit != 0 && more > limit => {
            Ok(output::line(format_args!("\n... and {} more: --limit 0 shows all", more - limit))?)
        }
        _ => Ok(()),
    }
}

/// For a program.
pub(super) fn document(dead: &DeadLetter, reveal: bool) -> Value {
    let message = &dead.message;
    let mut document = json!({
        "id": message.id.to_string(),
        "destination": message.destination().as_str(),
        "kind": message.kind.as_str(),
        "lane": message.lane.as_str(),
        "conversation_id": dead::conversation_of(dead),
        "reason": dead.reason.as_str(),
        "detail": dead.detail,
        "accepted_at": message.accepted_at.to_string(),
        "died_at": dead.died_at.to_string(),
        "replays": message.replays,
        "attempts": dead.story.count(),
        "story": dead.story.attempts(),
        "body_bytes": message.body.len(),
    });
    if reveal && let Some(fields) = document.as_object_mut() {
        match std::str::from_utf8(&message.body) {
            Ok(text) => fields.insert("body".to_owned(), text.into()),
            Err(_) => fields.insert("body_base64".to_owned(), STANDARD.encode(&message.body).into()),
        };
    }
    document
}

/// For a person.
fn story(dead: &DeadLetter, reveal: bool) -> String {
    let message = &dead.message;
    let conversation = dead::conversation_of(dead).filter(|id| id != message.lane.as_str());
    let conversation = conversation.map(|id| format!(", conversation {id}")).unwrap_or_default();
    let replays =
        if message.replays > 0 { format!(", replayed {} before", message.replays) } else { String::new() };
    let mut lines = vec![
        format!("{}  {}, lane {}{conversation}", message.id, message.kind, message.lane),
        format!("  died      {}  {}: {}", dead.died_at, dead.reason, dead.detail),
        format!("  accepted  {}{replays}", message.accepted_at),
        format!("  attempts  {}", dead.story.count()),
    ];
    let left_out = dead.story.left_out();
    for (number, attempt) in dead.story.attempts().iter().enumerate() {
        if number == 5 && left_out > 0 {
            lines.push(format!("    ... {left_out} more ..."));
        }
        let status = attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        lines.push(format!("    {}  {status:>3}  {}  {}", attempt.at, attempt.outcome, attempt.error));
    }
    lines.push(if reveal {
        format!("  text      {}", String::from_utf8_lossy(&message.body))
    } else {
        format!("  text      {} bytes, hidden: --reveal shows them", message.body.len())
    });
    lines.iter().map(|line| output::harmless(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeadReason, Kind, LaneKey, Message, MessageId, Story};

    fn dead(body: &'static [u8]) -> DeadLetter {
        let message =
            Message::new(MessageId::fresh(), Kind::HandoffMessage, LaneKey::parse("c-1").unwrap(), body);
        DeadLetter::new(message, DeadReason::Rejected, "ServiceNow said no", Story::default())
    }

    #[test]
    fn text_is_hidden_until_asked_for() {
        let dead = dead(br#"{"type":"message","conversation_id":"c-1","message":"private words"}"#);
        assert!(!story(&dead, false).contains("private"));
        assert!(!document(&dead, false).to_string().contains("private"));
        assert!(story(&dead, true).contains("private words"));
        assert!(document(&dead, true)["body"].as_str().unwrap().contains("private words"));
        assert_eq!(document(&dead, false)["conversation_id"], "c-1");
    }

    #[test]
    fn raw_bytes_are_exported_as_they_are() {
        let document = document(&dead(&[0xff, 0x00]), true);
        assert_eq!(document["body_base64"], "/wA=");
        assert!(document.get("body").is_none());
    }
}
