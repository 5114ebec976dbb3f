//! Makes the calls of XO's BotKit API: texts and pictures for a user, and the steps of an agent session.
//!
//! Guarantees: the newest reply handle is used. An expired handle is not called again; the user's next event brings a
//! new one. A text whose answer was lost is sent again, because XO cannot be asked whether the text arrived.
//!
//! Not responsible for: what a user is told (`botkit_relay.rs`, `user_return.rs`), HTTP and the signature
//! (`platform/xo/botkit.rs`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::texts::AgentTemplate;
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};
use crate::delivery::classify::{Operation, classify};
use crate::delivery::{Attempt, InternalError};
use crate::message::{ConversationId, DeadReason, Endpoint, Outcome, ReplyHandle};
use crate::platform::servicenow::Choice;
use crate::platform::{BotKitText, CallError, SessionStep};
use crate::tasks::CancellationToken;

const ENDPOINT: Endpoint = Endpoint::XoBotKit;
/// XO's web channel, which shows an agent's messages in a style of their own.
pub(in crate::bridge) const WEB_CHANNEL: &str = "rtm";
/// The maximum number of choices shown as buttons. A longer list is sent as text.
const QUICK_REPLIES_MAX: usize = 20;
/// The number of handles that are extended at once.
const BATCH_SIZE: u32 = 32;
/// The attempts for each handle in one round.
const EXTEND_TRIES: u32 = 2;

pub(in crate::bridge) type HandlerResult = Result<Attempt, InternalError>;

/// The calls to all bots.
#[derive(Debug)]
pub(in crate::bridge) struct BotKitCalls {
    context: Arc<BridgeContext>,
}

impl BotKitCalls {
    pub(in crate::bridge) const fn new(context: Arc<BridgeContext>) -> Self {
        Self { context }
    }

    /// The language that the user speaks with the bot, as far as XO reported one.
    pub(in crate::bridge) async fn language_of(
        &self,
        id: &ConversationId,
    ) -> Result<Option<String>, InternalError> {
        Ok(self.context.known_directory()?.reply_handle(id).await?.and_then(|reply| reply.handle.language))
    }

    /// Sends a text by the newest handle.
    pub(in crate::bridge) async fn send_to_user(
        &self,
        conversation: &Conversation,
        text: &str,
        by_agent: bool,
    ) -> HandlerResult {
        self.tell_user_with(conversation, text, by_agent, &[]).await
    }

    /// Sends a text with choices. On the web channel the choices are buttons whose answer is the choice's value;
    /// elsewhere they are text.
    pub(in crate::bridge) async fn tell_user_with(
        &self,
        conversation: &Conversation,
        text: &str,
        by_agent: bool,
        choices: &[Choice],
    ) -> HandlerResult {
        self.by_newest_handle(&conversation.id, Operation::Tell, |handle| {
            let is_web = handle.channel_type() == Some(WEB_CHANNEL);
            let has_template = match self.context.settings.botkit.agent_template {
                AgentTemplate::Auto => is_web,
                AgentTemplate::Always => true,
                AgentTemplate::Never => false,
            };
            let as_agent = by_agent && has_template;
            let shown =
                if has_template && is_web && choices.len() <= QUICK_REPLIES_MAX { choices } else { &[] };
            let quick_replies: Vec<(&str, &str)> =
                shown.iter().map(|choice| (choice.title.as_str(), choice.value.as_str())).collect();
            async move {
                let words = BotKitText { text, as_agent, quick_replies: &quick_replies };
                self.context.xo.send_to_user(&handle, words).await
            }
        })
        .await
    }

    /// Shows a picture, by its address.
    pub(in crate::bridge) async fn show_image(&self, id: &ConversationId, url: &str) -> HandlerResult {
        self.by_newest_handle(id, Operation::Tell, |handle| async move {
            self.context.xo.show_image(&handle, url).await
        })
        .await
    }

