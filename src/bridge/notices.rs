//! Publishes Causeway's own notices to the bot side about a conversation, on the queue like every other message. Ends or
//! fails a conversation together with the notice about the end.
//!
//! Guarantees: the same notice always has the same id, so a repeat is harmless. A notice is in the lane of the
//! conversation's callbacks, after earlier messages.
//!
//! Not responsible for: delivery (`to_bot/relay.rs`), the request of a record (`incident_request.rs`), metrics
//! (`lifecycle_metrics.rs`).

use std::sync::Arc;

use crate::bridge::context::BridgeContext;
use crate::conversation::{Changes, Conversation, Origin};
use crate::delivery::InternalError;
use crate::message::handoff::{EndCause, HandoffStart};
use crate::message::{ConversationId, Kind, LaneKey, Message, Notice, NoticeEvent};

/// Publishes notices, and ends conversations.
#[derive(Debug)]
pub(in crate::bridge) struct Notices {
    pub(in crate::bridge) context: Arc<BridgeContext>,
}

impl Notices {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// Publishes a notice. `instance` distinguishes notices that may occur twice in one chat, for example a new
    /// position in the queue.
    pub(in crate::bridge) async fn publish_notice(
        &self,
        kind: Kind,
        notice: &Notice,
        instance: &str,
    ) -> Result<(), InternalError> {
        if !self.has_listener(&notice.conversation_id).await? {
            return Ok(());
        }
        // The notice must follow the callbacks of its chat. These callbacks are in the lane of the chat until a worker
        // has found their conversation.
        let chat = notice.group.as_deref().and_then(|group| LaneKey::parse(group).ok());
        let (destination, lane) = match chat {
            Some(lane) => (self.context.settings.bot_side.of_chat(), lane),
            None => {
                let id = &notice.conversation_id;
                (self.context.settings.bot_side.of_conversation(id), LaneKey::from(id))
            }
        };
        let body = serde_json::to_vec(notice).map_err(InternalError::temporary)?;
        Ok(self
            .context
            .queue
            .publish(&Message::new(notice.id(kind, instance), kind, destination, lane, body))
            .await?)
    }

    /// Whether the conversation has a receiver: a bot, or `handoffs.events_url` for a conversation of the API.
    pub(in crate::bridge) async fn has_listener(&self, id: &ConversationId) -> Result<bool, InternalError> {
        if self.context.settings.tells_events || !self.context.settings.serves_bots {
            return Ok(self.context.settings.tells_events);
        }
        let Some(directory) = &self.context.directory else { return Ok(false) };
        Ok(directory.find(id).await?.is_some_and(|known| known.origin == Origin::BotKit))
    }

    pub(in crate::bridge) async fn publish_event(
        &self,
        notice: Notice,
        event: NoticeEvent,
        instance: &str,
    ) -> Result<(), InternalError> {
        self.publish_notice(Kind::CallbackEvent, &Notice { event: Some(event), ..notice }, instance).await
    }

    /// Ends a chat. The notice is published before the directory is changed, so a repeat after a crash publishes the
    /// notice again under the same id.
    pub(in crate::bridge) async fn end(
        &self,
        id: &ConversationId,
        group: Option<&str>,
        reason: &str,
    ) -> Result<(), InternalError> {
        self.end_as(id, group, reason, reason).await
    }

    /// Ends a chat like [`Self::end`], for a reason that may be a caller's text. `label` is the reason in metrics.
    pub(in crate::bridge) async fn end_as(
        &self,
        id: &ConversationId,
        group: Option<&str>,
        reason: &str,
        label: &str,
    ) -> Result<(), InternalError> {
        let Some(directory) = &self.context.directory else { return Ok(()) };
        let notice = Notice {
            group: group.map(str::to_owned),
            reason: Some(reason.to_owned()),
            ..Notice::about(id.clone())
        };
        self.publish_notice(Kind::CallbackEnded, &notice, "").await?;
        self.count_end(directory.mark_ended(id, group, reason).await?, label);
        if let Some(servicenow) = &self.context.servicenow {
            servicenow.forget(id);
        }
        Ok(())
    }

    /// Fails a handoff: no agent will come. The bot side is notified, so that the bot takes over. `instance`
    /// distinguishes two failures of one conversation. `start`: the start that failed, for the record. `answered`: the
    /// journal row of the start, if ServiceNow answered the start.
    pub(in crate::bridge) async fn fail(
        &self,
        id: &ConversationId,
        reason: &str,
        detail: Option<&str>,
        instance: &str,
        start: Option<&HandoffStart>,
        answered: Changes,
    ) -> Result<(), InternalError> {
        let Some(directory) = &self.context.directory else { return Ok(()) };
        let notice = Notice {
            reason: Some(reason.to_owned()),
            detail: detail.map(str::to_owned),
            incident: self.request_incident(id, reason, instance, start).await?,
            ..Notice::about(id.clone())
        };
        self.publish_notice(Kind::HandoffFailed, &notice, instance).await?;
        self.count_end(directory.mark_failed(id, reason, answered).await?, reason);
        Ok(())
    }

    /// Fails a handoff whose user waited too long. The poll and the end in the lane both call this; the notice has the
    /// same id either way.
    pub(in crate::bridge) async fn give_up_waiting(
        &self,
        conversation: &Conversation,
    ) -> Result<(), InternalError> {
        let instance = conversation.opened_at.as_millisecond().to_string();
        self.fail(
            &conversation.id,
            EndCause::WaitedTooLong.as_str(),
            None,
            &instance,
            None,
            Changes::default(),
        )
        .await
    }
}

/// The instance of a failed start. A replayed start may fail again, which is another failure.
pub(in crate::bridge) fn instance_of(start: &Message) -> String {
    format!("{}:{}", start.id, start.replays)
}

/// The instance part of the id of a `joined` notice. A relayed notice changes `updated_at`, so a second `joined` of the
/// same agent gets another id, and a repeat of the first one keeps its id.
pub(in crate::bridge) fn joined_instance(known: &Conversation, agent: Option<&str>) -> String {
    format!("{}:{}", known.updated_at.as_millisecond(), agent.unwrap_or_default())
}
