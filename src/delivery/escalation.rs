//! A chat that its queue passed on to another one.
//!
//! Its entry ends with state 4, and it goes on in an entry of the other queue. Whether the chat keeps its `group` then is not
//! documented (FACTS.md SN-27), so both are looked for: an open entry of the same group is simply the chat's state; an
//! open chat of ours with the same words in the queue that follows is claimed as the conversation's next chat.
//! Guarantees: a conversation ends as `escalated` only when it went on nowhere for a while, and as `gone` only when it was not
//! shown for a while.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::poll::{Look, Looked};
use crate::conversation::{Claim, Opened};
use crate::message::{Notice, NoticeEvent};
use crate::platform::QueueEntry;

/// How long the other queue may take to show the chat, and how long a chat may not be shown at all.
const GRACE: Duration = Duration::from_secs(15);

impl Look<'_> {
    pub(super) async fn escalated(&self, from: &QueueEntry) -> Looked {
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
        // Nobody is there meanwhile.
        self.saw(&QueueEntry { assigned_to: None, position: None, ..from.clone() }).await?;
        Ok(Ok(()))
    }

    /// Takes the new chat for the conversation's own. False where another conversation has it.
    async fn goes_on(&self, entry: &QueueEntry) -> Result<bool, super::OwnTrouble> {
        if let Err(error) =
            self.deliverer.repair(self.directory, self.servicenow, self.conversation, self.group).await?
        {
            tracing::debug!(conversation = %self.conversation.id, %error, "the chat that was passed on is not read to its end");
        }
        let opened = Opened {
            group: entry.group.clone(),
            number: entry.number.clone(),
            queue_id: entry.queue.clone().unwrap_or_default(),
            position: entry.position,
            wait: entry.wait.clone(),
            agent: None,
            active: false,
        };
        if self.directory.opened(&self.conversation.id, &opened).await? == Claim::TakenByAnother {
            return Ok(false);
        }
        let notice = Notice {
            group: Some(entry.group.clone()),
            position: entry.position,
            wait: entry.wait.clone(),
            ..Notice::about(self.conversation.id.clone())
        };
        self.deliverer.tell_event(notice, NoticeEvent::Waiting, "escalated").await?;
        self.directory.look_soon(&self.conversation.id).await?;
        Ok(true)
    }

    /// Whether the chat has looked as if it were over for so long that it is.
    pub(super) fn lasts(&self) -> bool {
        self.since().entry(self.conversation.id.clone()).or_insert_with(Instant::now).elapsed() >= GRACE
    }

    /// The chat is seen, or over for certain: the next time counts from anew.
    pub(super) fn settled(&self) {
        self.since().remove(&self.conversation.id);
    }

    fn since(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<crate::message::ConversationId, Instant>> {
        self.deliverer.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
