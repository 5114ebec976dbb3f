//! Gap repair: relays messages whose callbacks were lost. ServiceNow never repeats a failed callback
//! (`src/platform/servicenow/FACTS.md`). Each chat is therefore read back before an agent's message is relayed, at each
//! poll, and before an end.
//!
//! Guarantees: an agent's messages are relayed in ServiceNow's order and each once, because a callback and gap repair
//! give a message the same id. A message that was dead-lettered is not relayed here; its replay relays the message. A
//! message that is dead-lettered here has the history of its attempts. A ServiceNow that does not answer delays no
//! conversation for longer than 30 s: the callback is relayed, and the gap is repaired later.
//!
//! Not responsible for: reading (`platform/servicenow/history.rs`), relaying (`tell.rs`).

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::attachments::{names_a_file, with_names};
use super::breaker;
use super::tell::{Said, Voice};
use super::{Attempt, Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};
use crate::delivery::classify::Operation;
use crate::message::{
    AttemptRecord, Callback, DeadLetter, DeadReason, Destination, Endpoint, Kind, LaneKey, Message,
    MessageId, Outcome, Story,
};
use crate::platform::servicenow::{AgentFile, Heard};
use crate::platform::{CallError, ChatApi, ServiceNow};

/// The time limit of one reading.
const READING: Duration = Duration::from_secs(5);
/// How long the callbacks of a chat wait for a successful reading, counted from the first failed reading.
const PATIENCE: Duration = Duration::from_secs(30);
/// After an outage of this length the callbacks do not wait any more. A shorter failure must not let a later message
/// overtake a missing one.
const OUTAGE: Duration = Duration::from_secs(15);
/// Entries that were not used for this time are removed.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// When a chat is read back before an agent's message is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadBack {
    /// Always, unless the callback itself shows that no message is missing.
    #[default]
    Always,
    /// Only if the callback itself shows a gap.
    Gaps,
}

/// The result of the search for messages before a callback.
enum Before {
    /// No message is missing.
    Complete,
    /// Unknown; missing messages are found later.
    Unknown,
    /// These messages came before the callback. The last ones may not have been relayed.
    Read {
        heard: Vec<Heard>,
        /// The files of the callback's own row.
        files: Vec<AgentFile>,
    },
    /// The callback is an internal message and is not for the user.
    Internal,
    /// ServiceNow did not answer; another attempt may succeed.
    NotYet,
}

