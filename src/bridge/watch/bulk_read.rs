//! Finds out with two requests which of many chats need a poll of their own.
//!
//! A poll takes at least two requests for each chat. If the user of ServiceNow may read the tables of Connect Support, two
//! requests show for up to [`ServiceNow::CHATS_MAX`] chats whether the state differs from the known one, or whether a message of
//! another author was not relayed yet. Only such a chat is polled.
//!
//! Guarantees: nothing that a table shows is relayed. A table only selects the chats for a poll, so a wrong row costs a poll and
//! an omitted row delays one. A chat that a table does not show is polled. A selected chat is selected again until a poll of this
//! process succeeds, so a message does not leave the window of the reading while polls fail. The tables are used only after a row
//! of another author was seen in them; this is tested again every ten minutes. One chat of every fourth batch is polled in any
//! case.
//! Not responsible for: the poll (`poll.rs`), the rate (`servicenow.read_rate`).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::bridge::end_reason::ended_by;
use crate::bridge::table_reading::{TableError, TableRights};
use crate::bridge::watch::gaps::GapRepair;
use crate::clock;
use crate::conversation::{Conversation, ConversationState, Directory};
use crate::platform::{CallError, ChatState, QueueEntry, ServiceNow};

/// How long a test of the user's rights counts.
const TESTED_FOR: Duration = Duration::from_secs(600);
/// The requests for a batch.
const REQUESTS: u64 = 2;
/// One chat of this number of batches is polled although the tables show no change.
const POLLED_BATCHES: u32 = 4;
/// The part of the time before the previous reading that is read again. The clocks may differ, and rows are stamped to the
/// second.
const OVERLAP: Duration = Duration::from_secs(180);
/// The callback of a younger message may still be on its way.
const MIN_AGE: Duration = Duration::from_secs(2);
/// The time for which messages are read of a chat that this process has not read before.
const FIRST_WINDOW: Duration = Duration::from_secs(900);
/// Times of readings are forgotten after this time.
const READ_KEPT: Duration = Duration::from_secs(3600);

/// The state of the bulk reading of one worker.
#[derive(Debug)]
pub(in crate::bridge) struct BulkReader {
    /// `servicenow.bulk_read`
    is_on: bool,
    rights: TableRights,
    tested: Option<Instant>,
    batches: u32,
    /// When each chat was read the last time.
    read_at: HashMap<String, Timestamp>,
    /// The selected chats without a successful poll since.
    unpolled: HashSet<String>,
}

impl BulkReader {
    pub(in crate::bridge) fn new(is_on: bool) -> Self {
        let (read_at, unpolled) = (HashMap::new(), HashSet::new());
        Self { is_on, rights: TableRights::Unknown, tested: None, batches: 0, read_at, unpolled }
    }

    /// The number of chats that one batch reads; `None` if each chat is polled.
    pub(in crate::bridge) fn batch_size(&self) -> Option<u32> {
        let granted = self.is_on && self.rights == TableRights::Granted;
        granted.then(|| u32::try_from(ServiceNow::CHATS_MAX).unwrap_or(1))
    }

    /// A poll of this chat succeeded.
    pub(in crate::bridge) fn polled(&mut self, group: &str) {
        self.unpolled.remove(group);
    }

