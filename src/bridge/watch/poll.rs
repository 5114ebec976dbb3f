//! Polls the state of each chat: the position and the wait, a new agent, the end. No callback carries these facts.
//!
//! Connect Support pushes none of these facts over REST, and announces an end only as an English sentence
//! (`src/platform/servicenow/FACTS.md`). The state is therefore the only reliable source.
//!
//! Guarantees: one worker at a time polls a conversation, because the directory assigns it. No poll runs while a
//! message of the conversation is in flight. The polls of this worker make at most `servicenow.read_rate` requests in a
//! second, whatever the number of chats: chats with a possible gap first, then the chats with the oldest poll. While the
//! breaker is tripped, a poll runs only as the probe. A notice is published before the new state is recorded, under an id
//! that makes a repeat harmless. An agent's messages are on the queue before the end is.
//!
//! Not responsible for: which of many chats need a poll (`bulk_read.rs`), chats passed on to another queue
//! (`escalation.rs`), lost callbacks (`gaps.rs`; of the Virtual Agent API: `virtual_agent_gaps.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::context::BridgeContext;
use crate::bridge::conversation_rows::ConversationRows;
use crate::bridge::end_reason::ended_by;
use crate::bridge::notices::{Notices, joined_instance};
use crate::bridge::watch::bulk_read::BulkReader;
use crate::bridge::watch::gaps::GapRepair;
use crate::clock;
use crate::conversation::{Conversation, ConversationState, Directory, Observation};
use crate::delivery::breaker::BreakerSignal;
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError};
use crate::message::{ConversationId, DeadReason, Destination, Endpoint, Notice, NoticeEvent, Outcome};
use crate::platform::{CallError, ChatApi, ChatState, QueueEntry, ServiceNow};
use crate::tasks::CancellationToken;

/// `servicenow.wait_limit`, `servicenow.idle_limit`
#[derive(Debug, Clone)]
pub struct TimeLimits {
    /// The time limit from the request to the first agent, and from the departure of an agent to the next agent.
    pub wait: Duration,
    /// The time limit since the last message of either side.
    pub idle: Duration,
}

/// `servicenow.poll_*`
#[derive(Debug, Clone)]
pub struct PollSettings {
    /// The interval while the user waits for an agent.
    pub waiting: Duration,
    /// The interval while an agent is in the chat.
    pub active: Duration,
    /// The time limits of conversations.
    pub time_limits: TimeLimits,
}

/// The limit of chats that are taken from the directory at once.
const BATCH_SIZE: u32 = 32;
/// How often the age of the oldest unread chat is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How long a poll waits for the probe permit before the time limits are checked again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The requests of one poll: the state and the messages.
const REQUESTS: u32 = 2;

/// The poll of one chat.
pub(in crate::bridge) struct PollContext<'a> {
    pub(in crate::bridge) watcher: &'a ChatWatcher,
    pub(in crate::bridge) servicenow: &'a ServiceNow,
    pub(in crate::bridge) directory: &'a Directory,
    pub(in crate::bridge) conversation: &'a Conversation,
    pub(in crate::bridge) group: &'a str,
}

/// The result of a poll. A failed call is reported to the breaker; after an internal error the chat is polled again.
pub(in crate::bridge) type PollResult = Result<Result<(), CallError>, InternalError>;

/// Watches the open chats.
#[derive(Debug)]
pub(in crate::bridge) struct ChatWatcher {
    pub(super) context: Arc<BridgeContext>,
    pub(super) notices: Arc<Notices>,
    pub(super) gaps: Arc<GapRepair>,
    pub(super) rows: Arc<ConversationRows>,
    /// Since when each chat is absent from ServiceNow's answers, or escalated without a new chat.
    pub(super) in_doubt: Mutex<HashMap<ConversationId, Instant>>,
}

