//! Fails the conversation of a start that is about to be dead-lettered.
//!
//! Guarantees: the bot side is notified before the dead letter is written. A start that is a duplicate of a start that
//! succeeded changes nothing.
//! Not responsible for: when a message is dead-lettered (`worker/policy.rs`), the notice (`notices.rs`).

use crate::bridge::notices::instance_of;
use crate::bridge::to_agent::late_start::{is_late_start, start_of};
use crate::bridge::to_agent::virtual_agent::has_failed;
use crate::bridge::to_agent::{ToAgent, is_foreign};
use crate::conversation::{Changes, ConversationState, Origin};
use crate::delivery::InternalError;
use crate::message::{DeadLetter, Handoff};

impl ToAgent {
    /// Must run before a start or a message is dead-lettered. A dead start marks its conversation as failed and notifies
    /// the bot side.
    pub(in crate::bridge) async fn before_dead_letter(&self, dead: &DeadLetter) -> Result<(), InternalError> {
        let Ok(handoff) = serde_json::from_slice::<Handoff>(&dead.message.body) else { return Ok(()) };
        let Some(directory) = &self.context.directory else { return Ok(()) };
        let start = match &handoff {
            Handoff::Start(start) => start.clone(),
            // A late start: this message was to open a chat.
            Handoff::Message(text) if is_late_start(directory, &dead.message).await? => start_of(text),
            _ => return Ok(()),
        };
        let id = handoff.conversation();
        if let Some(reply) = &start.reply {
            // The ingress may not have reached the directory, and no attempt may have been made.
            if directory.find(id).await?.is_none() {
                directory.mark_requested(id, Origin::BotKit, None).await?;
            }
            directory.save_reply_handle(id, reply, dead.message.accepted_at).await?;
        }
        let open = directory.find(id).await?;
        if is_foreign(&self.context.xo, &handoff, open.as_ref()) {
            return Ok(());
        }
        // The dead letter is a duplicate of a start that succeeded, so the chat goes on.
        if open
            .as_ref()
            .is_some_and(|open| matches!(open.state, ConversationState::Waiting | ConversationState::Active))
        {
            return Ok(());
        }
        let (reason, instance) = (dead.reason.as_str(), instance_of(&dead.message));
        if has_failed(open.as_ref(), &dead.message) {
            self.notices.request_incident(id, reason, &instance, Some(&start)).await?;
            return Ok(());
        }
        let told = self.notices.fail(id, reason, None, &instance, Some(&start), Changes::default()).await;
        self.best_effort.give_up_chat(id, open.as_ref());
        told
    }
}