impl Deliverer {
    /// Relays the message of a callback, after all messages that are missing before it.
    pub(super) async fn said(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Attempt, OwnTrouble> {
        let before = self.before(directory, message, callback, conversation).await?;
        if matches!(before, Before::NotYet) {
            let why = "ServiceNow did not say which messages came before";
            return Ok(Attempt::own_trouble(Endpoint::ServiceNow, false, why));
        }
        if matches!(before, Before::Internal) {
            return Ok(Attempt::of(Endpoint::ServiceNow, Outcome::Dropped, "it is an internal message"));
        }
        let writer = callback.sys_created_by.as_deref();
        if voice(writer) == Voice::Agent
            && let Some(attempt) = self.before_first_words(directory, message, callback, conversation).await?
        {
            return Ok(attempt);
        }
        if let Before::Read { heard, .. } = &before {
            for heard in heard {
                if let Some(attempt) = self.missed(directory, message, callback, conversation, heard).await? {
                    return Ok(attempt);
                }
            }
        }
        let files: &[AgentFile] = if let Before::Read { files, .. } = &before { files } else { &[] };
        let said = Said {
            id: message.id,
            group: &callback.group,
            text: with_names(callback.text(self.instance()), files),
            voice: voice(writer),
            agent: writer,
            sys_id: callback.sys_id.as_deref(),
            files,
        };
        let attempt = self.say(message, conversation, &said).await?;
        if matches!(attempt.outcome, Outcome::Delivered | Outcome::Dropped) {
            self.note_told(directory, message, callback, conversation, &before).await?;
        }
        Ok(attempt)
    }

    /// The instance that relative addresses belong to.
    pub(super) fn instance(&self) -> Option<&url::Url> {
        self.servicenow.as_ref().map(ServiceNow::instance)
    }

    /// Records how far the chat was relayed. If the message may announce a change of state, the next poll of the state
    /// is made soon.
    async fn note_told(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        before: &Before,
    ) -> Result<(), OwnTrouble> {
        match &callback.sys_id {
            // A replayed message is old: later messages were relayed or dead-lettered before.
            Some(sys_id) if message.replays == 0 && !matches!(before, Before::Unknown) => {
                directory.told(&callback.group, sys_id, clock::now()).await?;
            }
            _ => directory.stirred(&callback.group, clock::now()).await?,
        }
        // The texts of system messages are translated and differ between versions. They only say when to poll.
        let is_news = callback.sys_created_by.as_deref() == Some("system") || conversation.agent.is_none();
        if is_news {
            directory.look_soon(&conversation.id).await?;
        }
        if callback.repaired {
            self.metrics.repaired.inc();
        }
        Ok(())
    }

    async fn before(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Before, OwnTrouble> {
        let (Some(servicenow), Some(sys_id)) = (&self.servicenow, &callback.sys_id) else {
            return Ok(Before::Unknown);
        };
        // An earlier chat cannot be read by us, and the Virtual Agent API has no such call.
        let current = conversation.group.as_deref() == Some(&callback.group);
        if !current || servicenow.api() != ChatApi::ConnectSupport {
            return Ok(Before::Unknown);
        }
        let last_told = directory.last_told(&callback.group).await?;
        // Only the row of a message names its files.
        let has_file = callback.formatted_message.as_deref().is_some_and(names_a_file);
        if has_file {
            // A message with a file is always read back.
        } else if let Some(previous) = &callback.previous {
            if previous.as_str() == last_told.as_deref().unwrap_or_default() {
                return Ok(Before::Complete);
            }
        } else if self.settings.read_back == ReadBack::Gaps {
            return Ok(Before::Unknown);
        }
        let Some(mut heard) = self.read_back(servicenow, conversation, callback, last_told.as_deref()).await
        else {
            return Ok(if self.waits_for(&callback.group) { Before::NotYet } else { Before::Unknown });
        };
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).remove(&callback.group);
        // If the message is absent from the list, the business rule was faster than its own transaction: all listed
        // messages came before it.
        let mut files = Vec::new();
        if let Some(here) = heard.iter().position(|heard| heard.sys_id == *sys_id) {
            if heard[here].internal {
                return Ok(Before::Internal);
            }
            files.clone_from(&heard[here].files);
            heard.truncate(here);
        } else if message.replays > 0 {
            // The replayed message is older than every message of the list.
            heard.clear();
        }
        heard.retain(|heard| !heard.internal);
        Ok(Before::Read { heard, files })
    }

    /// Whether the callback waits for another reading of a chat that could not be read.
    fn waits_for(&self, group: &str) -> bool {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.retain(|_, since| since.elapsed() < FORGET_AFTER);
        let since = *unread.entry(group.to_owned()).or_insert_with(Instant::now);
        since.elapsed() < PATIENCE && self.gate(Destination::ServiceNow).breaker().down_for() < OUTAGE
    }

    async fn read_back(
        &self,
        servicenow: &ServiceNow,
        conversation: &Conversation,
        callback: &Callback,
        since: Option<&str>,
    ) -> Option<Vec<Heard>> {
        let gate = self.gate(Destination::ServiceNow);
        let _pass = tokio::time::timeout(READING, gate.enter(false)).await.ok().flatten()?;
        let reading = servicenow.heard_since(&conversation.id, &callback.group, since);
        match tokio::time::timeout(READING, reading).await {
            Ok(Ok(heard)) => {
                gate.breaker().hear(breaker::Heard::Alive);
                return Some(heard);
            }
            Ok(Err(error)) => self.trouble_reading(conversation, &error),
            Err(_) => {
                let lane = super::lane_number(&callback.group);
                gate.breaker().hear(breaker::Heard::Failed { lane, unreachable: false });
            }
        }
        None
    }

    fn trouble_reading(&self, conversation: &Conversation, error: &CallError) {
        let attempt = Attempt::called(Endpoint::ServiceNow, error, Operation::State);
        self.tell_breaker(Destination::ServiceNow, None, &attempt);
        tracing::debug!(conversation = %conversation.id, %error, "cannot read the chat back");
    }

    /// Relays one missing message. `Some` with the attempt if the attempt must be repeated.
    async fn missed(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        heard: &Heard,
    ) -> Result<Option<Attempt>, OwnTrouble> {
        let place = (message.destination, message.lane.clone());
        let Some(mut lost) = untold(directory, &callback.group, heard, place).await? else { return Ok(None) };
        // A replay follows the time of acceptance and then the time of death. If this message is dead-lettered, it
        // stands right before the callback's message.
        lost.accepted_at = message.accepted_at;
        let writer = heard.created_by.as_deref();
        let said = Said {
            id: lost.id,
            group: &callback.group,
            text: with_names(
                crate::message::rich_text::message_text(&heard.text, self.instance()),
                &heard.files,
            ),
            voice: voice(writer),
            agent: writer,
            sys_id: Some(&heard.sys_id),
            files: &heard.files,
        };
        let at = clock::now();
        let attempt = self.say(message, conversation, &said).await?;
        let story = self.missed_stories().add(lost.id, at, &attempt);
        match attempt.outcome {
            Outcome::Delivered => {
                directory.mark_done(DedupKey::Delivered(lost.id), None, clock::now()).await?;
                self.metrics.repaired.inc();
            }
            Outcome::Answered | Outcome::Repeated | Outcome::Routed | Outcome::Dropped => {}
            Outcome::Dead(reason) => {
                self.dead_letter_missed(directory, lost.clone(), reason, &attempt.error, story).await?;
            }
            Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Held { .. } => return Ok(Some(attempt)),
        }
        self.missed_stories().forget(lost.id);
        directory.told(&callback.group, &heard.sys_id, clock::now()).await?;
        Ok(None)
    }

    pub(super) fn missed_stories(&self) -> MutexGuard<'_, MissedStories> {
        self.missed_stories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the dead letter of a message that was to be relayed in the attempt of another message.
    pub(super) async fn dead_letter_missed(
        &self,
        directory: &Directory,
        lost: Message,
        reason: DeadReason,
        why: &str,
        story: Story,
    ) -> Result<(), OwnTrouble> {
        let (id, destination, attempts) = (lost.id, lost.destination.as_str(), story.count());
        self.queue.bury(&DeadLetter::new(lost, reason, why, story)).await?;
        directory.mark_done(DedupKey::DeadLettered { message: id, replays: 0 }, None, clock::now()).await?;
        self.metrics.dead_letters.with_label_values(&[destination, reason.as_str()]).inc();
        tracing::warn!(%id, destination, %reason, attempts, "a missing message was dead-lettered");
        Ok(())
    }

    /// Publishes the messages that were not relayed yet, behind the messages that wait on the queue.
    pub(super) async fn repair(
        &self,
        directory: &Directory,
        servicenow: &ServiceNow,
        conversation: &Conversation,
        group: &str,
    ) -> Result<Result<(), CallError>, OwnTrouble> {
        if servicenow.api() != ChatApi::ConnectSupport {
            return Ok(Ok(()));
        }
        let since = directory.last_told(group).await?;
        let heard = match servicenow.heard_since(&conversation.id, group, since.as_deref()).await {
            Ok(heard) => heard,
            Err(error) => return Ok(Err(error)),
        };
        for heard in heard.iter().filter(|heard| !heard.internal) {
            let lane = LaneKey::parse(group).map_err(|problem| OwnTrouble(problem.to_string()))?;
            let place = (self.settings.bot_side.of_chat(), lane);
            let Some(lost) = untold(directory, group, heard, place).await? else { continue };
            // A message that waits on the queue already would be published again at each poll.
            if self.read.lock().unwrap_or_else(PoisonError::into_inner).contains(lost.id) {
                continue;
            }
            self.queue.publish(&lost).await?;
            self.read.lock().unwrap_or_else(PoisonError::into_inner).add(lost.id, ());
        }
        Ok(Ok(()))
    }
}

fn voice(writer: Option<&str>) -> Voice {
    if writer == Some("system") { Voice::System } else { Voice::Agent }
}

/// The message if it still has to be relayed, so neither relayed nor dead-lettered. If its callback arrived before the
/// conversation of the chat was known, the callback went to XO's Callback URL and its id is used up. The message then
/// gets another id.
async fn untold(
    directory: &Directory,
    group: &str,
    heard: &Heard,
    place: (Destination, LaneKey),
) -> Result<Option<Message>, OwnTrouble> {
    let mut lost = message_of(group, heard, place);
    let mut known = directory.find_done(&dealt_with(lost.id)).await?;
    if known.iter().any(|done| matches!(done.key, DedupKey::Forwarded(_)))
        && !known.iter().any(|done| matches!(done.key, DedupKey::Delivered(_)))
    {
        lost.id = MessageId::derived("told", &lost.id.to_string());
        known = directory.find_done(&dealt_with(lost.id)).await?;
    }
    Ok(known.is_empty().then_some(lost))
}

fn dealt_with(message: MessageId) -> [DedupKey; 3] {
    let dead = DedupKey::DeadLettered { message, replays: 0 };
    [DedupKey::Delivered(message), DedupKey::Forwarded(message), dead]
}

/// The attempts of missing messages, until each message is settled. An entry that no attempt used for ten minutes is
/// removed, and the dead letter then has the later attempts only.
#[derive(Debug, Default)]
pub(super) struct MissedStories(HashMap<MessageId, (Instant, Story)>);

impl MissedStories {
    /// Adds an attempt, and returns the history so far.
    pub(super) fn add(&mut self, id: MessageId, at: jiff::Timestamp, attempt: &Attempt) -> Story {
        self.0.retain(|_, (touched, _)| touched.elapsed() < FORGET_AFTER);
        let (touched, story) = self.0.entry(id).or_insert_with(|| (Instant::now(), Story::default()));
        *touched = Instant::now();
        if !matches!(attempt.outcome, Outcome::Held { .. }) || story.count() == 0 {
            let (status, outcome) = (attempt.status, attempt.outcome.as_str().to_owned());
            let (error, said) = (attempt.error.clone(), attempt.said.clone());
            story.add(AttemptRecord { at, status, outcome, error, said });
        }
        story.clone()
    }

    pub(super) fn forget(&mut self, id: MessageId) {
        self.0.remove(&id);
    }
}

/// The message that the lost callback would have been.
fn message_of(group: &str, heard: &Heard, (destination, lane): (Destination, LaneKey)) -> Message {
    let id = MessageId::derived("servicenow", &heard.sys_id);
    let body = json!({
        "group": group,
        "formatted_message": heard.text,
        "sys_created_by": heard.created_by,
        "sys_id": heard.sys_id,
        "repaired": true,
    });
    Message::new(id, Kind::CallbackMessage, destination, lane, body.to_string())
}