    /// Makes a step of the agent session, unless the step was done before.
    pub(in crate::bridge) async fn session(
        &self,
        conversation: &Conversation,
        what: SessionStep,
        step: DedupKey,
    ) -> HandlerResult {
        let directory = self.context.known_directory()?;
        if directory.is_done(step).await? {
            return Ok(Attempt::delivered(ENDPOINT));
        }
        let attempt = self
            .by_newest_handle(&conversation.id, Operation::Session, |handle| async move {
                self.context.xo.agent_session(&handle, what).await
            })
            .await?;
        if attempt.outcome == Outcome::Delivered {
            directory.mark_done(step, None, clock::now()).await?;
        }
        Ok(attempt)
    }

    /// Calls XO with the newest handle. If XO says that the handle is gone, calls once more with a newer handle, if
    /// there is one by then.
    async fn by_newest_handle<F: Future<Output = Result<(), CallError>>>(
        &self,
        id: &ConversationId,
        operation: Operation,
        call: impl Fn(ReplyHandle) -> F,
    ) -> HandlerResult {
        let directory = self.context.known_directory()?;
        let mut lapsed: Option<String> = None;
        loop {
            let reply = directory.reply_handle(id).await?;
            let usable = reply.filter(|reply| {
                // The end of a session may use an expired handle: XO decides whether the session still exists.
                (!reply.expired || operation == Operation::Session)
                    && lapsed.as_ref() != Some(&reply.handle.request_id)
            });
            let Some(handle) = usable.map(|reply| reply.handle) else {
                let held = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
                return Ok(Attempt::of(
                    ENDPOINT,
                    held,
                    "the reply handle expired: the user's next message brings a new one",
                ));
            };
            if let Some(why) = self.context.xo.refuses(&handle) {
                return Ok(Attempt::dead(ENDPOINT, DeadReason::Rejected, why));
            }
            let request_id = handle.request_id.clone();
            match call(handle).await {
                Ok(()) => return Ok(Attempt::delivered(ENDPOINT)),
                Err(error) if operation == Operation::Tell && matches!(error.status(), Some(404 | 410)) => {
                    directory.mark_reply_expired(id, &request_id).await?;
                    if lapsed.replace(request_id).is_some() {
                        let held = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
                        return Ok(Attempt::of(ENDPOINT, held, "the reply handles expired"));
                    }
                }
                Err(error) => return Ok(Attempt::called(ENDPOINT, &error, operation)),
            }
        }
    }

    /// Extends the handles of live conversations until the cancellation.
    pub(in crate::bridge) async fn keep_alive(
        &self,
        every: Duration,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let Some(directory) = &self.context.directory else { return Ok(()) };
        let pause = every.min(Duration::from_secs(5));
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            if let Err(InternalError { trouble, .. }) = self.extend_all(directory, every, &stop).await {
                tracing::debug!(trouble, "cannot read which reply handles to extend");
            }
        }
    }

    /// Extends all due handles, [`BATCH_SIZE`] at a time: with thousands of live conversations no handle may wait until it
    /// has expired.
    async fn extend_all(
        &self,
        directory: &Directory,
        every: Duration,
        stop: &CancellationToken,
    ) -> Result<(), InternalError> {
        loop {
            let due = directory.find_sessions_to_extend(clock::now(), every, BATCH_SIZE).await?;
            let calls = due.iter().map(|(id, handle)| self.extend(id, handle));
            futures_util::future::join_all(calls).await;
            let more = due.len() >= BATCH_SIZE as usize;
            if !more || stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Extends one handle. A temporary failure is retried once, because XO lets the handle expire before the next
    /// round. Without a valid handle an agent's next message cannot be relayed until the user writes again.
    async fn extend(&self, id: &ConversationId, handle: &ReplyHandle) {
        if self.context.xo.refuses(handle).is_some() {
            return;
        }
        let Some(destination) = self.context.settings.bot_side.bot(&handle.bot_id) else { return };
        for _ in 0..EXTEND_TRIES {
            let Some(_pass) = self.context.gate(destination).enter(false).await else { return };
            let Err(error) = self.context.xo.agent_session(handle, SessionStep::Extend).await else { return };
            tracing::debug!(conversation = %id, %error, "a reply handle was not extended");
            if !matches!(classify(&error, Operation::Session), Outcome::Retry { .. }) {
                return;
            }
        }
    }
}

/// Whether XO answered with a permanent refusal.
pub(in crate::bridge) fn is_refusal(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Dead(DeadReason::Rejected)) && attempt.status.is_some()
}
