//! The siding: looking at dead letters, and what can be done with them.
//!
//! Guarantees: looking changes nothing; whatever is done goes one dead letter at a time, so that a kill at any moment
//! loses none and the next run goes on where this one ended. Works on either engine, through [`crate::queue::Siding`].
//! Leaves to others: asking the operator and printing (`cli/dead`, `ingress/desk`), burying (`worker/settle.rs`).

pub(crate) mod asked;
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

/// Why the work at the siding stopped. Nothing is lost by it; running it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The directory, which knows what was delivered.
    #[error("the directory does not say what was delivered: {0}")]
    Directory(String),
}

impl From<DirectoryError> for DeskError {
    fn from(error: DirectoryError) -> Self {
        Self::Directory(error.to_string())
    }
}

/// Which dead letters are meant. What is absent matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Where the message was going.
    pub destination: Option<Destination>,
    /// The conversation's id, or ServiceNow's `group`.
    pub conversation: Option<String>,
    /// Why it died.
    pub reason: Option<DeadReason>,
    /// It died at this time or later.
    pub since: Option<Timestamp>,
    /// It died before this time.
    pub until: Option<Timestamp>,
    /// Exactly these.
    pub ids: BTreeSet<MessageId>,
}

impl Filter {
    /// Whether a dead letter is meant.
    pub fn matches(&self, dead: &DeadLetter) -> bool {
        self.destination.is_none_or(|wanted| wanted == dead.message.destination)
            && self.reason.is_none_or(|wanted| wanted == dead.reason)
            && self.since.is_none_or(|since| since <= dead.died_at)
            && self.until.is_none_or(|until| dead.died_at < until)
            && (self.ids.is_empty() || self.ids.contains(&dead.message.id))
            // Last, since it may have to read the body.
            && self.conversation.as_deref().is_none_or(|wanted| {
                dead.message.lane.as_str() == wanted
                    || conversation_of(dead).as_deref() == Some(wanted)
                    || group_of(dead).as_deref() == Some(wanted)
            })
    }

    /// The destinations whose dead letters have to be read: the one that the filter names, even if the settings do not know it any
    /// more, else all that the queue is configured for.
    pub fn destinations(&self, queue: &Queue) -> Vec<Destination> {
        match self.destination {
            Some(destination) => vec![destination],
            None => queue.destinations().iter().collect(),
        }
    }
}

/// The conversation that the body names; a callback of ServiceNow names none but its lane.
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

/// One dead letter among others: the same message may have died more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The message.
    pub id: MessageId,
    /// This death of it.
    pub died_at: Timestamp,
}

/// What is kept of a dead letter while looking through many: everything but its text and its story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which one.
    pub key: Key,
    /// What the message is.
    pub kind: Kind,
    /// Where it was to go.
    pub destination: Destination,
    /// The line that it stood in.
    pub lane: LaneKey,
    /// Why it died.
    pub reason: DeadReason,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// How often it was replayed before.
    pub replays: u32,
    /// Of what its caller asked for, if that chose a key for it.
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
            accepted_at: dead.message.accepted_at,
            replays: dead.message.replays,
            digest: dead.message.digest,
        }
    }
}

/// A visit to the siding of one destination that sees only what the filter means.
///
/// What it hands out can be removed until [`Visit::end`].
#[derive(Debug)]
pub struct Visit<'a> {
    siding: Siding,
    filter: &'a Filter,
}

impl<'a> Visit<'a> {
    /// Begins a visit.
    pub async fn begin(
        queue: &Queue,
        destination: Destination,
        filter: &'a Filter,
    ) -> Result<Self, QueueError> {
        Ok(Self { siding: queue.siding(destination).await?, filter })
    }

    /// Begins to read; nothing may be removed.
    pub async fn reading(
        queue: &Queue,
        destination: Destination,
        filter: &'a Filter,
    ) -> Result<Self, QueueError> {
        Ok(Self { siding: queue.read_dead_letters(destination).await?, filter })
    }

    /// The next dead letter that is meant, oldest death first.
    pub async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        while let Some(held) = self.siding.next().await? {
            if self.filter.matches(&held.dead) {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }

    /// Ends it: what was not removed stays.
    pub async fn end(self) {
        self.siding.close().await;
    }
}

/// Looks at every dead letter that is meant, destination by destination, oldest death first, until `look` says enough.
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

/// What is meant, without texts and stories.
pub async fn list(queue: &Queue, filter: &Filter) -> Result<Vec<Entry>, DeskError> {
    let mut entries = Vec::new();
    look::<DeskError>(queue, filter, |dead| {
        entries.push(Entry::from(dead));
        Ok(())
    })
    .await?;
    Ok(entries)
}

/// What is meant, and the first of them whole.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// All of them.
    pub(crate) entries: Vec<Entry>,
    /// The first, as many as were asked for.
    pub(crate) letters: Vec<DeadLetter>,
    /// The destinations that the queue is configured for.
    pub(crate) destinations: Vec<Destination>,
}

/// So many bytes of bodies are kept at once, so that the list of very large letters is shorter.
const FOUND_BYTES_MAX: usize = 24 << 20;

/// Looks at all that is meant and keeps the first ones whole: at most `limit`, and no more than fit into [`FOUND_BYTES_MAX`].
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

/// Removes exactly these for good; says after each how many are gone.
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

/// Dead letters of one destination that died of the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// Of how many lanes.
    pub lanes: usize,
    /// When the first of them died.
    pub first: Timestamp,
    /// When the last of them died.
    pub last: Timestamp,
}

/// Groups by destination and reason.
pub fn summary(entries: &[Entry]) -> BTreeMap<(Destination, DeadReason), Group> {
    let mut lanes: BTreeMap<(Destination, DeadReason), BTreeSet<&LaneKey>> = BTreeMap::new();
    let mut groups: BTreeMap<(Destination, DeadReason), Group> = BTreeMap::new();
    for entry in entries {
        let which = (entry.destination, entry.reason);
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
    use crate::message::{Message, Story};

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
}
