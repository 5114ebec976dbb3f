//! What XO's BotKit conversations hear: texts to the user, the begin and the end of the agent session.
//!
//! Guarantees: the newest reply handle is used. Leaves to others: the HTTP and the signature (`platform/xo`).

use super::tell::Said;
use super::{Attempt, Deliverer, OwnTrouble};
use crate::conversation::Conversation;
use crate::message::{DeadReason, Endpoint, Message, Notice};

impl Deliverer {
    pub(super) async fn botkit_says(
        &self,
        _message: &Message,
        _conversation: &Conversation,
        _said: &Said<'_>,
    ) -> Result<Attempt, OwnTrouble> {
        Ok(Attempt::dead(Endpoint::XoBotKit, DeadReason::Rejected, "no bot is configured on this worker"))
    }

    pub(super) async fn botkit_notice(
        &self,
        _message: &Message,
        _conversation: &Conversation,
        _notice: &Notice,
    ) -> Result<Attempt, OwnTrouble> {
        Ok(Attempt::dead(Endpoint::XoBotKit, DeadReason::Rejected, "no bot is configured on this worker"))
    }
}
