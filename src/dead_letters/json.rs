//! The JSON form of dead letters, which `causeway dead` and the admin listener share.
//!
//! A dead letter is `{"id", "destination", "kind", "lane", "conversation_id", "reason", "detail", "accepted_at",
//! "died_at", "replays", "attempts", "story": [{"at", "status", "outcome", "error"}], "body_bytes"}`, with `"request_id"` and
//! `"traceparent"` if the message has them. If the text is
//! requested, the JSON has more fields: `"body"`, the unchanged message as a string (`"body_base64"` if the message is not
//! UTF-8), `"digest"` of the caller's request if the caller chose a key, and in the story `"platform_words"`, the
//! platform's words, which can repeat the text. `import.rs` reads the JSON with the text back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::outcome::ReplayOutcomes;
use super::replay::ReplayPlan;
use super::{DeadLetterSummary, GroupSummary, conversation_of, summary, summary_by};
use crate::message::{AttemptRecord, DeadLetter, DeadReason, Destination};

/// The JSON of one dead letter, with or without the text.
pub(crate) fn letter(dead: &DeadLetter, reveal: bool) -> Value {
    let message = &dead.message;
    let mut document = json!({
        "id": message.id.to_string(),
        "destination": message.destination.as_str(),
        "kind": message.kind.as_str(),
        "lane": message.lane.as_str(),
        "conversation_id": conversation_of(dead),
        "reason": dead.reason.as_str(),
        "detail": dead.detail,
        "accepted_at": message.accepted_at.to_string(),
        "died_at": dead.died_at.to_string(),
        "replays": message.replays,
        "attempts": dead.story.count(),
        "story": dead.story.attempts().iter().map(|attempt| record(attempt, reveal)).collect::<Value>(),
        "body_bytes": message.body.len(),
    });
    if let Some(fields) = document.as_object_mut() {
        let trace = &message.trace;
        fields.extend(trace.request_id.as_deref().map(|id| ("request_id".to_owned(), id.into())));
        fields.extend(trace.parent.as_ref().map(|it| ("traceparent".to_owned(), it.as_str().into())));
    }
    if reveal && let Some(fields) = document.as_object_mut() {
        fields.extend(message.digest.map(|digest| ("digest".to_owned(), digest.to_string().into())));
        match std::str::from_utf8(&message.body) {
            Ok(text) => fields.insert("body".to_owned(), text.into()),
            Err(_) => fields.insert("body_base64".to_owned(), STANDARD.encode(&message.body).into()),
        };
    }
    document
}

fn record(attempt: &AttemptRecord, reveal: bool) -> Value {
    let AttemptRecord { at, status, outcome, error, said } = attempt;
    let mut record = json!({ "at": at.to_string(), "outcome": outcome, "error": error });
    if let Some(fields) = record.as_object_mut() {
        fields.extend(status.map(|status| ("status".to_owned(), status.into())));
        if reveal && !said.is_empty() {
            fields.insert("platform_words".to_owned(), said.reveal().into());
        }
    }
    record
}

/// The number of dead letters by destination and reason, and within them by the platform's last answer: the HTTP status as
/// text, `no answer` or `not sent`.
pub(crate) fn groups(entries: &[DeadLetterSummary]) -> Value {
    let by_answer = summary_by(entries, |entry| (entry.destination, entry.reason, entry.answer));
    let group = |((destination, reason), group): ((Destination, DeadReason), GroupSummary)| {
        let answers = by_answer.iter().filter(|((to, why, _), _)| (*to, *why) == (destination, reason));
        let answers = answers
            .map(|((_, _, answer), group)| json!({ "answer": answer.to_string(), "count": group.count }));
        json!({
            "destination": destination.as_str(),
            "reason": reason.as_str(),
            "count": group.count,
            "lanes": group.lanes,
            "first_died_at": group.first.to_string(),
            "last_died_at": group.last.to_string(),
            "answers": answers.collect::<Value>(),
        })
    };
    summary(entries).into_iter().map(group).collect()
}

/// The steps of a replay, with counts.
pub(crate) fn plan(plan: &ReplayPlan) -> Value {
    let steps = plan.summary().into_iter().map(|((action, destination, reason), (count, lanes))| {
        json!({
            "fate": action.as_str(),
            "stays": action.stays(),
            "destination": destination.as_str(),
            "reason": reason.as_str(),
            "count": count,
            "lanes": lanes,
        })
    });
    json!({ "replay": plan.to_replay(), "take_out": plan.to_clear(), "leave": plan.to_leave(), "steps": steps.collect::<Value>() })
}

/// The results of a replay.
pub(crate) fn outcomes(outcomes: &ReplayOutcomes) -> Value {
    json!({
        "delivered": outcomes.delivered,
        "died_again": outcomes.died_again,
        "answered": outcomes.answered,
        "nothing_to_send": outcomes.nothing_to_send,
        "on_the_way": outcomes.on_the_way,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_hidden_until_asked_for() {
        let dead =
            DeadLetter::refused(br#"{"type":"message","conversation_id":"c-1","message":"private words"}"#);
        assert!(!letter(&dead, false).to_string().contains("private"));
        assert!(!letter(&dead, false).to_string().contains("echoed"));
        assert_eq!(letter(&dead, false)["story"][0]["status"], 400);
        assert_eq!(letter(&dead, true)["story"][0]["platform_words"], "Bad value: echoed words");
        assert!(letter(&dead, true)["body"].as_str().unwrap().contains("private words"));
        assert_eq!(letter(&dead, false)["conversation_id"], "c-1");
    }

    #[test]
    fn raw_bytes_are_exported_as_they_are() {
        let document = letter(&DeadLetter::refused(&[0xff, 0x00]), true);
        assert_eq!(document["body_base64"], "/wA=");
        assert!(document.get("body").is_none());
    }
}
