//! Reports the results of a replay: delivered, died again, or still on the way.
//!
//! A worker records the result of each replayed message as a deduplication key in the directory, also in the pure
//! callback relay (`worker/deduplication.rs`). If a record could not be written, a search among the dead letters at the end
//! of the waiting time finds a message that died again.
//!
//! Guarantees: "delivered" means that a destination answered 2xx. "Died again" means that this replay has a dead
//! letter. Each message is counted once. Memory holds no text. Messages of a worker with another directory count as on
//! the way.
//!
//! Not responsible for: publishing (`replay.rs`), output (`cli/dead`, `ingress/desk`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{DeadLetterError, DeadLetterFilter, list};
use crate::conversation::{DedupKey, Directory, DirectoryError, DoneBefore};
use crate::message::{Message, MessageId, PayloadDigest};
use crate::queue::Queue;
use crate::tasks::CancellationToken;

/// The default waiting time of a replay.
pub(crate) const WAIT: Duration = Duration::from_secs(60);
const FIRST_CHECK: Duration = Duration::from_millis(50);
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The most messages of one query.
const CHECKS_MAX: usize = 600;

/// A message that was published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepublishedMessage {
    id: MessageId,
    /// The number of this replay of the message.
    replays: u32,
    digest: Option<PayloadDigest>,
}

impl RepublishedMessage {
    /// The message.
    pub const fn id(&self) -> MessageId {
        self.id
    }
}

impl From<&Message> for RepublishedMessage {
    fn from(message: &Message) -> Self {
        Self { id: message.id, replays: message.replays, digest: message.digest }
    }
}

/// The number of messages of a replay by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayOutcomes {
    /// A destination answered 2xx.
    pub delivered: u64,
    /// The message was dead-lettered again.
    pub died_again: u64,
    /// ServiceNow answered that no agent comes, and the bot side was notified.
    pub answered: u64,
    /// No request was needed any more.
    pub nothing_to_send: u64,
    /// No result is known yet.
    pub on_the_way: u64,
}

impl ReplayOutcomes {
    /// The number of settled messages.
    pub const fn settled(&self) -> u64 {
        self.delivered + self.died_again + self.answered + self.nothing_to_send
    }

    /// A text for a person: `delivered 4, died again 0`. Other results are listed only if there are any.
    pub fn describe(&self) -> String {
        let mut told = format!("delivered {}, died again {}", self.delivered, self.died_again);
        for (what, count) in [
            ("answered \"no agent\"", self.answered),
            ("needed no sending", self.nothing_to_send),
            ("still on its way", self.on_the_way),
        ] {
            if count > 0 {
                told.push_str(&format!(", {what} {count}"));
            }
        }
        told
    }

    const fn count(&mut self, ended: ReplayOutcome) {
        let counter = match ended {
            ReplayOutcome::Delivered => &mut self.delivered,
            ReplayOutcome::DiedAgain => &mut self.died_again,
            ReplayOutcome::Answered => &mut self.answered,
            ReplayOutcome::NothingToSend => &mut self.nothing_to_send,
        };
        *counter += 1;
    }
}

/// The result of one message. If a message has two records (another copy arrived after the delivery), the first variant
/// counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReplayOutcome {
    Delivered,
    DiedAgain,
    Answered,
    NothingToSend,
}

impl RepublishedMessage {
    fn keys(&self) -> [DedupKey; 5] {
        let (message, replays) = (self.id, self.replays);
        [
            DedupKey::Delivered(message),
            DedupKey::Forwarded(message),
            DedupKey::DeadLettered { message, replays },
            DedupKey::Answered(message),
            DedupKey::NothingToSend { message, replays },
        ]
    }

    fn ended(&self, done: &[DoneBefore]) -> Option<ReplayOutcome> {
        let is_other = |done: &DoneBefore| matches!((self.digest, done.digest), (Some(a), Some(b)) if a != b);
        let ours = done.iter().filter(|done| self.keys().contains(&done.key) && !is_other(done));
        ours.map(|done| match done.key {
            key if key.is_delivery() => ReplayOutcome::Delivered,
            DedupKey::DeadLettered { .. } => ReplayOutcome::DiedAgain,
            DedupKey::Answered(_) => ReplayOutcome::Answered,
            _ => ReplayOutcome::NothingToSend,
        })
        .min()
    }
}

/// Whether this message died and was not delivered.
pub(crate) async fn has_died(
    directory: &Directory,
    message: &RepublishedMessage,
) -> Result<bool, DirectoryError> {
    let done = directory.find_done(&message.keys()).await?;
    Ok(message.ended(&done) == Some(ReplayOutcome::DiedAgain))
}

