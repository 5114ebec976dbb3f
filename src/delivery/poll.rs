//! What no callback tells: position and wait, the agent joining, the end. Read back from the session state.
//!
//! Connect Support pushes none of these over REST, and its end is only an English sentence (servicenow.md 2), so the state
//! is the one thing to believe. Guarantees: a conversation is asked about by one worker at a time (the directory hands it
//! out), never while one of its messages is in the air, never while the breaker is tripped; what was seen is told before it
//! is noted, under an id that makes telling it twice harmless.

use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, Directory, Observation, State};
use crate::delivery::classify::Operation;
use crate::message::{Destination, Endpoint, Notice, NoticeEvent};
use crate::platform::{ChatState, QueueEntry, ServiceNow};
use crate::tasks::Stop;

/// `servicenow.poll_*`
#[derive(Debug, Clone)]
pub struct PollSettings {
    /// While the user waits for an agent.
    pub waiting: Duration,
    /// While an agent is there.
    pub active: Duration,
}

const AT_ONCE: u32 = 32;

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
            if !self.gate(Destination::ServiceNow).breaker().passes() {
                continue;
            }
            match directory.due(clock::now(), settings.waiting, settings.active, AT_ONCE).await {
                Ok(due) => {
                    let asked = due.iter().map(|conversation| self.look(servicenow, directory, conversation));
                    futures_util::future::join_all(asked).await;
                }
                Err(error) => tracing::debug!(%error, "cannot read which conversations to ask about"),
            }
        }
    }

    async fn look(&self, servicenow: &ServiceNow, directory: &Directory, conversation: &Conversation) {
        let Some(group) = &conversation.group else { return };
        if servicenow.busy(&conversation.id) {
            return;
        }
        let Some(_pass) = self.gate(Destination::ServiceNow).enter(false).await else { return };
        let seen = match servicenow.state(&conversation.id, group).await {
            Ok(Some(entry)) => self.saw(directory, conversation, group, &entry).await,
            Ok(None) => self.end(&conversation.id, Some(group), "gone").await,
            Err(error) => {
                let attempt = Attempt::called(Endpoint::ServiceNow, &error, Operation::State);
                self.tell_breaker(Destination::ServiceNow, None, &attempt);
                tracing::debug!(conversation = %conversation.id, %error, "cannot read the session state");
                return;
            }
        };
        if let Err(OwnTrouble(trouble)) = seen {
            tracing::debug!(conversation = %conversation.id, trouble, "what was seen is told at the next look");
        }
    }

    async fn saw(
        &self,
        directory: &Directory,
        conversation: &Conversation,
        group: &str,
        entry: &QueueEntry,
    ) -> Result<(), OwnTrouble> {
        if let Some(reason) = entry.state.and_then(ended_by) {
            return self.end(&conversation.id, Some(group), reason).await;
        }
        let active = entry.state == Some(ChatState::InProgress) && entry.assigned_to.is_some();
        // What is told changes what is known, so this tells a second `joined` of one agent from the first told twice.
        let known_since = conversation.updated_at.as_millisecond();
        let notice = Notice {
            group: Some(group.to_owned()),
            agent: entry.assigned_to.clone(),
            ..Notice::about(conversation.id.clone())
        };
        if active && (conversation.state != State::Active || conversation.agent != entry.assigned_to) {
            let agent = entry.assigned_to.as_deref().unwrap_or("");
            self.tell_event(notice, NoticeEvent::Joined, &format!("{known_since}:{agent}")).await?;
        } else if !active && conversation.state == State::Active {
            let notice = Notice {
                agent: conversation.agent.clone(),
                position: entry.position,
                wait: entry.wait.clone(),
                ..notice
            };
            self.tell_event(notice, NoticeEvent::Left, &known_since.to_string()).await?;
        } else if !active && conversation.position != entry.position {
            let notice = Notice { position: entry.position, wait: entry.wait.clone(), ..notice };
            let position = entry.position.map(|position| position.to_string()).unwrap_or_default();
            self.tell_event(notice, NoticeEvent::Waiting, &format!("{known_since}:{position}")).await?;
        }
        let seen = Observation {
            position: entry.position,
            wait: entry.wait.clone(),
            agent: entry.assigned_to.clone(),
            active,
        };
        directory.observed(&conversation.id, group, &seen).await?;
        Ok(())
    }
}

/// Who ended it, by the state of the queue entry (servicenow.md 2).
pub(super) const fn ended_by(state: ChatState) -> Option<&'static str> {
    match state {
        ChatState::ClosedComplete => Some("agent"),
        ChatState::ClosedEscalated => Some("escalated"),
        ChatState::ClosedByClient => Some("user"),
        ChatState::ClosedAbandoned => Some("abandoned"),
        ChatState::Waiting | ChatState::InProgress | ChatState::Other(_) => None,
    }
}
