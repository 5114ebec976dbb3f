//! Handles a message or an end of a bot's user who has no chat: a late start, and an end without a chat.
//!
//! Guarantees: a user in agent mode without a chat gets a chat whose first message is the user's text. A user who
//! leaves is given back to the bot, even if the conversation is unknown or only requested. A text that the user wrote
//! within the grace period after the end opens no new chat: the text is dead-lettered.
//!
//! Not responsible for: opening chats (`handoff.rs`).

use std::time::Duration;

use crate::bridge::to_agent::HandoffHandler;
use crate::bridge::to_agent::user_files::with_attachments;
use crate::conversation::{Conversation, ConversationState, DedupKey, Directory, Origin};
use crate::delivery::{Attempt, InternalError};
use crate::message::handoff::{HandoffEnd, HandoffStart, HandoffText};
use crate::message::{ConversationId, Endpoint, Kind, Message, Notice, Outcome, ReplyHandle};

/// The grace period: a text within this time after the bot got its user back was meant for the previous agent.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

impl HandoffHandler<'_> {
    /// Saves the reply handle of an event, by which the user can be answered.
    pub(in crate::bridge) async fn save_reply_handle(
        &self,
        id: &ConversationId,
        reply: Option<&ReplyHandle>,
    ) -> Result<(), InternalError> {
        if let Some(reply) = reply {
            self.directory.save_reply_handle(id, reply, self.message.accepted_at).await?;
        }
        Ok(())
    }

    /// The start that this message implies, if XO reports that the user is with an agent but no chat exists.
    pub(in crate::bridge) async fn late_start(
        &self,
        text: &HandoffText,
        known: Option<&Conversation>,
    ) -> Result<Option<HandoffStart>, InternalError> {
        if text.reply.is_none() {
            return Ok(None);
        }
        let begun = self.possibly_delivered && is_late_start(self.directory, self.message).await?;
        if !begun && !needs_chat(known, self.message) {
            return Ok(None);
        }
        // The late start is recorded before the chat is opened. Otherwise a repeat would take the new chat for an
        // existing one and send the text again.
        self.directory.mark_done(late_start(self.message), None, crate::clock::now()).await?;
        Ok(Some(start_of(text)))
    }

    /// Ends a conversation without a chat. If the bot side has not been notified of an end, the bot gets its user back.
    pub(in crate::bridge) async fn end_without_chat(
        &self,
        end: &HandoffEnd,
        known: Option<Conversation>,
    ) -> Result<Attempt, InternalError> {
        let id = &end.conversation_id;
        let reason = end.reason_text();
        // A worker that opened or failed the chat has published the end. A conversation in state `requested` has had no
        // end: the worker that recorded it may have crashed before it published the end.
        let unrelayed = known
            .as_ref()
            .is_none_or(|known| known.state == ConversationState::Requested && known.released_at.is_none());
        if let (true, Some(reply)) = (unrelayed, &end.reply) {
            self.directory.mark_requested(id, Origin::BotKit, None).await?;
            self.save_reply_handle(id, Some(reply)).await?;
            let notice = Notice { reason: Some(reason.to_owned()), ..Notice::about(id.clone()) };
            self.to_agent
                .notices
                .publish_notice(Kind::CallbackEnded, &notice, &self.message.id.to_string())
                .await?;
        }
        self.to_agent
            .notices
            .count_end(self.directory.mark_ended(id, None, reason).await?, end.metric_label());
        Ok(Attempt::of(Endpoint::ServiceNow, Outcome::Repeated, "there is no chat to end"))
    }
}

/// Whether this message has been recorded as a late start.
pub(super) async fn is_late_start(directory: &Directory, message: &Message) -> Result<bool, InternalError> {
    Ok(message.kind == Kind::HandoffMessage && directory.is_done(late_start(message)).await?)
}

/// The start that a message of the user implies.
pub(in crate::bridge) fn start_of(text: &HandoffText) -> HandoffStart {
    let stream = text.reply.iter().map(|reply| ("streamId".to_owned(), reply.bot_id.clone()));
    HandoffStart {
        conversation_id: text.conversation_id.clone(),
        queue_id: None,
        message: with_attachments(text),
        user: None,
        transcript: Vec::new(),
        metadata: stream.collect(),
        reply: text.reply.clone(),
    }
}

const fn late_start(message: &Message) -> DedupKey {
    DedupKey::LateStart { message: message.id, replays: message.replays }
}

/// Whether the user needs a new chat: the user is unknown, no chat was ever opened, or the last chat ended before the
/// grace period.
fn needs_chat(known: Option<&Conversation>, message: &Message) -> bool {
    let Some(known) = known else { return true };
    let since = |at: jiff::Timestamp| message.accepted_at.duration_since(at).as_secs_f64();
    match (known.state, known.released_at) {
        (ConversationState::Waiting | ConversationState::Active, _) => false,
        (ConversationState::Requested, None) => true,
        (ConversationState::Requested | ConversationState::Ended | ConversationState::Failed, Some(at)) => {
            since(at) > GRACE_PERIOD.as_secs_f64()
        }
        (ConversationState::Ended | ConversationState::Failed, None) => false,
    }
}

/// The origin of this start.
pub(in crate::bridge) fn origin(start: &HandoffStart) -> Origin {
    if start.reply.is_some() { Origin::BotKit } else { Origin::Api }
}
