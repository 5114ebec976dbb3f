//! The Connect Support REST API: routes that call the workspace and answer in ServiceNow's shapes.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shapes;
use super::workspace::{AgentWorkspace, MessageRow, RefusedAction, TransferStep};
use crate::sandbox::fault_gate::CallEffect;
use crate::sandbox::state::{DeliveryReceipt, SandboxState};

/// Maximum number of messages in one read.
const PAGE: usize = 50;

type Shared = State<Arc<SandboxState>>;

pub(crate) fn router() -> Router<Arc<SandboxState>> {
    let support = "/api/now/connect/support";
    let conversations = "/api/now/connect/conversations";
    Router::new()
        .route(&format!("{support}/queues"), get(queues))
        .route(&format!("{support}/queues/{{queue}}"), get(queue))
        .route(&format!("{support}/queues/{{queue}}/agents"), get(agents))
        .route(&format!("{support}/queues/{{queue}}/sessions"), get(queue_sessions).post(start))
        .route(&format!("{support}/queues/{{queue}}/accept"), post(accept))
        .route(&format!("{support}/sessions"), get(sessions))
        .route(&format!("{support}/sessions/{{group}}/leave"), post(leave))
        .route(&format!("{support}/sessions/{{group}}/close"), post(close))
        .route(&format!("{support}/sessions/{{group}}/rejoin"), post(rejoin))
        .route(&format!("{support}/sessions/{{group}}/escalate/{{queue}}"), post(escalate))
        .route(&format!("{support}/sessions/{{group}}/transfer/{{step}}"), post(transfer))
        .route(&format!("{conversations}/{{group}}"), get(conversation))
        .route(&format!("{conversations}/{{group}}/messages"), get(messages).post(say))
}

async fn queues(State(world): Shared) -> Response {
    let workspace = world.workspace();
    let list: Vec<Value> = workspace.queues.values().map(|queue| shapes::queue(&workspace, queue)).collect();
    shapes::result(StatusCode::OK, &json!(list))
}

async fn queue(State(world): Shared, Path(queue): Path<String>) -> Response {
    let workspace = world.workspace();
    let found = workspace.queues.get(&queue).ok_or(RefusedAction::NotFound);
    answer(found.map(|queue| shapes::queue(&workspace, queue)))
}

async fn agents(State(world): Shared, Path(queue): Path<String>) -> Response {
    let agent = &world.settings.agent;
    let known = world.workspace().queues.contains_key(&queue).then_some(()).ok_or(RefusedAction::NotFound);
    answer(known.map(|()| json!([{ "name": agent.name, "user_name": agent.user, "table": "sys_user" }])))
}

#[derive(Deserialize)]
struct StartBody {
    message: String,
}

async fn start(State(world): Shared, Path(queue): Path<String>, body: Bytes) -> Response {
    let asked: StartBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return unreadable(&error),
    };
    let done = world.write(|workspace| workspace.start(&queue, &asked.message));
    if let Ok((row, _)) = &done {
        world.agent_notices(&row.group);
    }
    entry_after(&world, StatusCode::OK, done)
}

/// Our user's conversations in this queue that are not permanently closed.
async fn queue_sessions(State(world): Shared, Path(queue): Path<String>) -> Response {
    let workspace = world.workspace();
    if !workspace.queues.contains_key(&queue) {
        return shapes::refused(RefusedAction::NotFound);
    }
    let list: Vec<Value> = workspace
        .chats()
        .filter(|chat| chat.entry().is_some_and(|entry| entry.queue == queue))
        .filter(|chat| !chat.state().closed_for_good())
        .map(|chat| shapes::conversation(&workspace, chat, &world.settings.username))
        .collect();
    shapes::result(StatusCode::OK, &json!(list))
}

#[derive(Deserialize)]
struct SessionFilter {
    group_id: Option<String>,
    queue_id: Option<String>,
    closed: Option<bool>,
}

/// Queue entries, newest first. Without a match the list is empty.
async fn sessions(State(world): Shared, Query(filter): Query<SessionFilter>) -> Response {
    if let Some(group) = &filter.group_id {
        // The action is refused if the chat is alive or the switch is off.
        let _ = world.write(|workspace| workspace.idles_out(group));
    }
    let workspace = world.workspace();
    let user = &world.settings.username;
    let chats: Vec<_> = match &filter.group_id {
        Some(group) => workspace.chat(group).into_iter().collect(),
        None => workspace.chats().collect(),
    };
    let list: Vec<Value> = chats
        .into_iter()
        .flat_map(|chat| chat.entries.iter().rev().map(move |entry| (chat, entry)))
        .filter(|(_, entry)| filter.queue_id.as_ref().is_none_or(|queue| *queue == entry.queue))
        .filter(|(_, entry)| filter.closed.is_none_or(|closed| closed == entry.state.closed_for_good()))
        .map(|(chat, entry)| shapes::queue_entry(&workspace, &chat.group, entry, user))
        .collect();
    shapes::result(StatusCode::OK, &json!(list))
}

async fn leave(State(world): Shared, Path(group): Path<String>) -> Response {
    let done = world.write(|workspace| workspace.user_leaves(&group));
    entry_after(&world, StatusCode::OK, done)
}

async fn close(State(world): Shared, Path(group): Path<String>) -> Response {
    let done = world.write(|workspace| workspace.agent_closes(&group));
    entry_after(&world, StatusCode::OK, done)
}

