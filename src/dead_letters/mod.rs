//! Reads, replays and discards dead letters.
//!
//! Guarantees: reading changes nothing. Every change concerns one dead letter at a time, so a kill at any moment loses
//! none, and the next run continues. Both engines are supported, through [`crate::queue::DeadLetterReader`].
//!
//! Not responsible for: the operator's input and output (`cli/dead`, `ingress/desk`), writing dead letters
//! (`worker/policy.rs`).

pub(crate) mod brief;
pub(crate) mod edit;
mod export;
pub(crate) mod filter;
pub(crate) mod import;
pub(crate) mod json;
pub mod outcome;
pub mod replay;
mod replayer;
mod resequencer;
pub(crate) mod retention;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub(crate) use export::export;
use jiff::Timestamp;

use crate::conversation::{Directory, DirectoryError};
use crate::message::{
    DeadLetter, DeadReason, Destination, Kind, LaneKey, MessageId, PayloadDigest, bot_turn,
};
use crate::queue::{DeadLetterEntry, DeadLetterReader, Queue, QueueError};

/// The error that stopped the work on dead letters. No dead letter is lost; another run continues.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The directory, which knows the deliveries, failed.
    #[error("cannot read from the directory which messages were delivered: {0}")]
    Directory(String),
}

impl From<DirectoryError> for DeadLetterError {
    fn from(error: DirectoryError) -> Self {
        Self::Directory(error.to_string())
    }
}

/// A filter of dead letters. An absent condition matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// The destination of the message.
    pub destination: Option<Destination>,
    /// The conversation's id, or ServiceNow's `group` or number of its chat.
    pub conversation: Option<String>,
    /// The other names of the conversation, which [`Self::find_names`] adds. A callback names only its chat, and a message
    /// of the user names only the conversation.
    pub names: BTreeSet<String>,
    /// The reasons; empty matches all.
    pub reasons: BTreeSet<DeadReason>,
    /// The platform's answer to the last attempt.
    pub answer: Option<Answer>,
    /// The dead letter was written at this time or later.
    pub since: Option<Timestamp>,
    /// The dead letter was written before this time.
    pub until: Option<Timestamp>,
    /// The ids of the messages; empty matches all.
    pub ids: BTreeSet<MessageId>,
}

impl DeadLetterFilter {
    /// Whether a dead letter matches.
    pub fn matches(&self, dead: &DeadLetter) -> bool {
        self.destination.is_none_or(|wanted| wanted == dead.message.destination)
            && (self.reasons.is_empty() || self.reasons.contains(&dead.reason))
            && self.answer.is_none_or(|wanted| wanted == Answer::from(dead))
            && self.since.is_none_or(|since| since <= dead.died_at)
            && self.until.is_none_or(|until| dead.died_at < until)
            && (self.ids.is_empty() || self.ids.contains(&dead.message.id))
            // The last condition, because it may have to parse the body.
            && self.conversation.as_deref().is_none_or(|wanted| {
                let is_meant = |name: &str| name == wanted || self.names.contains(name);
                is_meant(dead.message.lane.as_str())
                    || conversation_of(dead).as_deref().is_some_and(is_meant)
                    || group_of(dead).as_deref().is_some_and(is_meant)
            })
    }

    /// Looks the other names of the conversation up, so that the filter matches both directions by any of its names.
    pub async fn find_names(&mut self, directory: &Directory) -> Result<(), DirectoryError> {
        if let Some(name) = &self.conversation {
            self.names = directory.names(name).await?;
        }
        Ok(())
    }

    /// Refuses a period without a moment in it. The error does not name the parameters.
    pub fn check(&self) -> Result<(), String> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since >= until => {
                Err(format!("{since} is not before {until}, so nothing would match"))
            }
            _ => Ok(()),
        }
    }

    /// The destinations whose dead letters must be read: the destination of the filter, even if the settings no longer
    /// contain the name, otherwise all destinations of the queue.
    pub fn destinations(&self, queue: &Queue) -> Vec<Destination> {
        match self.destination {
            Some(destination) => vec![destination],
            None => queue.destinations().iter().collect(),
        }
    }
}

/// The conversation that the body names. A callback of ServiceNow names no conversation, only its lane.
pub fn conversation_of(dead: &DeadLetter) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct ConversationIdOnly {
        conversation_id: String,
    }
    if dead.message.kind.is_bot_turn() {
        return Some(bot_turn::conversation_of(&dead.message.lane).to_owned());
    }
    serde_json::from_slice::<ConversationIdOnly>(&dead.message.body).ok().map(|named| named.conversation_id)
}

