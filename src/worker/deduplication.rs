//! Reads whether a message was settled before an attempt, and records how it was settled: delivered, dead-lettered,
//! nothing to send.
//!
//! Guarantees: a message with the id of a delivered one and another payload is distinguished from a repeat. The result of
//! a replay is recorded for the operator who waits for the result, also in the pure callback relay.
//!
//! Not responsible for: deciding and settling (`process.rs`), the fact that an outcome proves (`conversation/settled.rs`).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::conversation::{
    Changes, DedupKey, Directory, DirectorySettings, DoneBefore, JournalEntry, LookupName, SettledAfter,
    Snapshot,
};
use crate::delivery::RecentKeys;
use crate::message::{Destination, Kind, Message};

/// Whether a message was settled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SettledBefore {
    /// No record was found.
    No,
    /// The message was settled.
    Yes,
    /// Another payload was delivered under the same id.
    OtherPayload,
}

/// The directory in which a worker records settled messages.
#[derive(Debug)]
pub(super) struct SettledStore {
    /// `None` in the pure callback relay, which has no directory.
    directory: Option<Directory>,
    /// The directory of a worker without conversations. It is opened when the first replayed message is settled.
    replay_notes: Option<DirectorySettings>,
    opened: OnceCell<Directory>,
}

impl SettledStore {
    pub(super) fn new(directory: Option<Directory>, replay_notes: Option<DirectorySettings>) -> Arc<Self> {
        Arc::new(Self { directory, replay_notes, opened: OnceCell::new() })
    }

    async fn open_for_replays(&self) -> Option<&Directory> {
        let settings = self.replay_notes.as_ref()?;
        let opened = self.opened.get_or_try_init(|| Directory::open(settings)).await;
        opened
            .inspect_err(
                |error| tracing::debug!(%error, "cannot open the directory to record the result of a replay"),
            )
            .ok()
    }
}

/// The settled messages of one partition: the recent ones in memory, all of them in the directory.
#[derive(Debug)]
pub(super) struct Deduplication {
    store: Arc<SettledStore>,
    recent: Mutex<RecentKeys>,
}

impl Deduplication {
    pub(super) fn new(store: Arc<SettledStore>) -> Self {
        Self { store, recent: Mutex::default() }
    }

    /// Whether an earlier attempt of this message, perhaps by another worker, settled it. The query of the directory also
    /// reads the rows that the attempt needs. `redelivered`: the message was received before.
    pub(super) async fn settled_before(
        &self,
        message: &Message,
        redelivered: bool,
    ) -> (SettledBefore, Option<Arc<Snapshot>>) {
        for key in settling_keys(message, redelivered) {
            let known = self.recent.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
            match known.map(|digest| settled_by(message, DoneBefore { key, digest })) {
                None | Some(SettledBefore::No) => {}
                Some(settled) => return (settled, None),
            }
        }
        self.look_up(message, redelivered).await
    }

    /// The rows for an attempt. A message that waited long for its gate has old rows, and an attempt with old rows asks for each
    /// row with a query of its own. So the rows are read again, together with those of other messages.
    pub(super) async fn fresh_rows(
        &self,
        message: &Message,
        known: Option<Arc<Snapshot>>,
    ) -> Option<Arc<Snapshot>> {
        match known {
            Some(known) if !known.is_fresh() => Box::pin(self.look_up(message, false)).await.1,
            known => known,
        }
    }

    async fn look_up(&self, message: &Message, redelivered: bool) -> (SettledBefore, Option<Arc<Snapshot>>) {
        let Some(directory) = &self.store.directory else { return (SettledBefore::No, None) };
        // The first copy may have been dead-lettered.
        let may_be_dead = redelivered || message.kind.may_be_queued_twice();
        let keys: Vec<DedupKey> = settling_keys(message, may_be_dead).collect();
        let read = async {
            match lookup_name(message) {
                Some(name) => directory
                    .look_up(name, message.id, &keys)
                    .await
                    .map(|(found, known)| (found, Some(known))),
                None => directory.find_done(&keys).await.map(|found| (found, None)),
            }
        };
        let (found, known) = Box::pin(read).await.unwrap_or_else(|error| {
            tracing::debug!(id = %message.id, %error, "cannot read whether the message was settled before");
            (Vec::new(), None)
        });
        let answers = found.into_iter().map(|done| settled_by(message, done));
        let settled = answers
            .reduce(|one, other| if one == SettledBefore::No { other } else { one })
            .unwrap_or(SettledBefore::No);
        (settled, known)
    }