async fn rejoin(State(world): Shared, Path(group): Path<String>) -> Response {
    let mut workspace = world.workspace();
    let done = workspace.user_rejoins(&group);
    entry_now(&world, &workspace, &group, done)
}

async fn escalate(State(world): Shared, Path((group, queue)): Path<(String, String)>) -> Response {
    let mut workspace = world.workspace();
    let done = workspace.escalates(&group, Some(&queue));
    entry_now(&world, &workspace, &group, done)
}

async fn transfer(State(world): Shared, Path((group, step)): Path<(String, String)>) -> Response {
    let step = match step.as_str() {
        "accept" => TransferStep::Accept,
        "reject" => TransferStep::Reject,
        "cancel" => TransferStep::Cancel,
        "complete" => TransferStep::Complete,
        _ => TransferStep::To(step),
    };
    let mut workspace = world.workspace();
    let done = workspace.transfers(&group, step);
    entry_now(&world, &workspace, &group, done)
}

/// The agent accepts the chat that has waited for the longest time.
async fn accept(State(world): Shared, Path(queue): Path<String>) -> Response {
    let done = world.write(|workspace| {
        let next = workspace.waiting(&queue).first().map(|group| (*group).to_owned());
        workspace.agent_accepts(&next.ok_or(RefusedAction::NotFound)?)
    });
    if matches!(done, Err(RefusedAction::NotFound)) {
        return shapes::result(StatusCode::NOT_FOUND, &json!({ "error": "No chats are waiting" }));
    }
    entry_after(&world, StatusCode::OK, done)
}

async fn conversation(State(world): Shared, Path(group): Path<String>) -> Response {
    let workspace = world.workspace();
    answer(
        workspace.chat(&group).map(|chat| shapes::conversation(&workspace, chat, &world.settings.username)),
    )
}

#[derive(Deserialize)]
struct PageQuery {
    before: Option<i64>,
}

/// Newest first. `before` (a message's `timestamp`) selects the next page.
async fn messages(
    State(world): Shared,
    Path(group): Path<String>,
    Query(page): Query<PageQuery>,
) -> Response {
    let workspace = world.workspace();
    let switches = workspace.switches.rows;
    let before = page.before.filter(|_| !switches.ignores_before);
    let now = crate::clock::now().as_millisecond();
    let shown_since = now.saturating_sub(i64::try_from(switches.shown_after_ms).unwrap_or(i64::MAX));
    let before = |row: &&MessageRow| {
        let at = row.created.as_millisecond();
        before.is_none_or(|before| at < before) && (switches.shown_after_ms == 0 || at <= shown_since)
    };
    answer(workspace.chat(&group).map(|chat| {
        let rows = chat.rows.iter().rev().filter(before).take(PAGE).map(|row| {
            let mut shown = shapes::message(row);
            if switches.hides_internal
                && let Some(fields) = shown.as_object_mut()
            {
                fields.remove("internal");
            }
            shown["attachments"] = world.files.shown(&row.attachments);
            shown
        });
        json!(rows.collect::<Vec<Value>>())
    }))
}

#[derive(Deserialize)]
struct SayBody {
    message: String,
    #[serde(default = "comments")]
    reflected_field: String,
    #[serde(default)]
    attachments: Vec<String>,
}

fn comments() -> String {
    "comments".to_owned()
}

async fn say(State(world): Shared, Path(group): Path<String>, body: Bytes) -> Response {
    let asked: SayBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return unreadable(&error),
    };
    let SayBody { message, reflected_field, attachments } = asked;
    match world.write(|workspace| workspace.user_says(&group, &message, &reflected_field, attachments)) {
        Ok((row, receipt)) => {
            world.agent_hears(&group, &message);
            let response = shapes::result(StatusCode::OK, &shapes::message(&row));
            CallEffect::on(response, &row.group, Some(receipt))
        }
        Err(refusal) => shapes::refused(refusal),
    }
}

fn unreadable(error: &serde_json::Error) -> Response {
    let detail = error.to_string();
    shapes::error(StatusCode::BAD_REQUEST, "Exception while reading request", Some(&detail))
}

fn answer(found: Result<Value, RefusedAction>) -> Response {
    found.map_or_else(shapes::refused, |value| shapes::result(StatusCode::OK, &value))
}

/// Answers an action that wrote a row, with the resulting queue entry.
fn entry_after(
    world: &SandboxState,
    status: StatusCode,
    done: Result<(MessageRow, DeliveryReceipt), RefusedAction>,
) -> Response {
    match done {
        Ok((row, receipt)) => {
            let response = shapes::result(status, &entry_of(world, &world.workspace(), &row.group));
            CallEffect::on(response, &row.group, Some(receipt))
        }
        Err(refusal) => shapes::refused(refusal),
    }
}

fn entry_now(
    world: &SandboxState,
    workspace: &AgentWorkspace,
    group: &str,
    done: Result<(), RefusedAction>,
) -> Response {
    match done {
        Ok(()) => {
            CallEffect::on(shapes::result(StatusCode::OK, &entry_of(world, workspace, group)), group, None)
        }
        Err(refusal) => shapes::refused(refusal),
    }
}

fn entry_of(world: &SandboxState, workspace: &AgentWorkspace, group: &str) -> Value {
    let entry = workspace.chat(group).ok().and_then(|chat| chat.entry());
    entry.map_or(Value::Null, |entry| shapes::queue_entry(workspace, group, entry, &world.settings.username))
}
