//! Parses the callbacks of a Virtual Agent conversation.
//!
//! Guarantees: an item of an unknown type is not an error. Its text is kept, if it has one, and the item is counted.
//! Older and newer versions of the app are parsed alike: a flag that is false may be missing, a text may be in
//! `label`, and the name of an action may have the suffix `ActionMsg`. The state of the chat is never derived from a
//! text.
//! Not responsible for: to which conversation the callback belongs, and which items are relayed
//! (`delivery/agent_chat_callback.rs`).

use std::collections::HashSet;

use serde_json::Value;

use crate::message::callback::{CONVERSATION_VARIABLE, GROUP_VARIABLE};
use crate::message::json;
use crate::message::rich_text::{html, html_text};

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
    /// The items of `body`, in order.
    pub(crate) items: Vec<Item>,
}

/// One item of `body`.
pub(crate) struct Item {
    /// The value of `uiType`.
    pub(crate) ui_type: String,
    /// ServiceNow's id of the item. Older versions of the app send none.
    pub(crate) message_id: Option<String>,
    /// The author is an agent.
    pub(crate) from_agent: bool,
    /// The agent's name, if the instance shows it.
    pub(crate) agent: Option<String>,
    /// The meaning of the item.
    pub(crate) meaning: Meaning,
}

/// The meaning of an item.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A message.
    Text(String),
    /// A question with choices or an input field, as text.
    Question(String),
    /// A message of ServiceNow itself.
    Notice(String),
    /// The state of the chat.
    Sign(Sign),
    /// The other side is typing.
    Typing,
    /// An item without anything to relay.
    Nothing,
    /// An unknown type, with its text if it has one.
    Unknown(Option<String>),
}

/// The state of the chat, as an action reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sign {
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
    /// Parses a callback. `None` if the body is not a callback of this API.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        // The parser limits the number of values: parsed values can take a hundred times the memory of the body.
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
        // Both of our own variables are present, or none.
        let named = variable(CONVERSATION_VARIABLE).and_then(|_| variable(GROUP_VARIABLE));
        Some(Self {
            group: named.or_else(|| text("clientSessionId")).or_else(|| text("userId")),
            request_id: text("requestId"),
            agent_chat: flag("agentChat"),
            closing: flag("completed") || flag("takeControl"),
            items: joined(parts.into_iter().map(item).collect()),
        })
    }

    /// The state of the chat after this callback. The last item decides.
    pub(crate) fn sign(&self) -> Option<Sign> {
        let said = self.items.iter().rev().find_map(|item| match &item.meaning {
            Meaning::Sign(sign @ (Sign::Queued { .. } | Sign::AgentCame | Sign::AgentGone)) => {
                Some(sign.clone())
            }
            _ if item.from_agent => Some(Sign::AgentCame),
            _ => None,
        });
        let hinted = || self.items.iter().any(|item| item.meaning == Meaning::Sign(Sign::AgentChat));
        said.or_else(|| (self.agent_chat || hinted()).then_some(Sign::AgentChat))
    }

    /// Whether an agent was present at any point of this callback.
    pub(crate) fn agent_came(&self) -> bool {
        self.items.iter().any(|item| item.from_agent || item.meaning == Meaning::Sign(Sign::AgentCame))
    }

    /// Whether the chat is over after this callback.
    pub(crate) fn over(&self) -> bool {
        self.closing || self.sign() == Some(Sign::AgentGone)
    }

    /// The agent's name, if any item contains it.
    pub(crate) fn agent(&self) -> Option<&str> {
        self.items.iter().rev().find_map(|item| item.agent.as_deref())
    }
}

fn item(part: &Value) -> Item {
    let ui_type = some(part.get("uiType")).unwrap_or_default();
    let info = part.get("agentInfo");
    let from_agent = info.and_then(|info| info.get("sentFromAgent")).is_some_and(is_true);
    let agent = some(info.and_then(|info| info.get("agentName")));
    let meaning = meaning(&ui_type, part);
    Item { message_id: some(part.get("messageId")), from_agent, agent, meaning, ui_type }
}

fn meaning(ui_type: &str, part: &Value) -> Meaning {
    let text = |found: Option<String>| found.map_or(Meaning::Nothing, Meaning::Text);
    let question = |found: Option<String>| found.map_or(Meaning::Nothing, Meaning::Question);
    match ui_type {
        "ActionMsg" => action(part),
        "OutputText" | "StreamChunk" => text(first(part, &["value", "label", "text"])),
        "OutputHtml" => text(page(part)),
        "OutputImage" => text(lines([first(part, &["altText", "label"]), some(part.get("value"))])),
        "OutputLink" => text(lines([
            first(part, &["label", "header"]),
            some(part.get("value").and_then(|value| value.get("action"))).or_else(|| some(part.get("value"))),
        ])),
        "OutputCard" => text(card(part)),
        "GroupedPartsOutputControl" | "MultiPartOutput" => {
            text(lines([first(part, &["header", "label"]), inside(part)]))
        }
        "Picker" | "TopicPickerControl" | "Boolean" | "Carousel" => {
            question(lines([first(part, &["promptMsg", "label"]), options(part)]))
        }
        "InputText" | "Date" | "Time" | "DateTime" | "FileUpload" => {
            question(first(part, &["promptMsg", "label", "value"]))
        }
        "StreamStart" | "StreamEnd" => Meaning::Nothing,
        _ => Meaning::Unknown(first(part, &["value", "label", "promptMsg", "message", "text"])),
    }
}

