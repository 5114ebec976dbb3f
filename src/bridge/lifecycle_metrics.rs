//! Records the lifecycle metrics of conversations: how long a user waited for the first agent, and the reason of the
//! end.
//!
//! Guarantees: each episode of a conversation is counted once, whichever poll or message finds it. If the process dies
//! at that moment, the episode is not counted.
//!
//! Not responsible for: detecting these events (`watch/poll.rs`, `to_bot/virtual_agent_callback.rs`, `notices.rs`).

use crate::bridge::notices::Notices;
use crate::clock;
use crate::conversation::{Conversation, DedupKey, Directory};
use crate::delivery::InternalError;

impl Notices {
    /// Records that an agent took the chat. The fact is stored in the directory, because a chat that was handed back
    /// looks like a chat that never had an agent.
    pub(in crate::bridge) async fn agent_came(
        &self,
        directory: &Directory,
        conversation: &Conversation,
    ) -> Result<(), InternalError> {
        let opened = conversation.opened_at;
        let first = DedupKey::first_agent(&conversation.id, opened);
        // A poll and a message may see the agent at the same time. The directory decides which one is first.
        if !directory.is_done(first).await? && directory.mark_done(first, None, clock::now()).await? {
            self.context.metrics.agent_wait.observe(clock::since(opened).as_secs_f64());
        }
        Ok(())
    }

    /// Counts the end of an episode. `is_first` is the answer of the directory.
    pub(in crate::bridge) fn count_end(&self, is_first: bool, reason: &str) {
        if is_first {
            self.context.metrics.count_end(reason);
        }
    }
}
