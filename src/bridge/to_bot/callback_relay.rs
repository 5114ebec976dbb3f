//! Relays the message of a Connect Support callback, after the messages before it whose callbacks were lost. ServiceNow
//! never repeats a failed callback (`src/platform/servicenow/FACTS.md`), so the chat is read back first.
//!
//! Guarantees: an agent's messages are relayed in ServiceNow's order, each of them once. If the chat can be read, the text
//! and the author are those of ServiceNow's row, and a callback without a row is dropped. A message that became a dead
//! letter is not relayed here, but by its replay. If ServiceNow does not answer, callbacks wait for a limited time
//! (`callback_row.rs`); they are then relayed, and the gap is repaired later (`watch/gaps.rs`).
//! Not responsible for: the row of a callback (`callback_row.rs`), the calls to the bot side (`relay.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::missing_message::unrelayed;
use crate::bridge::settings::ReadBack;
use crate::bridge::to_bot::agent_files::with_names;
use crate::bridge::to_bot::agent_joins::AgentJoins;
use crate::bridge::to_bot::callback_row::CallbackRows;
use crate::bridge::to_bot::closing_sentence::{is_closing_sentence, note_closing_sentence};
use crate::bridge::to_bot::gap_check::GapCheck;
use crate::bridge::to_bot::missed_messages::MissedMessages;
use crate::bridge::to_bot::relay::BotRelay;
use crate::bridge::to_bot::relayed_message::{MessageAuthor, RelayedMessage};
use crate::clock;
use crate::conversation::{Changes, Conversation, Directory};
use crate::delivery::{Attempt, InternalError, PriorAttempts};
use crate::message::{Callback, DeadReason, Endpoint, Message, Outcome};
use crate::platform::servicenow::{AgentFile, RemoteMessage};

/// Relays the callbacks of Connect Support.
#[derive(Debug)]
pub(in crate::bridge) struct CallbackRelay {
    context: Arc<BridgeContext>,
    rows: CallbackRows,
    joins: Arc<AgentJoins>,
    relay: Arc<BotRelay>,
    missed: Arc<MissedMessages>,
}

impl CallbackRelay {
    pub(in crate::bridge) fn new(
        context: Arc<BridgeContext>,
        relay: Arc<BotRelay>,
        joins: Arc<AgentJoins>,
        missed: Arc<MissedMessages>,
    ) -> Self {
        Self { rows: CallbackRows::new(context.clone()), context, joins, relay, missed }
    }

    /// Relays the message of a callback, after all messages that are missing before it.
    pub(in crate::bridge) async fn relay(
        &self,
        directory: &Directory,
        message: &Message,
        past: PriorAttempts,
        callback: &Callback,
        conversation: &Conversation,
    ) -> Result<Attempt, InternalError> {
        let before = self.rows.check_gap(directory, message, callback, conversation).await?;
        if let Some(attempt) = self.without_relay(message, &before) {
            return Ok(attempt);
        }
        let row = before.row();
        let writer = row.map_or(callback.sys_created_by.as_deref(), |row| row.created_by.as_deref());
        if author(writer) == MessageAuthor::Agent
            && let Some(attempt) =
                self.joins.before_first_words(directory, message, callback, conversation).await?
        {
            return Ok(attempt);
        }
        if let GapCheck::Read { missing, .. } = &before {
            for remote in missing {
                if let Some(attempt) =
                    self.relay_missing(directory, message, callback, conversation, remote).await?
                {
                    return Ok(attempt);
                }
            }
        }
        let files: &[AgentFile] = row.map_or(&[], |row| &row.files);
        let text = match row {
            Some(row) => crate::message::rich_text::message_text(&row.text, self.context.instance()),
            None => callback.text(self.context.instance()),
        };
        let said = RelayedMessage {
            id: message.id,
            group: &callback.group,
            text: with_names(text, files),
            choices: &[],
            author: author(writer),
            agent: writer,
            sys_id: callback.sys_id.as_deref(),
            files,
        };
        let attempt = self.relay.relay(message, conversation, &said).await?;
        if matches!(attempt.outcome, Outcome::Delivered | Outcome::Dropped) {
            if let Some(sys_id) = &callback.sys_id
                && said.author == MessageAuthor::System
                && is_closing_sentence(&self.context.settings.virtual_agent.end_sentences, &said.text)
            {
                note_closing_sentence(directory, &callback.group, sys_id).await?;
            }
            let attempts = past.count.saturating_add(1);
            let changes = Changes::default().with_outcome(message, &attempt.outcome, attempts);
            self.mark_relayed(directory, message, callback, conversation, &before, changes).await?;
            return Ok(attempt.recorded());
        }
        Ok(attempt)
    }

