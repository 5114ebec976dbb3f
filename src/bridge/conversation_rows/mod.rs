//! Reads the agents' messages of Virtual Agent chats from `sys_cs_message`, and finds those that were not relayed.
//!
//! The conversation of a chat is learned from the row of a message whose callback came: `messageId` is documented as the
//! sys_id of that row, so the row is certainly of this chat, and it proves that the user may read the table.
//!
//! Guarantees: a row is compared with the facts under the id that its callback has. Texts are read of missing messages only,
//! and of a few known ones for a comparison. A missing message whose text cannot be read is counted, and the log names its
//! chat once, without a text.
//! Not responsible for: the requests (`platform/servicenow/conversation_rows.rs`), what the rows prove (`knowledge.rs`), polls
//! (`watch/virtual_agent_gaps.rs`), relaying (`to_bot/missing_rows.rs`).

mod knowledge;
mod lost_callback;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::table_reading::TableError;
use crate::conversation::{Conversation, DedupKey, Directory, DirectoryError};
use crate::message::{MessageId, PayloadDigest};
use crate::platform::servicenow::{AgentRow, RowText, is_sys_id};
use crate::platform::{CallError, ServiceNow};
use crate::telemetry::logged_conversation;
pub(in crate::bridge) use knowledge::text_digest;
use knowledge::{ChatQuery, RowKnowledge};
pub(in crate::bridge) use lost_callback::{agent_text_digest, lost_callback};

/// The limit of known rows whose texts are compared in one reading.
const COMPARED_MAX: usize = 3;

/// A message of an agent that was not relayed.
#[derive(Clone)]
pub(in crate::bridge) struct MissingRow {
    pub(in crate::bridge) id: MessageId,
    pub(in crate::bridge) group: String,
    pub(in crate::bridge) row: AgentRow,
    /// The time since the first reading that showed the row.
    pub(in crate::bridge) age: Duration,
    /// Whether rows of this kind are relayed.
    pub(in crate::bridge) is_relayed: bool,
}

/// Reads the rows of Virtual Agent chats; one for each worker.
#[derive(Debug)]
pub(in crate::bridge) struct ConversationRows {
    context: Arc<BridgeContext>,
    knowledge: Mutex<RowKnowledge>,
}

impl ConversationRows {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Arc<Self> {
        Arc::new(Self { context, knowledge: Mutex::default() })
    }

