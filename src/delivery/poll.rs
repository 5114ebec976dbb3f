//! What no callback tells: position and wait, the agent joining, the end. Read back from the session state.
//!
//! Connect Support pushes none of these over REST, and its end is only an English sentence (FACTS.md SN-26), so the state
//! is the one thing to believe. Guarantees: a conversation is asked about by one worker at a time (the directory hands it
//! out), never while one of its messages is in the air, and while the breaker is tripped only as its probe; what was seen is
//! told before it is noted, under an id that makes telling it twice harmless; what an agent said is on the queue before the
//! end is.
//! Leaves to others: chats passed on to another queue (`escalation.rs`), what lost callbacks carried (`gaps.rs`).

use std::sync::Arc;
use std::time::Duration;

use super::agent_joins::joined_instance;
use super::breaker::Heard;
use super::{Attempt, Deliverer, OwnTrouble, Patience};
use crate::clock;
use crate::conversation::{Conversation, Directory, Observation, State};
use crate::delivery::classify::Operation;
use crate::message::{DeadReason, Destination, Endpoint, Notice, NoticeEvent, Outcome};
use crate::platform::{CallError, ChatApi, ChatState, QueueEntry, ServiceNow};
use crate::tasks::Stop;

/// `servicenow.poll_*`
#[derive(Debug, Clone)]
pub struct PollSettings {
    /// While the user waits for an agent.
    pub waiting: Duration,
    /// While an agent is there.
    pub active: Duration,
    /// How long anybody waits at all.
    pub patience: Patience,
}

const AT_ONCE: u32 = 32;
/// How long a probe is waited for before users' patience is looked at again.
const SEAT_TAKES: Duration = Duration::from_secs(10);

/// One chat that is looked at.
pub(super) struct Look<'a> {
    pub(super) deliverer: &'a Deliverer,
    pub(super) servicenow: &'a ServiceNow,
    pub(super) directory: &'a Directory,
    pub(super) conversation: &'a Conversation,
    pub(super) group: &'a str,
}

/// What became of a look: a call that failed is for the breaker, the rest is looked at again.
pub(super) type Looked = Result<Result<(), CallError>, OwnTrouble>;

impl Deliverer {
    /// Reads back the state of every open conversation until the stop.
    pub async fn poll(self: Arc<Self>, settings: PollSettings, stop: Stop) -> Result<(), String> {
        let (Some(servicenow), Some(directory)) = (&self.servicenow, &self.directory) else { return Ok(()) };
        let pause = settings.waiting.min(settings.active).min(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = stop.wait() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if let Err(OwnTrouble(trouble)) = self.lose_patience(directory, &settings.patience).await {
                tracing::debug!(trouble, "what lasted too long is ended later");
            }
            // The newer API tells its state by callbacks alone.
            let can_be_asked = servicenow.api() == ChatApi::ConnectSupport;
            if !can_be_asked {
                continue;
            }
            // Where no message waits to be the probe, nothing else would find out that ServiceNow is back.
            let seat = tokio::select! {
                () = stop.wait() => return Ok(()),
                seat = tokio::time::timeout(SEAT_TAKES, self.gate(Destination::ServiceNow).breaker().probe_seat()) => seat,
            };
            let Ok(seat) = seat else { continue };
            let probing = seat.is_some();
            let often = |every| if probing { Duration::ZERO } else { every };
            let (waiting, active) = (often(settings.waiting), often(settings.active));
            let at_once = if probing { 1 } else { AT_ONCE };
            match directory.due(clock::now(), waiting, active, at_once).await {
                Ok(due) => {
                    let look = |conversation| self.look(servicenow, directory, conversation, probing);
                    futures_util::future::join_all(due.iter().map(look)).await;
                }
                Err(error) => tracing::debug!(%error, "cannot read which conversations to ask about"),
            }
            drop(seat);
        }
    }

