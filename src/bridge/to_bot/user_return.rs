//! Ends an agent session: sends the closing text, then makes the call that gives the bot its user back.
//!
//! Without `clearAgentSession` the user stays in agent mode, where neither an agent nor the bot answers.
//!
//! Guarantees: if XO accepts the closing text, the session is cleared after the text. A closing text that fails delays
//! the call for [`CLOSING_TEXT_TIME`] at most. A text that succeeded is not sent again after a crash. A dead end makes
//! the call once more before it is dead-lettered. The replay of such an end makes the call again.
//!
//! Not responsible for: the choice of the reply handle (`botkit.rs`), the closing text itself (`texts.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::botkit::{BotKitCalls, HandlerResult, is_refusal};
use crate::bridge::to_bot::texts::{SESSION_CLOSED, TextKind};
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory, Origin};
use crate::delivery::{Attempt, InternalError};
use crate::message::handoff::EndCause;
use crate::message::{Endpoint, Message, MessageId, Notice, Outcome};
use crate::platform::SessionStep;
use crate::telemetry::logged_conversation;

const ENDPOINT: Endpoint = Endpoint::XoBotKit;
/// How long a closing text may fail before the session is cleared without the text.
const CLOSING_TEXT_TIME: Duration = Duration::from_secs(10);
/// Older failures belong to ends that other workers took over.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// XO itself took its user out of agent mode.
const ENDED_BY_XO: &str = EndCause::Xo.as_str();

/// The closing texts that failed, by the id of the end's message.
#[derive(Debug, Default)]
struct ClosingTexts(Mutex<HashMap<MessageId, ClosingText>>);

/// A closing text that failed.
#[derive(Debug, Clone, Copy)]
struct ClosingText {
    /// The time of the first failure.
    since: Instant,
    /// The text was possibly delivered.
    maybe_said: bool,
}

impl ClosingText {
    fn is_over(self) -> bool {
        self.since.elapsed() >= CLOSING_TEXT_TIME
    }
}

impl ClosingTexts {
    /// Whether the text is not tried any more. After its time limit the text is still tried once before each call,
    /// unless it was possibly delivered. Otherwise the user would miss the text after an outage of XO.
    fn is_given_up(&self, id: MessageId) -> bool {
        let texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts.get(&id).is_some_and(|text| text.is_over() && text.maybe_said)
    }

    /// Records another failure of the text. `true` if the session is cleared without the text.
    fn failed(&self, id: MessageId, attempt: &Attempt) -> bool {
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        texts.retain(|_, text| text.since.elapsed() < FORGET_AFTER);
        let text = texts.entry(id).or_insert(ClosingText { since: Instant::now(), maybe_said: false });
        text.maybe_said |= matches!(attempt.outcome, Outcome::Retry { ambiguous: true, .. });
        text.is_over()
    }