fn action(part: &Value) -> Meaning {
    let name = some(part.get("actionType")).unwrap_or_default();
    match name.trim_end_matches("ActionMsg") {
        "SwitchToLiveAgent" => Meaning::Sign(Sign::AgentCame),
        "SwitchToVirtualAgent" => Meaning::Sign(Sign::AgentGone),
        "SubscribeToSupportQueue" => Meaning::Sign(Sign::Queued { wait: None }),
        "SubscribeToChatPresence" => Meaning::Sign(Sign::AgentChat),
        "StartSpinner" if part.get("spinnerType").and_then(Value::as_str) == Some("wait_time") => {
            Meaning::Sign(Sign::Queued { wait: some(part.get("waitTime")) })
        }
        "StartTypingIndicator" => Meaning::Typing,
        "System" => first(part, &["message", "value", "label"]).map_or(Meaning::Nothing, Meaning::Notice),
        "StartSpinner" | "EndSpinner" | "EndTypingIndicator" | "SwitchConversation" | "ChatSubHeader"
        | "CreateConversation" | "StartConversation" | "DynamicLoader" => Meaning::Nothing,
        _ => Meaning::Unknown(None),
    }
}

/// Joins adjacent pieces of one stream into one text.
fn joined(items: Vec<Item>) -> Vec<Item> {
    let mut all: Vec<Item> = Vec::with_capacity(items.len());
    for item in items {
        match (all.last_mut(), &item.meaning) {
            (Some(Item { ui_type, meaning: Meaning::Text(text), .. }), Meaning::Text(more))
                if ui_type == "StreamChunk" && item.ui_type == "StreamChunk" =>
            {
                text.push_str(more);
            }
            _ => all.push(item),
        }
    }
    all
}

/// The text of an HTML page, followed by the links and the image that the control lists in addition.
fn page(part: &Value) -> Option<String> {
    let page = html(&first(part, &["value", "label"])?, None);
    let mut known: HashSet<String> = page.addresses.into_iter().collect();
    let links = part.get("links").and_then(Value::as_array).into_iter().flatten();
    let links = links.filter_map(|link| Some((some(link.get("label")), some(link.get("link"))?)));
    let image = some(part.get("imageUrl")).map(|address| (None, address));
    let others = links.chain(image).filter(|(_, address)| known.insert(address.clone()));
    let others: Vec<_> = others.map(|(label, address)| lines([label, Some(address)])).collect();
    lines([Some(page.text)].into_iter().chain(others))
}

/// A card holds its own JSON as a string. Its fields depend on the template.
fn card(part: &Value) -> Option<String> {
    let data = part.get("data").and_then(Value::as_str).and_then(|data| json::bounded(data.as_bytes()).ok());
    let data = data.unwrap_or_default();
    let fields = data.get("fields").and_then(Value::as_array).into_iter().flatten().filter_map(|field| {
        let (label, value) = (first(field, &["fieldLabel", "label"]), first(field, &["fieldValue", "value"]));
        value.map(|value| label.map_or(value.clone(), |label| format!("{label}: {value}")))
    });
    let fields = fields.collect::<Vec<_>>().join("\n");
    let link = first(&data, &["url", "targetUrl", "link"]);
    let known = [
        first(&data, &["title", "header"]),
        first(&data, &["subtitle"]),
        first(&data, &["description", "text"]),
    ];
    lines(known.into_iter().chain([Some(fields), link])).or_else(|| first(part, &["label", "value"]))
}

/// The texts of an item's parts, in any of the known lists.
fn inside(part: &Value) -> Option<String> {
    let lists = ["values", "parts", "groupPartsOutput", "outputs", "items", "value", "data"];
    let parts = lists.iter().filter_map(|key| part.get(key)?.as_array()).flatten();
    lines(parts.map(|inner| {
        let link = some(inner.get("value").and_then(|value| value.get("action")))
            .or_else(|| some(inner.get("action")));
        lines([first(inner, &["label", "header", "value"]), first(inner, &["description", "context"]), link])
            .map(|text| text.lines().map(plain).collect::<Vec<_>>().join("\n"))
    }))
}

fn options(part: &Value) -> Option<String> {
    let options = part.get("options").and_then(Value::as_array)?;
    let named =
        options.iter().filter_map(|option| first(option, &["label", "value"]).or_else(|| some(Some(option))));
    lines(named.enumerate().map(|(index, name)| Some(format!("{}. {name}", index + 1))))
}

fn plain(html: &str) -> String {
    html_text(html, None)
}

fn lines(parts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

fn first(part: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| some(part.get(key)))
}

/// A text that is not empty, or a number.
fn some(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true) || value.as_str() == Some("true")
}
