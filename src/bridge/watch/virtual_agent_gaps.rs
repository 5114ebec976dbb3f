//! Gap repair of the Virtual Agent API: publishes agents' messages whose callbacks were lost, from the table `sys_cs_message`.
//!
//! Guarantees: a message has the same id in a row and in a callback, so the user reads it once, in either order. Rows are
//! published in the order in which they were written. Polls take their requests from `servicenow.read_rate`, the chat with the
//! oldest poll first. If the table cannot be read, callbacks are relayed as they come.
//! Not responsible for: finding the missing messages (`conversation_rows/`), the messages before a callback
//! (`to_bot/missing_rows.rs`), relaying a callback (`to_bot/virtual_agent_callback.rs`).

use std::collections::HashSet;
use std::time::Duration;

use crate::bridge::conversation_rows::{MissingRow, lost_callback};
use crate::bridge::table_reading::TableError;
use crate::bridge::watch::poll::{ChatWatcher, PollSettings};
use crate::clock;
use crate::conversation::{Conversation, Directory};
use crate::delivery::InternalError;
use crate::message::{Destination, LaneKey};
use crate::platform::ServiceNow;
use crate::platform::servicenow::{AgentRow, RowText};

/// The callback of a message that is missing for a shorter time may still be on its way.
const MIN_AGE: Duration = Duration::from_secs(1);

impl ChatWatcher {
    /// Reads the chats that are due, and publishes their missing messages. Returns whether more chats may be due.
    pub(in crate::bridge) async fn poll_rows(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        settings: &PollSettings,
    ) -> bool {
        let can_call = self.context.gate(Destination::ServiceNow).breaker().passes();
        if !self.context.settings.bulk_read || !can_call || self.rows.knowledge().is_off() {
            return false;
        }
        let limit = u32::try_from(ServiceNow::CHATS_MAX).unwrap_or(1);
        let due = match directory.find_due(clock::now(), settings.waiting, settings.active, limit).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "cannot read which conversations to poll");
                return false;
            }
        };
        match self.repair_from_rows(servicenow, directory, &due).await {
            Ok(()) => due.len() >= ServiceNow::CHATS_MAX,
            Err(TableError::Internal(error)) => {
                tracing::debug!(trouble = error.trouble, "cannot compare the chats with the directory");
                false
            }
            // The breaker is not told: a user without a right to the table can still deliver messages.
            Err(TableError::Call(error)) => {
                self.rows.knowledge().turn_off(&error.to_string());
                false
            }
        }
    }

    async fn repair_from_rows(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        due: &[Conversation],
    ) -> Result<(), TableError> {
        let places = self.rows.unplaced(directory, due).await?;
        if !places.is_empty() {
            let Some(_permit) = self.gaps.enter_for_reading(1).await else { return Ok(()) };
            self.rows.learn_places(servicenow, &places).await?;
        }
        let queries = self.rows.knowledge().queries(due.iter().filter_map(|chat| chat.group.as_deref()));
        if queries.is_empty() {
            return Ok(());
        }
        let Some(_permit) = self.gaps.enter_for_reading(1).await else { return Ok(()) };
        let (missing, requests) = self.rows.missing_rows(servicenow, directory, &queries).await?;
        self.context.count_reads("virtual_agent", requests);
        self.gaps.reads.spend(requests.saturating_sub(1));
        let (ready, waiting) = self.ready(missing);
        for chat in due.iter().filter(|chat| chat.group.as_ref().is_some_and(|group| waiting.contains(group)))
        {
            directory.poll_soon(&chat.id).await?;
        }
        for some in ready.chunks(ServiceNow::TEXTS_MAX) {
            self.gaps.reads.spend(1);
            for (missing, text) in self.rows.with_texts(servicenow, some).await? {
                self.publish_row(&missing.group, &missing.row, &text).await?;
            }
        }
        Ok(())
    }

    /// Returns the messages that are published now, and the chats with a message whose callback may still come. A message that
    /// is already on the queue is not published again at each poll.
    fn ready(&self, missing: Vec<MissingRow>) -> (Vec<MissingRow>, HashSet<String>) {
        let (mut ready, mut waiting) = (Vec::new(), HashSet::new());
        for missing in missing.into_iter().filter(|missing| !self.gaps.is_published(missing.id)) {
            // A later message of a chat does not overtake an earlier one.
            if missing.age < MIN_AGE || waiting.contains(&missing.group) {
                waiting.insert(missing.group);
            } else {
                ready.push(missing);
            }
        }
        (ready, waiting)
    }

    async fn publish_row(&self, group: &str, row: &AgentRow, text: &RowText) -> Result<(), InternalError> {
        let lane = LaneKey::parse(group).map_err(InternalError::temporary)?;
        let lost = lost_callback(group, row, text, (self.context.settings.bot_side.of_chat(), lane));
        self.gaps.publish(&lost).await
    }
}
