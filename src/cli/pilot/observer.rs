//! Observes one conversation from outside: the directory, the journal, and calls of the integration user that change nothing.
//!
//! Guarantees: a fact is a number, a status or a word of a fixed list. No text of the chat, no name and no id becomes a fact.

use jiff::Timestamp;

use super::steps::{NOTE, PLACEHOLDER, StepGoal};
use crate::clock;
use crate::conversation::{Conversation, ConversationState, Directory, JournalEntry, ListFilter};
use crate::message::Kind;
use crate::platform::servicenow::RemoteMessage;
use crate::platform::{CallError, ServiceNow};
use crate::telemetry::end_label;

/// A fact and its value.
pub(super) type Fact = (&'static str, String);

/// The tables that answer open questions about rights.
const TABLES: [(&str, &str); 5] = [
    ("read_chat_queue", "chat_queue"),
    ("read_chat_queue_entry", "chat_queue_entry"),
    ("read_live_message", "live_message"),
    ("read_sys_cs_message", "sys_cs_message"),
    ("read_sys_user", "sys_user"),
];

/// Conversations in which the new one is looked for.
const LOOKED_THROUGH: u32 = 200;

/// The observer of one conversation.
#[derive(Debug)]
pub(super) struct PilotObserver {
    directory: Directory,
    servicenow: ServiceNow,
    /// When the current step began.
    since: Timestamp,
    conversation: Option<Conversation>,
}

fn yes(is: bool) -> String {
    (if is { "yes" } else { "no" }).to_owned()
}

fn seconds(from: Timestamp, to: Timestamp) -> String {
    format!("{:.1}", to.duration_since(from).as_secs_f64().max(0.0))
}

impl PilotObserver {
    pub(super) fn new(directory: Directory, servicenow: ServiceNow) -> Self {
        Self { directory, servicenow, since: clock::now(), conversation: None }
    }

    /// Begins a step.
    pub(super) fn begin(&mut self) {
        self.since = clock::now();
    }

    pub(super) async fn close(self) {
        self.directory.close().await;
    }

    /// The facts of a step; `None` if its event has not happened yet. A directory that is away is asked again.
    pub(super) async fn look(&mut self, goal: StepGoal) -> Option<Vec<Fact>> {
        match goal {
            StepGoal::Rights => Some(self.rights().await),
            StepGoal::NewChat => self.new_chat().await,
            StepGoal::State(state) => self.state(state).await,
            StepGoal::Settled(kind) => self.settled(kind).await,
            StepGoal::InternalNote => self.internal_note().await,
            StepGoal::Placeholder => self.placeholder().await,
        }
    }

    async fn rights(&self) -> Vec<Fact> {
        let mut facts = vec![("login", status(&self.servicenow.log_in().await))];
        for (name, table) in TABLES {
            let rows = self.servicenow.rows(table, "", &["sys_id"], 1).await;
            let found = match &rows {
                Ok(rows) if rows.is_empty() => "no rows".to_owned(),
                Ok(_) => "rows".to_owned(),
                Err(_) => status(&rows),
            };
            facts.push((name, found));
        }
        facts
    }

    async fn new_chat(&mut self) -> Option<Vec<Fact>> {
        let filter = ListFilter { state: None, limit: LOOKED_THROUGH };
        let all = self.directory.list(&filter).await.ok()?;
        let new = all
            .into_iter()
            .find(|one| one.opened_at >= self.since && one.state != ConversationState::Requested)?;
        let facts = vec![
            ("state", new.state.to_string()),
            ("seconds_to_the_queue", seconds(new.opened_at, new.updated_at)),
            ("answer_has_group", yes(new.group.is_some())),
            ("answer_has_number", yes(new.number.is_some())),
            ("answer_has_position", yes(new.position.is_some())),
            ("answer_has_wait", yes(new.wait.is_some())),
        ];
        self.conversation = Some(new);
        Some(facts)
    }

    async fn state(&mut self, state: ConversationState) -> Option<Vec<Fact>> {
        let known = self.conversation.as_ref()?;
        let now = self.directory.find(&known.id).await.ok()??;
        if now.state != state {
            return None;
        }
        let facts = match state {
            ConversationState::Ended => vec![
                ("ended_by", now.reason.as_deref().map_or("unknown", end_label).to_owned()),
                ("user_is_back_with_the_bot_side", yes(now.released_at.is_some())),
                ("group_stayed", yes(now.group == known.group)),
            ],
            _ => vec![
                ("agent_has_a_name", yes(now.agent.is_some())),
                ("group_stayed", yes(now.group == known.group)),
                ("seconds_of_waiting", seconds(known.opened_at, now.updated_at)),
            ],
        };
        self.conversation = Some(now);
        Some(facts)
    }

    /// The newest message of this kind that was accepted in this step.
    async fn entry(&self, kind: Kind) -> Option<JournalEntry> {
        let entries = match &self.conversation {
            // Between chats the user talks to a bot, and the conversation is not known yet.
            _ if kind == Kind::BotUserMessage => self.directory.journal_since(self.since).await.ok()?,
            None => return None,
            Some(known) => {
                let mut entries = self.directory.journal_of_chat(known.id.as_str()).await.ok()?;
                if let Some(group) = &known.group {
                    entries.extend(self.directory.journal_of_chat(group).await.ok()?);
                }
                entries
            }
        };
        let is_new = |entry: &JournalEntry| entry.accepted_at.is_some_and(|at| at >= self.since);
        entries.into_iter().rev().find(|entry| entry.kind == Some(kind) && is_new(entry))
    }

    async fn settled(&self, kind: Kind) -> Option<Vec<Fact>> {
        let entry = self.entry(kind).await?;
        let mut facts = vec![("kind", kind.to_string()), ("outcome", entry.outcome.to_string())];
        facts.extend(entry.accepted_at.map(|at| ("seconds_to_delivery", seconds(at, entry.settled_at))));
        facts.extend(entry.attempts.map(|attempts| ("attempts", attempts.to_string())));
        facts.extend(entry.status.map(|status| ("last_failed_status", status.to_string())));
        facts.extend(entry.reason.map(|reason| ("reason", reason.to_string())));
        Some(facts)
    }

    /// The rows that the instance returns for the chat.
    async fn rows(&self) -> Option<Result<Vec<RemoteMessage>, CallError>> {
        let known = self.conversation.as_ref()?;
        let group = known.group.as_deref()?;
        let read = self.servicenow.messages_since(&known.id, group, None).await;
        Some(read.map(|history| history.messages))
    }

    /// The note is observed if a row shows it. A chat without the row ends the step only by the time limit or a person.
    async fn internal_note(&self) -> Option<Vec<Fact>> {
        let rows = match self.rows().await? {
            Ok(rows) => rows,
            Err(CallError::NoAnswer(_)) => return None,
            Err(error) => return Some(vec![("rows_can_be_read", status::<()>(&Err(error)))]),
        };
        let row = rows.iter().find(|row| row.text.trim_start().starts_with(NOTE))?;
        Some(vec![("row_of_the_note_is_returned", yes(true)), ("row_is_marked_internal", yes(row.internal))])
    }

    async fn placeholder(&self) -> Option<Vec<Fact>> {
        let mut facts = self.settled(Kind::CallbackMessage).await?;
        if let Some(Ok(rows)) = self.rows().await {
            let kept = rows.iter().rev().take(3).any(|row| row.text.contains(PLACEHOLDER));
            facts.push(("row_keeps_the_placeholder", yes(kept)));
        }
        Some(facts)
    }
}

/// `ok`, or the status of the answer.
fn status<T>(result: &Result<T, CallError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(CallError::Answer(answer)) => format!("status {}", answer.status),
        Err(CallError::NoAnswer(_)) => "no answer".to_owned(),
    }
}
