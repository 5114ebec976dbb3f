//! Compares a callback with its row at ServiceNow. A script posts the callback. A clone of the instance runs the same
//! script, and a callback can be lost or changed on its way. A row can only be written inside ServiceNow.
//!
//! Guarantees: if the chat can be read, the row decides the text, the author, the order and the existence of a message.
//! A callback counts as absent only after two readings of the whole chat, [`ROW_VISIBLE_WITHIN`] apart. A chat that
//! cannot be read delays a callback for at most [`UNREAD_DELAY`]. If several callbacks of a chat wait, one reading serves
//! all that it shows (`recent_rows.rs`).
//! Not responsible for: reading (`platform/servicenow/history.rs`), relaying (`callback_relay.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::context::BridgeContext;
use crate::bridge::settings::ReadBack;
use crate::bridge::to_bot::agent_files::names_a_file;
use crate::bridge::to_bot::gap_check::{GapCheck, ROW_VISIBLE_WITHIN, found};
use crate::bridge::to_bot::recent_rows::RecentRows;
use crate::conversation::{Conversation, ConversationState, Directory};
use crate::delivery::classify::Operation;
use crate::delivery::{Attempt, InternalError, breaker};
use crate::message::{Callback, Destination, Endpoint, Message};
use crate::platform::servicenow::History;
use crate::platform::{CallError, ChatApi, ServiceNow};

/// The time limit of one reading.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that the callbacks of a chat wait for a reading, counted from the first failed reading.
const UNREAD_DELAY: Duration = Duration::from_secs(30);
/// An outage of ServiceNow that is longer than this does not delay the bot side. During a shorter one the callbacks
/// wait, so that no later message overtakes a missing one.
const OUTAGE: Duration = Duration::from_secs(15);
/// The worker forgets a chat that it could not read if no callback used the entry for this time.
pub(in crate::bridge) const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Finds the rows of callbacks.
#[derive(Debug)]
pub(in crate::bridge) struct CallbackRows {
    context: Arc<BridgeContext>,
    /// The first failed reading of each chat that could not be read back since then.
    unread: Mutex<UnreadSince>,
    /// Readings that show rows whose callbacks follow.
    recent_rows: Mutex<RecentRows>,
}

impl CallbackRows {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Self {
        Self { context, unread: Mutex::default(), recent_rows: Mutex::default() }
    }

    /// Looks for the row of a callback, and for the messages before it.
    pub(in crate::bridge) async fn check_gap(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<GapCheck, InternalError> {
        let (Some(servicenow), Some(sys_id)) = (&self.context.servicenow, &callback.sys_id) else {
            return Ok(GapCheck::Unknown);
        };
        // ServiceNow may refuse to show an earlier chat of the conversation; the newer API has no such call.
        let is_current = conversation.group.as_deref() == Some(&callback.group);
        if !is_current || servicenow.api() != ChatApi::ConnectSupport {
            return Ok(GapCheck::Unknown);
        }
        let last_relayed = directory.last_relayed(&callback.group).await?;
        let previous = callback.previous.as_deref();
        let shows_no_gap = previous.is_some_and(|previous| previous == last_relayed.as_deref().unwrap_or(""));
        // Only the row of a file's message has the file.
        let has_file = callback.formatted_message.as_deref().is_some_and(names_a_file);
        let reads_gaps_only = self.context.settings.read_back == ReadBack::Gaps;
        if reads_gaps_only && !has_file && (previous.is_none() || shows_no_gap) {
            return Ok(if shows_no_gap { GapCheck::Complete } else { GapCheck::Unknown });
        }
        if let Some(found) = self.recent_rows().find(&callback.group, sys_id, last_relayed.as_deref()) {
            return Ok(found);
        }
        if self.waits_for_row(sys_id) {
            return Ok(GapCheck::Unseen);
        }
        let unread = || self.without_reading(&callback.group, shows_no_gap);
        let Some(read) = self.read_back(servicenow, conversation, callback, last_relayed.as_deref()).await
        else {
            return Ok(unread());
        };
        if let Some(found) = found(&read.messages, sys_id, None) {
            self.chat_was_read(&callback.group, Some(sys_id));
            self.recent_rows().keep(&callback.group, sys_id, last_relayed, read.messages);
            return Ok(found);
        }
        let mut proves_absence = read.is_complete;
        if last_relayed.is_some() {
            // The row may precede the last relayed message, or a page showed it out of order.
            let Some(whole) = self.read_back(servicenow, conversation, callback, None).await else {
                return Ok(unread());
            };
            proves_absence = whole.is_complete;
            if let Some(found) = found(&whole.messages, sys_id, last_relayed.as_deref()) {
                self.chat_was_read(&callback.group, Some(sys_id));
                return Ok(found);
            }
        }
        self.chat_was_read(&callback.group, None);
        // It is not known which rows of a closed chat can still be read, so their absence proves nothing. A replay is
        // an operator's decision to relay the message.
        let is_open = matches!(
            conversation.state,
            ConversationState::Requested | ConversationState::Waiting | ConversationState::Active
        );
        if !proves_absence || !is_open || message.replays > 0 {
            return Ok(GapCheck::Unknown);
        }
        Ok(self.row_was_unseen(sys_id))
    }

    /// What a callback shows if its chat could not be read.
    fn without_reading(&self, group: &str, shows_no_gap: bool) -> GapCheck {
        if shows_no_gap {
            GapCheck::Complete
        } else if self.waits_for(group) {
            GapCheck::NotYet
        } else {
            GapCheck::Unknown
        }
    }

    fn recent_rows(&self) -> MutexGuard<'_, RecentRows> {
        self.recent_rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unread(&self) -> MutexGuard<'_, UnreadSince> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chat_was_read(&self, group: &str, row: Option<&str>) {
        let mut unread = self.unread();
        unread.forget(group);
        if let Some(sys_id) = row {
            unread.forget(&row_key(sys_id));
        }
    }

