//! A dead letter as one line of a list: all that an operator needs to choose, without text and history.
//!
//! Guarantees: the list has the newest dead letter at its end, over all destinations. Memory holds no text.
//! Not responsible for: the layout (`cli/dead/list.rs`).

use std::ops::Range;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Answer, DeadLetterError, DeadLetterFilter, DeadLetterSummary, conversation_of, group_of, look};
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
    /// The platform's answer to the last attempt.
    pub(crate) answer: Answer,
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
            answer: Answer::from(dead),
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

/// One page of a list.
#[derive(Debug, Default)]
pub(crate) struct BriefPage {
    /// All matching dead letters.
    pub(crate) entries: Vec<DeadLetterSummary>,
    /// Those of the page, in the order of the list.
    pub(crate) briefs: Vec<Brief>,
    /// The destinations that the queue is configured for.
    pub(crate) destinations: Vec<Destination>,
}

/// Reads all matching dead letters, and keeps the lines at these positions of the list.
pub(crate) async fn page(
    queue: &Queue,
    filter: &DeadLetterFilter,
    positions: Range<usize>,
    newest_first: bool,
) -> Result<BriefPage, DeadLetterError> {
    let mut found = BriefPage { destinations: queue.destinations().iter().collect(), ..BriefPage::default() };
    look::<DeadLetterError>(queue, filter, |dead| {
        found.entries.push(DeadLetterSummary::from(dead));
        found.briefs.push(Brief::from(dead));
        // Lines behind the page need no memory.
        if found.briefs.len() >= positions.end.saturating_mul(2).max(64) {
            cut(&mut found.briefs, positions.end, newest_first);
        }
        Ok(())
    })
    .await?;
    cut(&mut found.briefs, positions.end, newest_first);
    found.briefs.drain(..positions.start.min(found.briefs.len()));
    Ok(found)
}

/// Sorts the lines and keeps the first ones. The sort is stable, so that each line stays on one page.
fn cut(briefs: &mut Vec<Brief>, end: usize, newest_first: bool) {
    if newest_first {
        briefs.sort_by_key(|brief| std::cmp::Reverse(brief.died_at));
    } else {
        briefs.sort_by_key(|brief| brief.died_at);
    }
    briefs.truncate(end);
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

    #[test]
    fn a_page_keeps_the_lines_that_it_shows() {
        let at = |second: i64| Brief {
            died_at: Timestamp::from_second(second).unwrap(),
            ..brief(Kind::HandoffMessage, Destination::ServiceNow, "c-1", "")
        };
        let seconds = |newest_first| {
            let mut briefs: Vec<Brief> = [3, 1, 4, 2].map(at).into();
            cut(&mut briefs, 3, newest_first);
            briefs.iter().map(|brief| brief.died_at.as_second()).collect::<Vec<_>>()
        };
        assert_eq!((seconds(true), seconds(false)), (vec![4, 3, 2], vec![1, 2, 3]));
    }
}