/// Waits until the result of each message is known, at most `limit`, or until the cancellation. `told` gets the numbers
/// after each query.
pub async fn wait(
    queue: &Queue,
    directory: &Directory,
    messages: Vec<RepublishedMessage>,
    limit: Duration,
    stop: &CancellationToken,
    mut told: impl FnMut(ReplayOutcomes),
) -> ReplayOutcomes {
    let deadline = Instant::now() + limit;
    let (mut pending, mut outcomes) = (VecDeque::from(messages), ReplayOutcomes::default());
    let mut pause = FIRST_CHECK;
    loop {
        if let Err(error) = look(directory, &mut pending, &mut outcomes).await {
            tracing::debug!(%error, "cannot read how replayed messages ended; looking again");
        }
        outcomes.on_the_way = pending.len() as u64;
        told(outcomes);
        let left = deadline.saturating_duration_since(Instant::now());
        if pending.is_empty() || left.is_zero() || stop.is_cancelled() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause.min(left)) => {}
        }
        pause = (pause * 2).min(CHECK_INTERVAL);
    }
    if !pending.is_empty() && !limit.is_zero() {
        match dead_again(queue, &pending).await {
            Ok(dead) => {
                outcomes.died_again += dead;
                outcomes.on_the_way -= dead;
            }
            Err(error) => tracing::debug!(%error, "cannot look for replayed messages among the dead letters"),
        }
    }
    outcomes
}

async fn look(
    directory: &Directory,
    pending: &mut VecDeque<RepublishedMessage>,
    outcomes: &mut ReplayOutcomes,
) -> Result<(), DirectoryError> {
    let some = pending.len().min(CHECKS_MAX);
    let keys: Vec<DedupKey> = pending.iter().take(some).flat_map(RepublishedMessage::keys).collect();
    let done = directory.find_done(&keys).await?;
    let notes: HashMap<DedupKey, DoneBefore> = done.into_iter().map(|done| (done.key, done)).collect();
    for _ in 0..some {
        let Some(message) = pending.pop_front() else { break };
        let done: Vec<DoneBefore> = message.keys().iter().filter_map(|key| notes.get(key).copied()).collect();
        match message.ended(&done) {
            Some(ended) => outcomes.count(ended),
            None => pending.push_back(message),
        }
    }
    Ok(())
}

async fn dead_again(queue: &Queue, pending: &VecDeque<RepublishedMessage>) -> Result<u64, DeadLetterError> {
    let filter = DeadLetterFilter {
        ids: pending.iter().map(|message| message.id).collect(),
        ..DeadLetterFilter::default()
    };
    let entries = list(queue, &filter).await?;
    let dead: HashSet<(MessageId, u32)> = entries.iter().map(|entry| (entry.key.id, entry.replays)).collect();
    Ok(pending.iter().filter(|message| dead.contains(&(message.id, message.replays))).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn republished(digest: Option<PayloadDigest>) -> RepublishedMessage {
        RepublishedMessage { id: MessageId::fresh(), replays: 1, digest }
    }

    #[test]
    fn each_note_tells_one_end() {
        let one = republished(None);
        let (message, replays) = (one.id, one.replays);
        let ended = |keys: &[DedupKey]| {
            let done: Vec<_> = keys.iter().map(|key| DoneBefore { key: *key, digest: None }).collect();
            one.ended(&done)
        };
        let died = |replays| DedupKey::DeadLettered { message, replays };
        let nothing = DedupKey::NothingToSend { message, replays };
        assert_eq!(ended(&[]), None);
        assert_eq!(ended(&[died(0)]), None, "an earlier death is no news");
        assert_eq!(ended(&[died(1)]), Some(ReplayOutcome::DiedAgain));
        assert_eq!(ended(&[DedupKey::Forwarded(message)]), Some(ReplayOutcome::Delivered));
        assert_eq!(ended(&[nothing, DedupKey::Delivered(message)]), Some(ReplayOutcome::Delivered));
        assert_eq!(ended(&[nothing]), Some(ReplayOutcome::NothingToSend));
        assert_eq!(ended(&[DedupKey::Answered(message)]), Some(ReplayOutcome::Answered));
    }

    #[test]
    fn another_request_under_the_same_key_is_no_delivery() {
        let one = republished(Some(PayloadDigest::of(b"one")));
        let by = |digest| one.ended(&[DoneBefore { key: DedupKey::Delivered(one.id), digest }]);
        assert_eq!(by(Some(PayloadDigest::of(b"other"))), None);
        assert_eq!(by(one.digest), Some(ReplayOutcome::Delivered));
        assert_eq!(by(None), Some(ReplayOutcome::Delivered));
    }

    #[test]
    fn a_person_reads_the_two_numbers_first() {
        let mut outcomes = ReplayOutcomes { delivered: 4, ..ReplayOutcomes::default() };
        assert_eq!(outcomes.describe(), "delivered 4, died again 0");
        (outcomes.on_the_way, outcomes.nothing_to_send) = (2, 1);
        assert_eq!(outcomes.describe(), "delivered 4, died again 0, needed no sending 1, still on its way 2");
        assert_eq!(outcomes.settled(), 5);
    }
}
