//! The Virtual Agent Bot Integration API: one path with an `action` in the body; everything else comes by callback.
//!
//! Like the real API, the sandbox answers 200 before it checks a request: with a wrong credential or a missing field
//! the answer is a success without any effect. The chats of this API are ordinary chats of the workspace, with the
//! caller's session id as group. The agent's actions are posted in the shapes of this API. Undocumented facts are
//! switches ([`VirtualAgentSwitches`]).

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post as posted;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha1::Sha1;

use super::workspace::{self, AgentWorkspace, MessageRow, RefusedAction};
use crate::sandbox::fault_gate::CallEffect;
use crate::sandbox::fault_rules::Operation;
use crate::sandbox::settings::{MessageProof, VirtualAgentSwitches};
use crate::sandbox::state::{DeliveryReceipt, SandboxState};

pub(crate) const PATH: &str = "/api/sn_va_as_service/bot/integration";

/// The state of a chat of this API.
#[derive(Debug, Clone)]
pub(crate) struct VirtualAgentChat {
    /// The id of the last request. Agents' messages contain it.
    request_id: String,
    variables: Value,
    /// The chat state of the last posted callback.
    posted: workspace::WorkItemState,
    /// What ServiceNow's bot said in the chat.
    bot_rows: Vec<MessageRow>,
}

impl VirtualAgentChat {
    fn new(request_id: String, variables: Value) -> Self {
        Self { request_id, variables, posted: workspace::WorkItemState::Waiting, bot_rows: Vec::new() }
    }

    pub(crate) fn bot_rows(&self) -> &[MessageRow] {
        &self.bot_rows
    }
}

pub(crate) fn router() -> Router<Arc<SandboxState>> {
    Router::new().route(PATH, posted(integration))
}

pub(crate) fn operation(method: &Method, action: Option<&str>) -> Operation {
    match action {
        _ if method != Method::POST => Operation::Other,
        Some("START_CONVERSATION" | "AGENT") => Operation::Start,
        None => Operation::Message,
        Some("END_CONVERSATION" | "FAULT_CONVERSATION") => Operation::Leave,
        Some(_) => Operation::Other,
    }
}

async fn integration(State(world): State<Arc<SandboxState>>, headers: HeaderMap, body: Bytes) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json;charset=UTF-8")];
    let success = (StatusCode::OK, json, json!({ "status": "success" }).to_string()).into_response();
    let proven = world.settings.message_auth.as_ref().is_none_or(|proof| proves(proof, &headers, &body));
    let Some(request) = serde_json::from_slice::<Map<String, Value>>(&body).ok().filter(|_| proven) else {
        return success;
    };
    let said = |key: &str| request.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(user) = said("userId") else { return success };
    let text = request.get("message").and_then(|message| message.get("text")).and_then(Value::as_str);
    let request_id = said("requestId").unwrap_or_default().to_owned();
    let variables = request.get("clientVariables").cloned().unwrap_or(Value::Null);
    match said("action") {
        Some("START_CONVERSATION" | "AGENT") => {
            let chat = VirtualAgentChat::new(request_id, variables);
            if start(&world, user, text.unwrap_or_default(), chat) {
                CallEffect::on(success, user, None)
            } else {
                success
            }
        }
        None => {
            remember(&world, user, request_id);
            match world.write(|workspace| {
                workspace.user_says(user, text.unwrap_or_default(), "comments", Vec::new())
            }) {
                Ok(_) => {
                    world.agent_hears(user, text.unwrap_or_default());
                    CallEffect::on(success, user, None)
                }
                // The real bot would treat the text as the start of a new topic. No agent gets the text.
                Err(_) => success,
            }
        }
        Some("END_CONVERSATION" | "FAULT_CONVERSATION") => {
            remember(&world, user, request_id);
            match world.write(|workspace| workspace.user_leaves(user)) {
                Ok(_) => CallEffect::on(success, user, None),
                Err(_) => success,
            }
        }
        Some("UPDATE_MESSAGES") => {
            let plain = [(header::CONTENT_TYPE, "text/plain")];
            let words = (StatusCode::OK, plain, "Message Processed Successfully").into_response();
            CallEffect::on(words, user, None)
        }
        Some(_) => CallEffect::on(success, user, None),
    }
}

