//! What a bot's user does to a chat that is not there: a message that must open one, an end of nothing.
//!
//! Guarantees: a user in agent mode whom nobody listens to gets a chat with their words as its first; one who goes is given back
//! to the bot also where nothing is known of them, or nothing but their request. What a user wrote while their chat was ending
//! opens no new one: it is kept as a dead letter. Leaves to others: opening chats (`handoff.rs`).

use std::time::Duration;

use super::handoff::Desk;
use super::{Attempt, Deliverer, OwnTrouble};
use crate::conversation::{Conversation, DedupKey, Origin, State};
use crate::message::handoff::{End, Start, Text};
use crate::message::{ConversationId, Endpoint, Kind, Message, Notice, Outcome, ReplyHandle};

/// What is said so soon after the bot has its user back was meant for the agent who was there.
const AFTERTHOUGHT: Duration = Duration::from_secs(5);

impl Desk<'_> {
    /// Whoever hears an event knows where its user can be answered.
    pub(super) async fn heard(
        &self,
        id: &ConversationId,
        reply: Option<&ReplyHandle>,
    ) -> Result<(), OwnTrouble> {
        if let Some(reply) = reply {
            self.directory.heard(id, reply, self.message.accepted_at).await?;
        }
        Ok(())
    }

    /// The start that this message stands for, where its user is with an agent as XO knows, and there is none.
    pub(super) async fn late_start(
        &self,
        text: &Text,
        known: Option<&Conversation>,
    ) -> Result<Option<Start>, OwnTrouble> {
        let Some(reply) = &text.reply else { return Ok(None) };
        let begun = self.maybe_taken && self.deliverer.is_late_start(self.message).await?;
        if !begun && !needs_chat(known, self.message) {
            return Ok(None);
        }
        // First noted, then done: whoever repeats this must not take the chat for somebody else's and say the text again.
        self.directory.mark_done(late_start(self.message), None, crate::clock::now()).await?;
        Ok(Some(Start {
            conversation_id: text.conversation_id.clone(),
            queue_id: None,
            message: super::handoff::with_attachments(text),
            user: None,
            transcript: Vec::new(),
            metadata: [("streamId".to_owned(), reply.bot_id.clone())].into(),
            reply: Some(reply.clone()),
        }))
    }

    /// The user goes, and there is no chat to leave: it is over, and where nobody had heard of them, the bot gets them back.
    pub(super) async fn end_of_nothing(
        &self,
        end: &End,
        known: Option<Conversation>,
    ) -> Result<Attempt, OwnTrouble> {
        let id = &end.conversation_id;
        let reason = end.reason.as_deref().unwrap_or("user");
        // Whoever opened or failed the chat told its end. A user of whom there is but a request had none, and who noted it may
        // have died before it said that they are gone.
        let untold =
            known.as_ref().is_none_or(|known| known.state == State::Requested && known.released_at.is_none());
        if let (true, Some(reply)) = (untold, &end.reply) {
            self.directory.requested(id, Origin::BotKit, None).await?;
            self.heard(id, Some(reply)).await?;
            let notice = Notice { reason: Some(reason.to_owned()), ..Notice::about(id.clone()) };
            self.deliverer.tell(Kind::CallbackEnded, &notice, &self.message.id.to_string()).await?;
        }
        self.deliverer.count_end(self.directory.ended(id, None, reason).await?, reason);
        Ok(Attempt::of(Endpoint::ServiceNow, Outcome::Repeated, "there is no chat to end"))
    }
}

impl Deliverer {
    /// Whether this message was found to be one that opens a chat.
    pub(super) async fn is_late_start(&self, message: &Message) -> Result<bool, OwnTrouble> {
        let Some(directory) = &self.directory else { return Ok(false) };
        Ok(message.kind == Kind::HandoffMessage && directory.is_done(late_start(message)).await?)
    }
}

const fn late_start(message: &Message) -> DedupKey {
    DedupKey::LateStart { message: message.id, replays: message.replays }
}

/// Nobody knows the user, or nobody ever opened their chat, or their last one is over for good.
fn needs_chat(known: Option<&Conversation>, message: &Message) -> bool {
    let Some(known) = known else { return true };
    let since = |at: jiff::Timestamp| message.accepted_at.duration_since(at).as_secs_f64();
    match (known.state, known.released_at) {
        (State::Waiting | State::Active, _) => false,
        (State::Requested, None) => true,
        (State::Requested | State::Ended | State::Failed, Some(at)) => since(at) > AFTERTHOUGHT.as_secs_f64(),
        (State::Ended | State::Failed, None) => false,
    }
}

/// Who asks for this start.
pub(super) fn origin(start: &Start) -> Origin {
    if start.reply.is_some() { Origin::BotKit } else { Origin::Api }
}