    /// Returns those of the chats that need a poll.
    pub(in crate::bridge) async fn select<'a>(
        &mut self,
        gaps: &GapRepair,
        servicenow: &ServiceNow,
        directory: &Directory,
        due: &'a [Conversation],
    ) -> Vec<&'a Conversation> {
        let all = || due.iter().collect();
        if !self.is_on || due.is_empty() {
            return all();
        }
        match self.changed(gaps, servicenow, directory, due).await {
            Ok(Some(changed)) => due
                .iter()
                .filter(|chat| chat.group.as_ref().is_some_and(|group| changed.contains(group)))
                .collect(),
            Ok(None) => all(),
            Err(TableError::Internal(error)) => {
                tracing::debug!(trouble = error.trouble, "cannot compare the chats with the directory");
                all()
            }
            // The breaker is not told: a user without a right to tables can still deliver messages.
            Err(TableError::Call(error)) => {
                self.set(TableRights::Refused, Some(&error));
                all()
            }
        }
    }

    /// The groups of the chats that need a poll; `None` if the tables cannot tell.
    async fn changed(
        &mut self,
        gaps: &GapRepair,
        servicenow: &ServiceNow,
        directory: &Directory,
        due: &[Conversation],
    ) -> Result<Option<HashSet<String>>, TableError> {
        self.test_rights(gaps, servicenow, directory, due).await?;
        if self.rights != TableRights::Granted {
            return Ok(None);
        }
        let groups: Vec<&str> = due.iter().filter_map(|chat| chat.group.as_deref()).collect();
        let Some(_permit) = gaps.enter_for_reading(REQUESTS).await else { return Ok(None) };
        let now = clock::now();
        let from = groups.iter().map(|group| self.read_from(group, now)).min().unwrap_or(now);
        let entries = servicenow.entries_of(&groups).await?;
        let rows = servicenow.messages_between(&groups, from, before(now, MIN_AGE)).await?;
        gaps.context.count_reads("bulk", REQUESTS);
        let with_news = match rows {
            Some(rows) => gaps.with_unrelayed(directory, rows).await?,
            // The answer is incomplete, so each chat may have news.
            None => groups.iter().map(|group| (*group).to_owned()).collect(),
        };
        self.batches = self.batches.wrapping_add(1);
        let sample = (self.batches.is_multiple_of(POLLED_BATCHES)).then(|| due.first()).flatten();
        for chat in due {
            let Some(group) = &chat.group else { continue };
            let is_sample = sample.is_some_and(|sample| sample.id == chat.id);
            let shows_change = entries.get(group).is_none_or(|entry| differs(chat, entry));
            self.record(group, now, is_sample || shows_change || with_news.contains(group));
        }
        self.forget_old(now);
        Ok(Some(
            groups.into_iter().filter(|group| self.unpolled.contains(*group)).map(str::to_owned).collect(),
        ))
    }

    /// Records that the tables were read for this chat.
    fn record(&mut self, group: &str, now: Timestamp, needs_poll: bool) {
        self.read_at.insert(group.to_owned(), now);
        if needs_poll {
            self.unpolled.insert(group.to_owned());
        }
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.read_at.retain(|_, at| *at > before(now, READ_KEPT));
        self.unpolled.retain(|group| self.read_at.contains_key(group));
    }

    /// The time from which the messages of a chat are read.
    fn read_from(&self, group: &str, now: Timestamp) -> Timestamp {
        self.read_at.get(group).map_or_else(|| before(now, FIRST_WINDOW), |at| before(*at, OVERLAP))
    }

    /// Tests whether the table shows a row that is known to exist: the last relayed message of a chat.
    async fn test_rights(
        &mut self,
        gaps: &GapRepair,
        servicenow: &ServiceNow,
        directory: &Directory,
        due: &[Conversation],
    ) -> Result<(), TableError> {
        if self.tested.is_some_and(|at| at.elapsed() < TESTED_FOR) {
            return Ok(());
        }
        for group in due.iter().filter_map(|chat| chat.group.as_deref()) {
            let Some(sys_id) = directory.last_relayed(group).await? else { continue };
            let Some(_permit) = gaps.enter_for_reading(1).await else { return Ok(()) };
            gaps.context.count_reads("bulk", 1);
            let granted = servicenow.shows_message(group, &sys_id).await?;
            self.set(if granted { TableRights::Granted } else { TableRights::Refused }, None);
            return Ok(());
        }
        Ok(())
    }

    fn set(&mut self, rights: TableRights, error: Option<&CallError>) {
        self.tested = Some(Instant::now());
        if self.rights == rights {
            return;
        }
        self.rights = rights;
        match rights {
            TableRights::Granted => tracing::info!("chats are read back in batches, over the Table API"),
            TableRights::Refused => {
                let error = error.map(ToString::to_string);
                tracing::info!(
                    error,
                    "chats are read back one by one: the user cannot read live_message and chat_queue_entry"
                );
            }
            TableRights::Unknown => {}
        }
    }
}

fn before(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// Whether the entry shows another state than the directory.
fn differs(chat: &Conversation, entry: &QueueEntry) -> bool {
    if entry.state.is_none_or(|state| ended_by(state).is_some()) {
        return true;
    }
    let is_active = entry.state == Some(ChatState::InProgress) && entry.assigned_to.is_some();
    if is_active {
        return chat.state != ConversationState::Active || chat.agent != entry.assigned_to;
    }
    chat.state == ConversationState::Active || chat.position != entry.position
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Origin;
    use crate::message::ConversationId;

    fn chat(state: ConversationState, agent: Option<&str>, position: Option<u32>) -> Conversation {
        let at = Timestamp::UNIX_EPOCH;
        Conversation {
            id: ConversationId::parse("c-1").unwrap(),
            origin: Origin::Api,
            state,
            group: Some("g".to_owned()),
            number: None,
            queue_id: None,
            position,
            wait: None,
            agent: agent.map(str::to_owned),
            reason: None,
            opened_at: at,
            waiting_since: at,
            updated_at: at,
            released_at: None,
        }
    }

    fn entry(state: ChatState, agent: Option<&str>, position: Option<u32>) -> QueueEntry {
        QueueEntry {
            sys_id: "e".to_owned(),
            group: "g".to_owned(),
            number: None,
            queue: None,
            position,
            wait: None,
            assigned_to: agent.map(str::to_owned),
            state: Some(state),
        }
    }

    #[test]
    fn a_chat_differs_if_its_state_agent_or_position_changed() {
        let waiting = chat(ConversationState::Waiting, None, Some(2));
        assert!(!differs(&waiting, &entry(ChatState::Waiting, None, Some(2))));
        assert!(differs(&waiting, &entry(ChatState::Waiting, None, Some(1))));
        assert!(differs(&waiting, &entry(ChatState::InProgress, Some("beth"), None)));
        assert!(differs(&waiting, &entry(ChatState::ClosedAbandoned, None, None)));
        let active = chat(ConversationState::Active, Some("beth"), None);
        assert!(!differs(&active, &entry(ChatState::InProgress, Some("beth"), None)));
        assert!(differs(&active, &entry(ChatState::InProgress, Some("ada"), None)));
        assert!(differs(&active, &entry(ChatState::Waiting, None, Some(1))));
        assert!(differs(&active, &entry(ChatState::ClosedComplete, Some("beth"), None)));
        assert!(differs(&active, &QueueEntry { state: None, ..entry(ChatState::Waiting, None, None) }));
    }

    #[test]
    fn a_selected_chat_is_selected_until_a_poll_succeeds() {
        let mut bulk = BulkReader::new(true);
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        bulk.record("g-1", at(0), true);
        bulk.record("g-1", at(1000), false);
        assert!(bulk.unpolled.contains("g-1"), "the message is older than the window now");
        bulk.polled("g-1");
        bulk.record("g-1", at(1001), false);
        assert!(bulk.unpolled.is_empty());
        bulk.record("g-2", at(1002), true);
        bulk.forget_old(at(10_000));
        assert!(bulk.unpolled.is_empty() && bulk.read_at.is_empty(), "the chat is not read any more");
    }
}
