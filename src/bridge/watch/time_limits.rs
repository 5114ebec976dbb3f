//! Enforces the time limits of a conversation: how long a user waits for an agent, and how long a chat may be silent.
//! ServiceNow may look for an agent without a limit, and Connect Support never ends an idle chat
//! (`src/platform/servicenow/FACTS.md`).
//!
//! Guarantees: a user who waited too long is notified at the next poll, also while ServiceNow is down (polls may then
//! be ten seconds apart, see `poll.rs`). A message in the conversation's lane leaves the chat, so a failure to leave is
//! retried.
//!
//! Not responsible for: leaving (`to_agent/handoff.rs`).

use std::time::Duration;

use crate::bridge::to_bot::closing_sentence::is_announced;
use crate::bridge::watch::poll::{ChatWatcher, TimeLimits};
use crate::clock;
use crate::conversation::{Conversation, Directory};
use crate::delivery::InternalError;
use crate::message::handoff::{EndCause, HandoffEnd};
use crate::message::{Destination, Handoff, LaneKey, Message, MessageId};

const BATCH_SIZE: u32 = 32;

impl ChatWatcher {
    /// Ends the conversations that exceeded a time limit.
    pub(in crate::bridge) async fn enforce_time_limits(
        &self,
        directory: &Directory,
        time_limits: &TimeLimits,
    ) -> Result<(), InternalError> {
        for overdue in directory.find_overdue(ago(time_limits.wait)?, BATCH_SIZE).await? {
            self.leave_later(&overdue, EndCause::WaitedTooLong).await?;
            self.notices.give_up_waiting(&overdue).await?;
        }
        for silent in directory.find_silent(ago(time_limits.idle)?, BATCH_SIZE).await? {
            self.leave_later(&silent, EndCause::Idle).await?;
            if let Some(group) = &silent.group {
                if is_announced(directory, group).await? {
                    self.context.metrics.unconfirmed_ends.inc();
                }
                // Otherwise each poll would find the chat again until the end is delivered.
                directory.touch(group).await?;
            }
        }
        Ok(())
    }

    /// Publishes the end in the conversation's lane. The id follows from the chat, so the same chat is left once.
    async fn leave_later(&self, conversation: &Conversation, cause: EndCause) -> Result<(), InternalError> {
        let end = Handoff::End(HandoffEnd {
            conversation_id: conversation.id.clone(),
            reason: Some(cause.into()),
            reply: None,
        });
        let chat = conversation.group.as_deref().unwrap_or_default();
        let id = MessageId::derived_from("patience", &[conversation.id.as_str(), chat, cause.as_str()]);
        let body = serde_json::to_vec(&end).map_err(InternalError::temporary)?;
        let message =
            Message::new(id, end.kind(), Destination::ServiceNow, LaneKey::from(&conversation.id), body);
        Ok(self.context.queue.publish(&message).await?)
    }
}

fn ago(time: Duration) -> Result<jiff::Timestamp, InternalError> {
    clock::now().checked_sub(time).map_err(InternalError::temporary)
}
