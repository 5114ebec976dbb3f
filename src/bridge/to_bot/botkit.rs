//! Sends the agent's messages and Causeway's own notices to the users of XO's BotKit conversations.
//!
//! Guarantees: the newest reply handle is used. An expired handle is not called again; the user's next event brings a
//! new one. After the bot has its user back, no further message is sent. A text whose answer was lost is sent again,
//! because XO cannot be asked whether the text arrived.
//!
//! Not responsible for: the end of the agent session (`user_return.rs`), HTTP and the signature
//! (`platform/xo/botkit.rs`), the texts (`texts.rs`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::bridge::Deliverer;
use crate::bridge::attachments::{RelayedFile, TextPart};
use crate::bridge::to_bot::relay::{MessageAuthor, RelayedMessage};
use crate::bridge::to_bot::texts::{AgentTemplate, TextKind};
use crate::clock;
use crate::conversation::{Conversation, ConversationState, DedupKey, Directory};
use crate::delivery::classify::{Operation, classify};
use crate::delivery::{Attempt, InternalError};
use crate::message::{
    ConversationId, DeadReason, Endpoint, Kind, Message, Notice, NoticeEvent, Outcome, ReplyHandle,
};
use crate::platform::servicenow::Choice;
use crate::platform::{BotKitText, CallError, SessionStep};
use crate::tasks::CancellationToken;

const ENDPOINT: Endpoint = Endpoint::XoBotKit;
/// XO's web channel, which shows an agent's messages in a style of their own.
const WEB_CHANNEL: &str = "rtm";
/// The maximum number of choices shown as buttons. A longer list is sent as text.
const QUICK_REPLIES_MAX: usize = 20;
/// The number of handles that are extended at once.
const BATCH_SIZE: u32 = 32;
/// The attempts for each handle in one round.
const EXTEND_TRIES: u32 = 2;

pub(in crate::bridge) type HandlerResult = Result<Attempt, InternalError>;

