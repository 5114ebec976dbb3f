//! Reads, replays and discards dead letters.
//!
//! Guarantees: reading changes nothing. Every change concerns one dead letter at a time, so a kill at any moment loses
//! none, and the next run continues. Both engines are supported, through [`crate::queue::Siding`].
//!
//! Not responsible for: the operator's input and output (`cli/dead`, `ingress/desk`), writing dead letters
//! (`worker/settle.rs`).

pub(crate) mod asked;
pub(crate) mod brief;
pub(crate) mod document;
mod export;
mod order;
pub mod outcome;
pub mod replay;
mod resend;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub(crate) use export::export;
use jiff::Timestamp;

use crate::conversation::DirectoryError;
use crate::message::{
    DeadLetter, DeadReason, Destination, Kind, LaneKey, MessageId, PayloadDigest, bot_turn,
};
use crate::queue::{Held, Queue, QueueError, Siding};

/// The error that stopped the work on dead letters. No dead letter is lost; another run continues.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The directory, which knows the deliveries, failed.
    #[error("cannot read from the directory which messages were delivered: {0}")]
    Directory(String),
}

impl From<DirectoryError> for DeskError {
    fn from(error: DirectoryError) -> Self {
        Self::Directory(error.to_string())
    }
}

/// A filter of dead letters. An absent condition matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The destination of the message.
    pub destination: Option<Destination>,
    /// The conversation's id, or ServiceNow's `group`.
    pub conversation: Option<String>,
    /// The reason of the dead letter.
    pub reason: Option<DeadReason>,
    /// The dead letter was written at this time or later.
    pub since: Option<Timestamp>,
    /// The dead letter was written before this time.
    pub until: Option<Timestamp>,
    /// The ids of the messages; empty matches all.
    pub ids: BTreeSet<MessageId>,
}

impl Filter {
    /// Whether a dead letter matches.
    pub fn matches(&self, dead: &DeadLetter) -> bool {
        self.destination.is_none_or(|wanted| wanted == dead.message.destination)
            && self.reason.is_none_or(|wanted| wanted == dead.reason)
            && self.since.is_none_or(|since| since <= dead.died_at)
            && self.until.is_none_or(|until| dead.died_at < until)
            && (self.ids.is_empty() || self.ids.contains(&dead.message.id))
            // The last condition, because it may have to parse the body.
            && self.conversation.as_deref().is_none_or(|wanted| {
                dead.message.lane.as_str() == wanted
                    || conversation_of(dead).as_deref() == Some(wanted)
                    || group_of(dead).as_deref() == Some(wanted)
            })
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
    struct Named {
        conversation_id: String,
    }
    if dead.message.kind.is_bot_turn() {
        return Some(bot_turn::conversation_of(&dead.message.lane).to_owned());
    }
    serde_json::from_slice::<Named>(&dead.message.body).ok().map(|named| named.conversation_id)
}

/// The ServiceNow chat that the body names.
fn group_of(dead: &DeadLetter) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(alias = "clientSessionId")]
        group: String,
    }
    serde_json::from_slice::<Named>(&dead.message.body).ok().map(|named| named.group)
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
pub struct Key {
    /// The message.
    pub id: MessageId,
    /// The time of this dead letter.
    pub died_at: Timestamp,
}

/// The facts of a dead letter that are kept in memory while many are read: everything except its text and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key of the dead letter.
    pub key: Key,
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