    /// The attempt of a callback whose message is not relayed now, or never.
    fn without_relay(&self, message: &Message, before: &GapCheck) -> Option<Attempt> {
        let attempt = |outcome, why| Attempt::of(Endpoint::ServiceNow, outcome, why);
        Some(match before {
            GapCheck::NotYet => {
                let why = "the chat could not be read back in time";
                Attempt::internal_error(Endpoint::ServiceNow, false, why)
            }
            GapCheck::Internal => attempt(Outcome::Dropped, "it is an internal message"),
            GapCheck::Unseen => {
                let look_again = Outcome::Deferred { at_most: Duration::MAX, then: DeadReason::Expired };
                attempt(look_again, "ServiceNow does not show its row yet")
            }
            GapCheck::Absent => {
                // If the row appears later, gap repair relays it with the next reading of the chat.
                self.context.metrics.unconfirmed.inc();
                tracing::warn!(id = %message.id, "dropped a callback: ServiceNow has no row for its message");
                attempt(Outcome::Dropped, "ServiceNow has no such message")
            }
            GapCheck::Complete | GapCheck::Unknown | GapCheck::Read { .. } | GapCheck::Late(_) => {
                return None;
            }
        })
    }

    /// Records how far the chat was relayed, and the outcome of the message. If the message may announce a change of state,
    /// the next poll of the state is made soon.
    async fn mark_relayed(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        before: &GapCheck,
        changes: Changes,
    ) -> Result<(), InternalError> {
        let mut changes = match &callback.sys_id {
            // A replayed message is old: the messages after it were relayed or dead-lettered long ago.
            Some(sys_id) if message.replays == 0 && before.moves_on() => {
                changes.relayed(&callback.group, sys_id)
            }
            _ => changes.touched(&callback.group),
        };
        // The text of a system message is translated and differs between versions, so it only triggers the next poll.
        let writer = before.row().map_or(callback.sys_created_by.as_deref(), |row| row.created_by.as_deref());
        let is_news = writer == Some("system") || conversation.agent.is_none();
        // Messages may be missing before this one: the chat is polled before the chats without a gap.
        let may_have_gap =
            matches!(before, GapCheck::Unknown) && self.context.settings.read_back == ReadBack::Always;
        if is_news || may_have_gap {
            changes = changes.poll_soon(&conversation.id);
        }
        directory.record(changes).await?;
        if callback.repaired {
            self.context.metrics.repaired.inc();
        }
        Ok(())
    }

    /// Relays one message that is missing before the callback's message. `Some` with the attempt if it must be
    /// repeated.
    async fn relay_missing(
        &self,
        directory: &Directory,
        message: &Message,
        callback: &Callback,
        conversation: &Conversation,
        remote: &RemoteMessage,
    ) -> Result<Option<Attempt>, InternalError> {
        let place = (message.destination, message.lane.clone());
        let Some(mut lost) = unrelayed(directory, &callback.group, remote, place).await? else {
            return Ok(None);
        };
        // A replay follows the time of acceptance and then the time of death. If this message is dead-lettered, it
        // stands right before the callback's message.
        lost.accepted_at = message.accepted_at;
        let writer = remote.created_by.as_deref();
        let said = RelayedMessage {
            id: lost.id,
            group: &callback.group,
            text: with_names(
                crate::message::rich_text::message_text(&remote.text, self.context.instance()),
                &remote.files,
            ),
            choices: &[],
            author: author(writer),
            agent: writer,
            sys_id: Some(&remote.sys_id),
            files: &remote.files,
        };
        let at = clock::now();
        let attempt = self.relay.relay(message, conversation, &said).await?;
        let story = self.missed.add(lost.id, at, &attempt);
        let mut changes = Changes::default().relayed(&callback.group, &remote.sys_id);
        match attempt.outcome {
            Outcome::Delivered => {
                changes = changes.with_outcome(&lost, &attempt.outcome, story.count());
                self.context.metrics.repaired.inc();
            }
            Outcome::Declined | Outcome::Repeated | Outcome::Routed | Outcome::Dropped => {}
            Outcome::Dead(reason) => {
                self.missed.dead_letter(directory, lost.clone(), reason, &attempt.error, story).await?;
            }
            Outcome::Retry { .. } | Outcome::Pause { .. } | Outcome::Deferred { .. } => {
                return Ok(Some(attempt));
            }
        }
        self.missed.forget(lost.id);
        directory.record(changes).await?;
        Ok(None)
    }
}

fn author(writer: Option<&str>) -> MessageAuthor {
    if writer == Some("system") { MessageAuthor::System } else { MessageAuthor::Agent }
}
