//! Relays the agent's messages before a callback of the Virtual Agent API whose own callbacks were lost, from the table
//! `sys_cs_message`.
//!
//! Guarantees: a message has the same id in a row and in a callback, so the user reads it once, in either order. Rows are
//! relayed in the order in which they were written, and before the callback of a later message or of the end. If the table
//! cannot be read, callbacks are relayed as they come.
//! Not responsible for: finding the missing messages (`conversation_rows/`), the polls (`watch/virtual_agent_gaps.rs`),
//! relaying a callback (`virtual_agent_callback.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::bridge::best_effort::BestEffortCalls;
use crate::bridge::context::BridgeContext;
use crate::bridge::conversation_rows::{ConversationRows, MissingRow, lost_callback, text_digest};
use crate::bridge::settings::ReadBack;
use crate::bridge::table_reading::TableError;
use crate::bridge::to_bot::agent_files::with_media_links;
use crate::bridge::to_bot::closing_sentence::ANNOUNCED;
use crate::bridge::to_bot::missed_messages::MissedMessages;
use crate::bridge::to_bot::relay::BotRelay;
use crate::bridge::to_bot::relayed_message::{MessageAuthor, RelayedMessage};
use crate::clock;
use crate::conversation::{Changes, Conversation, DedupKey, Directory};
use crate::delivery::{Attempt, InternalError};
use crate::message::{Destination, Message, Outcome};
use crate::platform::ServiceNow;
use crate::platform::servicenow::{Receipt, RowText, VirtualAgentCallback, is_sys_id};

/// The time limit of one reading.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Relays the messages that are missing before a callback.
#[derive(Debug)]
pub(in crate::bridge) struct MissingRows {
    context: Arc<BridgeContext>,
    rows: Arc<ConversationRows>,
    best_effort: Arc<BestEffortCalls>,
    relay: Arc<BotRelay>,
    missed: Arc<MissedMessages>,
}

impl MissingRows {
    pub(in crate::bridge) const fn new(
        context: Arc<BridgeContext>,
        rows: Arc<ConversationRows>,
        best_effort: Arc<BestEffortCalls>,
        relay: Arc<BotRelay>,
        missed: Arc<MissedMessages>,
    ) -> Self {
        Self { context, rows, best_effort, relay, missed }
    }

