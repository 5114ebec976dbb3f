//! What became of the messages of a replay: delivered, died again, or still on their way.
//!
//! A worker notes how each replayed message ended as a deduplication key in the directory, in the pure callback relay too
//! (`delivery/settled.rs`). A note that could not be written is made up for by a look among the dead letters when the time is over.
//! Guarantees: "delivered" means that a destination answered 2xx; "died again" means that there is a dead letter of this replay; each
//! message is counted once; memory holds no text. A worker that uses another directory tells nothing: its messages count as on their way.
//! Not responsible for: publishing them (`replay.rs`), showing the numbers (`cli/dead`, `ingress/desk`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{DeskError, Filter, list};
use crate::conversation::{DedupKey, Directory, DirectoryError, DoneBefore};
use crate::message::{Message, MessageId, PayloadDigest};
use crate::queue::Queue;
use crate::tasks::Stop;

/// How long a replay waits for news if nobody says otherwise.
pub(crate) const WAIT: Duration = Duration::from_secs(60);
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages that one look asks for.
const LOOK_MAX: usize = 600;

/// A message that was published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Republished {
    id: MessageId,
    /// Which replay of the message it is.
    replays: u32,
    digest: Option<PayloadDigest>,
}

impl From<&Message> for Republished {
    fn from(message: &Message) -> Self {
        Self { id: message.id, replays: message.replays, digest: message.digest }
    }
}

/// How many messages of a replay ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// A destination answered 2xx.
    pub delivered: u64,
    /// There is a new dead letter.
    pub died_again: u64,
    /// ServiceNow answered that no agent comes, and the bot side was told.
    pub answered: u64,
    /// Nothing had to be sent any more.
    pub nothing_to_send: u64,
    /// Nothing is known yet.
    pub on_the_way: u64,
}

impl Outcomes {
    /// How many are settled.
    pub const fn settled(&self) -> u64 {
        self.delivered + self.died_again + self.answered + self.nothing_to_send
    }

    /// As a person reads it: `delivered 4, died again 0`; the rest only if there is any.
    pub fn told(&self) -> String {
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

    const fn count(&mut self, ended: Ended) {
        let counter = match ended {
            Ended::Delivered => &mut self.delivered,
            Ended::DiedAgain => &mut self.died_again,
            Ended::Answered => &mut self.answered,
            Ended::NothingToSend => &mut self.nothing_to_send,
        };
        *counter += 1;
    }
}

/// How one message ended. In this order the first counts: a delivered message of which another copy came has two notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Delivered,
    DiedAgain,
    Answered,
    NothingToSend,
}

impl Republished {
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

    fn ended(&self, done: &[DoneBefore]) -> Option<Ended> {
        let is_other = |done: &DoneBefore| matches!((self.digest, done.digest), (Some(a), Some(b)) if a != b);
        let ours = done.iter().filter(|done| self.keys().contains(&done.key) && !is_other(done));
        ours.map(|done| match done.key {
            key if key.is_delivery() => Ended::Delivered,
            DedupKey::DeadLettered { .. } => Ended::DiedAgain,
            DedupKey::Answered(_) => Ended::Answered,
            _ => Ended::NothingToSend,
        })
        .min()
    }
}

/// Waits until it is known of each message how it ended, at most `limit`, or until the stop; `told` hears of each look.
pub async fn wait(
    queue: &Queue,
    directory: &Directory,
    messages: Vec<Republished>,
    limit: Duration,
    stop: &Stop,
    mut told: impl FnMut(Outcomes),
) -> Outcomes {
    let deadline = Instant::now() + limit;
    let (mut pending, mut outcomes) = (VecDeque::from(messages), Outcomes::default());
    let mut pause = FIRST_LOOK;
    loop {
        if let Err(error) = look(directory, &mut pending, &mut outcomes).await {
            tracing::debug!(%error, "cannot read how replayed messages ended; looking again");
        }
        outcomes.on_the_way = pending.len() as u64;
        told(outcomes);
        let left = deadline.saturating_duration_since(Instant::now());
        if pending.is_empty() || left.is_zero() || stop.asked() {
            break;
        }
        tokio::select! {
            () = stop.wait() => {}
            () = tokio::time::sleep(pause.min(left)) => {}
        }
        pause = (pause * 2).min(LOOK_EVERY);
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
    pending: &mut VecDeque<Republished>,
    outcomes: &mut Outcomes,
) -> Result<(), DirectoryError> {
    let some = pending.len().min(LOOK_MAX);
    let keys: Vec<DedupKey> = pending.iter().take(some).flat_map(Republished::keys).collect();
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

async fn dead_again(queue: &Queue, pending: &VecDeque<Republished>) -> Result<u64, DeskError> {
    let filter = Filter { ids: pending.iter().map(|message| message.id).collect(), ..Filter::default() };
    let entries = list(queue, &filter).await?;
    let dead: HashSet<(MessageId, u32)> = entries.iter().map(|entry| (entry.key.id, entry.replays)).collect();
    Ok(pending.iter().filter(|message| dead.contains(&(message.id, message.replays))).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn republished(digest: Option<PayloadDigest>) -> Republished {
        Republished { id: MessageId::fresh(), replays: 1, digest }
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
        assert_eq!(ended(&[died(1)]), Some(Ended::DiedAgain));
        assert_eq!(ended(&[DedupKey::Forwarded(message)]), Some(Ended::Delivered));
        assert_eq!(ended(&[nothing, DedupKey::Delivered(message)]), Some(Ended::Delivered));
        assert_eq!(ended(&[nothing]), Some(Ended::NothingToSend));
        assert_eq!(ended(&[DedupKey::Answered(message)]), Some(Ended::Answered));
    }

    #[test]
    fn another_request_under_the_same_key_is_no_delivery() {
        let one = republished(Some(PayloadDigest::of(b"one")));
        let by = |digest| one.ended(&[DoneBefore { key: DedupKey::Delivered(one.id), digest }]);
        assert_eq!(by(Some(PayloadDigest::of(b"other"))), None);
        assert_eq!(by(one.digest), Some(Ended::Delivered));
        assert_eq!(by(None), Some(Ended::Delivered));
    }

    #[test]
    fn a_person_reads_the_two_numbers_first() {
        let mut outcomes = Outcomes { delivered: 4, ..Outcomes::default() };
        assert_eq!(outcomes.told(), "delivered 4, died again 0");
        (outcomes.on_the_way, outcomes.nothing_to_send) = (2, 1);
        assert_eq!(outcomes.told(), "delivered 4, died again 0, needed no sending 1, still on its way 2");
        assert_eq!(outcomes.settled(), 5);
    }
}
