//! The chats of the simulated instance: queues, queue entries, messages, and the actions allowed in each state. No
//! I/O. The routes turn the refusals of this file into ServiceNow's answers.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use uuid::Uuid;

use super::virtual_agent::VirtualAgentChat;
use crate::sandbox::settings::{LastMessage, SandboxQueue, SandboxSettings, SandboxSwitches};

/// `chat_queue_entry.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkItemState {
    Waiting,
    WorkInProgress,
    ClosedComplete,
    ClosedEscalated,
    ClosedByClient,
    ClosedAbandoned,
}

impl WorkItemState {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Waiting => 1,
            Self::WorkInProgress => 2,
            Self::ClosedComplete => 3,
            Self::ClosedEscalated => 4,
            Self::ClosedByClient => 7,
            Self::ClosedAbandoned => 8,
        }
    }

    pub(crate) fn open(self) -> bool {
        matches!(self, Self::Waiting | Self::WorkInProgress)
    }

    pub(crate) fn closed_for_good(self) -> bool {
        matches!(self, Self::ClosedComplete | Self::ClosedEscalated)
    }
}

/// One row of `live_message`.
#[derive(Debug, Clone)]
pub(crate) struct MessageRow {
    pub(crate) sys_id: String,
    pub(crate) group: String,
    pub(crate) created_by: String,
    pub(crate) created: Timestamp,
    pub(crate) text: String,
    pub(crate) reflected_field: String,
    pub(crate) attachments: Vec<String>,
    /// Whether only agents may read it.
    pub(crate) internal: bool,
    /// `sys_id` of the preceding row that the rule posted; empty for the first row of a chat.
    pub(crate) previous: String,
    /// The rule's value of `last_message`; `None` if there is no such column.
    pub(crate) last_message: Option<String>,
    /// The body of the callback, if it differs from the Business Rule's body.
    pub(crate) callback: Option<String>,
}

/// One row of `chat_queue_entry`.
#[derive(Debug, Clone)]
pub(crate) struct WorkItem {
    pub(crate) sys_id: String,
    pub(crate) number: String,
    pub(crate) queue: String,
    pub(crate) state: WorkItemState,
    pub(crate) assigned_to: Option<String>,
    pub(crate) short_description: String,
    pub(crate) opened: Timestamp,
    pub(crate) updated: Timestamp,
    pub(crate) work_start: Option<Timestamp>,
    pub(crate) work_end: Option<Timestamp>,
    pub(crate) transfer: Option<ChatTransfer>,
}

#[derive(Debug, Clone)]
pub(crate) struct ChatTransfer {
    pub(crate) from: Option<String>,
    pub(crate) to: String,
    pub(crate) state: &'static str,
}

/// One conversation: its queue entries (an escalation adds one) and its messages, oldest first.
#[derive(Debug)]
pub(crate) struct AgentChat {
    pub(crate) group: String,
    pub(crate) entries: Vec<WorkItem>,
    pub(crate) rows: Vec<MessageRow>,
    pub(crate) user_messages: u32,
    left_by_user: bool,
    /// Present if the chat was opened over the Virtual Agent API.
    pub(crate) virtual_agent: Option<VirtualAgentChat>,
}

impl AgentChat {
    /// The current entry. A chat always has at least one.
    pub(crate) fn entry(&self) -> Option<&WorkItem> {
        self.entries.last()
    }

    pub(crate) fn state(&self) -> WorkItemState {
        self.entry().map_or(WorkItemState::ClosedComplete, |entry| entry.state)
    }
}

/// One `chat_queue`.
#[derive(Debug)]
pub(crate) struct AgentQueue {
    pub(crate) settings: SandboxQueue,
    pub(crate) open: bool,
}

/// The reason why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RefusedAction {
    /// There is no such record.
    NotFound,
    /// The queue is closed: its text for the user, and the status of the answer.
    QueueClosed { words: String, status: u16 },
    /// The state does not allow the action. The text is the `result` of the answer.
    NotAllowed(String),
}

/// A step of a transfer to another agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransferStep {
    To(String),
    Accept,
    Reject,
    Cancel,
    Complete,
}

/// The whole state of the instance.
#[derive(Debug)]
pub(crate) struct AgentWorkspace {
    pub(crate) switches: SandboxSwitches,
    pub(crate) queues: BTreeMap<String, AgentQueue>,
    pub(super) chats: BTreeMap<String, AgentChat>,
    ended: VecDeque<String>,
    keep: Option<usize>,
    /// The user of the integration.
    pub(super) user: String,
    agent: (String, String),
    greeting: String,
    last_number: u32,
    last_instant: Timestamp,
}

pub(crate) const NOT_A_MEMBER: &str = "You are not a member of this conversation.";
const SYSTEM: &str = "system";

