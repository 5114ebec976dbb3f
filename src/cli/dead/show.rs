//! Prints one dead letter as text. `dead_letters/json.rs` prints JSON.

use serde_json::json;

use super::super::{CliFailure, operator, output};
use crate::dead_letters::{self, DeadLetterFilter, json};
use crate::message::DeadLetter;
use crate::queue::Queue;
use crate::telemetry::{Act, Ending, audit};

/// `causeway dead show`.
pub(super) async fn show(
    queue: &Queue,
    filter: &DeadLetterFilter,
    json: bool,
    reveal: bool,
    limit: usize,
) -> Result<(), CliFailure> {
    let mut matching = 0_usize;
    let mut documents = Vec::new();
    let looked = dead_letters::look::<CliFailure>(queue, filter, |dead| {
        matching += 1;
        if limit != 0 && matching > limit {
            return Ok(());
        }
        if json {
            documents.push(json::letter(dead, reveal));
            return Ok(());
        }
        let gap = if matching > 1 { "\n" } else { "" };
        Ok(output::line(format_args!("{gap}{}", story(dead, reveal)))?)
    });
    let looked = looked.await;
    if reveal {
        let shown = if limit == 0 { matching } else { matching.min(limit) } as u64;
        let ending = if looked.is_ok() { Ending::Done(None) } else { Ending::Failed("not all were read") };
        audit(Act::Reveal, &operator::here(), filter.for_audit(), shown, ending);
    }
    looked?;
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

/// One dead letter as text.
fn story(dead: &DeadLetter, reveal: bool) -> String {
    let message = &dead.message;
    let conversation = dead_letters::conversation_of(dead).filter(|id| id != message.lane.as_str());
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
        let shown = reveal && !attempt.said.is_empty();
        let said = if shown { format!(": {}", attempt.said.reveal()) } else { String::new() };
        lines.push(format!("    {}  {status:>3}  {}  {}{said}", attempt.at, attempt.outcome, attempt.error));
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

    #[test]
    fn text_is_hidden_until_asked_for() {
        let dead =
            DeadLetter::refused(br#"{"type":"message","conversation_id":"c-1","message":"private words"}"#);
        assert!(!story(&dead, false).contains("private") && !story(&dead, false).contains("echoed"));
        assert!(story(&dead, true).contains("echoed words"));
        assert!(story(&dead, true).contains("private words"));
    }
}