    /// Whether a reading less than [`ROW_VISIBLE_WITHIN`] ago did not show the row. The next reading would not show it
    /// either.
    fn waits_for_row(&self, sys_id: &str) -> bool {
        self.unread().since(&row_key(sys_id)).is_some_and(|since| since.elapsed() < ROW_VISIBLE_WITHIN)
    }

    fn row_was_unseen(&self, sys_id: &str) -> GapCheck {
        let mut unread = self.unread();
        if unread.forget(&row_key(sys_id)) {
            return GapCheck::Absent;
        }
        unread.first_failure(&row_key(sys_id));
        GapCheck::Unseen
    }

    /// Whether the callbacks of a chat that could not be read should still wait.
    fn waits_for(&self, group: &str) -> bool {
        let since = self.unread().first_failure(group);
        since.elapsed() < UNREAD_DELAY
            && self.context.gate(Destination::ServiceNow).breaker().down_for() < OUTAGE
    }

    async fn read_back(
        &self,
        servicenow: &ServiceNow,
        conversation: &Conversation,
        callback: &Callback,
        since: Option<&str>,
    ) -> Option<History> {
        let gate = self.context.gate(Destination::ServiceNow);
        let _pass = tokio::time::timeout(READ_TIMEOUT, gate.enter(false)).await.ok().flatten()?;
        let reading = servicenow.messages_since(&conversation.id, &callback.group, since);
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(history)) => {
                self.context.metrics.servicenow_reads.with_label_values(&["row"]).inc_by(history.requests);
                gate.breaker().record(breaker::BreakerSignal::Alive);
                return Some(history);
            }
            Ok(Err(error)) => self.trouble_reading(conversation, &error),
            Err(_) => {
                let lane = crate::delivery::lane_number(&callback.group);
                gate.breaker().record(breaker::BreakerSignal::Failed { lane, unreachable: false });
            }
        }
        None
    }

    fn trouble_reading(&self, conversation: &Conversation, error: &CallError) {
        let attempt = Attempt::called(Endpoint::ServiceNow, error, Operation::State);
        self.context.record_call_to_servicenow(&attempt);
        tracing::debug!(conversation = %conversation.id, %error, "cannot read the chat back");
    }
}

/// The first failed reading of each chat, and of each row that a reading did not show. An entry that no callback used for
/// [`FORGET_AFTER`] is removed. A chat that stays unreadable keeps its entry as long as callbacks come, so that it delays
/// callbacks once and not again every [`FORGET_AFTER`].
#[derive(Debug, Default)]
struct UnreadSince(HashMap<String, UnreadEntry>);

#[derive(Debug, Clone, Copy)]
struct UnreadEntry {
    since: Instant,
    used: Instant,
}

impl UnreadSince {
    /// The time of the first failure, which is now for a new entry.
    fn first_failure(&mut self, key: &str) -> Instant {
        let now = Instant::now();
        self.0.retain(|name, entry| name == key || now.duration_since(entry.used) < FORGET_AFTER);
        let entry = self.0.entry(key.to_owned()).or_insert(UnreadEntry { since: now, used: now });
        if now.duration_since(entry.used) >= FORGET_AFTER {
            entry.since = now;
        }
        entry.used = now;
        entry.since
    }

    fn since(&self, key: &str) -> Option<Instant> {
        self.0.get(key).map(|entry| entry.since)
    }

    /// Removes an entry. Returns whether there was one.
    fn forget(&mut self, key: &str) -> bool {
        self.0.remove(key).is_some()
    }
}

/// The key of a row in the map of unread chats. The prefix keeps it apart from the key of a chat.
fn row_key(sys_id: &str) -> String {
    format!("row {sys_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_chat_that_stays_unreadable_delays_its_callbacks_once() {
        let mut unread = UnreadSince::default();
        let first = unread.first_failure("g");
        for _ in 0..100 {
            tokio::time::advance(FORGET_AFTER / 10).await;
            assert_eq!(unread.first_failure("g"), first, "callbacks keep coming");
        }
        unread.first_failure("other");
        tokio::time::advance(FORGET_AFTER).await;
        assert_ne!(unread.first_failure("g"), first, "a new trouble after a long silence");
        assert_eq!(unread.0.len(), 1, "unused entries are removed");
        assert!(unread.forget("g") && !unread.forget("g"));
    }
}