impl AgentWorkspace {
    pub(crate) fn new(settings: &SandboxSettings) -> Self {
        let queues = settings
            .queues
            .iter()
            .map(|queue| (queue.id.clone(), AgentQueue { settings: queue.clone(), open: queue.open }))
            .collect();
        Self {
            switches: settings.switches,
            queues,
            chats: BTreeMap::new(),
            ended: VecDeque::new(),
            keep: settings.keep_chats,
            user: settings.username.clone(),
            agent: (settings.agent.user.clone(), settings.agent.name.clone()),
            greeting: settings.agent.greeting.clone(),
            last_number: 1000,
            last_instant: Timestamp::UNIX_EPOCH,
        }
    }

    pub(crate) fn chat(&self, group: &str) -> Result<&AgentChat, RefusedAction> {
        self.chats.get(group).ok_or(RefusedAction::NotFound)
    }

    pub(crate) fn virtual_agent(&mut self, group: &str) -> Option<&mut VirtualAgentChat> {
        self.chats.get_mut(group).and_then(|chat| chat.virtual_agent.as_mut())
    }

    /// The agent's user name and display name.
    pub(crate) fn agent(&self) -> (String, String) {
        self.agent.clone()
    }

    pub(crate) fn chats(&self) -> impl Iterator<Item = &AgentChat> {
        self.chats.values()
    }

