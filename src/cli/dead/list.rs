//! `causeway dead list` prints one line for each dead letter, `causeway dead count` one line for each destination, reason
//! and answer of the platform.
//!
//! Guarantees: no line is wider than the terminal, and none is wider than 80 columns without a terminal. No message text is
//! printed.

use serde_json::{Value, json};

use super::super::{CliFailure, output};
use crate::clock;
use crate::dead_letters::brief::{self, Brief};
use crate::dead_letters::{self, Answer, DeadLetterFilter, GroupSummary, json};
use crate::message::{DeadReason, Destination};
use crate::queue::Queue;

/// The length of a shortened id: the last digits of an id are random, so eight of them tell dead letters apart.
const SHORT_ID: usize = 8;
/// The columns of a table with complete ids.
const WIDE: usize = 120;

/// `causeway dead list`. `limit` keeps the newest dead letters; 0 keeps all.
pub(super) async fn list(
    queue: &Queue,
    filter: &DeadLetterFilter,
    limit: usize,
    json: bool,
) -> Result<(), CliFailure> {
    let briefs = brief::briefs(queue, filter).await?;
    let total = briefs.len();
    let left_out = if limit == 0 { 0 } else { total.saturating_sub(limit) };
    let shown = briefs.get(left_out..).unwrap_or_default();
    if json {
        let letters: Value = shown.iter().map(Brief::json).collect();
        return Ok(output::json(&json!({ "dead_letters": letters, "total": total }))?);
    }
    if total == 0 {
        return Ok(output::line("no dead letters")?);
    }
    output::line(lines(shown, output::columns()))?;
    if left_out > 0 {
        output::line(format_args!("... and {left_out} older: --limit 0 shows all"))?;
    }
    Ok(())
}

fn lines(briefs: &[Brief], columns: usize) -> String {
    let is_wide = columns >= WIDE;
    let row = |brief: &Brief| {
        let id = brief.id.to_string();
        let id = if is_wide { id } else { id.chars().skip(id.len().saturating_sub(SHORT_ID)).collect() };
        vec![
            output::short_time(brief.died_at),
            id,
            output::cut(brief.destination.as_str(), 16),
            brief.reason.to_string(),
            output::harmless(brief.conversation()),
        ]
    };
    let head = ["DIED (UTC)", "ID", "TO", "REASON", "CONVERSATION"];
    output::table_within(columns, 4, &head, briefs.iter().map(row).collect(), &[])
}

/// `causeway dead count`.
pub(super) async fn count(queue: &Queue, filter: &DeadLetterFilter, json: bool) -> Result<(), CliFailure> {
    let entries = dead_letters::list(queue, filter).await?;
    if json {
        let groups = json::groups(&entries);
        return Ok(output::json(&json!({ "dead_letters": entries.len(), "groups": groups }))?);
    }
    Ok(output::line(counts(&entries))?)
}

/// The table of [`count`].
pub(super) fn counts(entries: &[dead_letters::DeadLetterSummary]) -> String {
    if entries.is_empty() {
        return "no dead letters".to_owned();
    }
    let ago = |at| output::age(clock::since(at).as_secs());
    let groups = dead_letters::summary_by(entries, |entry| (entry.destination, entry.reason, entry.answer));
    let row = |((destination, reason, answer), group): ((Destination, DeadReason, Answer), GroupSummary)| {
        vec![
            destination.to_string(),
            reason.to_string(),
            answer.to_string(),
            group.count.to_string(),
            group.lanes.to_string(),
            ago(group.first),
            ago(group.last),
        ]
    };
    let head = ["DESTINATION", "REASON", "ANSWER", "COUNT", "LANES", "OLDEST", "NEWEST"];
    output::table_within(output::columns(), 0, &head, groups.into_iter().map(row).collect(), &[3, 4, 5, 6])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AttemptHistory, BotName, DeadLetter, Kind, LaneKey, Message, MessageId};

    fn dead(destination: Destination, reason: DeadReason, conversation: &str) -> DeadLetter {
        let lane = LaneKey::parse(conversation).unwrap();
        let message = Message::new(MessageId::fresh(), Kind::CallbackMessage, destination, lane, "{}");
        DeadLetter::new(message, reason, "", AttemptHistory::default())
    }

    #[test]
    fn every_line_fits_and_keeps_what_matters() {
        let bot = Destination::Bot(BotName::parse("support-europe-west-4").unwrap());
        let letters = [
            dead(Destination::ServiceNow, DeadReason::UnknownConversation, &"会話".repeat(20)),
            dead(bot, DeadReason::ConversationFailed, &"c".repeat(200)),
            dead(Destination::Xo, DeadReason::Expired, "c-1"),
        ];
        let briefs: Vec<Brief> = letters.iter().map(Brief::from).collect();
        let text = lines(&briefs, 80);
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().all(|line| output::width(line) <= 80), "{text}");
        let id = letters[2].message.id.to_string();
        assert!(text.contains(&id[28..]) && !text.contains(&id) && text.contains("  c-1"), "{text}");
        assert!(lines(&briefs, 160).contains(&id));
        let entries: Vec<dead_letters::DeadLetterSummary> =
            letters.iter().map(dead_letters::DeadLetterSummary::from).collect();
        let text = counts(&entries);
        assert!(text.lines().all(|line| output::width(line) <= 80) && text.contains("not sent"), "{text}");
    }
}
