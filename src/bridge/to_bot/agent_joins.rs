//! Relays "an agent has joined" before the agent's first message.
//!
//! Over Connect Support the message arrives as a callback, while the agent's name is only visible in the state of the
//! chat, up to some seconds later. Over the Virtual Agent API both arrive as callbacks, shortly one after the other.
//!
//! Guarantees: if the chat still waits, the attempt that relays an agent's message first relays that an agent has
//! joined. The notice has the id that the poll of the state would give, so the notice is relayed once.
//!
//! Not responsible for: the text of the notice (`texts.rs`), changes of the state without a message (`watch/poll.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::notices::{Notices, joined_instance};
use crate::bridge::to_bot::missed_messages::MissedMessages;
use crate::bridge::to_bot::relay::BotRelay;
use crate::clock;
use crate::conversation::{Changes, Conversation, ConversationState, DedupKey, Directory, Observation};
use crate::delivery::{Attempt, InternalError};
use crate::message::{Callback, Destination, Kind, Message, MessageId, Notice, NoticeEvent, Outcome};
use crate::platform::{ChatApi, ChatState};

/// The time limit for reading the state. The agent's message waits meanwhile.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The holder of a chat.
enum ChatHolder {
    Agent(String),
    /// The state shows no agent.
    Nobody,
    /// The state cannot be read.
    Unknown,
}

/// Relays the arrivals of agents.
#[derive(Debug)]
pub(in crate::bridge) struct AgentJoins {
    context: Arc<BridgeContext>,
    notices: Arc<Notices>,
    relay: Arc<BotRelay>,
    missed: Arc<MissedMessages>,
}

impl AgentJoins {
    pub(in crate::bridge) const fn new(
        context: Arc<BridgeContext>,
        notices: Arc<Notices>,
        relay: Arc<BotRelay>,
        missed: Arc<MissedMessages>,
    ) -> Self {
        Self { context, notices, relay, missed }
    }

    /// Handles a message of an agent in a chat that still waits. `Some` if the message must wait.
    pub(in crate::bridge) async fn before_first_words(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Option<Attempt>, InternalError> {
        let group = callback.group.as_str();
        let waits = matches!(conversation.state, ConversationState::Requested | ConversationState::Waiting);
        if !waits || conversation.group.as_deref() != Some(group) {
            return Ok(None);
        }
        let agent = match self.holder(conversation, group).await {
            ChatHolder::Agent(agent) => Some(agent),
            // The message itself proves that an agent is there.
            ChatHolder::Unknown => None,
            ChatHolder::Nobody => return Ok(None),
        };
        self.agent_joins(directory, message, conversation, group, agent).await
    }

    async fn holder(&self, conversation: &Conversation, group: &str) -> ChatHolder {
        let servicenow = self.context.servicenow.as_ref().filter(|it| it.api() == ChatApi::ConnectSupport);
        let Some(servicenow) = servicenow else { return ChatHolder::Nobody };
        let look = async {
            let _pass = self.context.gate(Destination::ServiceNow).enter(false).await?;
            servicenow.state(&conversation.id, group).await.ok()
        };
        let Ok(Some(entry)) = tokio::time::timeout(LOOKUP_TIMEOUT, look).await else {
            return ChatHolder::Unknown;
        };
        let entry = entry.filter(|entry| entry.state == Some(ChatState::InProgress));
        entry.and_then(|entry| entry.assigned_to).map_or(ChatHolder::Nobody, ChatHolder::Agent)
    }

    /// Relays that an agent has joined, and records the agent. `Some` if the notice cannot be relayed yet.
    pub(in crate::bridge) async fn agent_joins(
        &self,
        directory: &Directory,
        message: &Message,
        conversation: &Conversation,
        group: &str,
        agent: Option<String>,
    ) -> Result<Option<Attempt>, InternalError> {
        let notice = Notice {
            group: Some(group.to_owned()),
            event: Some(NoticeEvent::Joined),
            agent: agent.clone(),
            ..Notice::about(conversation.id.clone())
        };
        let id = notice.id(Kind::CallbackEvent, &joined_instance(conversation, agent.as_deref()));
        if self.notices.has_listener(&conversation.id).await? && !is_settled(directory, id).await? {
            let body = serde_json::to_vec(&notice).map_err(InternalError::temporary)?;
            let kind = Kind::CallbackEvent;
            let news = Message { id, kind, replays: 0, digest: None, body: body.into(), ..message.clone() };
            let at = clock::now();
            let attempt = Box::pin(self.relay.notice(&news)).await?;
            match attempt.outcome {
                Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Deferred { .. } => {
                    return Ok(Some(attempt));
                }
                Outcome::Dead(reason) => {
                    let story = self.missed.add(id, at, &attempt);
                    self.missed.dead_letter(directory, news, reason, &attempt.error, story).await?;
                    self.missed.forget(id);
                }
                Outcome::Delivered => {
                    directory.record(Changes::default().with_outcome(&news, &attempt.outcome, 1)).await?;
                }
                Outcome::Declined | Outcome::Repeated | Outcome::Routed | Outcome::Dropped => {
                    directory.record(Changes::default().with_outcome(&news, &Outcome::Dropped, 1)).await?;
                }
            }
        }
        self.notices.agent_came(directory, conversation).await?;
        let seen = Observation { agent, active: true, ..Observation::default() };
        directory.record_observation(&conversation.id, group, &seen).await?;
        Ok(None)
    }
}

/// Whether this notice was delivered or dead-lettered, or needed no delivery.
pub(in crate::bridge) async fn is_settled(
    directory: &Directory,
    news: MessageId,
) -> Result<bool, InternalError> {
    let (message, replays) = (news, 0);
    let keys = [
        DedupKey::Delivered(news),
        DedupKey::DeadLettered { message, replays },
        DedupKey::NothingToSend { message, replays },
    ];
    Ok(!directory.find_done(&keys).await?.is_empty())
}
