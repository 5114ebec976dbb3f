//! How long a user waits for an agent, and how long a chat may be silent: the limits of our own, since ServiceNow may route
//! for ever and Connect Support ends no idle chat (FACTS.md SN-60).
//!
//! Guarantees: who waited too long is told at the next look, also while ServiceNow is away (where looks may be ten seconds
//! apart, see `poll.rs`); the chat there is left by a message in the conversation's lane, so that it is left for certain. Leaves to others: leaving (`handoff.rs`).

use std::time::Duration;

use super::{Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, Directory};
use crate::message::handoff::End;
use crate::message::{Destination, Handoff, LaneKey, Message, MessageId};

/// `servicenow.wait_limit`, `servicenow.idle_limit`
#[derive(Debug, Clone)]
pub struct Patience {
    /// From the request to the first agent, and from the going of one to the next.
    pub wait: Duration,
    /// Since either side spoke last.
    pub idle: Duration,
}

/// The reason of a handoff whose user waited longer than the limit.
pub(super) const WAITED_TOO_LONG: &str = "waited_too_long";

const AT_ONCE: u32 = 32;

impl Deliverer {
    /// Ends what lasted too long.
    pub(super) async fn lose_patience(
        &self,
        directory: &Directory,
        patience: &Patience,
    ) -> Result<(), OwnTrouble> {
        for overdue in directory.overdue(ago(patience.wait)?, AT_ONCE).await? {
            self.leave_later(&overdue, WAITED_TOO_LONG).await?;
            self.give_up_waiting(&overdue).await?;
        }
        for silent in directory.silent(ago(patience.idle)?, AT_ONCE).await? {
            self.leave_later(&silent, "idle").await?;
            // Until the end is delivered it would be found at each look.
            if let Some(group) = &silent.group {
                directory.stirred(group, clock::now()).await?;
            }
        }
        Ok(())
    }

    /// Done by whoever comes first, this or the end in the lane: it is one notice either way.
    pub(super) async fn give_up_waiting(&self, conversation: &Conversation) -> Result<(), OwnTrouble> {
        let instance = conversation.opened_at.as_millisecond().to_string();
        self.fail(&conversation.id, WAITED_TOO_LONG, None, &instance).await
    }

    /// Puts the end into the conversation's lane. The same chat is left once, however often it is found.
    async fn leave_later(&self, conversation: &Conversation, reason: &str) -> Result<(), OwnTrouble> {
        let end = Handoff::End(End {
            conversation_id: conversation.id.clone(),
            reason: Some(reason.to_owned()),
            reply: None,
        });
        let chat = conversation.group.as_deref().unwrap_or_default();
        let id = MessageId::derived_from("patience", &[conversation.id.as_str(), chat, reason]);
        let body = serde_json::to_vec(&end).map_err(|error| OwnTrouble(error.to_string()))?;
        let message =
            Message::new(id, end.kind(), Destination::ServiceNow, LaneKey::from(&conversation.id), body);
        Ok(self.queue.publish(&message).await?)
    }
}

fn ago(time: Duration) -> Result<jiff::Timestamp, OwnTrouble> {
    clock::now().checked_sub(time).map_err(|error| OwnTrouble(error.to_string()))
}
