//! Defines the bodies of messages from the human side to the bot side.
//!
//! A `callback.message` carries the unchanged JSON of ServiceNow; [`Callback`] is the part that Causeway reads. All
//! other messages to the bot side are a [`Notice`] of Causeway.
//!
//! Guarantees: `Debug` shows no chat text.
//!
//! Not responsible for: repairing broken JSON (`ingress/servicenow.rs`). The field names come from Kore's Business Rule
//! for `live_message`, page "Tokyo and lower", steps 8 to 10.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use url::Url;

use super::field_text;
use super::rich_text::message_text;
use super::{ConversationId, Kind, MessageId, named};

/// The client variable with the conversation id of a Virtual Agent chat that Causeway opened. ServiceNow echoes the
/// variable unchanged.
pub const CONVERSATION_VARIABLE: &str = "causeway_conversation_id";
/// The client variable with the name of the chat, which is the lane of all messages about the chat.
pub const GROUP_VARIABLE: &str = "causeway_group";

/// The fields of Connect Support's `live_message` callback that Causeway reads.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Callback {
    /// sys_id of the `live_group_profile`: the conversation as ServiceNow names it.
    #[serde(deserialize_with = "field_text::required")]
    pub group: String,
    /// The text, with `escapeForHomePage`'s `%3c`, `%3e` still in it.
    #[serde(default, deserialize_with = "field_text::optional")]
    pub formatted_message: Option<String>,
    /// User name of the writer; `system` for system messages.
    #[serde(default, deserialize_with = "field_text::optional")]
    pub sys_created_by: Option<String>,
    /// sys_id of the `live_message` row: the name of the event.
    #[serde(default, deserialize_with = "field_text::optional")]
    pub sys_id: Option<String>,
    /// sys_id of the message of the same group that came before it, empty for the first: only our own rule says it.
    #[serde(default, deserialize_with = "field_text::optional")]
    pub previous: Option<String>,
    /// Whether gap repair read the message back.
    #[serde(default)]
    pub repaired: bool,
    /// The ingress found that the message is one among agents: no user may read it.
    #[serde(default, rename = "causeway_internal")]
    pub internal: bool,
}

impl Callback {
    /// The text as a person reads it. Relative addresses are resolved against the instance.
    pub fn text(&self, instance: Option<&Url>) -> String {
        let text = self.formatted_message.as_deref().unwrap_or_default();
        // Only the stock rule writes these escapes. A message that was read back has none.
        if self.repaired {
            return message_text(text, instance);
        }
        let text = text.replace("%3c", "<").replace("%3C", "<").replace("%3e", ">").replace("%3E", ">");
        message_text(&text, instance)
    }
}

/// Whether a true/false field says that a row of `live_message` is for agents only. A field counts as true unless it is
/// clearly false, because rules write different values: our rule writes the result of `getValue` (`"1"`, `"0"`, null;
/// `src/platform/servicenow/FACTS.md`). JavaScript writes an absent value as `null` or `undefined`.
pub(crate) fn is_set(field: Option<&Value>) -> bool {
    match field {
        None | Some(Value::Null) => false,
        Some(Value::Bool(truth)) => *truth,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => {
            let text = text.trim();
            !["", "0", "false", "null", "undefined"].iter().any(|word| text.eq_ignore_ascii_case(word))
        }
        // A field of the Table API is an object with a value.
        Some(Value::Object(object)) if object.contains_key("value") => is_set(object.get("value")),
        Some(Value::Object(_) | Value::Array(_)) => true,
    }
}

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callback")
            .field("group", &self.group)
            .field("sys_id", &self.sys_id)
            .finish_non_exhaustive()
    }
}

named! {
    /// The event of a `callback.event`.
    NoticeEvent {
        /// An agent accepted the chat.
        Joined = "joined",
        /// The agent left; the chat goes on.
        Left = "left",
        /// The user waits in a queue.
        Waiting = "waiting",
        /// The agent is typing.
        Typing = "typing",
    }
}

/// A notice of Causeway about a conversation: the body of `callback.event`, `callback.ended` and `handoff.failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The conversation that the notice belongs to.
    pub conversation_id: ConversationId,
    /// ServiceNow's id of the chat, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The event, for `callback.event`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<NoticeEvent>,
    /// The agent's name or sys_id, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The position in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// ServiceNow's text for the wait, such as `2 Minutes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
    /// The reason of the end or failure: one word such as `agent`, `user`, `no_agent`, `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// ServiceNow's text for the user about the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The message that creates the record of a failed handoff. Causeway only; no receiver gets this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<MessageId>,
    /// The number of this record, filled in when the notice is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<String>,
}

impl Notice {
    /// The id of the message that carries the notice. The same notice always has the same id, so a repeat is harmless.
    /// `instance` distinguishes notices that may occur twice in one chat, for example a new position in the queue.
    pub fn id(&self, kind: Kind, instance: &str) -> MessageId {
        let group = self.group.as_deref().unwrap_or("");
        let event = self.event.map_or("", NoticeEvent::as_str);
        let conversation = self.conversation_id.as_str();
        MessageId::derived_from("notice", &[conversation, group, kind.as_str(), event, instance])
    }

    /// A notice about a conversation, without further fields.
    pub const fn about(conversation_id: ConversationId) -> Self {
        Self {
            conversation_id,
            group: None,
            event: None,
            agent: None,
            position: None,
            wait: None,
            reason: None,
            detail: None,
            incident: None,
            number: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The values are in `src/platform/servicenow/FACTS.md`: `getValue` returns a true/false field as `"1"` or `"0"`,
    /// and null if the field does not exist.
    #[test]
    fn any_value_but_false_is_internal() {
        for open in [
            json!(false),
            json!(0),
            json!(0.0),
            json!("false"),
            json!("False"),
            json!("0"),
            json!(""),
            json!(" "),
            Value::Null,
            json!("null"),
            json!("undefined"),
            json!({ "value": "false", "display_value": "false" }),
        ] {
            assert!(!is_set(Some(&open)), "{open}");
        }
        assert!(!is_set(None));
        for internal in [
            json!(true),
            json!(1),
            json!(1.0),
            json!(2),
            json!(-1),
            json!("1"),
            json!("true"),
            json!("TRUE"),
            json!("yes"),
            json!("x"),
            json!([]),
            json!({}),
            json!({ "value": "1" }),
        ] {
            assert!(is_set(Some(&internal)), "{internal}");
        }
    }
}
