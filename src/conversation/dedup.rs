//! Deduplication keys: facts that happened once and must not happen again, one variant for each kind of fact.
//!
//! Guarantees: only [`DedupKey::Delivered`] and [`DedupKey::Forwarded`] mean that a destination answered 2xx. Two different
//! facts never share a stored form, whatever ids and names they contain. A fact that settles a message is a row of the journal
//! (`journal.rs`); every other fact is a row of the table of keys. A key is `Copy`, and its stored form is shorter
//! than 80 bytes. The stored forms are on disk in every deployment: a test below pins them.
//! Not responsible for: when a fact is recorded or looked up (`worker/process.rs`, `delivery/`, `dead_letters/replay.rs`).

use jiff::Timestamp;

use super::database::run;
use super::directory::Directory;
use super::{DirectoryError, JournalEntry, JournalOutcome, statements};
use crate::message::{ConversationId, MessageId, PayloadDigest};

/// The numbers of keys in one statement: the keys of one message, and those of many messages.
const FEW: usize = 4;
const MANY: usize = 60;

/// One fact. Some variants hold one [`MessageId`] that is derived from several texts by the functions below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DedupKey {
    /// The message's destination answered 2xx.
    Delivered(MessageId),
    /// XO's Callback URL answered 2xx, and none of our users got the text. The chat may turn out to be ours.
    Forwarded(MessageId),
    /// ServiceNow gave a final business answer ("no agent") to this start.
    Answered(MessageId),
    /// The message became a dead letter after this number of replays.
    DeadLettered {
        /// The message.
        message: MessageId,
        /// [`crate::message::Message::replays`] at that time.
        replays: u32,
    },
    /// This replay of the message ended without a call, because no call was needed.
    NothingToSend {
        /// The message.
        message: MessageId,
        /// The number of the replay.
        replays: u32,
    },
    /// The message must open a chat (a late start).
    LateStart {
        /// The message.
        message: MessageId,
        /// The number of replays: the next replay decides again.
        replays: u32,
    },
    /// The state in a Virtual Agent callback was recorded; the texts of the callback have keys of their own.
    CallbackApplied(MessageId),
    /// For the first time an agent accepted this episode of a conversation.
    FirstAgent(MessageId),
    /// This chat of the Virtual Agent API has ended.
    ClosedChat(MessageId),
    /// One step of a message to a bot's user was done, or was finally refused.
    BotKitStep(MessageId),
    /// An item of a Virtual Agent callback was relayed.
    ServiceNowItem(MessageId),
    /// A start was sent with this text; the chat that it opened is recognised by the text.
    OpeningText(MessageId),
    /// The message is one among agents: its callback said so. Reading the chat back may not show it.
    Internal(MessageId),
    /// A sentence of ServiceNow's announced the end of this chat, and was the last event of the chat at that time.
    ClosingSentence(MessageId),
    /// Written by `causeway check` and by the health test of a process, to see whether the directory can be written.
    SelfTest(MessageId),
}

/// A fact that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoneBefore {
    /// The key of the fact.
    pub key: DedupKey,
    /// The digest of the message that caused the fact, if the message has one.
    pub digest: Option<PayloadDigest>,
}

impl DedupKey {
    /// See [`Self::FirstAgent`]. The time of its opening identifies an episode.
    pub fn first_agent(conversation: &ConversationId, opened_at: Timestamp) -> Self {
        let opened_at = opened_at.as_millisecond().to_string();
        Self::FirstAgent(MessageId::derived_from("first-agent", &[conversation.as_str(), &opened_at]))
    }

    /// See [`Self::ClosedChat`].
    pub fn closed_chat(group: &str) -> Self {
        Self::ClosedChat(MessageId::derived_from("closed-chat", &[group]))
    }

    /// See [`Self::ClosingSentence`]. `last`: the last relayed message of the chat, which is the sentence.
    pub fn closing_sentence(group: &str, last: &str) -> Self {
        Self::ClosingSentence(MessageId::derived_from("closing-sentence", &[group, last]))
    }

