//! Parses the callbacks of a Virtual Agent conversation.
//!
//! Guarantees: an item of an unknown type is not an error: its words are relayed, and it is counted. Older and newer
//! versions of the app are read alike. Flags that are false may be missing, a text may be in `label`, and an action may
//! have the suffix `ActionMsg`. The state of a chat is never read from a sentence.
//! Not responsible for: the meaning of a control (`controls.rs`), the conversation of a callback and relaying
//! (`bridge/to_bot/virtual_agent_callback.rs`).

use serde_json::Value;
use url::Url;

use super::controls::{Controls, some};
use crate::message::callback::{CONVERSATION_VARIABLE, GROUP_VARIABLE};
use crate::message::json;

/// One callback. No `Debug`: it holds chat text.
pub(crate) struct VirtualAgentCallback {
    /// Our id of the chat.
    pub(crate) group: Option<String>,
    /// The id of the request that this callback answers. A message of an agent carries the id of an earlier request.
    pub(crate) request_id: Option<String>,
    /// The conversation is with an agent or in an agent's queue.
    pub(crate) agent_chat: bool,
    /// `completed` or `takeControl` is set.
    pub(crate) closing: bool,
    /// Gap repair made this callback from a row of the chat.
    pub(crate) repaired: bool,
    /// The items of `body`, in order.
    pub(crate) items: Vec<CallbackItem>,
}

/// One item of `body`.
pub(crate) struct CallbackItem {
    /// The value of `uiType`.
    pub(crate) ui_type: String,
    /// ServiceNow's id of the item. Older versions of the app send none.
    pub(crate) message_id: Option<String>,
    /// The author is an agent.
    pub(crate) from_agent: bool,
    /// The agent's name, if the instance shows it.
    pub(crate) agent: Option<String>,
    /// The meaning of the item.
    pub(crate) meaning: ItemMeaning,
    /// The item is the header of Conversation Autopilot: the agent started a topic of the Virtual Agent, or the topic
    /// is completed.
    pub(crate) is_topic_header: bool,
}

/// The meaning of an item.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ItemMeaning {
    /// A message.
    Text(String),
    /// A choice or an input field.
    Question(Question),
    /// A text by ServiceNow itself.
    Notice(String),
    /// The state of the chat.
    Sign(ChatSign),
    /// The other side is typing.
    Typing,
    /// An item without anything to relay.
    Nothing,
    /// An unknown type, with its text if it has one.
    Unknown(Option<String>),
}

impl ItemMeaning {
    pub(super) const fn question(text: String, choices: Vec<Choice>) -> Self {
        Self::Question(Question { text, choices })
    }
}

/// A question to the user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// The question with its choices, for people.
    pub(crate) text: String,
    /// The possible answers. Empty if the user writes freely.
    pub(crate) choices: Vec<Choice>,
}

impl Question {
    /// The question without its choices, for a user who cannot answer any more.
    pub(crate) fn words(&self) -> &str {
        match self.text.split_once("\n1. ") {
            Some((words, _)) if !self.choices.is_empty() => words,
            _ => &self.text,
        }
    }
}

/// One possible answer.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The text for the user.
    pub(crate) title: String,
    /// The value that ServiceNow expects as the answer.
    pub(crate) value: String,
}

/// The state of the chat that an action reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChatSign {
    /// The chat waits in an agent queue.
    Queued {
        /// ServiceNow's text for the expected wait.
        wait: Option<String>,
    },
    /// The chat is an agent's chat. The agent may not have come yet.
    AgentChat,
    /// An agent is present.
    AgentCame,
    /// The agent's session is over, and the bot would continue.
    AgentGone,
}

impl VirtualAgentCallback {
    /// Reads a callback of the instance. `None` if the body is not a callback of this API.
    pub(crate) fn read(body: &[u8], instance: Option<&Url>) -> Option<Self> {
        let controls = Controls { instance };
        // A body with too many values is not a callback of this API. Parsing it would take a hundred times its size in
        // memory.
        let Ok(Value::Object(fields)) = json::bounded(body) else { return None };
        let ours = ["clientSessionId", "requestId", "body"].iter().any(|key| fields.contains_key(*key));
        if fields.contains_key("group") || !ours {
            return None;
        }
        let text = |key: &str| some(fields.get(key));
        let flag = |key: &str| fields.get(key).is_some_and(is_true);
        let variable =
            |key: &str| some(fields.get("clientVariables").and_then(|variables| variables.get(key)));
        let parts: Vec<&Value> = match fields.get("body") {
            Some(Value::Array(parts)) => parts.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => Vec::new(),
        };
        // A callback has both of our variables, or none.
        let named = variable(CONVERSATION_VARIABLE).and_then(|_| variable(GROUP_VARIABLE));
        Some(Self {
            group: named.or_else(|| text("clientSessionId")).or_else(|| text("userId")),
            request_id: text("requestId"),
            agent_chat: flag("agentChat"),
            closing: flag("completed") || flag("takeControl"),
            repaired: flag("repaired"),
            items: parts.into_iter().map(|part| item(part, controls)).collect(),
        })
    }