    /// Keeps the fact in memory. Call this alone only if the attempt has recorded the fact in the directory.
    pub(super) fn remember(&self, message: &Message, fact: DedupKey) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).add(fact, message.digest);
    }

    /// Writes how a message was settled into the journal, so that every worker knows it after every restart. If the record
    /// fails, the message may be sent again.
    pub(super) async fn note(&self, message: &Message, fact: DedupKey, after: SettledAfter) {
        self.remember(message, fact);
        let directory = match &self.store.directory {
            None if message.replays > 0 => Box::pin(self.store.open_for_replays()).await,
            known => known.as_ref(),
        };
        let Some(directory) = directory else { return };
        let dead = matches!(fact, DedupKey::DeadLettered { .. });
        // Gap repair asks for the first dead letter only, without a count of replays.
        let first = DedupKey::DeadLettered { message: message.id, replays: 0 };
        let Some(entry) = JournalEntry::of(message, fact, after) else { return };
        let mut changes = Changes::default().settled(&entry);
        if dead && message.replays > 0 {
            changes = changes.done(first, message.digest);
        }
        if let Err(error) = Box::pin(directory.record(changes)).await {
            tracing::debug!(?fact, %error, "cannot record that this is done; it may be done again");
        }
    }
}

/// The conversation or the chat that the attempt of this message will ask for; `None` if the attempt needs neither.
fn lookup_name(message: &Message) -> Option<LookupName<'_>> {
    let lane = message.lane.as_str();
    match message.destination {
        Destination::Xo => None,
        Destination::Callbacks => (message.kind == Kind::CallbackMessage).then_some(LookupName::Group(lane)),
        Destination::Events | Destination::Bot(_) if message.kind.is_bot_turn() => None,
        Destination::ServiceNow | Destination::Events => {
            Some(LookupName::Conversation { id: lane, with_reply: false })
        }
        Destination::Bot(_) => Some(LookupName::Conversation { id: lane, with_reply: true }),
    }
}

/// The keys under which a message may be recorded as settled. `may_be_dead`: the message or its first copy was received
/// before, so it may have been dead-lettered, and later messages may have been delivered since.
fn settling_keys(message: &Message, may_be_dead: bool) -> impl Iterator<Item = DedupKey> {
    let (id, replays) = (message.id, message.replays);
    let keys = [
        Some(DedupKey::of_delivery(message)),
        (message.kind == Kind::HandoffStart).then_some(DedupKey::Answered(id)),
        may_be_dead.then_some(DedupKey::DeadLettered { message: id, replays }),
    ];
    keys.into_iter().flatten()
}

/// The meaning of a record for this message.
fn settled_by(message: &Message, done: DoneBefore) -> SettledBefore {
    let differs = matches!((message.digest, done.digest), (Some(ours), Some(theirs)) if ours != theirs);
    match (done.key, differs) {
        (_, false) => SettledBefore::Yes,
        // The other request was dead-lettered, which says nothing about this one.
        (DedupKey::DeadLettered { .. }, true) => SettledBefore::No,
        (_, true) => SettledBefore::OtherPayload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{LaneKey, MessageId, PayloadDigest};

    fn message(kind: Kind) -> Message {
        let destination = if kind.is_for_servicenow() { Destination::ServiceNow } else { Destination::Xo };
        Message::new(MessageId::fresh(), kind, destination, LaneKey::parse("c").unwrap(), "{}")
    }

    #[test]
    fn each_kind_asks_for_what_may_have_settled_it() {
        let count = |kind, redelivered| settling_keys(&message(kind), redelivered).count();
        assert_eq!([count(Kind::CallbackMessage, false), count(Kind::HandoffStart, true)], [1, 3]);
        assert_eq!(count(Kind::HandoffMessage, false), 1);
    }

    #[test]
    fn another_payload_is_no_repeat() {
        let ours = message(Kind::HandoffMessage).with_digest();
        let by = |key, digest| settled_by(&ours, DoneBefore { key, digest });
        let (delivered, dead) =
            (DedupKey::Delivered(ours.id), DedupKey::DeadLettered { message: ours.id, replays: 0 });
        let other = Some(PayloadDigest::of(b"other"));
        assert_eq!(by(delivered, ours.digest), SettledBefore::Yes);
        assert_eq!(by(delivered, None), SettledBefore::Yes);
        assert_eq!(by(delivered, other), SettledBefore::OtherPayload);
        assert_eq!(by(dead, ours.digest), SettledBefore::Yes);
        assert_eq!(by(dead, other), SettledBefore::No);
    }
}