/// The ServiceNow chat that the body names.
fn group_of(dead: &DeadLetter) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct GroupOnly {
        #[serde(alias = "clientSessionId")]
        group: String,
    }
    serde_json::from_slice::<GroupOnly>(&dead.message.body).ok().map(|named| named.group)
}

/// The answer of the platform to the last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// The HTTP status.
    Status(u16),
    /// The last attempt ended without an answer.
    None,
    /// There was no attempt.
    NotSent,
}

impl From<&DeadLetter> for Answer {
    fn from(dead: &DeadLetter) -> Self {
        dead.story
            .attempts()
            .last()
            .map_or(Self::NotSent, |attempt| attempt.status.map_or(Self::None, Self::Status))
    }
}

impl Answer {
    /// Parses what [`Display`](std::fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "no answer" => Some(Self::None),
            "not sent" => Some(Self::NotSent),
            status => status.parse().ok().filter(|status| (100..1000).contains(status)).map(Self::Status),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::None => f.write_str("no answer"),
            Self::NotSent => f.write_str("not sent"),
        }
    }
}

/// The key of one dead letter. The same message may have been dead-lettered more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeadLetterKey {
    /// The message.
    pub id: MessageId,
    /// The time of this dead letter.
    pub died_at: Timestamp,
}

/// The facts of a dead letter that are kept in memory while many are read: everything except its text and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// The key of the dead letter.
    pub key: DeadLetterKey,
    /// The kind of the message.
    pub kind: Kind,
    /// The destination of the message.
    pub destination: Destination,
    /// The lane of the message.
    pub lane: LaneKey,
    /// The reason of the dead letter.
    pub reason: DeadReason,
    /// The platform's answer to the last attempt.
    pub answer: Answer,
    /// When the message was accepted.
    pub accepted_at: Timestamp,
    /// How often the message was replayed before.
    pub replays: u32,
    /// The digest of the caller's request, if the caller chose a key for the request.
    pub digest: Option<PayloadDigest>,
}

impl From<&DeadLetter> for DeadLetterSummary {
    fn from(dead: &DeadLetter) -> Self {
        Self {
            key: DeadLetterKey { id: dead.message.id, died_at: dead.died_at },
            kind: dead.message.kind,
            destination: dead.message.destination,
            lane: dead.message.lane.clone(),
            reason: dead.reason,
            answer: Answer::from(dead),
            accepted_at: dead.message.accepted_at,
            replays: dead.message.replays,
            digest: dead.message.digest,
        }
    }
}

/// A reading session for the dead letters of one destination that match a filter.
///
/// A dead letter that was handed out can be removed until [`FilteredReader::end`].
#[derive(Debug)]
pub struct FilteredReader<'a> {
    dead_letter_reader: DeadLetterReader,
    filter: &'a DeadLetterFilter,
}

impl<'a> FilteredReader<'a> {
    /// Opens a session in which dead letters may be removed.
    pub async fn begin(
        queue: &Queue,
        destination: Destination,
        filter: &'a DeadLetterFilter,
    ) -> Result<Self, QueueError> {
        Ok(Self { dead_letter_reader: queue.dead_letter_reader(destination).await?, filter })
    }

    /// Opens a read-only session.
    pub async fn reading(
        queue: &Queue,
        destination: Destination,
        filter: &'a DeadLetterFilter,
    ) -> Result<Self, QueueError> {
        Ok(Self { dead_letter_reader: queue.read_dead_letters(destination).await?, filter })
    }

