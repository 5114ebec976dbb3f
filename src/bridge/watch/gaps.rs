//! Gap repair: relays messages whose callbacks were lost. ServiceNow never repeats a failed callback
//! (`src/platform/servicenow/FACTS.md`). Each chat is therefore read back before an agent's message is relayed, at each
//! poll, and before an end.
//!
//! Guarantees: an agent's messages are relayed in ServiceNow's order. Each message is relayed once, because it has the
//! same id in a callback and in a reading. If the chat can be read, the text and the author are those of ServiceNow's
//! row, and a callback without a row is dropped. A message that became a dead letter is not relayed here, but by its
//! replay. A message that is dead-lettered here keeps the history of its attempts. If ServiceNow does not answer,
//! callbacks wait for a limited time (`to_bot/callback_row.rs`); they are then relayed, and the gap is repaired later.
//! Not responsible for: reading (`platform/servicenow/history.rs`), the row of a callback (`to_bot/callback_row.rs`), the
//! calls to the bot side (`to_bot/relay.rs`).

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::bridge::Deliverer;
use crate::bridge::attachments::with_names;
use crate::bridge::to_bot::callback_row::{FORGET_AFTER, GapCheck};
use crate::bridge::to_bot::relay::{MessageAuthor, RelayedMessage};
use crate::clock;
use crate::conversation::{Changes, Conversation, DedupKey, Directory, JournalEntry, SettledAfter};
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{
    AttemptHistory, AttemptRecord, Callback, DeadLetter, DeadReason, Destination, Endpoint, Kind, LaneKey,
    Message, MessageId, Outcome, named,
};
use crate::platform::servicenow::{AgentFile, RemoteMessage};
use crate::platform::{CallError, ChatApi, ServiceNow};

named! {
    /// `servicenow.read_back`: the moment at which a chat is read back before an agent's message is relayed.
    #[derive(Default)]
    ReadBack {
        /// Before each message, unless its callback shows that no message is missing.
        #[default]
        Always = "always",
        /// Only if the callback itself shows a gap or a file.
        Gaps = "gaps",
    }
}