    /// The waiting chats of one queue, oldest first.
    pub(crate) fn waiting(&self, queue: &str) -> Vec<&str> {
        let mut waiting: Vec<_> = self.in_line(queue).collect();
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, group)| group).collect()
    }

    /// The number of chats that wait in this queue and are older.
    pub(crate) fn ahead(&self, group: &str, entry: &WorkItem) -> usize {
        self.in_line(&entry.queue).filter(|other| *other < (entry.opened, group)).count()
    }

    fn in_line(&self, queue: &str) -> impl Iterator<Item = (Timestamp, &str)> {
        self.chats
            .values()
            .filter_map(|chat| chat.entry().map(|entry| (chat, entry)))
            .filter(move |(_, entry)| entry.queue == queue && entry.state == WorkItemState::Waiting)
            .map(|(chat, entry)| (entry.opened, chat.group.as_str()))
    }

    /// Opens a chat. The group of the returned row identifies the chat.
    pub(crate) fn start(&mut self, queue: &str, text: &str) -> Result<MessageRow, RefusedAction> {
        let found = self.queues.get(queue).ok_or(RefusedAction::NotFound)?;
        if !found.open {
            let settings = &found.settings;
            return Err(RefusedAction::QueueClosed {
                words: settings.not_available.clone(),
                status: settings.closed_status,
            });
        }
        self.open(record_id(), queue, text, None)
    }

    /// Opens a chat with a given group.
    pub(crate) fn open(
        &mut self,
        group: String,
        queue: &str,
        text: &str,
        virtual_agent: Option<VirtualAgentChat>,
    ) -> Result<MessageRow, RefusedAction> {
        let entry = self.queue_entry(queue, text);
        let chat = AgentChat {
            group: group.clone(),
            entries: vec![entry],
            rows: Vec::new(),
            user_messages: 0,
            left_by_user: false,
            virtual_agent,
        };
        self.chats.insert(group.clone(), chat);
        self.insert(&group, self.user.clone(), text)
    }

    fn queue_entry(&mut self, queue: &str, text: &str) -> WorkItem {
        self.last_number += 1;
        let now = self.tick();
        WorkItem {
            sys_id: record_id(),
            number: format!("CHAT{:07}", self.last_number),
            queue: queue.to_owned(),
            state: WorkItemState::Waiting,
            assigned_to: None,
            short_description: text.to_owned(),
            opened: now,
            updated: now,
            work_start: None,
            work_end: None,
            transfer: None,
        }
    }

    /// The user writes a message.
    pub(crate) fn user_says(
        &mut self,
        group: &str,
        text: &str,
        reflected_field: &str,
        attachments: Vec<String>,
    ) -> Result<MessageRow, RefusedAction> {
        let chat = self.chat(group)?;
        if !chat.state().open() || chat.left_by_user {
            return Err(RefusedAction::NotAllowed(NOT_A_MEMBER.to_owned()));
        }
        let user = self.user.clone();
        self.insert(group, user, text)?;
        let chat = self.chats.get_mut(group).ok_or(RefusedAction::NotFound)?;
        chat.user_messages += 1;
        let row = chat.rows.last_mut().ok_or(RefusedAction::NotFound)?;
        reflected_field.clone_into(&mut row.reflected_field);
        row.attachments = attachments;
        Ok(row.clone())
    }

    /// The user ends the chat: state 7 if an agent was there, 8 if no agent had come yet.
    pub(crate) fn user_leaves(&mut self, group: &str) -> Result<MessageRow, RefusedAction> {
        let end = match self.chat(group)?.state() {
            WorkItemState::Waiting => WorkItemState::ClosedAbandoned,
            WorkItemState::WorkInProgress => WorkItemState::ClosedByClient,
            _ => return Err(RefusedAction::NotAllowed(NOT_A_MEMBER.to_owned())),
        };
        self.set_state(group, end)?;
        if let Some(chat) = self.chats.get_mut(group) {
            chat.left_by_user = true;
        }
        self.insert(group, SYSTEM.to_owned(), &format!("{} has left the support session", self.user))
    }

    /// Ends a chat without recent messages, if the switch `idle_end_ms` is set.
    pub(crate) fn idles_out(&mut self, group: &str) -> Result<MessageRow, RefusedAction> {
        let chat = self.chat(group)?;
        let limit = i64::try_from(self.switches.connect.idle_end_ms).unwrap_or(i64::MAX);
        let last = chat.rows.last().map_or(i64::MAX, |row| row.created.as_millisecond());
        let silent = crate::clock::now().as_millisecond().saturating_sub(last);
        if limit == 0 || silent < limit {
            return Err(RefusedAction::NotAllowed("This chat is alive.".to_owned()));
        }
        self.user_leaves(group)
    }

    /// The user returns.
    pub(crate) fn user_rejoins(&mut self, group: &str) -> Result<(), RefusedAction> {
        let state = match self.chat(group)?.state() {
            WorkItemState::ClosedAbandoned => WorkItemState::Waiting,
            WorkItemState::ClosedByClient => WorkItemState::WorkInProgress,
            _ => return Err(RefusedAction::NotAllowed(NOT_A_MEMBER.to_owned())),
        };
        self.set_state(group, state)?;
        if let Some(chat) = self.chats.get_mut(group) {
            chat.left_by_user = false;
        }
        Ok(())
    }

    /// The agent accepts a waiting chat. The queue's initial response is posted.
    pub(crate) fn agent_accepts(&mut self, group: &str) -> Result<MessageRow, RefusedAction> {
        if self.chat(group)?.state() != WorkItemState::Waiting {
            return Err(RefusedAction::NotAllowed("This chat is not waiting.".to_owned()));
        }
        let (user, greeting) = (self.agent.0.clone(), self.greeting.clone());
        self.set_state(group, WorkItemState::WorkInProgress)?;
        let now = self.tick();
        let entry = self.entry_mut(group)?;
        entry.assigned_to = Some(user.clone());
        entry.work_start = Some(now);
        self.insert(group, user, &greeting)
    }

    /// The agent writes a message.
    pub(crate) fn agent_says(&mut self, group: &str, text: &str) -> Result<MessageRow, RefusedAction> {
        if self.chat(group)?.state() != WorkItemState::WorkInProgress {
            return Err(RefusedAction::NotAllowed("No agent is in this chat.".to_owned()));
        }
        self.insert(group, self.agent.0.clone(), &super::shapes::stored(text, self.switches.rows))
    }

    /// The agent writes a row for other agents.
    pub(crate) fn agent_whispers(&mut self, group: &str, text: &str) -> Result<MessageRow, RefusedAction> {
        let mut row = self.agent_says(group, text)?;
        row.internal = true;
        if let Some(kept) = self.chats.get_mut(group).and_then(|chat| chat.rows.last_mut()) {
            kept.internal = true;
        }
        Ok(row)
    }

    /// The agent ends the chat. The text is "has left" if the agent leaves first, "has closed" if the user has left
    /// before.
    pub(crate) fn agent_closes(&mut self, group: &str) -> Result<MessageRow, RefusedAction> {
        let state = self.chat(group)?.state();
        if state.closed_for_good() {
            return Err(RefusedAction::NotAllowed("This chat is closed.".to_owned()));
        }
        self.set_state(group, WorkItemState::ClosedComplete)?;
        let action = if state.open() { "left" } else { "closed" };
        let words = format!("{} has {action} the support session", self.agent.1);
        self.insert(group, SYSTEM.to_owned(), &words)
    }

    /// The agent leaves without ending the chat. The text is the same as at an end, but the chat goes on.
    pub(crate) fn agent_leaves(&mut self, group: &str) -> Result<MessageRow, RefusedAction> {
        if self.chat(group)?.state() != WorkItemState::WorkInProgress {
            return Err(RefusedAction::NotAllowed("No agent is in this chat.".to_owned()));
        }
        self.entry_mut(group)?.assigned_to = None;
        let words = format!("{} has left the support session", self.agent.1);
        self.insert(group, SYSTEM.to_owned(), &words)
    }

    /// Moves the chat to another queue. This entry ends with state 4, and a new entry waits in the other queue. A
    /// switch decides whether the group stays the same.
    pub(crate) fn escalates(&mut self, group: &str, queue: Option<&str>) -> Result<(), RefusedAction> {
        let entry = self.chat(group)?.entry().ok_or(RefusedAction::NotFound)?;
        if !entry.state.open() {
            return Err(RefusedAction::NotAllowed("This chat is closed.".to_owned()));
        }
        let text = entry.short_description.clone();
        let configured = || self.queues.get(&entry.queue)?.settings.escalate_to.clone();
        let next = queue.map(str::to_owned).or_else(configured);
        if next.as_ref().is_some_and(|next| !self.queues.contains_key(next)) {
            return Err(RefusedAction::NotFound);
        }
        self.set_state(group, WorkItemState::ClosedEscalated)?;
        if let Some(next) = next {
            if self.switches.escalation_renames {
                return self.start(&next, &text).map(drop);
            }
            let entry = self.queue_entry(&next, &text);
            if let Some(chat) = self.chats.get_mut(group) {
                chat.entries.push(entry);
            }
        }
        Ok(())
    }

    /// Transfers the chat to another agent, step by step.
    pub(crate) fn transfers(&mut self, group: &str, step: TransferStep) -> Result<(), RefusedAction> {
        if !self.chat(group)?.state().open() {
            return Err(RefusedAction::NotAllowed("This chat is closed.".to_owned()));
        }
        let now = self.tick();
        let entry = self.entry_mut(group)?;
        entry.updated = now;
        if let TransferStep::To(to) = step {
            entry.transfer = Some(ChatTransfer { from: entry.assigned_to.clone(), to, state: "pending" });
            return Ok(());
        }
        let Some(transfer) = entry.transfer.as_mut() else {
            return Err(RefusedAction::NotAllowed("There is no transfer.".to_owned()));
        };
        match step {
            TransferStep::Accept | TransferStep::Complete | TransferStep::To(_) => {
                transfer.state = "accepted";
                entry.assigned_to = Some(transfer.to.clone());
            }
            TransferStep::Reject => transfer.state = "rejected",
            TransferStep::Cancel => transfer.state = "cancelled",
        }
        Ok(())
    }

    fn set_state(&mut self, group: &str, state: WorkItemState) -> Result<(), RefusedAction> {
        let now = self.tick();
        let entry = self.entry_mut(group)?;
        entry.state = state;
        entry.updated = now;
        entry.work_end = (!state.open()).then_some(now);
        if !state.open() {
            self.ended.push_back(group.to_owned());
        }
        while self.keep.is_some_and(|keep| self.ended.len() > keep) {
            let oldest = self.ended.pop_front();
            // An escalated or reopened chat may still be open under the same group.
            if let Some(oldest) =
                oldest.filter(|group| self.chats.get(group).is_some_and(|chat| !chat.state().open()))
            {
                self.chats.remove(&oldest);
            }
        }
        Ok(())
    }

    fn entry_mut(&mut self, group: &str) -> Result<&mut WorkItem, RefusedAction> {
        self.chats.get_mut(group).and_then(|chat| chat.entries.last_mut()).ok_or(RefusedAction::NotFound)
    }

    fn insert(&mut self, group: &str, created_by: String, text: &str) -> Result<MessageRow, RefusedAction> {
        let created = self.tick();
        let chat = self.chats.get_mut(group).ok_or(RefusedAction::NotFound)?;
        let posted = |row: &&MessageRow| row.created_by != self.user && !row.internal;
        let previous = chat.rows.iter().rev().find(posted).map(|row| row.sys_id.clone()).unwrap_or_default();
        let last_message = match self.switches.connect.last_message {
            LastMessage::Undefined => None,
            LastMessage::Empty => Some(String::new()),
            LastMessage::SysId => Some(previous.clone()),
        };
        let row = MessageRow {
            sys_id: record_id(),
            group: group.to_owned(),
            created_by,
            created,
            text: text.to_owned(),
            reflected_field: "comments".to_owned(),
            attachments: Vec::new(),
            internal: false,
            previous,
            last_message,
            callback: None,
        };
        chat.rows.push(row.clone());
        Ok(row)
    }

    /// The current time in milliseconds. Each call returns a later time, because `?before=` pages by time.
    fn tick(&mut self) -> Timestamp {
        let next = self.last_instant.as_millisecond() + 1;
        let now = crate::clock::now().as_millisecond().max(next);
        self.last_instant = Timestamp::from_millisecond(now).unwrap_or(self.last_instant);
        self.last_instant
    }
}

/// A `sys_id`: 32 hexadecimal digits.
pub(crate) fn record_id() -> String {
    Uuid::new_v4().simple().to_string()
}
