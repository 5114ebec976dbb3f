//! Builds the callback of an agent's message from its row in `sys_cs_message`.
//!
//! Guarantees: the callback has the id that the lost callback would have.
//! Not responsible for: reading the row (`platform/servicenow/conversation_rows.rs`), relaying (`to_bot/missing_rows.rs`,
//! `to_bot/virtual_agent_callback.rs`).

use serde_json::json;

use crate::bridge::conversation_rows::knowledge::text_digest;
use crate::message::{Destination, Kind, LaneKey, Message, MessageId, PayloadDigest};
use crate::platform::servicenow::{AgentRow, CallbackItem, ItemMeaning, RowText};

/// Builds the callback that was lost, under the id that it would have.
pub(in crate::bridge) fn lost_callback(
    group: &str,
    row: &AgentRow,
    text: &RowText,
    (destination, lane): (Destination, LaneKey),
) -> Message {
    let mut item = text.part.clone();
    if let Some(fields) = item.as_object_mut() {
        let name = fields.get("agentInfo").and_then(|info| info.get("agentName")).cloned();
        fields.insert("agentInfo".to_owned(), json!({ "sentFromAgent": true, "agentName": name }));
        fields.insert("messageId".to_owned(), json!(row.sys_id));
    }
    let body = json!({ "clientSessionId": group, "agentChat": true, "body": [item], "repaired": true });
    let id = MessageId::derived("servicenow", &row.sys_id);
    Message::new(id, Kind::CallbackMessage, destination, lane, body.to_string())
}

/// The digest of an item of an agent, which is kept for the comparison with its row.
pub(in crate::bridge) fn agent_text_digest(item: &CallbackItem) -> Option<PayloadDigest> {
    match (&item.meaning, &item.message_id) {
        (ItemMeaning::Text(text), Some(name)) if item.from_agent => Some(text_digest(name, text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::Value;

    use super::*;
    use crate::platform::servicenow::VirtualAgentCallback;

    fn repaired(part: Value) -> VirtualAgentCallback {
        let at = Timestamp::UNIX_EPOCH;
        let row = AgentRow {
            written: at,
            sequence: 0,
            sys_id: "m-1".to_owned(),
            conversation: String::new(),
            created: at,
            kind: String::new(),
        };
        let lane = LaneKey::parse("g-1").unwrap();
        let text = RowText { part, text: String::new() };
        let message = lost_callback("g-1", &row, &text, (Destination::Callbacks, lane));
        assert_eq!(message.id, MessageId::derived("servicenow", "m-1"), "the id of the callback");
        VirtualAgentCallback::read(&message.body, None).unwrap()
    }

    #[test]
    fn a_row_becomes_the_callback_that_was_lost() {
        for (info, name) in [
            (json!(null), None),
            (json!("of an unknown form"), None),
            (json!({ "agentName": "Beth", "sentFromAgent": false }), Some("Beth")),
        ] {
            let callback = repaired(json!({ "uiType": "OutputText", "value": "Water?", "agentInfo": info }));
            let item = &callback.items[0];
            assert_eq!((callback.group.as_deref(), callback.repaired), (Some("g-1"), true));
            assert_eq!((item.message_id.as_deref(), item.agent.as_deref()), (Some("m-1"), name));
            assert!(item.from_agent && item.meaning == ItemMeaning::Text("Water?".to_owned()));
            assert!(agent_text_digest(item) == Some(text_digest("m-1", "Water?")));
        }
    }
}
