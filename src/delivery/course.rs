//! How conversations went, counted: how long a user waited for the first agent, and what ended it.
//!
//! Guarantees: each is counted once for each episode of a conversation, whichever look or message finds it, and not at all
//! where the process dies right then. Leaves to others: noticing (`poll.rs`, `agent_chat_callback.rs`, `notices.rs`).

use super::{Deliverer, OwnTrouble};
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};

impl Deliverer {
    /// An agent took the chat. Noted in the directory, since a chat that was handed back looks like one that never had an agent.
    pub(super) async fn agent_came(
        &self,
        directory: &Directory,
        conversation: &Conversation,
    ) -> Result<(), OwnTrouble> {
        let opened = conversation.opened_at;
        let first = DedupKey::first_agent(&conversation.id, opened);
        if !directory.is_done(first).await? {
            directory.mark_done(first, None, clock::now()).await?;
            self.metrics.agent_wait.observe(clock::since(opened).as_secs_f64());
        }
        Ok(())
    }

    /// It is over; `is_first` as the directory said.
    pub(super) fn count_end(&self, is_first: bool, reason: &str) {
        if is_first {
            self.metrics.count_end(reason);
        }
    }
}
