//! Limits how often a waiting user gets a text about the wait.
//!
//! ServiceNow may report a new position in the queue every few seconds, and each text costs money on SMS and WhatsApp.
//!
//! Guarantees: the first text of a chat about the wait is sent at once. A later text is sent only if the minimum
//! interval has passed. After a restart of the worker one text may come early.
//!
//! Not responsible for: the texts themselves (`texts.rs`), events of the handoff API, which are not limited
//! (`events.rs`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::Notice;

/// Chats whose last text is older are removed.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The time of the last text about the wait, for each chat.
#[derive(Debug, Default)]
pub(in crate::bridge) struct WaitUpdates(Mutex<HashMap<String, Instant>>);

impl WaitUpdates {
    /// Whether a text may be sent to the user of this chat now.
    pub(in crate::bridge) fn is_due(&self, notice: &Notice, every: Duration) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(&chat(notice)).is_none_or(|at| at.elapsed() >= every)
    }

    /// Records that a text was sent.
    pub(in crate::bridge) fn mark_sent(&self, notice: &Notice) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| at.elapsed() < FORGET_AFTER);
        told.insert(chat(notice), Instant::now());
    }
}

fn chat(notice: &Notice) -> String {
    format!("{}:{}", notice.conversation_id, notice.group.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ConversationId;

    #[tokio::test(start_paused = true)]
    async fn each_chat_is_told_at_most_once_in_a_while() {
        let (updates, minute) = (WaitUpdates::default(), Duration::from_secs(60));
        let notice = |group: &str| Notice {
            group: Some(group.to_owned()),
            ..Notice::about(ConversationId::parse("c").unwrap())
        };
        assert!(updates.is_due(&notice("g-1"), minute));
        updates.mark_sent(&notice("g-1"));
        assert!(!updates.is_due(&notice("g-1"), minute));
        assert!(updates.is_due(&notice("g-2"), minute), "the next chat begins with a text");
        tokio::time::advance(minute).await;
        assert!(updates.is_due(&notice("g-1"), minute));
    }
}
