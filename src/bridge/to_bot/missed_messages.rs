//! Keeps the attempts of messages that are relayed in the attempt of another message, until each message is settled.
//!
//! Guarantees: a message that is dead-lettered here keeps the history of its attempts.
//! Not responsible for: relaying (`callback_relay.rs`, `agent_joins.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::callback_row::FORGET_AFTER;
use crate::conversation::{Changes, DedupKey, Directory, JournalEntry, SettledAfter};
use crate::delivery::{Attempt, InternalError};
use crate::message::{AttemptHistory, AttemptRecord, DeadLetter, DeadReason, Message, MessageId, Outcome};

/// The messages that are relayed in the attempt of another message.
#[derive(Debug)]
pub(in crate::bridge) struct MissedMessages {
    context: Arc<BridgeContext>,
    histories: Mutex<MissedHistories>,
}

impl MissedMessages {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Self {
        Self { context, histories: Mutex::default() }
    }

    fn histories(&self) -> MutexGuard<'_, MissedHistories> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an attempt, and returns the history so far.
    pub(in crate::bridge) fn add(
        &self,
        id: MessageId,
        at: jiff::Timestamp,
        attempt: &Attempt,
    ) -> AttemptHistory {
        self.histories().add(id, at, attempt)
    }

    /// The message is settled.
    pub(in crate::bridge) fn forget(&self, id: MessageId) {
        self.histories().forget(id);
    }

    /// Writes the dead letter of a message that was to be relayed in the attempt of another message.
    pub(in crate::bridge) async fn dead_letter(
        &self,
        directory: &Directory,
        lost: Message,
        reason: DeadReason,
        why: &str,
        story: AttemptHistory,
    ) -> Result<(), InternalError> {
        let (id, destination, attempts) = (lost.id, lost.destination.as_str(), story.count());
        let status = story.attempts().last().and_then(|attempt| attempt.status);
        let after = SettledAfter { attempts, status, reason: Some(reason) };
        let fact = DedupKey::DeadLettered { message: id, replays: 0 };
        let entry = JournalEntry::of(&lost, fact, after);
        self.context.queue.dead_letter(&DeadLetter::new(lost, reason, why, story)).await?;
        if let Some(entry) = entry {
            directory.record(Changes::default().settled(&entry)).await?;
        }
        self.context.metrics.dead_letters.with_label_values(&[destination, reason.as_str()]).inc();
        tracing::warn!(%id, destination, %reason, attempts, "a missing message was dead-lettered");
        Ok(())
    }
}

/// The attempts of missing messages, until each message is settled. An entry that no attempt used for ten minutes is
/// removed, and the dead letter then has the later attempts only.
#[derive(Debug, Default)]
struct MissedHistories(HashMap<MessageId, (Instant, AttemptHistory)>);

impl MissedHistories {
    /// Adds an attempt, and returns the history so far.
    fn add(&mut self, id: MessageId, at: jiff::Timestamp, attempt: &Attempt) -> AttemptHistory {
        self.0.retain(|_, (touched, _)| touched.elapsed() < FORGET_AFTER);
        let (touched, story) =
            self.0.entry(id).or_insert_with(|| (Instant::now(), AttemptHistory::default()));
        *touched = Instant::now();
        if !matches!(attempt.outcome, Outcome::Deferred { .. }) || story.count() == 0 {
            let (status, outcome) = (attempt.status, attempt.outcome.as_str().to_owned());
            let (error, said) = (attempt.error.clone(), attempt.said.clone());
            story.add(AttemptRecord { at, status, outcome, error, said });
        }
        story.clone()
    }

    fn forget(&mut self, id: MessageId) {
        self.0.remove(&id);
    }
}