    /// The chats whose conversation has to be asked for, each with a message whose callback came.
    pub(in crate::bridge) async fn unplaced<'a>(
        &self,
        directory: &Directory,
        chats: &'a [Conversation],
    ) -> Result<Vec<(&'a Conversation, String)>, DirectoryError> {
        let mut places = Vec::new();
        for chat in chats {
            let Some(group) = chat.group.as_deref().filter(|group| !self.knowledge().has_place(group)) else {
                continue;
            };
            let known = directory.last_relayed(group).await?.filter(|id| is_sys_id(id));
            if let Some(message) = known.filter(|message| self.knowledge().may_ask_for(message)) {
                places.push((chat, message));
            }
        }
        Ok(places)
    }

    pub(in crate::bridge) async fn learn_places(
        &self,
        servicenow: &ServiceNow,
        places: &[(&Conversation, String)],
    ) -> Result<(), CallError> {
        let messages: Vec<&str> = places.iter().map(|(_, message)| message.as_str()).collect();
        self.context.count_reads("virtual_agent", 1);
        let found = servicenow.places_of(&messages).await?;
        let mut rows = self.knowledge();
        for (chat, message) in places {
            if let (Some(group), Some(place)) = (&chat.group, found.get(message)) {
                rows.place(group, place.clone(), chat.opened_at);
            }
        }
        let hidden: Vec<&str> =
            messages.into_iter().filter(|message| !found.contains_key(*message)).collect();
        if !hidden.is_empty() {
            rows.are_hidden(&hidden);
        }
        Ok(())
    }

    /// Reads the agents' messages of chats, and returns those that were not relayed, in their order, and the number of
    /// requests.
    pub(in crate::bridge) async fn missing_rows(
        &self,
        servicenow: &ServiceNow,
        directory: &Directory,
        queries: &[ChatQuery],
    ) -> Result<(Vec<MissingRow>, u64), TableError> {
        let chats: HashMap<&str, &str> =
            queries.iter().map(|query| (query.conversation.as_str(), query.group.as_str())).collect();
        let names: Vec<&str> = chats.keys().copied().collect();
        let from = queries.iter().map(|query| query.from).min().unwrap_or_default();
        let answer = servicenow.agent_rows(&names, from).await?;
        let mut rows = Vec::new();
        for row in answer.rows {
            let Some(group) = chats.get(row.conversation.as_str()) else { continue };
            if self.knowledge().is_of_chat(group, &row) {
                rows.push((MessageId::derived("servicenow", &row.sys_id), (*group).to_owned(), row));
            }
        }
        let keys: Vec<DedupKey> =
            rows.iter().flat_map(|(id, group, row)| settling(*id, group, row)).collect();
        let done = directory.find_done(&keys).await?;
        let settled: HashSet<DedupKey> = done.iter().map(|done| done.key).collect();
        let (known, missing): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|(id, group, row)| settling(*id, group, row).iter().any(|key| settled.contains(key)));
        let digests = done.into_iter().filter_map(|done| Some((done.key, done.digest?))).collect();
        let compared = self.compare(servicenow, &known, &digests).await?;
        let mut rows = self.knowledge();
        rows.note_reading(known.iter().chain(&missing).map(|(_, _, row)| row));
        let mut found = Vec::new();
        for ChatQuery { group, .. } in queries {
            let of_chat = missing.iter().filter(|(id, of, row)| of == group && rows.is_message(row, *id));
            let of_chat: Vec<_> = of_chat.map(|(id, _, row)| (*id, row)).collect();
            let ages = rows.was_read(group, &of_chat);
            found.extend(of_chat.into_iter().zip(ages).map(|((id, row), age)| MissingRow {
                id,
                group: group.clone(),
                row: row.clone(),
                age,
                is_relayed: rows.relays(row),
            }));
        }
        Ok((found, answer.requests + compared))
    }

    /// Compares rows with the texts that their callbacks had. Returns the number of requests.
    async fn compare(
        &self,
        servicenow: &ServiceNow,
        known: &[(MessageId, String, AgentRow)],
        digests: &HashMap<DedupKey, PayloadDigest>,
    ) -> Result<u64, CallError> {
        let told: Vec<_> = known
            .iter()
            .filter_map(|(id, group, row)| {
                let digest = digests.get(&DedupKey::named_item(group, &row.sys_id))?;
                Some((*id, row, *digest))
            })
            .collect();
        let asked: Vec<_> = {
            let mut rows = self.knowledge();
            told.iter().for_each(|(id, row, _)| rows.learn(row, *id, None));
            told.iter()
                .rev()
                .filter(|(id, row, _)| rows.needs_comparison(row, *id))
                .take(COMPARED_MAX)
                .collect()
        };
        if asked.is_empty() {
            return Ok(0);
        }
        let names: Vec<&str> = asked.iter().map(|(_, row, _)| row.sys_id.as_str()).collect();
        let texts = servicenow.row_texts(&names).await?;
        for (id, row, digest) in asked {
            let text = texts.get(&row.sys_id).and_then(Option::as_ref);
            let is_same = text.is_some_and(|found| text_digest(&row.sys_id, &found.text) == *digest);
            self.knowledge().learn(row, *id, Some(is_same));
        }
        Ok(1)
    }

    /// Reads the texts of missing messages. A message without a readable text is counted.
    pub(in crate::bridge) async fn with_texts<'a>(
        &self,
        servicenow: &ServiceNow,
        missing: &'a [MissingRow],
    ) -> Result<Vec<(&'a MissingRow, RowText)>, CallError> {
        let asked: Vec<&str> = missing
            .iter()
            .filter(|missing| missing.is_relayed)
            .map(|missing| missing.row.sys_id.as_str())
            .collect();
        let mut texts = HashMap::new();
        if !asked.is_empty() {
            self.context.count_reads("virtual_agent", 1);
            texts = servicenow.row_texts(&asked).await?;
        }
        let mut found = Vec::new();
        for missing in missing {
            match texts.remove(&missing.row.sys_id).flatten() {
                Some(text) => found.push((missing, text)),
                None => self.tell_gap(missing),
            }
        }
        Ok(found)
    }

    fn tell_gap(&self, missing: &MissingRow) {
        let (is_new, is_first) = self.knowledge().tell(&missing.group, missing.id, missing.is_relayed);
        if is_new {
            self.context.metrics.unreadable_rows.inc();
        }
        if is_first {
            tracing::warn!(
                group = logged_conversation(&missing.group),
                "an agent's message has no callback, and the text of its row cannot be read: the user does not get it"
            );
        }
    }

    /// What is known about the rows.
    pub(in crate::bridge) fn knowledge(&self) -> MutexGuard<'_, RowKnowledge> {
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The facts after which a message of a chat is not relayed again.
fn settling(message: MessageId, group: &str, row: &AgentRow) -> [DedupKey; 4] {
    [
        DedupKey::named_item(group, &row.sys_id),
        DedupKey::Delivered(message),
        DedupKey::DeadLettered { message, replays: 0 },
        DedupKey::NothingToSend { message, replays: 0 },
    ]
}