impl Deliverer {
    /// Sends a message of an agent, or an announcement. Other system texts are dropped, because the user gets the same
    /// news as notices.
    pub(in crate::bridge) async fn relay_to_botkit(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
    ) -> HandlerResult {
        let is_foreign =
            said.author == MessageAuthor::Announcement && !self.settings.botkit.texts.is_public(&said.text);
        if said.author == MessageAuthor::System || is_foreign || said.text.trim().is_empty() {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "the text is of no interest to the user"));
        }
        if conversation.released_at.is_none() && conversation.group.is_none() {
            // ServiceNow may send a callback before the worker that opens the chat has recorded the chat.
            let at_most = self.settings.unknown_group_wait;
            let held = Outcome::Deferred { at_most, then: DeadReason::ConversationOver };
            return Ok(Attempt::of(ENDPOINT, held, "its chat is being opened"));
        }
        if is_over(conversation, Some(said.group)) {
            let why = "the bot has its user back";
            return Ok(Attempt::dead(ENDPOINT, DeadReason::ConversationOver, why));
        }
        let files = self.relayed_files(&conversation.id, said, message.accepted_at);
        if files.iter().all(|file| file.url.is_none()) {
            return self
                .tell_user_with(conversation, &said.text, said.author == MessageAuthor::Agent, said.choices)
                .await;
        }
        self.relay_with_files(conversation, said, &files).await
    }

    /// Sends the text, then each picture. An attempt after a failure does not repeat the parts that were sent.
    async fn relay_with_files(
        &self,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
        files: &[RelayedFile],
    ) -> HandlerResult {
        let directory = self.known()?;
        let web = directory.reply_handle(&conversation.id).await?;
        let web = web.is_some_and(|reply| reply.handle.channel_type() == Some(WEB_CHANNEL));
        for (number, part) in Self::parts(&said.text, files, web).into_iter().enumerate() {
            let step = DedupKey::botkit_part_step(said.id, number);
            if directory.is_done(step).await? {
                continue;
            }
            let told = match &part {
                TextPart::Words(words) => {
                    self.send_to_user(conversation, words, said.author == MessageAuthor::Agent).await?
                }
                TextPart::Image(url) => {
                    self.by_newest_handle(&conversation.id, Operation::Tell, |handle| async move {
                        self.xo.show_image(&handle, url).await
                    })
                    .await?
                }
            };
            if told.outcome != Outcome::Delivered {
                return Ok(told);
            }
            directory.mark_done(step, None, clock::now()).await?;
        }
        Ok(Attempt::delivered(ENDPOINT))
    }

    /// Sends a notice of Causeway itself.
    pub(in crate::bridge) async fn botkit_notice(
        &self,
        message: &Message,
        conversation: &Conversation,
        notice: &Notice,
    ) -> HandlerResult {
        match message.kind {
            Kind::CallbackEnded | Kind::HandoffFailed => {
                self.give_user_back(message, conversation, notice).await
            }
            _ if is_over(conversation, notice.group.as_deref()) => {
                Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "the bot has its user back"))
            }
            _ => self.news(message, conversation, notice).await,
        }
    }

    async fn news(&self, message: &Message, conversation: &Conversation, notice: &Notice) -> HandlerResult {
        let Some(event) = notice.event.filter(|event| *event != NoticeEvent::Typing) else {
            // XO documents no call that shows a typing agent.
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "XO has no call that shows a typing agent"));
        };
        if let Some(attempt) = self.session_begun(conversation).await? {
            return Ok(attempt);
        }
        let text_kind = match event {
            NoticeEvent::Waiting if is_stale(message, conversation, notice) => {
                return Ok(Attempt::of(
                    ENDPOINT,
                    Outcome::Dropped,
                    "the position in the queue is out of date",
                ));
            }
            NoticeEvent::Waiting if !self.wait_updates.is_due(notice, self.settings.botkit.wait_updates) => {
                return Ok(Attempt::of(
                    ENDPOINT,
                    Outcome::Dropped,
                    "the last text about the wait is too recent",
                ));
            }
            NoticeEvent::Waiting => TextKind::Waiting,
            NoticeEvent::Joined => TextKind::Joined,
            NoticeEvent::Left | NoticeEvent::Typing => TextKind::Left,
        };
        let language = self.language_of(&conversation.id).await?;
        let Some(text) = self.settings.botkit.texts.render(text_kind, notice, language.as_deref()) else {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "its text is empty"));
        };
        let told = self.send_to_user(conversation, &text, false).await?;
        if event == NoticeEvent::Waiting && told.outcome == Outcome::Delivered {
            self.wait_updates.mark_sent(notice);
        }
        Ok(told)
    }

    /// Starts the agent session, once in each chat. `Some` if another attempt must come first.
    async fn session_begun(&self, conversation: &Conversation) -> Result<Option<Attempt>, InternalError> {
        if !self.settings.botkit.start_agent_session {
            return Ok(None);
        }
        let group = conversation.group.as_deref().unwrap_or_default();
        let step = DedupKey::botkit_chat_step(&conversation.id, group, "session");
        let attempt = self.session(conversation, SessionStep::Start, step).await?;
        // XO may not know this call for the user. The texts do not depend on the call.
        Ok(Some(attempt).filter(|attempt| attempt.outcome != Outcome::Delivered && !is_refusal(attempt)))
    }

    /// The language that the user speaks with the bot, as far as XO reported one.
    pub(in crate::bridge) async fn language_of(
        &self,
        id: &ConversationId,
    ) -> Result<Option<String>, InternalError> {
        Ok(self.known()?.reply_handle(id).await?.and_then(|reply| reply.handle.language))
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
    async fn tell_user_with(
        &self,
        conversation: &Conversation,
        text: &str,
        by_agent: bool,
        choices: &[Choice],
    ) -> HandlerResult {
        self.by_newest_handle(&conversation.id, Operation::Tell, |handle| {
            let is_web = handle.channel_type() == Some(WEB_CHANNEL);
            let has_template = match self.settings.botkit.agent_template {
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
                self.xo.send_to_user(&handle, words).await
            }
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
        let directory = self.known()?;
        if directory.is_done(step).await? {
            return Ok(Attempt::delivered(ENDPOINT));
        }
        let attempt = self
            .by_newest_handle(&conversation.id, Operation::Session, |handle| async move {
                self.xo.agent_session(&handle, what).await
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
        let directory = self.known()?;
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
            if let Some(why) = self.xo.refuses(&handle) {
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

    pub(in crate::bridge) fn known(&self) -> Result<&Directory, InternalError> {
        self.directory.as_ref().ok_or_else(|| InternalError::temporary("this worker has no directory"))
    }

    /// Extends the handles of live conversations until the cancellation.
    pub async fn keep_alive(self: Arc<Self>, every: Duration, stop: CancellationToken) -> Result<(), String> {
        let Some(directory) = &self.directory else { return Ok(()) };
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
        if self.xo.refuses(handle).is_some() {
            return;
        }
        let Some(destination) = self.settings.bot_side.bot(&handle.bot_id) else { return };
        for _ in 0..EXTEND_TRIES {
            let Some(_pass) = self.gate(destination).enter(false).await else { return };
            let Err(error) = self.xo.agent_session(handle, SessionStep::Extend).await else { return };
            tracing::debug!(conversation = %id, %error, "a reply handle was not extended");
            if !matches!(classify(&error, Operation::Session), Outcome::Retry { .. }) {
                return;
            }
        }
    }
}

/// Whether no further message of this chat is sent: the bot has its user back, or the user is in another chat by now.
fn is_over(conversation: &Conversation, group: Option<&str>) -> bool {
    let elsewhere = group.is_some() && conversation.group.as_deref() != group;
    conversation.released_at.is_some() || elsewhere
}

/// Whether the position in a notice is out of date: the directory knows a later position, or an agent.
fn is_stale(message: &Message, conversation: &Conversation, notice: &Notice) -> bool {
    let since = conversation.updated_at.as_millisecond() > message.accepted_at.as_millisecond();
    since && (conversation.state != ConversationState::Waiting || conversation.position != notice.position)
}

/// Whether XO answered with a permanent refusal.
pub(in crate::bridge) fn is_refusal(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Dead(DeadReason::Rejected)) && attempt.status.is_some()
}