impl ChatWatcher {
    pub(in crate::bridge) fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        gaps: Arc<GapRepair>,
        rows: Arc<ConversationRows>,
    ) -> Self {
        Self { context, notices, gaps, rows, in_doubt: Mutex::default() }
    }

    /// Polls the state of every open conversation until the cancellation.
    pub(in crate::bridge) async fn poll(
        &self,
        settings: PollSettings,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let (Some(servicenow), Some(directory)) = (&self.context.servicenow, &self.context.directory) else {
            return Ok(());
        };
        let pause = settings.waiting.min(settings.active).min(Duration::from_secs(1));
        let (mut was_full, mut measured) = (false, None::<Instant>);
        let mut bulk = BulkReader::new(self.context.settings.bulk_read);
        loop {
            // After a full batch more chats may be due, and the rate is the only limit.
            let pause = if was_full { Duration::ZERO } else { pause };
            was_full = false;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if let Err(InternalError { trouble, .. }) =
                self.enforce_time_limits(directory, &settings.time_limits).await
            {
                tracing::debug!(trouble, "could not enforce the time limits; trying again later");
            }
            // The Virtual Agent API reports its state by callbacks only. A table may show the messages.
            let can_be_asked = servicenow.api() == ChatApi::ConnectSupport;
            if !can_be_asked {
                was_full = tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    was_full = self.poll_rows(servicenow, directory, &settings) => was_full,
                };
                continue;
            }
            if measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) {
                measured = Some(Instant::now());
                self.measure_oldest(directory).await;
            }
            // If no message waits to be the probe, only this poll can find out that ServiceNow works again.
            let permit = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                permit = tokio::time::timeout(PROBE_TIMEOUT, self.context.gate(Destination::ServiceNow).breaker().probe_permit()) => permit,
            };
            let Ok(permit) = permit else { continue };
            let probing = permit.is_some();
            let often = |every| if probing { Duration::ZERO } else { every };
            let (waiting, active) = (often(settings.waiting), often(settings.active));
            let at_once = if probing { 1 } else { bulk.batch_size().unwrap_or_else(|| self.batch_size()) };
            match directory.find_due(clock::now(), waiting, active, at_once).await {
                Ok(due) => {
                    was_full = !probing && due.len() >= at_once as usize;
                    let chosen: Vec<&Conversation> = if probing {
                        due.iter().collect()
                    } else {
                        tokio::select! {
                            () = stop.cancelled() => return Ok(()),
                            chosen = bulk.select(&self.gaps, servicenow, directory, &due) => chosen,
                        }
                    };
                    let look =
                        |conversation| self.poll_one(servicenow, directory, conversation, probing, &stop);
                    let polled = futures_util::future::join_all(chosen.into_iter().map(look)).await;
                    polled.into_iter().flatten().for_each(|group| bulk.polled(group));
                }
                Err(error) => tracing::debug!(%error, "cannot read which conversations to poll"),
            }
            drop(permit);
        }
    }

    /// The number of chats that can be polled in about a second. A larger batch would delay a chat with a gap.
    fn batch_size(&self) -> u32 {
        let chats = (self.context.settings.read_rate / f64::from(REQUESTS)).ceil();
        // A conversion of a float saturates.
        (chats as u32).clamp(1, BATCH_SIZE)
    }

    async fn measure_oldest(&self, directory: &Directory) {
        match directory.oldest_poll().await {
            Ok(oldest) => {
                let age = oldest.map_or(0.0, |oldest| clock::since(oldest).as_secs_f64());
                self.context.metrics.oldest_unread.set(age);
            }
            Err(error) => tracing::debug!(%error, "cannot read the time of the oldest poll"),
        }
    }

    /// Returns the group of the chat if the poll succeeded.
    async fn poll_one<'a>(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        conversation: &'a Conversation,
        probing: bool,
        stop: &CancellationToken,
    ) -> Option<&'a str> {
        let group = conversation.group.as_deref()?;
        // The Virtual Agent API has no state to read; its callbacks carry the state.
        if servicenow.api() == ChatApi::VirtualAgent || servicenow.busy(&conversation.id) {
            return None;
        }
        let turn = (0..REQUESTS).map(|_| self.gaps.reads.next_slot()).last();
        if let Some(turn) = turn {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep_until(turn) => {}
            }
        }
        let _pass = self.context.gate(Destination::ServiceNow).enter(probing).await?;
        let look = PollContext { watcher: self, servicenow, directory, conversation, group };
        match look.run().await {
            Ok(Ok(())) => {
                self.context.gate(Destination::ServiceNow).breaker().record(BreakerSignal::Alive);
                return Some(group);
            }
            Ok(Err(error)) => {
                let attempt = Attempt::called(Endpoint::ServiceNow, &error, Operation::State);
                self.context.record_call_to_servicenow(&attempt);
                tracing::debug!(conversation = %conversation.id, %error, "cannot read the state of the chat");
            }
            Err(InternalError { trouble, .. }) => {
                tracing::debug!(conversation = %conversation.id, trouble, "cannot record the state of the chat; trying again at the next poll");
            }
        }
        None
    }
}