    /// See [`Self::BotKitStep`]: a step of telling one notice.
    pub fn botkit_notice_step(notice: MessageId, step: &str) -> Self {
        Self::BotKitStep(MessageId::derived_from("botkit-step", &["notice", &notice.to_string(), step]))
    }

    /// See [`Self::BotKitStep`]: a step that happens once in each chat.
    pub fn botkit_chat_step(conversation: &ConversationId, group: &str, step: &str) -> Self {
        let parts = ["chat", conversation.as_str(), group, step];
        Self::BotKitStep(MessageId::derived_from("botkit-step", &parts))
    }

    /// See [`Self::BotKitStep`]: one part of a message with files.
    pub fn botkit_part_step(message: MessageId, number: usize) -> Self {
        let parts = ["part", &message.to_string(), &number.to_string()];
        Self::BotKitStep(MessageId::derived_from("botkit-step", &parts))
    }

    /// See [`Self::OpeningText`].
    pub fn opening_text(start: MessageId, replays: u32, text: &str) -> Self {
        let parts = [&start.to_string(), &replays.to_string(), text];
        Self::OpeningText(MessageId::derived_from("opening", &parts))
    }

    /// See [`Self::ServiceNowItem`]: an item with a name from ServiceNow.
    pub fn named_item(group: &str, name: &str) -> Self {
        Self::ServiceNowItem(MessageId::derived_from("servicenow-item", &["named", group, name]))
    }

    /// See [`Self::ServiceNowItem`]: an item without a name, identified by its position in its callback.
    pub fn unnamed_item(callback: MessageId, place: usize) -> Self {
        let parts = ["unnamed", &callback.to_string(), &place.to_string()];
        Self::ServiceNowItem(MessageId::derived_from("servicenow-item", &parts))
    }

    /// Whether a destination answered 2xx.
    pub const fn is_delivery(self) -> bool {
        matches!(self, Self::Delivered(_) | Self::Forwarded(_))
    }

    /// The row of the journal that records this fact: the message, its outcome and its number of replays. `None` for a fact
    /// that does not settle a message.
    pub(super) const fn settled(self) -> Option<(MessageId, JournalOutcome, u32)> {
        Some(match self {
            Self::Delivered(id) => (id, JournalOutcome::Delivered, 0),
            Self::Forwarded(id) => (id, JournalOutcome::Forwarded, 0),
            Self::Answered(id) => (id, JournalOutcome::Answered, 0),
            Self::DeadLettered { message, replays } => (message, JournalOutcome::DeadLettered, replays),
            Self::NothingToSend { message, replays } => (message, JournalOutcome::Dropped, replays),
            _ => return None,
        })
    }

    /// Whether a row of the journal with this outcome records the fact.
    pub(super) fn is_settled_as(self, outcome: &str, replays: i64) -> bool {
        self.settled().is_some_and(|(_, our, number)| our.as_str() == outcome && i64::from(number) == replays)
    }

    /// The form in the table of keys. A fact that settles a message is a row of the journal instead.
    pub(super) fn stored(self) -> String {
        let (kind, id) = match self {
            Self::Delivered(id) => ("delivered", id),
            Self::Forwarded(id) => ("forwarded", id),
            Self::Answered(id) => ("answered", id),
            Self::DeadLettered { message, replays } => return format!("dead-lettered:{message}:{replays}"),
            Self::NothingToSend { message, replays } => {
                return format!("nothing-to-send:{message}:{replays}");
            }
            Self::LateStart { message, replays } => return format!("late-start:{message}:{replays}"),
            Self::CallbackApplied(id) => ("callback-applied", id),
            Self::FirstAgent(id) => ("first-agent", id),
            Self::ClosedChat(id) => ("closed-chat", id),
            Self::BotKitStep(id) => ("botkit-step", id),
            Self::ServiceNowItem(id) => ("servicenow-item", id),
            Self::OpeningText(id) => ("opening-text", id),
            Self::Internal(id) => ("internal", id),
            Self::ClosingSentence(id) => ("closing-sentence", id),
            Self::SelfTest(id) => ("self-test", id),
        };
        format!("{kind}:{id}")
    }
}

