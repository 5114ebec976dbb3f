//! The table `sys_cs_message` for the chats of the Virtual Agent API.
//!
//! The fields are those that public programs read. The form of `payload`, the values of the fields that tell messages
//! apart and the roles that read the table are not documented, so they are switches ([`ConversationRowSwitches`]).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::shapes;
use super::workspace::{AgentChat, AgentWorkspace, MessageRow};
use crate::sandbox::settings::ChatTableAccess;

pub(crate) const TABLE: &str = "sys_cs_message";

/// Undocumented behaviour of the rows of `sys_cs_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConversationRowSwitches {
    /// The user's rights to the rows.
    pub access: ChatTableAccess,
    /// The form of `payload` in agents' rows.
    pub payload: RowPayload,
}

/// The form of `payload` in a row of `sys_cs_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowPayload {
    /// The text.
    #[default]
    Text,
    /// The JSON of a control.
    Item,
    /// An encoding that no public program knows.
    Encoded,
}

/// The rows of all chats, oldest first in each chat.
pub(crate) fn rows(workspace: &AgentWorkspace) -> Vec<Value> {
    let (switches, agent) = (workspace.switches.conversation_rows, workspace.agent().0);
    let mut rows = Vec::new();
    for chat in workspace.chats() {
        let Some(virtual_agent) = &chat.virtual_agent else { continue };
        let of_bot = virtual_agent.bot_rows().iter().map(|row| (row, false));
        let of_chat = chat.rows.iter().map(|row| (row, row.created_by == agent));
        for (number, (row, is_agent)) in of_bot.chain(of_chat).enumerate() {
            let is_user = row.created_by == workspace.user;
            rows.push(shown(chat, number, row, (is_agent, is_user), switches.payload));
        }
    }
    rows
}

fn shown(
    chat: &AgentChat,
    number: usize,
    row: &MessageRow,
    (is_agent, is_user): (bool, bool),
    payload: RowPayload,
) -> Value {
    let item = json!({ "uiType": "OutputText", "group": "DefaultText", "value": row.text });
    let payload = match payload {
        _ if !is_agent && !is_user => item.to_string(),
        RowPayload::Text => row.text.clone(),
        RowPayload::Item => item.to_string(),
        RowPayload::Encoded => BASE64.encode(&row.text),
    };
    json!({
        "sys_id": row.sys_id, "conversation": conversation(&chat.group), "payload": payload,
        "direction": if is_user { "inbound" } else { "outbound" },
        "is_agent": is_agent.to_string(),
        "q_data_message_type": if is_user { "consumerTextMessage" } else { "systemTextMessage" },
        "message_type": "text", "visibility_type": if row.internal { "agents" } else { "all" },
        "send_time": shapes::stamp(row.created), "sys_created_on": shapes::stamp(row.created),
        "sequence": number.to_string(), "sys_created_by": row.created_by,
    })
}

/// The sys_id of the `sys_cs_conversation` of a chat.
fn conversation(group: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, group.as_bytes()).simple().to_string()
}
