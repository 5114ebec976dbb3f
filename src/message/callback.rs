//! What the human side tells the bot side: the bodies of the messages to XO.
//!
//! A `callback.message` carries what ServiceNow posted, untouched; [`Callback`] is a reading of it.
//! Everything else to XO is a [`Notice`] that Causeway wrote itself.
//! Guarantees: `Debug` shows no chat text. Leaves to others: repairing broken JSON (`ingress/servicenow.rs`).
//! Source of the field names: Kore's Business Rule for `live_message`, "Tokyo and lower" page, step 8-10.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use url::Url;

use super::rich_text::message_text;
use super::{ConversationId, Kind, MessageId, named};

/// The client variables by which a Virtual Agent chat that Causeway opened names itself: ServiceNow echoes them unchanged.
pub const CONVERSATION_VARIABLE: &str = "causeway_conversation_id";
/// The same for the chat's own name, which is the lane of everything that is told of it.
pub const GROUP_VARIABLE: &str = "causeway_group";

/// Connect Support's `live_message` callback, as far as Causeway reads it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Callback {
    /// sys_id of the `live_group_profile`: the conversation as ServiceNow names it.
    pub group: String,
    /// The text, with `escapeForHomePage`'s `%3c`, `%3e` still in it.
    #[serde(default)]
    pub formatted_message: Option<String>,
    /// User name of the writer; `system` for system messages.
    #[serde(default)]
    pub sys_created_by: Option<String>,
    /// sys_id of the `live_message` row: the name of the event.
    #[serde(default)]
    pub sys_id: Option<String>,
    /// sys_id of the message of the same group that came before it, empty for the first: only our own rule says it.
    #[serde(default)]
    pub previous: Option<String>,
    /// Causeway read it back itself, where a callback was lost.
    #[serde(default)]
    pub repaired: bool,
}

impl Callback {
    /// The text as a person reads it; relative addresses in it are of the instance.
    pub fn text(&self, instance: Option<&Url>) -> String {
        let text = self.formatted_message.as_deref().unwrap_or_default();
        // Only the stock rule writes these; what was read back did not go through it.
        if self.repaired {
            return message_text(text, instance);
        }
        let text = text.replace("%3c", "<").replace("%3C", "<").replace("%3e", ">").replace("%3E", ">");
        message_text(&text, instance)
    }
}

/// Whether a row of `live_message` is for agents only, by one of its true/false fields. A field counts as true unless it is
/// clearly false: a rule writes what `getValue` gives it (`"1"`, `"0"`, null), another one what it likes (FACTS.md SN-8).
/// JavaScript writes an absent value as `null` or `undefined`.
pub(crate) fn is_set(field: Option<&Value>) -> bool {
    match field {
        None | Some(Value::Null) => false,
        Some(Value::Bool(truth)) => *truth,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => {
            let text = text.trim();
            !["", "0", "false", "null", "undefined"].iter().any(|word| text.eq_ignore_ascii_case(word))
        }
        // A field of the Table API is an object with its value.
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
    /// What a `callback.event` is about.
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

/// What Causeway itself has to say about a conversation: the body of `callback.event`, `callback.ended` and
/// `handoff.failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The conversation that it belongs to.
    pub conversation_id: ConversationId,
    /// ServiceNow's name for it, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For `callback.event`: what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<NoticeEvent>,
    /// The agent's name or sys_id, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Position in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// ServiceNow's words for the wait, such as `2 Minutes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
    /// Why it ended or failed: one word such as `agent`, `user`, `no_agent`, `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What ServiceNow said to that, for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Notice {
    /// The id of the message that carries it: the same notice always has the same one, so that telling it again is
    /// harmless. `instance` tells apart what may happen twice in one chat (a new position in the queue).
    pub fn id(&self, kind: Kind, instance: &str) -> MessageId {
        let group = self.group.as_deref().unwrap_or("");
        let event = self.event.map_or("", NoticeEvent::as_str);
        let conversation = self.conversation_id.as_str();
        MessageId::derived_from("notice", &[conversation, group, kind.as_str(), event, instance])
    }

    /// A notice about a conversation, to be filled in.
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
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// FACTS.md SN-8: `getValue` returns a true/false field as `"1"` or `"0"`, and null if the field does not exist.
    #[test]
    fn what_is_not_clearly_false_is_internal() {
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