impl PollContext<'_> {
    async fn run(&self) -> PollResult {
        self.watcher.context.count_reads("state", 1);
        let entry = match self.servicenow.state(&self.conversation.id, self.group).await {
            Ok(Some(entry)) => entry,
            // A single empty list among good answers is a temporary error of the instance.
            Ok(None) if self.lasts() => return self.end("gone").await,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        match entry.state.and_then(ended_by) {
            Some("escalated") => self.escalated(&entry).await,
            Some(reason) => self.end(reason).await,
            None => {
                self.settled();
                self.record_entry(&entry).await?;
                self.read().await
            }
        }
    }

    /// Publishes the remaining messages first, because nothing is relayed after an end.
    pub(in crate::bridge) async fn end(&self, reason: &str) -> PollResult {
        if let Err(error) = self.read().await? {
            let attempt = Attempt::called(Endpoint::ServiceNow, &error, Operation::State);
            // A chat that may not be read any more is ended without the remaining messages.
            if !matches!(attempt.outcome, Outcome::Dead(DeadReason::ConversationOver | DeadReason::Rejected))
            {
                return Ok(Err(error));
            }
        }
        self.watcher.notices.end(&self.conversation.id, Some(self.group), reason).await?;
        self.settled();
        Ok(Ok(()))
    }

    async fn read(&self) -> PollResult {
        self.watcher.gaps.repair(self.directory, self.servicenow, self.conversation, self.group).await
    }

    pub(in crate::bridge) async fn record_entry(&self, entry: &QueueEntry) -> Result<(), InternalError> {
        let known = self.conversation;
        let newest = self.directory.find(&known.id).await?;
        if newest.is_none_or(|newest| newest.updated_at != known.updated_at) {
            // The row was read before the state of the chat. The next poll decides on the newer row.
            self.directory.poll_soon(&known.id).await?;
            return Ok(());
        }
        let active = entry.state == Some(ChatState::InProgress) && entry.assigned_to.is_some();
        // The instance part of the notices' ids. A relayed notice changes `updated_at`, so a second `joined` of the
        // same agent gets another id, and a repeat of the first one keeps its id.
        let since = known.updated_at.as_millisecond();
        let notice = Notice {
            group: Some(self.group.to_owned()),
            agent: entry.assigned_to.clone(),
            position: entry.position.filter(|_| !active),
            wait: entry.wait.clone().filter(|_| !active),
            ..Notice::about(known.id.clone())
        };
        // If only messages of an agent were seen so far, the agent gets a name without another `joined`.
        let another = known.agent.is_some() && known.agent != entry.assigned_to;
        if active && (known.state != ConversationState::Active || another) {
            let instance = joined_instance(known, entry.assigned_to.as_deref());
            self.watcher.notices.publish_event(notice, NoticeEvent::Joined, &instance).await?;
            self.watcher.notices.agent_came(self.directory, known).await?;
        } else if !active && known.state == ConversationState::Active {
            let notice = Notice { agent: known.agent.clone(), ..notice };
            self.watcher.notices.publish_event(notice, NoticeEvent::Left, &since.to_string()).await?;
        } else if !active && known.position != entry.position {
            let position = entry.position.map(|position| position.to_string()).unwrap_or_default();
            self.watcher
                .notices
                .publish_event(notice, NoticeEvent::Waiting, &format!("{since}:{position}"))
                .await?;
        }
        let seen = Observation {
            position: entry.position,
            wait: entry.wait.clone(),
            agent: entry.assigned_to.clone(),
            active,
            decided_on: Some(known.updated_at),
        };
        self.directory.record_observation(&known.id, self.group, &seen).await?;
        Ok(())
    }
}
