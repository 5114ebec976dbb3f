//! Follows a chat that its queue passed on to another queue.
//!
//! The queue entry of the chat ends with state 4, and the chat goes on in an entry of the other queue. ServiceNow does
//! not document whether the chat keeps its `group` (`src/platform/servicenow/FACTS.md`), so both cases are handled. An
//! open entry of the same group is the state of the chat. An open chat of ours with the same text in the next queue is
//! claimed as the next chat of the conversation.
//!
//! Guarantees: a conversation ends as `escalated` only if no continuation of the chat was found for 15 s. It ends as
//! `gone` only if ServiceNow did not show the chat for 15 s.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::watch::poll::{PollContext, PollResult};
use crate::conversation::{Claim, OpenedChat};
use crate::message::{Notice, NoticeEvent};
use crate::platform::QueueEntry;

/// The grace period in which the other queue must show the chat, or in which a missing chat must reappear in
/// ServiceNow's answers.
const GRACE: Duration = Duration::from_secs(15);
/// The requests of one search for the next chat. They delay the next polls.
const REQUESTS: u64 = 3;

impl PollContext<'_> {
    pub(in crate::bridge) async fn escalated(&self, from: &QueueEntry) -> PollResult {
        self.watcher.context.count_reads("escalation", REQUESTS);
        self.watcher.gaps.reads.spend(REQUESTS);
        let found = match self.servicenow.find_escalated(&self.conversation.id, from).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        for entry in &found {
            let owner = self.directory.find_by_group(&entry.group).await?.map(|owner| owner.id);
            if owner.is_none_or(|owner| owner == self.conversation.id) && self.goes_on(entry).await? {
                self.settled();
                return Ok(Ok(()));
            }
        }
        if self.lasts() {
            return self.end("escalated").await;
        }
        // The chat has no agent meanwhile.
        self.record_entry(&QueueEntry { assigned_to: None, position: None, ..from.clone() }).await?;
        Ok(Ok(()))
    }

    /// Claims the new chat for the conversation. `false` if the chat belongs to another conversation.
    async fn goes_on(&self, entry: &QueueEntry) -> Result<bool, crate::delivery::InternalError> {
        if let Err(error) =
            self.watcher.gaps.repair(self.directory, self.servicenow, self.conversation, self.group).await?
        {
            tracing::debug!(conversation = %self.conversation.id, %error, "could not read the rest of an escalated chat");
        }
        let opened = OpenedChat {
            group: entry.group.clone(),
            number: entry.number.clone(),
            queue_id: entry.queue.clone().unwrap_or_default(),
            position: entry.position,
            wait: entry.wait.clone(),
            agent: None,
            active: false,
        };
        if self.directory.mark_opened(&self.conversation.id, &opened).await? == Claim::TakenByAnother {
            return Ok(false);
        }
        let notice = Notice {
            group: Some(entry.group.clone()),
            position: entry.position,
            wait: entry.wait.clone(),
            ..Notice::about(self.conversation.id.clone())
        };
        self.watcher.notices.publish_event(notice, NoticeEvent::Waiting, "escalated").await?;
        self.directory.poll_soon(&self.conversation.id).await?;
        Ok(true)
    }

    /// Whether the chat has appeared to be over for the whole grace period.
    pub(in crate::bridge) fn lasts(&self) -> bool {
        self.since().entry(self.conversation.id.clone()).or_insert_with(Instant::now).elapsed() >= GRACE
    }

    /// Resets the grace period, because the chat is shown again or is certainly over.
    pub(in crate::bridge) fn settled(&self) {
        self.since().remove(&self.conversation.id);
    }

    fn since(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<crate::message::ConversationId, Instant>> {
        self.watcher.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