impl From<&DeadLetter> for Entry {
    fn from(dead: &DeadLetter) -> Self {
        Self {
            key: Key { id: dead.message.id, died_at: dead.died_at },
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
/// A dead letter that was handed out can be removed until [`Visit::end`].
#[derive(Debug)]
pub struct Visit<'a> {
    siding: Siding,
    filter: &'a Filter,
}

impl<'a> Visit<'a> {
    /// Opens a session in which dead letters may be removed.
    pub async fn begin(
        queue: &Queue,
        destination: Destination,
        filter: &'a Filter,
    ) -> Result<Self, QueueError> {
        Ok(Self { siding: queue.siding(destination).await?, filter })
    }

    /// Opens a read-only session.
    pub async fn reading(
        queue: &Queue,
        destination: Destination,
        filter: &'a Filter,
    ) -> Result<Self, QueueError> {
        Ok(Self { siding: queue.read_dead_letters(destination).await?, filter })
    }

    /// The next matching dead letter, in the order of death.
    pub async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        while let Some(held) = self.siding.next().await? {
            if self.filter.matches(&held.dead) {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }

    /// Closes the session. Every dead letter that was not removed stays.
    pub async fn end(self) {
        self.siding.close().await;
    }
}

/// Calls `look` for every matching dead letter, by destination and in the order of death, until `look` returns an
/// error.
pub async fn look<E: From<QueueError>>(
    queue: &Queue,
    filter: &Filter,
    mut look: impl FnMut(&DeadLetter) -> Result<(), E>,
) -> Result<(), E> {
    for destination in filter.destinations(queue) {
        let mut visit = Visit::reading(queue, destination, filter).await?;
        let mut seen = Ok(());
        while seen.is_ok() {
            match visit.next().await {
                Ok(Some(held)) => seen = look(&held.dead),
                Ok(None) => break,
                Err(error) => seen = Err(error.into()),
            }
        }
        visit.end().await;
        seen?;
    }
    Ok(())
}

/// The matching dead letters, without texts and histories.
pub async fn list(queue: &Queue, filter: &Filter) -> Result<Vec<Entry>, DeskError> {
    let mut entries = Vec::new();
    look::<DeskError>(queue, filter, |dead| {
        entries.push(Entry::from(dead));
        Ok(())
    })
    .await?;
    Ok(entries)
}

/// All matching dead letters, and the first ones complete.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// All matching dead letters.
    pub(crate) entries: Vec<Entry>,
    /// The first matching dead letters, up to the requested limit.
    pub(crate) letters: Vec<DeadLetter>,
    /// The destinations that the queue is configured for.
    pub(crate) destinations: Vec<Destination>,
}

/// The most bytes of bodies in memory. The list is shorter if the dead letters are very large.
const FOUND_BYTES_MAX: usize = 24 << 20;

/// Reads all matching dead letters and keeps the first ones complete: at most `limit`, and at most [`FOUND_BYTES_MAX`]
/// bytes.
pub(crate) async fn find(queue: &Queue, filter: &Filter, limit: usize) -> Result<Found, DeskError> {
    let mut found = Found { destinations: queue.destinations().iter().collect(), ..Found::default() };
    let mut bytes = 0_usize;
    look::<DeskError>(queue, filter, |dead| {
        found.entries.push(Entry::from(dead));
        bytes = bytes.saturating_add(dead.message.body.len());
        if found.letters.is_empty() && limit > 0 || found.letters.len() < limit && bytes <= FOUND_BYTES_MAX {
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
    filter: &Filter,
    doomed: &HashSet<Key>,
    mut progress: impl FnMut(u64),
) -> Result<u64, DeskError> {
    let mut gone = 0;
    for destination in filter.destinations(queue) {
        let mut visit = Visit::begin(queue, destination, filter).await?;
        let done = discard_at(&mut visit, doomed, &mut gone, &mut progress).await;
        visit.end().await;
        done?;
    }
    Ok(gone)
}

async fn discard_at(
    visit: &mut Visit<'_>,
    doomed: &HashSet<Key>,
    gone: &mut u64,
    progress: &mut impl FnMut(u64),
) -> Result<(), QueueError> {
    while let Some(held) = visit.next().await? {
        if doomed.contains(&Entry::from(&held.dead).key) {
            held.remove().await?;
            *gone += 1;
            progress(*gone);
        }
    }
    Ok(())
}

/// Dead letters with a fact in common, such as destination and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
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
pub fn summary(entries: &[Entry]) -> BTreeMap<(Destination, DeadReason), Group> {
    summary_by(entries, |entry| (entry.destination, entry.reason))
}

/// Groups dead letters by any of their facts.
pub fn summary_by<K: Ord + Copy>(entries: &[Entry], key: impl Fn(&Entry) -> K) -> BTreeMap<K, Group> {
    let mut lanes: BTreeMap<K, BTreeSet<&LaneKey>> = BTreeMap::new();
    let mut groups: BTreeMap<K, Group> = BTreeMap::new();
    for entry in entries {
        let which = key(entry);
        lanes.entry(which).or_default().insert(&entry.lane);
        let died_at = entry.key.died_at;
        let group =
            groups.entry(which).or_insert(Group { count: 0, lanes: 0, first: died_at, last: died_at });
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
    use crate::message::{AttemptRecord, Message, PlatformWords, Story};

    fn dead(kind: Kind, lane: &str, body: &'static str, reason: DeadReason, died: i64) -> DeadLetter {
        let destination = if kind.is_for_servicenow() { Destination::ServiceNow } else { Destination::Xo };
        let message =
            Message::new(MessageId::fresh(), kind, destination, LaneKey::parse(lane).unwrap(), body);
        let died_at = Timestamp::from_second(died).unwrap();
        DeadLetter { died_at, ..DeadLetter::new(message, reason, "", Story::default()) }
    }

    #[test]
    fn a_filter_means_what_it_names() {
        let one =
            dead(Kind::CallbackEnded, "group-1", r#"{"conversation_id":"c-1"}"#, DeadReason::Expired, 100);
        let matches = |filter: Filter| filter.matches(&one);
        let all = Filter::default;
        let at = |second| Timestamp::from_second(second).ok();
        assert!(matches(all()));
        assert!(matches(Filter { destination: Some(Destination::Xo), ..all() }));
        assert!(!matches(Filter { destination: Some(Destination::ServiceNow), ..all() }));
        assert!(matches(Filter { conversation: Some("group-1".into()), ..all() }));
        assert!(matches(Filter { conversation: Some("c-1".into()), ..all() }));
        assert!(!matches(Filter { conversation: Some("c-2".into()), ..all() }));
        assert!(!matches(Filter { reason: Some(DeadReason::Rejected), ..all() }));
        assert!(matches(Filter { since: at(100), until: at(101), ..all() }));
        assert!(!matches(Filter { until: at(100), ..all() }));
        assert!(!matches(Filter { since: at(101), ..all() }));
        assert!(matches(Filter { ids: [one.message.id].into(), ..all() }));
        assert!(!matches(Filter { ids: [MessageId::fresh()].into(), ..all() }));
    }

    #[test]
    fn unreadable_bodies_match_by_their_lane() {
        let one = dead(Kind::CallbackMessage, "alone", "\u{1}not json", DeadReason::Unreadable, 1);
        assert!(Filter { conversation: Some("alone".into()), ..Filter::default() }.matches(&one));
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
        let entries: Vec<Entry> = all.iter().map(Entry::from).collect();
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