impl Directory {
    /// Whether [`Self::mark_done`] recorded this fact.
    pub async fn is_done(&self, key: DedupKey) -> Result<bool, DirectoryError> {
        Ok(!self.find_done(&[key]).await?.is_empty())
    }

    /// Returns those of these facts that [`Self::mark_done`] recorded.
    pub async fn find_done(&self, keys: &[DedupKey]) -> Result<Vec<DoneBefore>, DirectoryError> {
        let (settling, other): (Vec<DedupKey>, Vec<DedupKey>) =
            keys.iter().partition(|key| key.settled().is_some());
        let mut found = Vec::new();
        for keys in other.chunks(size(other.len())) {
            self.find_keys(keys, &mut found).await?;
        }
        for keys in settling.chunks(size(settling.len())) {
            self.find_settled(keys, &mut found).await?;
        }
        Ok(found)
    }

    async fn find_keys(&self, keys: &[DedupKey], found: &mut Vec<DoneBefore>) -> Result<(), DirectoryError> {
        let stored: Vec<(String, DedupKey)> = keys.iter().map(|key| (key.stored(), *key)).collect();
        let size = size(keys.len());
        let sql = if size == FEW { statements::FIND_DONE_FEW } else { statements::FIND_DONE_MANY };
        let rows: Vec<(String, Option<String>)> = run!(self, |pool| {
            let places = stored.iter().map(|(stored, _)| stored).cycle().take(size);
            places.fold(self.query_as(sql), |query, stored| query.bind(stored)).fetch_all(pool)
        })?;
        for (row, digest) in rows {
            let digest = digest.as_deref().and_then(PayloadDigest::parse);
            let known = stored.iter().find(|(stored, _)| *stored == row);
            found.extend(known.map(|(_, key)| DoneBefore { key: *key, digest }));
        }
        Ok(())
    }

    async fn find_settled(
        &self,
        keys: &[DedupKey],
        found: &mut Vec<DoneBefore>,
    ) -> Result<(), DirectoryError> {
        let messages: Vec<String> =
            keys.iter().filter_map(|key| Some(key.settled()?.0.to_string())).collect();
        let size = size(messages.len());
        let sql = if size == FEW { statements::FIND_SETTLED_FEW } else { statements::FIND_SETTLED_MANY };
        let rows: Vec<(String, String, i64, Option<String>)> = run!(self, |pool| {
            let places = messages.iter().cycle().take(size);
            places.fold(self.query_as(sql), |query, message| query.bind(message)).fetch_all(pool)
        })?;
        for (message, outcome, replays, digest) in rows {
            let digest = digest.as_deref().and_then(PayloadDigest::parse);
            let known = keys
                .iter()
                .zip(&messages)
                .find(|(key, id)| **id == message && key.is_settled_as(&outcome, replays));
            found.extend(known.map(|(key, _)| DoneBefore { key: *key, digest }));
        }
        Ok(())
    }

    /// Records a fact until [`Self::forget`], and returns whether the fact is new. If a fact is recorded twice, the first record stays.
    pub async fn mark_done(
        &self,
        key: DedupKey,
        digest: Option<PayloadDigest>,
        at: Timestamp,
    ) -> Result<bool, DirectoryError> {
        let added = match JournalEntry::bare(key, digest, at) {
            Some(entry) => self.execute(statements::JOURNAL, entry.values()).await?,
            None => {
                let digest = digest.map(|digest| digest.to_string());
                let values = [key.stored().as_str().into(), at.into(), digest.as_deref().into()];
                self.execute(statements::MARK_DONE, values).await?
            }
        };
        Ok(added > 0)
    }
}

