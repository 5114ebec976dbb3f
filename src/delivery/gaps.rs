//! What lost callbacks should have carried. ServiceNow never sends a failed callback again (servicenow.md 5), so each chat
//! is read back: before an agent's message is told, on the poll's schedule, and before an end.
//!
//! Guarantees: an agent's messages are told in ServiceNow's order and each once, whichever way they came: they have the same
//! id either way. A ServiceNow that does not answer holds nobody up: what came is told, and the gap is looked for again
//! later. Leaves to others: reading (`platform/servicenow/history.rs`), telling (`tell.rs`).

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::attachments::{names_a_file, with_names};
use super::breaker;
use super::tell::{Said, Voice};
use super::{Attempt, Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, Directory};
use crate::delivery::classify::Operation;
use crate::message::{
    Callback, DeadLetter, DeadReason, Destination, Endpoint, Kind, LaneKey, Message, MessageId, Outcome,
    Story,
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
        let before = self.before(directory, callback, conversation).await?;
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
            self.note(directory, callback, conversation, &before).await?;
        }
        Ok(attempt)
    }

    /// The instance that relative addresses belong to.
    pub(super) fn instance(&self) -> Option<&url::Url> {
        self.servicenow.as_ref().map(ServiceNow::instance)
    }

    /// Remembers how far the chat was told, and has its state looked at where the words announce a change of it.
    async fn note(
        &self,
        directory: &Directory,
        callback: &Callback,
        conversation: &Conversation,
        before: &Before,
    ) -> Result<(), OwnTrouble> {
        match &callback.sys_id {
            Some(sys_id) if !matches!(before, Before::Unknown) => {
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
        let Some(lost) = untold(directory, &callback.group, heard, place).await? else { return Ok(None) };
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
        let attempt = self.say(message, conversation, &said).await?;
        match attempt.outcome {
            Outcome::Delivered
            | Outcome::Answered
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped => {
                self.metrics.repaired.inc();
            }
            Outcome::Dead(reason) => self.bury_missed(lost.clone(), reason, &attempt.error).await?,
            Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Held { .. } => return Ok(Some(attempt)),
        }
        directory.remember_delivered(lost.id, clock::now()).await?;
        directory.told(&callback.group, &heard.sys_id, clock::now()).await?;
        Ok(None)
    }

    async fn bury_missed(&self, lost: Message, reason: DeadReason, why: &str) -> Result<(), OwnTrouble> {
        let destination = lost.destination.as_str();
        self.queue.bury(&DeadLetter::new(lost, reason, why, Story::default())).await?;
        self.metrics.dead_letters.with_label_values(&[destination, reason.as_str()]).inc();
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
            self.read.lock().unwrap_or_else(PoisonError::into_inner).add(lost.id);
        }
        Ok(Ok(()))
    }
}

fn voice(writer: Option<&str>) -> Voice {
    if writer == Some("system") { Voice::System } else { Voice::Agent }
}

/// The message that is still to be told. Where its callback came before anybody knew whose chat it was, it went to XO's
/// Callback URL and its id is used up: then it is told under one of its own.
async fn untold(
    directory: &Directory,
    group: &str,
    heard: &Heard,
    place: (Destination, LaneKey),
) -> Result<Option<Message>, OwnTrouble> {
    let mut lost = message_of(group, heard, place);
    let mut told = directory.was_delivered(lost.id).await?;
    if !told && directory.was_delivered(lost.id.forwarded()).await? {
        lost.id = MessageId::derived("told", &lost.id.to_string());
        told = directory.was_delivered(lost.id).await?;
    }
    Ok((!told).then_some(lost))
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
