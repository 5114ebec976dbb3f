//! What lost callbacks should have carried. ServiceNow never sends a failed callback again (FACTS.md SN-5), so each chat
//! is read back: before an agent's message is told, on the poll's schedule, and before an end.
//!
//! Guarantees: an agent's messages are told in ServiceNow's order and each once, whichever way they came: they have the same
//! id either way. A message that became a dead letter is not told here: its replay tells it. A message that dies here has the
//! history of its attempts. A ServiceNow that does not answer holds nobody up: what came is told, and the gap is looked for again
//! later. Not responsible for: reading (`platform/servicenow/history.rs`), telling (`tell.rs`).

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

/// How long one reading may take.
const READING: Duration = Duration::from_secs(5);
/// How long a chat's callbacks wait for ServiceNow to say what came before them, since it was asked in vain first.
const PATIENCE: Duration = Duration::from_secs(30);
/// An outage that lasts so long is one: it must not hold the bot side up. A hiccup must not let what came later overtake.
const OUTAGE: Duration = Duration::from_secs(15);
/// What was not read for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// When a chat is read back before an agent's message is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadBack {
    /// Unless the callback itself shows that nothing is missing.
    #[default]
    Always,
    /// Only where the callback itself shows a gap.
    Gaps,
}

/// What is known of the messages before a callback.
enum Before {
    /// Nothing is missing.
    Complete,
    /// Nobody knows; what is missing is found later.
    Unknown,
    /// These were said before it; the last ones may not have been told.
    Read {
        heard: Vec<Heard>,
        /// Files of the callback's own row.
        files: Vec<AgentFile>,
    },
    /// It is not for the user at all.
    Internal,
    /// ServiceNow did not answer; it may a moment later.
    NotYet,
}

impl Deliverer {
    /// Tells what a callback says, and before it whatever is missing.
    pub(super) async fn said(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Attempt, OwnTrouble> {
        let before = self.before(directory, message, callback, conversation).await?;
        if matches!(before, Before::NotYet) {
            let why = "ServiceNow does not say what came before it";
            return Ok(Attempt::own_trouble(Endpoint::ServiceNow, false, why));
        }
        if matches!(before, Before::Internal) {
            return Ok(Attempt::of(Endpoint::ServiceNow, Outcome::Dropped, "agents wrote it to each other"));
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

    /// Remembers how far the chat was told, and has its state looked at where the words announce a change of it.
    async fn note_told(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        before: &Before,
    ) -> Result<(), OwnTrouble> {
        match &callback.sys_id {
            // A replayed message is an old one: what came after it was told or died long ago.
            Some(sys_id) if message.replays == 0 && !matches!(before, Before::Unknown) => {
                directory.told(&callback.group, sys_id, clock::now()).await?;
            }
            _ => directory.stirred(&callback.group, clock::now()).await?,
        }
        // The words of a system message are translated and differ between versions: they only say when to look.
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
        // An earlier chat is closed to us; the newer API has no such call.
        let current = conversation.group.as_deref() == Some(&callback.group);
        if !current || servicenow.api() != ChatApi::ConnectSupport {
            return Ok(Before::Unknown);
        }
        let last_told = directory.last_told(&callback.group).await?;
        // A file is shown by its row alone.
        let has_file = callback.formatted_message.as_deref().is_some_and(names_a_file);
        if has_file {
            // It is read back, whatever is known of what came before.
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
        // Where it is not shown the rule was faster than its own transaction: everything that is shown came before it.
        let mut files = Vec::new();
        if let Some(here) = heard.iter().position(|heard| heard.sys_id == *sys_id) {
            if heard[here].internal {
                return Ok(Before::Internal);
            }
            files.clone_from(&heard[here].files);
            heard.truncate(here);
        } else if message.replays > 0 {
            // It is older than all that is shown.
            heard.clear();
        }
        heard.retain(|heard| !heard.internal);
        Ok(Before::Read { heard, files })
    }

    /// Whether a chat that could not be read is worth waiting for.
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

    /// Tells one message that came before; the attempt that failed, where it failed.
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
        // A replay follows the order of acceptance, and then that of death: should it die, it stands right before this message.
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

    /// The dead letter of a message that another message's attempt was about to tell.
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
        tracing::warn!(%id, destination, %reason, attempts, "dead letter, found on the way of another message");
        Ok(())
    }

    /// Puts what was said and not told yet on the queue, behind what waits there.
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
            // What waits on the queue already would only be put there again at each look.
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

/// The message that is still to be told: it was neither told nor dead-lettered. If its callback came before anybody knew whose chat it
/// was, it went to XO's Callback URL and its id is used up: then it is told under one of its own.
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

/// The attempts of messages that are told before the message that brought them to light, until they are settled. Bounded by time:
/// a message that no attempt touches for long is forgotten, and its dead letter then tells the later attempts only.
#[derive(Debug, Default)]
pub(super) struct MissedStories(HashMap<MessageId, (Instant, Story)>);

impl MissedStories {
    /// Adds an attempt; returns the story so far.
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
