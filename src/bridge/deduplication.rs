//! Reads whether a message was settled before an attempt, and records how it was settled: delivered, dead-lettered,
//! nothing to send.
//!
//! Guarantees: "delivered" is recorded only if a destination answered 2xx. A message with the id of a delivered one and
//! another payload is distinguished from a repeat. The result of a replay is recorded for the operator who waits for
//! the result, also in the pure callback relay.
//!
//! Not responsible for: deciding and settling (`worker/process.rs`).

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::bridge::Deliverer;
use crate::conversation::{
    Changes, DedupKey, Directory, DirectorySettings, DoneBefore, JournalEntry, LookupName, SettledAfter,
    Snapshot,
};
use crate::message::{Destination, Kind, Message, Outcome};

/// Whether a message was settled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettledBefore {
    /// No record was found.
    No,
    /// The message was settled.
    Yes,
    /// Another payload was delivered under the same id.
    OtherPayload,
}

/// The directory of a worker without conversations. It is opened when the first replayed message is settled.
#[derive(Debug, Default)]
pub(in crate::bridge) struct ReplayNotes {
    settings: Option<DirectorySettings>,
    opened: OnceCell<Directory>,
}

impl ReplayNotes {
    pub(in crate::bridge) fn new(settings: Option<DirectorySettings>) -> Self {
        Self { settings, opened: OnceCell::new() }
    }

    async fn directory(&self) -> Option<&Directory> {
        let settings = self.settings.as_ref()?;
        let opened = self.opened.get_or_try_init(|| Directory::open(settings)).await;
        opened
            .inspect_err(
                |error| tracing::debug!(%error, "cannot open the directory to record the result of a replay"),
            )
            .ok()
    }
}

/// The key of a 2xx answer of the destination. A message to XO's Callback URL was not relayed to a user of ours, so it
/// has a key of its own.
pub(in crate::bridge) const fn delivery_of(message: &Message) -> DedupKey {
    match message.destination {
        Destination::Xo => DedupKey::Forwarded(message.id),
        _ => DedupKey::Delivered(message.id),
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

/// The keys under which a message may be recorded as settled. `redelivered`: the message was received before, so it may
/// have been dead-lettered, and later messages may have been delivered since.
pub(crate) fn settling_keys(message: &Message, redelivered: bool) -> impl Iterator<Item = DedupKey> {
    let (id, replays) = (message.id, message.replays);
    let keys = [
        Some(delivery_of(message)),
        (message.kind == Kind::HandoffStart).then_some(DedupKey::Answered(id)),
        redelivered.then_some(DedupKey::DeadLettered { message: id, replays }),
    ];
    keys.into_iter().flatten()
}

/// The meaning of a record for this message.
pub(crate) fn settled_by(message: &Message, done: DoneBefore) -> SettledBefore {
    let differs = matches!((message.digest, done.digest), (Some(ours), Some(theirs)) if ours != theirs);
    match (done.key, differs) {
        (_, false) => SettledBefore::Yes,
        // The other request was dead-lettered, which says nothing about this one.
        (DedupKey::DeadLettered { .. }, true) => SettledBefore::No,
        (_, true) => SettledBefore::OtherPayload,
    }
}

impl Deliverer {
    /// Whether an earlier attempt of this message, perhaps by another worker, settled it. The same query reads what the
    /// attempt needs to know.
    pub async fn settled_before(
        &self,
        message: &Message,
        redelivered: bool,
    ) -> (SettledBefore, Option<Arc<Snapshot>>) {
        let Some(directory) = &self.directory else { return (SettledBefore::No, None) };
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

    /// The key to record for the outcome of a message that is not dead-lettered; `None` if no record is needed.
    pub(crate) fn fact_of(message: &Message, outcome: &Outcome) -> Option<DedupKey> {
        let nothing = DedupKey::NothingToSend { message: message.id, replays: message.replays };
        match outcome {
            Outcome::Delivered => Some(delivery_of(message)),
            Outcome::Declined => Some(DedupKey::Answered(message.id)),
            // Typing is frequent, and its row would tell nothing.
            Outcome::Dropped if message.kind == Kind::HandoffTyping && message.replays == 0 => None,
            Outcome::Dropped => Some(nothing),
            // The operator who replayed the message waits for its result.
            Outcome::Repeated if message.replays > 0 => Some(nothing),
            _ => None,
        }
    }

    /// Adds the row of the journal, if the outcome needs a row.
    pub(in crate::bridge) fn settled(
        changes: Changes,
        message: &Message,
        outcome: &Outcome,
        attempts: u32,
    ) -> Changes {
        let after = SettledAfter { attempts, ..SettledAfter::default() };
        let entry = Self::fact_of(message, outcome).and_then(|fact| JournalEntry::of(message, fact, after));
        match entry {
            Some(entry) => changes.settled(&entry),
            None => changes,
        }
    }

    /// Writes how a message was settled into the journal, so that every worker knows it after every restart. If the record
    /// fails, the message may be sent again.
    pub async fn note(&self, message: &Message, fact: DedupKey, after: SettledAfter) {
        let directory = match &self.directory {
            None if message.replays > 0 => Box::pin(self.replay_notes.directory()).await,
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