fn proves(proof: &MessageProof, headers: &HeaderMap, body: &[u8]) -> bool {
    let given = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match proof {
        MessageProof::Token(token) => given("token") == token,
        MessageProof::Hmac(key) => {
            let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(key.as_bytes()) else { return false };
            mac.update(body);
            let right: String =
                mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            given("x-b2b-signature") == right
        }
    }
}

fn remember(world: &Arc<SandboxState>, group: &str, request_id: String) {
    if let Some(chat) = world.workspace().virtual_agent(group) {
        chat.request_id = request_id;
    }
}

/// Returns whether a chat was opened.
fn start(world: &Arc<SandboxState>, group: &str, text: &str, mut chat: VirtualAgentChat) -> bool {
    let mut workspace = world.workspace();
    let switches = workspace.switches.virtual_agent;
    let open = workspace.chat(group).is_ok_and(|known| known.state().open());
    let bot = |items: Vec<Value>, over: bool| {
        let mut body = envelope(&chat, group, switches, false);
        body["body"] = json!(items);
        if over {
            body[if switches.takes_control { "takeControl" } else { "completed" }] = json!(true);
        }
        row(group, &body)
    };
    if switches.no_agents || switches.falls_back {
        let (words, over) = if switches.no_agents {
            (vec![output("No agents are available at the moment. Please try again later.", switches)], true)
        } else {
            let picker = json!({
                "uiType": "TopicPickerControl", "group": "DefaultPicker", "nluTextEnabled": false,
                "promptMsg": "Hi guest, please enter your request or make a selection of what I can help with.",
                "label": "Show me everything",
                "options": [{ "label": "Live Agent Support.", "value": workspace::record_id(), "enabled": true }],
            });
            (vec![output("I am sorry but I didn't understand your request.", switches), picker], false)
        };
        let row = bot(words, over);
        drop(workspace);
        line_up(world, switches, row);
        return false;
    }
    let opens = !open || switches.opens_anew;
    let has_agent =
        workspace.chat(group).is_ok_and(|known| known.state() == workspace::WorkItemState::WorkInProgress);
    // A second start joins the open chat, and the caller gets the chat's state again.
    let joined = vec![json!({ "uiType": "ActionMsg", "actionType": "SwitchToLiveAgent" })];
    let stand_by = output("Please stand by while I connect you to a live agent.", switches);
    chat.bot_rows.push(bot_row(group, &stand_by));
    let queued = vec![
        stand_by,
        json!({ "uiType": "ActionMsg", "actionType": "SubscribeToSupportQueue" }),
        json!({
            "uiType": "ActionMsg", "actionType": "StartSpinner", "spinnerType": "wait_time",
            "message": "Routing you to a live agent...", "waitTime": "8 Seconds",
        }),
    ];
    let queue = workspace.queues.keys().next().cloned().unwrap_or_default();
    let mut body = envelope(&chat, group, switches, true);
    body["body"] = json!(if has_agent && !opens { joined } else { queued });
    if opens {
        let name = if open { workspace::record_id() } else { group.to_owned() };
        let _ = workspace.open(name, &queue, text, Some(chat));
    }
    drop(workspace);
    line_up(world, switches, row(group, &body));
    if opens {
        world.agent_notices(group);
    }
    opens
}

fn line_up(
    world: &Arc<SandboxState>,
    switches: VirtualAgentSwitches,
    row: MessageRow,
) -> Option<DeliveryReceipt> {
    let times = if switches.silent { 0 } else { 1 + usize::from(switches.twice) };
    let mut posted = None;
    for _ in 0..times {
        posted = Some(world.line_up(row.clone()));
    }
    posted
}