    async fn look(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        conversation: &Conversation,
        probing: bool,
    ) {
        let Some(group) = &conversation.group else { return };
        // The Virtual Agent API has no state to read: what there is to know comes in its callbacks.
        if servicenow.api() == ChatApi::VirtualAgent || servicenow.busy(&conversation.id) {
            return;
        }
        let Some(_pass) = self.gate(Destination::ServiceNow).enter(probing).await else { return };
        let look = Look { deliverer: self, servicenow, directory, conversation, group };
        match look.take().await {
            Ok(Ok(())) => self.gate(Destination::ServiceNow).breaker().hear(Heard::Alive),
            Ok(Err(error)) => {
                let attempt = Attempt::called(Endpoint::ServiceNow, &error, Operation::State);
                self.tell_breaker(Destination::ServiceNow, None, &attempt);
                tracing::debug!(conversation = %conversation.id, %error, "cannot read how the chat stands");
            }
            Err(OwnTrouble(trouble)) => {
                tracing::debug!(conversation = %conversation.id, trouble, "what was seen is told at the next look");
            }
        }
    }
}

impl Look<'_> {
    async fn take(&self) -> Looked {
        let entry = match self.servicenow.state(&self.conversation.id, self.group).await {
            Ok(Some(entry)) => entry,
            // One empty list among good ones is a hiccup of the instance.
            Ok(None) if self.lasts() => return self.end("gone").await,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        match entry.state.and_then(ended_by) {
            Some("escalated") => self.escalated(&entry).await,
            Some(reason) => self.end(reason).await,
            None => {
                self.settled();
                self.saw(&entry).await?;
                self.read().await
            }
        }
    }

    /// What was said goes on the queue first: nothing is told after an end.
    pub(super) async fn end(&self, reason: &str) -> Looked {
        if let Err(error) = self.read().await? {
            let attempt = Attempt::called(Endpoint::ServiceNow, &error, Operation::State);
            // A chat that lets nobody read any more is not waited for.
            if !matches!(attempt.outcome, Outcome::Dead(DeadReason::ConversationOver | DeadReason::Rejected))
            {
                return Ok(Err(error));
            }
        }
        self.deliverer.end(&self.conversation.id, Some(self.group), reason).await?;
        self.settled();
        Ok(Ok(()))
    }

    async fn read(&self) -> Looked {
        self.deliverer.repair(self.directory, self.servicenow, self.conversation, self.group).await
    }

    pub(super) async fn saw(&self, entry: &QueueEntry) -> Result<(), OwnTrouble> {
        let known = self.conversation;
        let active = entry.state == Some(ChatState::InProgress) && entry.assigned_to.is_some();
        // What is told changes what is known, so this tells a second `joined` of one agent from the first told twice.
        let since = known.updated_at.as_millisecond();
        let notice = Notice {
            group: Some(self.group.to_owned()),
            agent: entry.assigned_to.clone(),
            position: entry.position.filter(|_| !active),
            wait: entry.wait.clone().filter(|_| !active),
            ..Notice::about(known.id.clone())
        };
        // An agent of whom only the words were seen gets a name without being told again.
        let another = known.agent.is_some() && known.agent != entry.assigned_to;
        if active && (known.state != State::Active || another) {
            let instance = joined_instance(known, entry.assigned_to.as_deref());
            self.deliverer.tell_event(notice, NoticeEvent::Joined, &instance).await?;
            self.deliverer.agent_came(self.directory, known).await?;
        } else if !active && known.state == State::Active {
            let notice = Notice { agent: known.agent.clone(), ..notice };
            self.deliverer.tell_event(notice, NoticeEvent::Left, &since.to_string()).await?;
        } else if !active && known.position != entry.position {
            let position = entry.position.map(|position| position.to_string()).unwrap_or_default();
            self.deliverer.tell_event(notice, NoticeEvent::Waiting, &format!("{since}:{position}")).await?;
        }
        let seen = Observation {
            position: entry.position,
            wait: entry.wait.clone(),
            agent: entry.assigned_to.clone(),
            active,
        };
        self.directory.observed(&known.id, self.group, &seen).await?;
        Ok(())
    }
}

/// Who ended it, by the state of the queue entry (FACTS.md SN-22).
pub(super) const fn ended_by(state: ChatState) -> Option<&'static str> {
    match state {
        ChatState::ClosedComplete => Some("agent"),
        ChatState::ClosedEscalated => Some("escalated"),
        ChatState::ClosedByClient => Some("user"),
        ChatState::ClosedAbandoned => Some("abandoned"),
        ChatState::Waiting | ChatState::InProgress | ChatState::Other(_) => None,
    }
}