impl Deliverer {
    /// Relays the message of a callback, after all messages that are missing before it.
    pub(in crate::bridge) async fn relay_callback(
        &self,
        directory: &Directory,
        message: &Message,
        past: PriorAttempts,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Attempt, InternalError> {
        let before = self.check_gap(directory, message, callback, conversation).await?;
        if let Some(attempt) = self.without_relay(message, &before) {
            return Ok(attempt);
        }
        let row = before.row();
        let writer = row.map_or(callback.sys_created_by.as_deref(), |row| row.created_by.as_deref());
        if author(writer) == MessageAuthor::Agent
            && let Some(attempt) = self.before_first_words(directory, message, callback, conversation).await?
        {
            return Ok(attempt);
        }
        if let GapCheck::Read { missing, .. } = &before {
            for remote in missing {
                if let Some(attempt) =
                    self.relay_missing(directory, message, callback, conversation, remote).await?
                {
                    return Ok(attempt);
                }
            }
        }
        let files: &[AgentFile] = row.map_or(&[], |row| &row.files);
        let text = match row {
            Some(row) => crate::message::rich_text::message_text(&row.text, self.instance()),
            None => callback.text(self.instance()),
        };
        let said = RelayedMessage {
            id: message.id,
            group: &callback.group,
            text: with_names(text, files),
            choices: &[],
            author: author(writer),
            agent: writer,
            sys_id: callback.sys_id.as_deref(),
            files,
        };
        let attempt = self.relay(message, conversation, &said).await?;
        if matches!(attempt.outcome, Outcome::Delivered | Outcome::Dropped) {
            if let Some(sys_id) = &callback.sys_id
                && said.author == MessageAuthor::System
                && self.is_closing_sentence(&said.text)
            {
                self.note_closing_sentence(directory, &callback.group, sys_id).await?;
            }
            let attempts = past.count.saturating_add(1);
            let changes = Changes::default().with_outcome(message, &attempt.outcome, attempts);
            self.mark_relayed(directory, message, callback, conversation, &before, changes).await?;
            return Ok(attempt.recorded());
        }
        Ok(attempt)
    }

    /// The attempt of a callback whose message is not relayed now, or never.
    fn without_relay(&self, message: &Message, before: &GapCheck) -> Option<Attempt> {
        let attempt = |outcome, why| Attempt::of(Endpoint::ServiceNow, outcome, why);
        Some(match before {
            GapCheck::NotYet => {
                let why = "the chat could not be read back in time";
                Attempt::internal_error(Endpoint::ServiceNow, false, why)
            }
            GapCheck::Internal => attempt(Outcome::Dropped, "it is an internal message"),
            GapCheck::Unseen => {
                let look_again = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
                attempt(look_again, "ServiceNow does not show its row yet")
            }
            GapCheck::Absent => {
                // If the row appears later, gap repair relays it with the next reading of the chat.
                self.metrics.unconfirmed.inc();
                tracing::warn!(id = %message.id, "dropped a callback: ServiceNow has no row for its message");
                attempt(Outcome::Dropped, "ServiceNow has no such message")
            }
            GapCheck::Complete | GapCheck::Unknown | GapCheck::Read { .. } | GapCheck::Late(_) => {
                return None;
            }
        })
    }

    /// The instance to which relative addresses belong.
    pub(in crate::bridge) fn instance(&self) -> Option<&url::Url> {
        self.servicenow.as_ref().map(ServiceNow::instance)
    }

    /// Records how far the chat was relayed, and the outcome of the message. If the message may announce a change of state,
    /// the next poll of the state is made soon.
    async fn mark_relayed(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        before: &GapCheck,
        changes: Changes,
    ) -> Result<(), InternalError> {
        let mut changes = match &callback.sys_id {
            // A replayed message is old: the messages after it were relayed or dead-lettered long ago.
            Some(sys_id) if message.replays == 0 && before.moves_on() => {
                changes.relayed(&callback.group, sys_id)
            }
            _ => changes.touched(&callback.group),
        };
        // The text of a system message is translated and differs between versions, so it only triggers the next poll.
        let writer = before.row().map_or(callback.sys_created_by.as_deref(), |row| row.created_by.as_deref());
        let is_news = writer == Some("system") || conversation.agent.is_none();
        // Messages may be missing before this one: the chat is polled before the chats without a gap.
        let may_have_gap = matches!(before, GapCheck::Unknown) && self.settings.read_back == ReadBack::Always;
        if is_news || may_have_gap {
            changes = changes.poll_soon(&conversation.id);
        }
        directory.record(changes).await?;
        if callback.repaired {
            self.metrics.repaired.inc();
        }
        Ok(())
    }

    /// Relays one message that is missing before the callback's message. `Some` with the attempt if it must be
    /// repeated.
    async fn relay_missing(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        remote: &RemoteMessage,
    ) -> Result<Option<Attempt>, InternalError> {
        let place = (message.destination, message.lane.clone());
        let Some(mut lost) = unrelayed(directory, &callback.group, remote, place).await? else {
            return Ok(None);
        };
        // A replay follows the time of acceptance and then the time of death. If this message is dead-lettered, it
        // stands right before the callback's message.
        lost.accepted_at = message.accepted_at;
        let writer = remote.created_by.as_deref();
        let said = RelayedMessage {
            id: lost.id,
            group: &callback.group,
            text: with_names(
                crate::message::rich_text::message_text(&remote.text, self.instance()),
                &remote.files,
            ),
            choices: &[],
            author: author(writer),
            agent: writer,
            sys_id: Some(&remote.sys_id),
            files: &remote.files,
        };
        let at = clock::now();
        let attempt = self.relay(message, conversation, &said).await?;
        let story = self.missed_histories().add(lost.id, at, &attempt);
        let mut changes = Changes::default().relayed(&callback.group, &remote.sys_id);
        match attempt.outcome {
            Outcome::Delivered => {
                changes = changes.with_outcome(&lost, &attempt.outcome, story.count());
                self.metrics.repaired.inc();
            }
            Outcome::Declined | Outcome::Repeated | Outcome::Routed | Outcome::Dropped => {}
            Outcome::Dead(reason) => {
                self.dead_letter_missed(directory, lost.clone(), reason, &attempt.error, story).await?;
            }
            Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Deferred { .. } => {
                return Ok(Some(attempt));
            }
        }
        self.missed_histories().forget(lost.id);
        directory.record(changes).await?;
        Ok(None)
    }

    pub(in crate::bridge) fn missed_histories(&self) -> MutexGuard<'_, MissedHistories> {
        self.missed_histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the dead letter of a message that was to be relayed in the attempt of another message.
    pub(in crate::bridge) async fn dead_letter_missed(
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
        self.queue.dead_letter(&DeadLetter::new(lost, reason, why, story)).await?;
        if let Some(entry) = entry {
            directory.record(Changes::default().settled(&entry)).await?;
        }
        self.metrics.dead_letters.with_label_values(&[destination, reason.as_str()]).inc();
        tracing::warn!(%id, destination, %reason, attempts, "a missing message was dead-lettered");
        Ok(())
    }

    /// Publishes the messages that were not relayed yet. They follow the messages that are already on the queue.
    pub(in crate::bridge) async fn repair(
        &self,
        directory: &Directory,
        servicenow: &ServiceNow,
        conversation: &Conversation,
        group: &str,
    ) -> Result<Result<(), CallError>, InternalError> {
        if servicenow.api() != ChatApi::ConnectSupport {
            return Ok(Ok(()));
        }
        let since = directory.last_relayed(group).await?;
        let reads = self.metrics.servicenow_reads.with_label_values(&["messages"]);
        let remote = match servicenow.messages_since(&conversation.id, group, since.as_deref()).await {
            Ok(history) => {
                reads.inc_by(history.requests);
                // The caller waited for one request. Further pages delay the next polls.
                self.reads.spend(history.requests.saturating_sub(1));
                history.messages
            }
            Err(error) => {
                reads.inc();
                return Ok(Err(error));
            }
        };
        for remote in remote.iter().filter(|remote| !remote.internal) {
            let lane = LaneKey::parse(group).map_err(InternalError::temporary)?;
            let place = (self.settings.bot_side.of_chat(), lane);
            let Some(lost) = unrelayed(directory, group, remote, place).await? else { continue };
            // A message that is already on the queue is not published again at each poll.
            if self.read.lock().unwrap_or_else(PoisonError::into_inner).contains(lost.id) {
                continue;
            }
            self.queue.publish(&lost).await?;
            self.read.lock().unwrap_or_else(PoisonError::into_inner).add(lost.id, ());
        }
        Ok(Ok(()))
    }
}

fn author(writer: Option<&str>) -> MessageAuthor {
    if writer == Some("system") { MessageAuthor::System } else { MessageAuthor::Agent }
}

/// Returns the message if it still has to be relayed: it was not relayed, not dead-lettered and is not internal. If its
/// callback arrived before the directory knew the chat, the callback went to XO's Callback URL under the usual id. Such
/// a message is relayed under an id of its own.
async fn unrelayed(
    directory: &Directory,
    group: &str,
    remote: &RemoteMessage,
    place: (Destination, LaneKey),
) -> Result<Option<Message>, InternalError> {
    let mut lost = message_of(group, remote, place);
    let mut known = directory.find_done(&dealt_with(lost.id)).await?;
    if known.iter().any(|done| matches!(done.key, DedupKey::Forwarded(_)))
        && !known.iter().any(|done| matches!(done.key, DedupKey::Delivered(_)))
    {
        lost.id = second_id(lost.id);
        known = directory.find_done(&dealt_with(lost.id)).await?;
    }
    Ok(known.is_empty().then_some(lost))
}

/// The id of a message whose callback went to XO's Callback URL before its chat was known.
pub(in crate::bridge) fn second_id(message: MessageId) -> MessageId {
    MessageId::derived("told", &message.to_string())
}

fn dealt_with(message: MessageId) -> [DedupKey; 4] {
    let dead = DedupKey::DeadLettered { message, replays: 0 };
    [DedupKey::Delivered(message), DedupKey::Forwarded(message), DedupKey::Internal(message), dead]
}

/// The attempts of missing messages, until each message is settled. An entry that no attempt used for ten minutes is
/// removed, and the dead letter then has the later attempts only.
#[derive(Debug, Default)]
pub(in crate::bridge) struct MissedHistories(HashMap<MessageId, (Instant, AttemptHistory)>);

impl MissedHistories {
    /// Adds an attempt, and returns the history so far.
    pub(in crate::bridge) fn add(
        &mut self,
        id: MessageId,
        at: jiff::Timestamp,
        attempt: &Attempt,
    ) -> AttemptHistory {
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

    pub(in crate::bridge) fn forget(&mut self, id: MessageId) {
        self.0.remove(&id);
    }
}

/// Builds the message that the lost callback would have carried.
fn message_of(group: &str, remote: &RemoteMessage, (destination, lane): (Destination, LaneKey)) -> Message {
    let id = MessageId::derived("servicenow", &remote.sys_id);
    let body = json!({
        "group": group,
        "formatted_message": remote.text,
        "sys_created_by": remote.created_by,
        "sys_id": remote.sys_id,
        "repaired": true,
    });
    Message::new(id, Kind::CallbackMessage, destination, lane, body.to_string())
}