    /// Relays the agent's messages that are missing before the message of this callback, or before the end. `Some` if the
    /// callback must be tried again.
    pub(in crate::bridge) async fn relay_before(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &VirtualAgentCallback,
        conversation: &Conversation,
        group: &str,
    ) -> Result<Option<Attempt>, InternalError> {
        let Some(servicenow) = &self.context.servicenow else { return Ok(None) };
        let is_news = callback.over() || callback.items.iter().any(|item| item.from_agent);
        let is_current = conversation.group.as_deref() == Some(group);
        if !self.context.settings.bulk_read
            || self.context.settings.read_back != ReadBack::Always
            || !is_news
            || !is_current
            || callback.repaired
            || message.replays > 0
            || !self.rows.knowledge().is_usable()
        {
            return Ok(None);
        }
        let reading = self.rows_before(servicenow, directory, callback, conversation);
        let missing = match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(missing)) => missing,
            Ok(Err(TableError::Internal(error))) => return Err(error),
            // The poll repairs the gap later.
            Ok(Err(TableError::Call(error))) => {
                self.rows.knowledge().turn_off(&error.to_string());
                return Ok(None);
            }
            Err(_) => {
                self.rows.knowledge().turn_off("ServiceNow did not answer in time");
                return Ok(None);
            }
        };
        for (missing, text) in &missing {
            let place = (message.destination, message.lane.clone());
            let mut lost = lost_callback(group, &missing.row, text, place);
            lost.accepted_at = message.accepted_at;
            if let Some(attempt) =
                self.relay_row(directory, message, conversation, missing, text, lost).await?
            {
                return Ok(Some(attempt));
            }
        }
        Ok(None)
    }

    async fn rows_before(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        callback: &VirtualAgentCallback,
        conversation: &Conversation,
    ) -> Result<Vec<(MissingRow, RowText)>, TableError> {
        let Some(_permit) = self.context.gate(Destination::ServiceNow).enter(false).await else {
            return Ok(Vec::new());
        };
        let places = self.rows.unplaced(directory, std::slice::from_ref(conversation)).await?;
        if !places.is_empty() {
            self.rows.learn_places(servicenow, &places).await?;
        }
        let queries = self.rows.knowledge().queries(conversation.group.as_deref().into_iter());
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let (mut missing, requests) = self.rows.missing_rows(servicenow, directory, &queries).await?;
        self.context.count_reads("row", requests);
        let own: Vec<&str> = callback.items.iter().filter_map(|item| item.message_id.as_deref()).collect();
        let is_own = |missing: &MissingRow| own.contains(&missing.row.sys_id.as_str());
        match missing.iter().position(is_own) {
            Some(here) => missing.truncate(here),
            None if callback.over() => {}
            // The row of the callback is not visible yet, so the place of the other rows is unknown.
            None => missing.clear(),
        }
        // The callback of the other rows may still come. The poll counts them as gaps.
        missing.retain(|missing| missing.is_relayed);
        let mut found = Vec::new();
        for some in missing.chunks(ServiceNow::TEXTS_MAX) {
            let texts = self.rows.with_texts(servicenow, some).await?;
            found.extend(texts.into_iter().map(|(missing, text)| (missing.clone(), text)));
        }
        Ok(found)
    }

    async fn relay_row(
        &self,
        directory: &Directory,
        message: &Message,
        conversation: &Conversation,
        missing: &MissingRow,
        text: &RowText,
        lost: Message,
    ) -> Result<Option<Attempt>, InternalError> {
        let said = RelayedMessage {
            id: lost.id,
            group: &missing.group,
            text: with_media_links(&self.context, &conversation.id, &text.text, message.accepted_at),
            choices: &[],
            author: MessageAuthor::Agent,
            agent: conversation.agent.as_deref(),
            sys_id: Some(&missing.row.sys_id),
            files: &[],
        };
        let at = clock::now();
        let attempt = self.relay.relay(message, conversation, &said).await?;
        let story = self.missed.add(lost.id, at, &attempt);
        match attempt.outcome {
            Outcome::Delivered => {
                let once = DedupKey::named_item(&missing.group, &missing.row.sys_id);
                let digest = text_digest(&missing.row.sys_id, &text.text);
                let changes = Changes::default().done(once, Some(digest)).touched(&missing.group);
                let changes = changes.with_outcome(&lost, &attempt.outcome, story.count());
                directory.record(changes).await?;
                self.context.metrics.repaired.inc();
                self.best_effort.receipt(
                    conversation,
                    &missing.group,
                    vec![missing.row.sys_id.clone()],
                    Receipt::Sent,
                );
            }
            Outcome::Dead(reason) => {
                self.missed.dead_letter(directory, lost.clone(), reason, &attempt.error, story).await?;
                self.best_effort.receipt(
                    conversation,
                    &missing.group,
                    vec![missing.row.sys_id.clone()],
                    Receipt::Failed,
                );
            }
            Outcome::Declined | Outcome::Repeated | Outcome::Routed | Outcome::Dropped => {}
            Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Deferred { .. } => {
                return Ok(Some(attempt));
            }
        }
        self.missed.forget(lost.id);
        Ok(None)
    }

    /// Records ServiceNow's id of a message of the chat, by which the chat can be read back: the newest message of an agent,
    /// or the first message of all.
    pub(in crate::bridge) async fn note_row(
        &self,
        directory: &Directory,
        callback: &VirtualAgentCallback,
        group: &str,
        agent_spoke: bool,
    ) -> Result<(), InternalError> {
        let items = callback.items.iter().rev().filter(|item| item.from_agent || !agent_spoke);
        let row = items.filter_map(|item| item.message_id.as_deref()).find(|id| is_sys_id(id));
        if let Some(row) = row.filter(|_| self.context.settings.bulk_read) {
            let last = directory.last_relayed(group).await?;
            // The record of an announced end stays.
            if last.as_deref() != Some(ANNOUNCED) && (agent_spoke || last.is_none()) {
                return Ok(directory.mark_relayed(group, row).await?);
            }
        }
        if agent_spoke {
            directory.touch(group).await?;
        }
        Ok(())
    }
}
