//! What ServiceNow posts of a Virtual Agent conversation, turned into what it means.
//!
//! Guarantees: an item of a type that nobody knows is no error: it goes on as text where it carries one, and is counted.
//! Older and newer versions of the app are read alike: flags that are false may be missing, a text may stand in `label`,
//! an action may be named with the suffix `ActionMsg`. Where the chat stands is never read from a sentence.
//! Leaves to others: whose conversation it is and what is told of it (`delivery/agent_chat_callback.rs`).

use std::collections::HashSet;

use serde_json::Value;

use crate::message::callback::{CONVERSATION_VARIABLE, GROUP_VARIABLE};
use crate::message::json;
use crate::message::rich_text::{html, html_text};

/// One callback. No `Debug`: it holds what people said.
pub(crate) struct VirtualAgentCallback {
    /// What we named the chat.
    pub(crate) group: Option<String>,
    /// Of which request it is the answer; an agent's words carry that of some earlier one.
    pub(crate) request_id: Option<String>,
    /// The conversation left the bot for an agent or an agent's queue.
    pub(crate) agent_chat: bool,
    /// `completed` or `takeControl`.
    pub(crate) closing: bool,
    /// Each item of `body`, in order.
    pub(crate) items: Vec<Item>,
}

/// One item of `body`.
pub(crate) struct Item {
    /// `uiType`
    pub(crate) ui_type: String,
    /// ServiceNow's name for it; older apps give none.
    pub(crate) message_id: Option<String>,
    /// An agent wrote it.
    pub(crate) from_agent: bool,
    /// The agent's name, where the instance shows it.
    pub(crate) agent: Option<String>,
    /// What it means.
    pub(crate) meaning: Meaning,
}

/// What an item means.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Somebody says this.
    Text(String),
    /// Something to choose or to fill in, as text.
    Question(String),
    /// ServiceNow itself says this.
    Notice(String),
    /// Where the chat stands.
    Sign(Sign),
    /// The other side is typing.
    Typing,
    /// Nothing that anybody needs to hear.
    Nothing,
    /// Nobody knows this type; the text that it carries, if any.
    Unknown(Option<String>),
}

/// Where the chat stands, as an action says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It stands in the queue of an agent.
    Queued {
        /// ServiceNow's words for the wait.
        wait: Option<String>,
    },
    /// It is an agent's chat; nobody needs to be there yet.
    AgentChat,
    /// An agent is there.
    AgentCame,
    /// The agent's session is over, and the bot would go on.
    AgentGone,
}

impl VirtualAgentCallback {
    /// Reads a callback; `None` for what is no callback of this API.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        // A body of very many values is no callback of this API, and would take a hundred times its size.
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
        // Our own variables come both or not at all.
        let named = variable(CONVERSATION_VARIABLE).and_then(|_| variable(GROUP_VARIABLE));
        Some(Self {
            group: named.or_else(|| text("clientSessionId")).or_else(|| text("userId")),
            request_id: text("requestId"),
            agent_chat: flag("agentChat"),
            closing: flag("completed") || flag("takeControl"),
            items: joined(parts.into_iter().map(item).collect()),
        })
    }

    /// Where the chat stands after this callback; the last word counts.
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

    /// Whether an agent was there at any time of this callback.
    pub(crate) fn agent_came(&self) -> bool {
        self.items.iter().any(|item| item.from_agent || item.meaning == Meaning::Sign(Sign::AgentCame))
    }

    /// Whether the chat is over with this callback.
    pub(crate) fn over(&self) -> bool {
        self.closing || self.sign() == Some(Sign::AgentGone)
    }

    /// The agent's name, where any item says it.
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

/// Pieces of one stream that came together are one text.
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

/// The words of a page, and the addresses that the control names beside it.
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

/// The card's own JSON is a string; what stands in it depends on its template.
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

/// The texts of the parts that an item is put together from, wherever they stand.
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

/// A text or a number that says something.
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