    /// The state of the chat after this callback. The last item decides.
    pub(crate) fn sign(&self) -> Option<ChatSign> {
        let said = self.items.iter().rev().find_map(|item| match &item.meaning {
            ItemMeaning::Sign(
                sign @ (ChatSign::Queued { .. } | ChatSign::AgentCame | ChatSign::AgentGone),
            ) => Some(sign.clone()),
            _ if item.from_agent => Some(ChatSign::AgentCame),
            _ => None,
        });
        let hinted = || self.items.iter().any(|item| item.meaning == ItemMeaning::Sign(ChatSign::AgentChat));
        said.or_else(|| (self.agent_chat || hinted()).then_some(ChatSign::AgentChat))
    }

    /// Whether an agent was present at any point of this callback.
    pub(crate) fn agent_came(&self) -> bool {
        self.items
            .iter()
            .any(|item| item.from_agent || item.meaning == ItemMeaning::Sign(ChatSign::AgentCame))
    }

    /// Whether the chat is over after this callback.
    pub(crate) fn over(&self) -> bool {
        self.closing || self.sign() == Some(ChatSign::AgentGone)
    }

    /// The agent's name, if any item contains it.
    pub(crate) fn agent(&self) -> Option<&str> {
        self.items.iter().rev().find_map(|item| item.agent.as_deref())
    }
}

fn item(part: &Value, controls: Controls<'_>) -> CallbackItem {
    let ui_type = some(part.get("uiType")).unwrap_or_default();
    let info = part.get("agentInfo");
    let from_agent = info.and_then(|info| info.get("sentFromAgent")).is_some_and(is_true);
    let agent = info.and_then(|info| controls.words(info, &["agentName"]));
    let meaning =
        if ui_type == "ActionMsg" { action(part, controls) } else { controls.parse(&ui_type, part) };
    let is_topic_header =
        part.get("actionType").and_then(Value::as_str).is_some_and(|name| name.starts_with("ChatSubHeader"));
    CallbackItem {
        message_id: some(part.get("messageId")),
        from_agent,
        agent,
        meaning,
        ui_type,
        is_topic_header,
    }
}

fn action(part: &Value, controls: Controls<'_>) -> ItemMeaning {
    let name = some(part.get("actionType")).unwrap_or_default();
    match name.trim_end_matches("ActionMsg") {
        "SwitchToLiveAgent" => ItemMeaning::Sign(ChatSign::AgentCame),
        "SwitchToVirtualAgent" => ItemMeaning::Sign(ChatSign::AgentGone),
        "SubscribeToSupportQueue" => ItemMeaning::Sign(ChatSign::Queued { wait: None }),
        "SubscribeToChatPresence" => ItemMeaning::Sign(ChatSign::AgentChat),
        "StartSpinner" if part.get("spinnerType").and_then(Value::as_str) == Some("wait_time") => {
            ItemMeaning::Sign(ChatSign::Queued { wait: controls.words(part, &["waitTime"]) })
        }
        "StartTypingIndicator" => ItemMeaning::Typing,
        // The header of Conversation Autopilot is relayed too, because an agent has started a topic that asks the user
        // questions.
        "System" | "ChatSubHeader" => {
            let words = controls.words(part, &["message", "value", "label"]);
            words.map_or(ItemMeaning::Nothing, ItemMeaning::Notice)
        }
        "StartSpinner" | "EndSpinner" | "EndTypingIndicator" | "SwitchConversation"
        | "CreateConversation" | "StartConversation" | "DynamicLoader" => ItemMeaning::Nothing,
        _ => ItemMeaning::Unknown(controls.words(part, &["message", "value", "label", "text"])),
    }
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true) || value.as_str() == Some("true")
}
