//! Enforces the time limits of a conversation: how long a user waits for an agent, and how long a chat may be silent.
//! ServiceNow may route without end, and Connect Support ends no idle chat (`src/platform/servicenow/FACTS.md`).
//!
//! Guarantees: a user who waited too long is notified at the next poll, also while ServiceNow is down (polls may then
//! be ten seconds apart, see `poll.rs`). A message in the conversation's lane leaves the chat, so a failure to leave is
//! retried.
//!
//! Not responsible for: leaving (`handoff.rs`).

use std::time::Duration;

use super::{Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};
use crate::message::handoff::{End, EndCause};
use crate::message::{Destination, Handoff, LaneKey, Message, MessageId};

/// `servicenow.wait_limit`, `servicenow.idle_limit`
#[derive(Debug, Clone)]
pub struct Patience {
    /// The time limit from the request to the first agent, and from the departure of an agent to the next agent.
    pub wait: Duration,
    /// The time limit since the last message of either side.
    pub idle: Duration,
}

const AT_ONCE: u32 = 32;

impl Deliverer {
    /// Ends the conversations that exceeded a time limit.
    pub(super) async fn lose_patience(
        &self,
        directory: &Directory,
        patience: &Patience,
    ) -> Result<(), OwnTrouble> {
        for overdue in directory.overdue(ago(patience.wait)?, AT_ONCE).await? {
            self.leave_later(&overdue, EndCause::WaitedTooLong).await?;
            self.give_up_waiting(&overdue).await?;
        }
        for silent in directory.silent(ago(patience.idle)?, AT_ONCE).await? {
            self.leave_later(&silent, EndCause::Idle).await?;
            if let Some(group) = &silent.group {
                if directory.is_done(DedupKey::closing_sentence(group)).await? {
                    self.metrics.unconfirmed_ends.inc();
                }
                // Otherwise each poll would find the chat again until the end is delivered.
                directory.stirred(group, clock::now()).await?;
            }
        }
        Ok(())
    }

    /// Fails a handoff whose user waited too long. The poll and the end in the lane both call this; the notice has the
    /// same id either way.
    pub(super) async fn give_up_waiting(&self, conversation: &Conversation) -> Result<(), OwnTrouble> {
        let instance = conversation.opened_at.as_millisecond().to_string();
        self.fail(&conversation.id, EndCause::WaitedTooLong.as_str(), None, &instance).await
    }

    /// Publishes the end in the conversation's lane. The id follows from the chat, so the same chat is left once.
    async fn leave_later(&self, conversation: &Conversation, cause: EndCause) -> Result<(), OwnTrouble> {
        let end = Handoff::End(End {
            conversation_id: conversation.id.clone(),
            reason: Some(cause.into()),
            reply: None,
        });
        let chat = conversation.group.as_deref().unwrap_or_default();
        let id = MessageId::derived_from("patience", &[conversation.id.as_str(), chat, cause.as_str()]);
        let body = serde_json::to_vec(&end).map_err(|error| OwnTrouble(error.to_string()))?;
        let message =
            Message::new(id, end.kind(), Destination::ServiceNow, LaneKey::from(&conversation.id), body);
        Ok(self.queue.publish(&message).await?)
    }
}

fn ago(time: Duration) -> Result<jiff::Timestamp, OwnTrouble> {
    clock::now().checked_sub(time).map_err(|error| OwnTrouble(error.to_string()))
}