    fn forget(&self, id: MessageId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Gives the users of all bots back.
#[derive(Debug)]
pub(in crate::bridge) struct UserReturn {
    context: Arc<BridgeContext>,
    calls: Arc<BotKitCalls>,
    closing_texts: ClosingTexts,
}

impl UserReturn {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>, calls: Arc<BotKitCalls>) -> Self {
        Self { context, calls, closing_texts: ClosingTexts::default() }
    }

    /// Sends the closing text and ends the agent session, so that the bot has its user back.
    pub(in crate::bridge) async fn give_user_back(
        &self,
        message: &Message,
        conversation: &Conversation,
        notice: &Notice,
    ) -> HandlerResult {
        let directory = self.context.known_directory()?;
        if is_done(message, conversation, notice) {
            return Ok(Attempt::of(ENDPOINT, Outcome::Repeated, "the bot has its user back already"));
        }
        if let Some(attempt) = self.closing_text(message, conversation, notice).await? {
            return Ok(attempt);
        }
        if let Some(attempt) = self.clear_session(message, conversation, notice, directory).await? {
            return Ok(attempt);
        }
        self.closing_texts.forget(message.id);
        Ok(Attempt::delivered(ENDPOINT))
    }

    /// Sends the closing text. `Some` if the end must wait.
    async fn closing_text(
        &self,
        message: &Message,
        conversation: &Conversation,
        notice: &Notice,
    ) -> Result<Option<Attempt>, InternalError> {
        let directory = self.context.known_directory()?;
        let text_kind = TextKind::of_end(message.kind, notice.reason.as_deref().unwrap_or_default());
        let language = self.calls.language_of(&conversation.id).await?;
        let texts = &self.context.settings.botkit.texts;
        let text = text_kind.and_then(|text_kind| texts.render(text_kind, notice, language.as_deref()));
        let Some(text) = text.filter(|_| !self.closing_texts.is_given_up(message.id)) else {
            return Ok(None);
        };
        let step = DedupKey::botkit_notice_step(message.id, "text");
        if directory.is_done(step).await? {
            return Ok(None);
        }
        let told = self.calls.send_to_user(conversation, &text, false).await?;
        // XO accepted the text, or refuses the text for good.
        if told.outcome == Outcome::Delivered || is_refusal(&told) {
            directory.mark_done(step, None, clock::now()).await?;
            return Ok(None);
        }
        if self.closing_texts.failed(message.id, &told) {
            tracing::warn!(
                conversation = logged_conversation(&conversation.id),
                error = told.error,
                "the closing text cannot be delivered; the bot gets its user back without the text"
            );
            return Ok(None);
        }
        Ok(Some(told))
    }

    /// Ends the agent session. `Some` if XO did not accept the call.
    async fn clear_session(
        &self,
        message: &Message,
        conversation: &Conversation,
        notice: &Notice,
        directory: &Directory,
    ) -> Result<Option<Attempt>, InternalError> {
        let reason = notice.reason.as_deref().unwrap_or_default();
        if reason != ENDED_BY_XO {
            let step = DedupKey::botkit_notice_step(message.id, "clear");
            let cleared = self.calls.session(conversation, SessionStep::Clear, step).await?;
            // A session that XO closed itself may be absent already.
            let is_closed = reason == SESSION_CLOSED && is_refusal(&cleared);
            if cleared.outcome != Outcome::Delivered && !is_closed {
                return Ok(Some(cleared));
            }
        }
        directory.mark_released(&conversation.id).await?;
        Ok(None)
    }

    /// Makes the call once more for an end that is about to be dead-lettered. The dead letter is written even if XO
    /// refuses the call.
    pub(in crate::bridge) async fn last_act(&self, message: &Message) -> Result<(), InternalError> {
        let Some(directory) = &self.context.directory else { return Ok(()) };
        let Ok(notice) = serde_json::from_slice::<Notice>(&message.body) else { return Ok(()) };
        let known = directory.find(&notice.conversation_id).await?;
        let Some(conversation) = known.filter(|known| known.origin == Origin::BotKit) else { return Ok(()) };
        if is_done(message, &conversation, &notice) {
            return Ok(());
        }
        self.closing_texts.forget(message.id);
        match self.clear_session(message, &conversation, &notice, directory).await? {
            None => {
                let conversation = logged_conversation(&conversation.id);
                tracing::info!(conversation, "the bot has its user back");
            }
            Some(attempt) => {
                let conversation = logged_conversation(&conversation.id);
                tracing::warn!(
                    conversation,
                    error = attempt.error,
                    "the bot does not get its user back; the user stays in agent mode"
                );
            }
        }
        Ok(())
    }
}

/// Whether the user of this end went back to the bot before, or is in another chat by now.
fn is_done(message: &Message, conversation: &Conversation, notice: &Notice) -> bool {
    let elsewhere = notice.group.as_deref().is_some_and(|group| conversation.group.as_deref() != Some(group));
    // An end without a group belongs to the episode of its time of acceptance.
    let earlier = notice.group.is_none() && message.accepted_at < conversation.opened_at;
    conversation.released_at.is_some() || elsewhere || earlier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeadReason, RetryReason};

    fn failure(ambiguous: bool) -> Attempt {
        let outcome = Outcome::Retry { reason: RetryReason::ServerError, ambiguous, floor: None };
        Attempt::of(ENDPOINT, outcome, "")
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_text_has_its_time() {
        let (texts, id) = (ClosingTexts::default(), MessageId::fresh());
        assert!(!texts.failed(id, &failure(false)));
        tokio::time::advance(CLOSING_TEXT_TIME / 2).await;
        assert!(!texts.failed(id, &failure(true)));
        assert!(!texts.is_given_up(id), "its time is not over");
        tokio::time::advance(CLOSING_TEXT_TIME / 2).await;
        assert!(texts.failed(id, &failure(false)));
        assert!(texts.is_given_up(id), "the user may have read it");
        assert!(!texts.failed(MessageId::fresh(), &failure(true)), "each end has its own time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_that_was_certainly_not_read_is_tried_before_each_call() {
        let (texts, id) = (ClosingTexts::default(), MessageId::fresh());
        let lapsed = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
        assert!(!texts.failed(id, &Attempt::of(ENDPOINT, lapsed, "")));
        tokio::time::advance(CLOSING_TEXT_TIME).await;
        assert!(!texts.is_given_up(id));
        assert!(texts.failed(id, &failure(false)));
        texts.forget(id);
        assert!(!texts.failed(id, &failure(false)));
    }
}
