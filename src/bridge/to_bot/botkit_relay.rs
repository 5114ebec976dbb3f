//! Relays the agent's messages and Causeway's own notices to the users of XO's BotKit conversations.
//!
//! Guarantees: after the bot has its user back, no further message is sent. Parts of a message that were sent are not
//! repeated after a failure.
//!
//! Not responsible for: the calls (`botkit.rs`), the end of the agent session (`user_return.rs`), the texts (`texts.rs`).

use std::sync::Arc;

use crate::bridge::context::BridgeContext;
use crate::bridge::to_bot::agent_files::{RelayedFile, TextPart, parts, relayed_files};
use crate::bridge::to_bot::botkit::{BotKitCalls, HandlerResult, WEB_CHANNEL, is_refusal};
use crate::bridge::to_bot::relayed_message::{MessageAuthor, RelayedMessage};
use crate::bridge::to_bot::texts::TextKind;
use crate::bridge::to_bot::user_return::UserReturn;
use crate::bridge::to_bot::wait_updates::WaitUpdates;
use crate::clock;
use crate::conversation::{Conversation, ConversationState, DedupKey};
use crate::delivery::{Attempt, InternalError};
use crate::message::{DeadReason, Endpoint, Kind, Message, Notice, NoticeEvent, Outcome};
use crate::platform::SessionStep;

const ENDPOINT: Endpoint = Endpoint::XoBotKit;

/// Relays to the users of all bots.
#[derive(Debug)]
pub(in crate::bridge) struct BotKitRelay {
    context: Arc<BridgeContext>,
    calls: Arc<BotKitCalls>,
    user_return: Arc<UserReturn>,
    /// The time of the last text about the wait, for each waiting user.
    wait_updates: WaitUpdates,
}

impl BotKitRelay {
    pub(in crate::bridge) fn new(
        context: Arc<BridgeContext>,
        calls: Arc<BotKitCalls>,
        user_return: Arc<UserReturn>,
    ) -> Self {
        Self { context, calls, user_return, wait_updates: WaitUpdates::default() }
    }

    /// Sends a message of an agent, or an announcement. Other system texts are dropped, because the user gets the same
    /// news as notices.
    pub(in crate::bridge) async fn relay(
        &self,
        message: &Message,
        conversation: &Conversation,
        said: &RelayedMessage<'_>,
    ) -> HandlerResult {
        let is_foreign = said.author == MessageAuthor::Announcement
            && !self.context.settings.botkit.texts.is_public(&said.text);
        if said.author == MessageAuthor::System || is_foreign || said.text.trim().is_empty() {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "the text is of no interest to the user"));
        }
        if conversation.released_at.is_none() && conversation.group.is_none() {
            // ServiceNow may send a callback before the worker that opens the chat has recorded the chat.
            let at_most = self.context.settings.unknown_group_wait;
            let held = Outcome::Deferred { at_most, then: DeadReason::ConversationOver };
            return Ok(Attempt::of(ENDPOINT, held, "its chat is being opened"));
        }
        if is_over(conversation, Some(said.group)) {
            let why = "the bot has its user back";
            return Ok(Attempt::dead(ENDPOINT, DeadReason::ConversationOver, why));
        }
        let files = relayed_files(&self.context, &conversation.id, said, message.accepted_at);
        if files.iter().all(|file| file.url.is_none()) {
            return self
                .calls
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
        let directory = self.context.known_directory()?;
        let web = directory.reply_handle(&conversation.id).await?;
        let web = web.is_some_and(|reply| reply.handle.channel_type() == Some(WEB_CHANNEL));
        for (number, part) in parts(&said.text, files, web).into_iter().enumerate() {
            let step = DedupKey::botkit_part_step(said.id, number);
            if directory.is_done(step).await? {
                continue;
            }
            let told = match &part {
                TextPart::Words(words) => {
                    self.calls.send_to_user(conversation, words, said.author == MessageAuthor::Agent).await?
                }
                TextPart::Image(url) => self.calls.show_image(&conversation.id, url).await?,
            };
            if told.outcome != Outcome::Delivered {
                return Ok(told);
            }
            directory.mark_done(step, None, clock::now()).await?;
        }
        Ok(Attempt::delivered(ENDPOINT))
    }

    /// Sends a notice of Causeway itself.
    pub(in crate::bridge) async fn notice(
        &self,
        message: &Message,
        conversation: &Conversation,
        notice: &Notice,
    ) -> HandlerResult {
        match message.kind {
            Kind::CallbackEnded | Kind::HandoffFailed => {
                self.user_return.give_user_back(message, conversation, notice).await
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
            NoticeEvent::Waiting
                if !self.wait_updates.is_due(notice, self.context.settings.botkit.wait_updates) =>
            {
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
        let language = self.calls.language_of(&conversation.id).await?;
        let Some(text) = self.context.settings.botkit.texts.render(text_kind, notice, language.as_deref())
        else {
            return Ok(Attempt::of(ENDPOINT, Outcome::Dropped, "its text is empty"));
        };
        let told = self.calls.send_to_user(conversation, &text, false).await?;
        if event == NoticeEvent::Waiting && told.outcome == Outcome::Delivered {
            self.wait_updates.mark_sent(notice);
        }
        Ok(told)
    }

    /// Starts the agent session, once in each chat. `Some` if another attempt must come first.
    async fn session_begun(&self, conversation: &Conversation) -> Result<Option<Attempt>, InternalError> {
        if !self.context.settings.botkit.start_agent_session {
            return Ok(None);
        }
        let group = conversation.group.as_deref().unwrap_or_default();
        let step = DedupKey::botkit_chat_step(&conversation.id, group, "session");
        let attempt = self.calls.session(conversation, SessionStep::Start, step).await?;
        // XO may not know this call for the user. The texts do not depend on the call.
        Ok(Some(attempt).filter(|attempt| attempt.outcome != Outcome::Delivered && !is_refusal(attempt)))
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
