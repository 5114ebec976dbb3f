//! Publishes Causeway's own notices to the bot side about a conversation, on the queue like every other message.
//!
//! Guarantees: the same notice always has the same id, so a repeat is harmless. A notice is in the lane of the
//! conversation's callbacks, after earlier messages.
//!
//! Not responsible for: delivery (`callback.rs`).

use crate::bridge::Deliverer;
use crate::conversation::{Changes, Origin};
use crate::delivery::InternalError;
use crate::message::handoff::HandoffStart;
use crate::message::{ConversationId, Kind, LaneKey, Message, Notice, NoticeEvent};

impl Deliverer {
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
            Some(lane) => (self.settings.bot_side.of_chat(), lane),
            None => {
                let id = &notice.conversation_id;
                (self.settings.bot_side.of_conversation(id), LaneKey::from(id))
            }
        };
        let body = serde_json::to_vec(notice).map_err(InternalError::temporary)?;
        Ok(self
            .queue
            .publish(&Message::new(notice.id(kind, instance), kind, destination, lane, body))
            .await?)
    }

    /// Whether the conversation has a receiver: a bot, or `handoffs.events_url` for a conversation of the API.
    pub(in crate::bridge) async fn has_listener(&self, id: &ConversationId) -> Result<bool, InternalError> {
        if self.settings.tells_events || !self.settings.serves_bots {
            return Ok(self.settings.tells_events);
        }
        let Some(directory) = &self.directory else { return Ok(false) };
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
        let Some(directory) = &self.directory else { return Ok(()) };
        let notice = Notice {
            group: group.map(str::to_owned),
            reason: Some(reason.to_owned()),
            ..Notice::about(id.clone())
        };
        self.publish_notice(Kind::CallbackEnded, &notice, "").await?;
        self.count_end(directory.mark_ended(id, group, reason).await?, label);
        if let Some(servicenow) = &self.servicenow {
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
        let Some(directory) = &self.directory else { return Ok(()) };
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
}

/// The instance of a failed start. A replayed start may fail again, which is another failure.
pub(in crate::bridge) fn instance_of(start: &Message) -> String {
    format!("{}:{}", start.id, start.replays)
}