/// The number of keys in one statement.
const fn size(keys: usize) -> usize {
    if keys <= FEW { FEW } else { MANY }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> MessageId {
        MessageId::derived("servicenow", "m-1")
    }

    #[test]
    fn stored_forms_are_on_disk_in_every_deployment() {
        let message = message();
        let conversation = ConversationId::parse("c-1").unwrap();
        let at = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        let table = [
            (DedupKey::Delivered(message), "delivered:{m}"),
            (DedupKey::Forwarded(message), "forwarded:{m}"),
            (DedupKey::Answered(message), "answered:{m}"),
            (DedupKey::DeadLettered { message, replays: 2 }, "dead-lettered:{m}:2"),
            (DedupKey::NothingToSend { message, replays: 2 }, "nothing-to-send:{m}:2"),
            (DedupKey::LateStart { message, replays: 0 }, "late-start:{m}:0"),
            (DedupKey::CallbackApplied(message), "callback-applied:{m}"),
            (DedupKey::first_agent(&conversation, at), "first-agent:a913ebd7-b3d6-572d-a19e-6a1512fd8021"),
            (DedupKey::closed_chat("g-1"), "closed-chat:95c23a5a-9c47-54ae-86c2-61d0d49680fd"),
            (
                DedupKey::botkit_notice_step(message, "text"),
                "botkit-step:df24998b-99c0-5493-ab99-7171ba5ded6f",
            ),
            (
                DedupKey::botkit_chat_step(&conversation, "g-1", "session"),
                "botkit-step:e0f33c7a-b4f0-56c5-86cc-1a9a4be264f4",
            ),
            (DedupKey::named_item("g-1", "i-1"), "servicenow-item:42ca5dfc-ab0e-5e4b-97c9-97a1016046d0"),
            (DedupKey::unnamed_item(message, 3), "servicenow-item:602edfa2-73c9-5cbf-b166-7fcc458c4e83"),
            (DedupKey::botkit_part_step(message, 1), "botkit-step:7fbabcc4-56bf-5c40-9c20-ffcf181b7006"),
            (
                DedupKey::opening_text(message, 0, "hello"),
                "opening-text:d13d5f68-623e-5e84-a6ce-b40acdb27b6b",
            ),
            (DedupKey::Internal(message), "internal:{m}"),
            (
                DedupKey::closing_sentence("g-1", "m-1"),
                "closing-sentence:fbbe86ff-ca96-5215-9927-c3f01e0a045f",
            ),
            (DedupKey::SelfTest(message), "self-test:{m}"),
        ];
        for (key, stored) in table {
            let stored = stored.replace("{m}", "398818d0-2b35-5824-b6b3-d541e25c8b9d");
            assert_eq!(key.stored(), stored);
            assert!(stored.len() < 80);
        }
    }

    #[test]
    fn different_facts_have_different_keys() {
        let conversation = |id| ConversationId::parse(id).unwrap();
        let steps = [("a", "b:c", "d"), ("a:b", "c", "d"), ("a", "b", "c:d")];
        let steps = steps.map(|(id, group, step)| DedupKey::botkit_chat_step(&conversation(id), group, step));
        let items = [("a", "b:c"), ("a:b", "c")].map(|(group, name)| DedupKey::named_item(group, name));
        let stored: std::collections::BTreeSet<_> =
            steps.iter().chain(&items).map(|key| key.stored()).collect();
        assert_eq!(stored.len(), 5);
    }

    #[test]
    fn only_a_2xx_is_a_delivery() {
        let (message, replays) = (message(), 0);
        assert!(DedupKey::Delivered(message).is_delivery() && DedupKey::Forwarded(message).is_delivery());
        for other in [
            DedupKey::Answered(message),
            DedupKey::DeadLettered { message, replays },
            DedupKey::NothingToSend { message, replays },
            DedupKey::CallbackApplied(message),
        ] {
            assert!(!other.is_delivery(), "{other:?}");
        }
    }
}