    /// The next matching dead letter, in the order of death.
    pub async fn next(&mut self) -> Result<Option<DeadLetterEntry>, QueueError> {
        while let Some(held) = self.dead_letter_reader.next().await? {
            if self.filter.matches(&held.dead) {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }

    /// Closes the session. Every dead letter that was not removed stays.
    pub async fn end(self) {
        self.dead_letter_reader.close().await;
    }
}

/// Calls `look` for every matching dead letter, by destination and in the order of death, until `look` returns an
/// error.
pub async fn look<E: From<QueueError>>(
    queue: &Queue,
    filter: &DeadLetterFilter,
    mut look: impl FnMut(&DeadLetter) -> Result<(), E>,
) -> Result<(), E> {
    for destination in filter.destinations(queue) {
        let mut filtered = FilteredReader::reading(queue, destination, filter).await?;
        let mut seen = Ok(());
        while seen.is_ok() {
            match filtered.next().await {
                Ok(Some(held)) => seen = look(&held.dead),
                Ok(None) => break,
                Err(error) => seen = Err(error.into()),
            }
        }
        filtered.end().await;
        seen?;
    }
    Ok(())
}

/// The matching dead letters, without texts and histories.
pub async fn list(
    queue: &Queue,
    filter: &DeadLetterFilter,
) -> Result<Vec<DeadLetterSummary>, DeadLetterError> {
    let mut entries = Vec::new();
    look::<DeadLetterError>(queue, filter, |dead| {
        entries.push(DeadLetterSummary::from(dead));
        Ok(())
    })
    .await?;
    Ok(entries)
}

/// All matching dead letters, and the first ones complete.
#[derive(Debug, Default)]
pub(crate) struct SearchResult {
    /// All matching dead letters.
    pub(crate) entries: Vec<DeadLetterSummary>,
    /// The first matching dead letters, up to the requested limit.
    pub(crate) letters: Vec<DeadLetter>,
}

/// The most bytes of bodies in memory. The list is shorter if the dead letters are very large.
const RESULT_BYTES_MAX: usize = 24 << 20;

/// Reads all matching dead letters and keeps the first ones complete: at most `limit`, and at most [`RESULT_BYTES_MAX`]
/// bytes.
pub(crate) async fn find(
    queue: &Queue,
    filter: &DeadLetterFilter,
    limit: usize,
) -> Result<SearchResult, DeadLetterError> {
    let mut found = SearchResult::default();
    let mut bytes = 0_usize;
    look::<DeadLetterError>(queue, filter, |dead| {
        found.entries.push(DeadLetterSummary::from(dead));
        bytes = bytes.saturating_add(dead.message.body.len());
        if found.letters.is_empty() && limit > 0 || found.letters.len() < limit && bytes <= RESULT_BYTES_MAX {
            found.letters.push(dead.clone());
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

/// Removes exactly these dead letters permanently. `progress` gets the number of removed ones after each.
pub async fn discard(
    queue: &Queue,
    filter: &DeadLetterFilter,
    selected: &HashSet<DeadLetterKey>,
    mut progress: impl FnMut(u64),
) -> Result<u64, DeadLetterError> {
    let mut gone = 0;
    for destination in filter.destinations(queue) {
        let mut filtered = FilteredReader::begin(queue, destination, filter).await?;
        let done = discard_at(&mut filtered, selected, &mut gone, &mut progress).await;
        filtered.end().await;
        done?;
    }
    Ok(gone)
}

async fn discard_at(
    filtered: &mut FilteredReader<'_>,
    selected: &HashSet<DeadLetterKey>,
    gone: &mut u64,
    progress: &mut impl FnMut(u64),
) -> Result<(), QueueError> {
    while let Some(held) = filtered.next().await? {
        if selected.contains(&DeadLetterSummary::from(&held.dead).key) {
            held.remove().await?;
            *gone += 1;
            progress(*gone);
        }
    }
    Ok(())
}

/// Dead letters with a fact in common, such as destination and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// The number of dead letters.
    pub count: u64,
    /// The number of lanes.
    pub lanes: usize,
    /// The time of the first dead letter.
    pub first: Timestamp,
    /// The time of the last dead letter.
    pub last: Timestamp,
}

/// Groups dead letters by destination and reason.
pub fn summary(entries: &[DeadLetterSummary]) -> BTreeMap<(Destination, DeadReason), GroupSummary> {
    summary_by(entries, |entry| (entry.destination, entry.reason))
}

/// Groups dead letters by any of their facts.
pub fn summary_by<K: Ord + Copy>(
    entries: &[DeadLetterSummary],
    key: impl Fn(&DeadLetterSummary) -> K,
) -> BTreeMap<K, GroupSummary> {
    let mut lanes: BTreeMap<K, BTreeSet<&LaneKey>> = BTreeMap::new();
    let mut groups: BTreeMap<K, GroupSummary> = BTreeMap::new();
    for entry in entries {
        let which = key(entry);
        lanes.entry(which).or_default().insert(&entry.lane);
        let died_at = entry.key.died_at;
        let group =
            groups.entry(which).or_insert(GroupSummary { count: 0, lanes: 0, first: died_at, last: died_at });
        group.count += 1;
        group.first = group.first.min(died_at);
        group.last = group.last.max(died_at);
    }
    for (which, group) in &mut groups {
        group.lanes = lanes.get(which).map_or(0, BTreeSet::len);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AttemptHistory, AttemptRecord, Message, PlatformWords};

    fn dead(kind: Kind, lane: &str, body: &'static str, reason: DeadReason, died: i64) -> DeadLetter {
        let destination = if kind.is_for_servicenow() { Destination::ServiceNow } else { Destination::Xo };
        let message =
            Message::new(MessageId::fresh(), kind, destination, LaneKey::parse(lane).unwrap(), body);
        let died_at = Timestamp::from_second(died).unwrap();
        DeadLetter { died_at, ..DeadLetter::new(message, reason, "", AttemptHistory::default()) }
    }

    #[test]
    fn a_filter_means_what_it_names() {
        let one =
            dead(Kind::CallbackEnded, "group-1", r#"{"conversation_id":"c-1"}"#, DeadReason::Expired, 100);
        let matches = |filter: DeadLetterFilter| filter.matches(&one);
        let all = DeadLetterFilter::default;
        let at = |second| Timestamp::from_second(second).ok();
        assert!(matches(all()));
        assert!(matches(DeadLetterFilter { destination: Some(Destination::Xo), ..all() }));
        assert!(!matches(DeadLetterFilter { destination: Some(Destination::ServiceNow), ..all() }));
        assert!(matches(DeadLetterFilter { conversation: Some("group-1".into()), ..all() }));
        assert!(matches(DeadLetterFilter { conversation: Some("c-1".into()), ..all() }));
        assert!(!matches(DeadLetterFilter { conversation: Some("c-2".into()), ..all() }));
        assert!(matches(DeadLetterFilter {
            conversation: Some("CHAT0001".into()),
            names: ["c-1".into(), "group-1".into()].into(),
            ..all()
        }));
        assert!(!matches(DeadLetterFilter { reasons: [DeadReason::Rejected].into(), ..all() }));
        assert!(matches(DeadLetterFilter {
            reasons: [DeadReason::Rejected, DeadReason::Expired].into(),
            ..all()
        }));
        assert!(matches(DeadLetterFilter { since: at(100), until: at(101), ..all() }));
        assert!(!matches(DeadLetterFilter { until: at(100), ..all() }));
        assert!(!matches(DeadLetterFilter { since: at(101), ..all() }));
        assert!(matches(DeadLetterFilter { ids: [one.message.id].into(), ..all() }));
        assert!(!matches(DeadLetterFilter { ids: [MessageId::fresh()].into(), ..all() }));
    }

    #[test]
    fn unreadable_bodies_match_by_their_lane() {
        let one = dead(Kind::CallbackMessage, "alone", "\u{1}not json", DeadReason::Unreadable, 1);
        assert!(
            DeadLetterFilter { conversation: Some("alone".into()), ..DeadLetterFilter::default() }
                .matches(&one)
        );
        assert_eq!(conversation_of(&one), None);
    }

    #[test]
    fn a_summary_counts_messages_and_lanes() {
        let all = [
            dead(Kind::CallbackMessage, "a", "{}", DeadReason::Expired, 30),
            dead(Kind::CallbackMessage, "a", "{}", DeadReason::Expired, 10),
            dead(Kind::CallbackMessage, "b", "{}", DeadReason::Expired, 20),
            dead(Kind::HandoffStart, "c", "{}", DeadReason::Rejected, 5),
        ];
        let entries: Vec<DeadLetterSummary> = all.iter().map(DeadLetterSummary::from).collect();
        let groups = summary(&entries);
        let group = &groups[&(Destination::Xo, DeadReason::Expired)];
        assert_eq!((group.count, group.lanes), (3, 2));
        assert_eq!((group.first.as_second(), group.last.as_second()), (10, 30));
        assert_eq!(groups.len(), 2);
    }

    #[test]
    fn the_answer_is_that_of_the_last_attempt() {
        let mut one = dead(Kind::CallbackMessage, "a", "{}", DeadReason::Rejected, 1);
        assert_eq!(Answer::from(&one).to_string(), "not sent");
        for (status, answer) in [(Some(503), "503"), (None, "no answer"), (Some(400), "400")] {
            let (outcome, error, said) = (String::new(), String::new(), PlatformWords::default());
            one.story.add(AttemptRecord { at: one.died_at, status, outcome, error, said });
            assert_eq!(Answer::from(&one).to_string(), answer);
        }
    }
}