/// The callbacks for an action in a chat. A message of the user has none.
pub(crate) fn callbacks_of(workspace: &mut AgentWorkspace, row: &mut MessageRow) -> Vec<MessageRow> {
    let (switches, (agent, name)) = (workspace.switches.virtual_agent, workspace.agent());
    // A message among agents has no callback.
    let Some(known) = workspace.chat(&row.group).ok().filter(|_| !row.internal) else { return Vec::new() };
    let state = known.state();
    let Some(chat) = workspace.virtual_agent(&row.group) else { return Vec::new() };
    let before = std::mem::replace(&mut chat.posted, state);
    let mut items = Vec::new();
    if before == workspace::WorkItemState::Waiting && state == workspace::WorkItemState::WorkInProgress {
        items.push(json!({ "uiType": "ActionMsg", "actionType": "SwitchToLiveAgent" }));
        let words = format!("{name} has entered the chat.");
        items.push(json!({ "uiType": "ActionMsg", "actionType": "System", "message": words }));
    }
    let over = before.open() && !state.open();
    if row.created_by == agent {
        let mut item = output(&row.text, switches);
        item["agentInfo"] = json!({ "sentFromAgent": true });
        if !switches.hides_names {
            item["agentInfo"]["agentName"] = json!(name);
        }
        if !switches.nameless {
            item["messageId"] = json!(row.sys_id);
        }
        items.push(item);
    } else if row.created_by == "system" {
        items.push(json!({ "uiType": "ActionMsg", "actionType": "System", "message": row.text }));
    }
    if over && !switches.ends_by_flag && !switches.ends_by_sentence {
        items.push(json!({ "uiType": "ActionMsg", "actionType": "SwitchToVirtualAgent" }));
    }
    if items.is_empty() {
        return Vec::new();
    }
    let mut body = envelope(chat, &row.group, switches, state.open());
    body["body"] = json!(items);
    if over && !switches.ends_by_sentence {
        body["completed"] = json!(true);
    }
    row.callback = Some(body.to_string());
    let times = if switches.silent { 0 } else { 1 + usize::from(switches.twice) };
    vec![row.clone(); times]
}

/// Posts items given by a test, as a callback of this chat.
pub(crate) fn post(
    world: &Arc<SandboxState>,
    group: &str,
    items: Vec<Value>,
) -> Result<DeliveryReceipt, RefusedAction> {
    let mut workspace = world.workspace();
    let switches = workspace.switches.virtual_agent;
    let active = workspace.chat(group)?.state() == workspace::WorkItemState::WorkInProgress;
    let chat = workspace.virtual_agent(group).ok_or(RefusedAction::NotFound)?;
    let from_agent = items.iter().any(|item| item["agentInfo"]["sentFromAgent"] == json!(true));
    let mut body = envelope(chat, group, switches, active && (from_agent || !switches.unflagged));
    body["body"] = json!(items);
    drop(workspace);
    let silent = || RefusedAction::NotAllowed("The instance posts nothing.".to_owned());
    line_up(world, switches, row(group, &body)).ok_or_else(silent)
}

pub(crate) fn typing(switches: VirtualAgentSwitches) -> Value {
    let name = if switches.suffixed { "StartTypingIndicatorActionMsg" } else { "StartTypingIndicator" };
    json!({ "uiType": "ActionMsg", "actionType": name })
}

fn envelope(chat: &VirtualAgentChat, group: &str, switches: VirtualAgentSwitches, agent_chat: bool) -> Value {
    let mut body = json!({
        "requestId": chat.request_id, "clientSessionId": group, "nowSessionId": "", "userId": group,
        "message": {}, "body": [], "score": 1,
    });
    if !switches.forgets_variables {
        body["clientVariables"] = chat.variables.clone();
    }
    if switches.writes_false {
        for flag in ["agentChat", "completed", "takeControl"] {
            body[flag] = json!(false);
        }
    }
    if agent_chat {
        body["agentChat"] = json!(true);
    }
    body
}

fn output(text: &str, switches: VirtualAgentSwitches) -> Value {
    let key = if switches.labels { "label" } else { "value" };
    let mut item = json!({ "uiType": "OutputText", "group": "DefaultText", "maskType": "NONE" });
    item[key] = json!(text);
    if !switches.nameless {
        item["messageId"] = json!(workspace::record_id());
    }
    item
}

/// A row that ServiceNow's bot wrote.
fn bot_row(group: &str, item: &Value) -> MessageRow {
    let text = |key: &str| item[key].as_str().map(str::to_owned);
    MessageRow {
        sys_id: text("messageId").unwrap_or_else(workspace::record_id),
        created_by: "system".to_owned(),
        text: text("value").or_else(|| text("label")).unwrap_or_default(),
        callback: None,
        ..row(group, item)
    }
}

/// A callback without a row of the chat.
fn row(group: &str, body: &Value) -> MessageRow {
    MessageRow {
        sys_id: workspace::record_id(),
        group: group.to_owned(),
        created_by: String::new(),
        created: crate::clock::now(),
        text: String::new(),
        reflected_field: String::new(),
        attachments: Vec::new(),
        internal: false,
        previous: String::new(),
        last_message: None,
        callback: Some(body.to_string()),
    }
}
