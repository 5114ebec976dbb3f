//! The rows of the chats at the destination, as ServiceNow shows them: newest first, 30 on a page, `before` pages back
//! (`src/platform/servicenow/FACTS.md`).
//!
//! Why: Causeway reads a chat back before it relays an agent's message. A destination that shows no rows makes each callback look
//! forged, and the benchmark would measure something else.
//! Guarantees: a row can be read before the callback of its message is posted.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::shape::TEXT;

/// The rows of a full page.
const PAGE: usize = 30;

/// The numbers of the agent's messages in each chat, oldest first. A chat has a nonce and a conversation.
#[derive(Debug, Default)]
pub(crate) struct Rows(Mutex<HashMap<(u32, u32), Vec<u32>>>);

impl Rows {
    /// Adds the row of a message, unless the chat has it.
    pub(crate) fn add(&self, nonce: u32, conversation: u32, message: u32) {
        let mut chats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = chats.entry((nonce, conversation)).or_default();
        if rows.last().is_none_or(|last| *last < message) {
            rows.push(message);
        }
    }

    /// The page of a chat whose rows are older than `before`.
    pub(crate) fn page(&self, nonce: u32, conversation: u32, before: Option<u32>) -> String {
        let chats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = chats.get(&(nonce, conversation)).map_or(&[][..], Vec::as_slice);
        let older = before.map_or(rows.len(), |before| rows.partition_point(|row| *row < before));
        let mut page = String::from(r#"{"result":["#);
        for (place, message) in rows[..older].iter().rev().take(PAGE).enumerate() {
            let comma = if place > 0 { "," } else { "" };
            let _ = write!(
                page,
                r##"{comma}{{"sys_id":"{nonce:08x}{message:08x}0123456789abcdef","created_by":"beth.anglin","timestamp":{message},"formatted_message":"#{nonce:08x}{message:08x} {TEXT}"}}"##
            );
        }
        page.push_str("]}");
        page
    }
}
