//! The Connect Support REST API: routes that call the desk and answer in ServiceNow's shapes.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::desk::{Desk, Refusal, Row, TransferStep};
use super::shapes;
use crate::sandbox::gate::Effect;
use crate::sandbox::world::{Receipt, World};

/// Maximum number of messages in one read.
const PAGE: usize = 50;

type Shared = State<Arc<World>>;

pub(crate) fn router() -> Router<Arc<World>> {
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
    let desk = world.desk();
    let list: Vec<Value> = desk.queues.values().map(|queue| shapes::queue(&desk, queue)).collect();
    shapes::result(StatusCode::OK, &json!(list))
}

async fn queue(State(world): Shared, Path(queue): Path<String>) -> Response {
    let desk = world.desk();
    let found = desk.queues.get(&queue).ok_or(Refusal::NotFound);
    answer(found.map(|queue| shapes::queue(&desk, queue)))
}

async fn agents(State(world): Shared, Path(queue): Path<String>) -> Response {
    let agent = &world.settings.agent;
    let known = world.desk().queues.contains_key(&queue).then_some(()).ok_or(Refusal::NotFound);
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
    let done = world.write(|desk| desk.start(&queue, &asked.message));
    if let Ok((row, _)) = &done {
        world.agent_notices(&row.group);
    }
    entry_after(&world, StatusCode::OK, done)
}

/// Our user's conversations in this queue that are not permanently closed.
async fn queue_sessions(State(world): Shared, Path(queue): Path<String>) -> Response {
    let desk = world.desk();
    if !desk.queues.contains_key(&queue) {
        return shapes::refused(Refusal::NotFound);
    }
    let list: Vec<Value> = desk
        .chats()
        .filter(|chat| chat.entry().is_some_and(|entry| entry.queue == queue))
        .filter(|chat| !chat.state().closed_for_good())
        .map(|chat| shapes::conversation(&desk, chat, &world.settings.username))
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
        let _ = world.write(|desk| desk.idles_out(group));
    }
    let desk = world.desk();
    let user = &world.settings.username;
    let chats: Vec<_> = match &filter.group_id {
        Some(group) => desk.chat(group).into_iter().collect(),
        None => desk.chats().collect(),
    };
    let list: Vec<Value> = chats
        .into_iter()
        .flat_map(|chat| chat.entries.iter().rev().map(move |entry| (chat, entry)))
        .filter(|(_, entry)| filter.queue_id.as_ref().is_none_or(|queue| *queue == entry.queue))
        .filter(|(_, entry)| filter.closed.is_none_or(|closed| closed == entry.state.closed_for_good()))
        .map(|(chat, entry)| shapes::queue_entry(&desk, &chat.group, entry, user))
        .collect();
    shapes::result(StatusCode::OK, &json!(list))
}

async fn leave(State(world): Shared, Path(group): Path<String>) -> Response {
    let done = world.write(|desk| desk.user_leaves(&group));
    entry_after(&world, StatusCode::OK, done)
}

async fn close(State(world): Shared, Path(group): Path<String>) -> Response {
    let done = world.write(|desk| desk.agent_closes(&group));
    entry_after(&world, StatusCode::OK, done)
}

async fn rejoin(State(world): Shared, Path(group): Path<String>) -> Response {
    let mut desk = world.desk();
    let done = desk.user_rejoins(&group);
    entry_now(&world, &desk, &group, done)
}

async fn escalate(State(world): Shared, Path((group, queue)): Path<(String, String)>) -> Response {
    let mut desk = world.desk();
    let done = desk.escalates(&group, Some(&queue));
    entry_now(&world, &desk, &group, done)
}

async fn transfer(State(world): Shared, Path((group, step)): Path<(String, String)>) -> Response {
    let step = match step.as_str() {
        "accept" => TransferStep::Accept,
        "reject" => TransferStep::Reject,
        "cancel" => TransferStep::Cancel,
        "complete" => TransferStep::Complete,
        _ => TransferStep::To(step),
    };
    let mut desk = world.desk();
    let done = desk.transfers(&group, step);
    entry_now(&world, &desk, &group, done)
}

/// The agent accepts the chat that has waited longest.
async fn accept(State(world): Shared, Path(queue): Path<String>) -> Response {
    let done = world.write(|desk| {
        let next = desk.waiting(&queue).first().map(|group| (*group).to_owned());
        desk.agent_accepts(&next.ok_or(Refusal::NotFound)?)
    });
    if matches!(done, Err(Refusal::NotFound)) {
        return shapes::result(StatusCode::NOT_FOUND, &json!({ "error": "No chats are waiting" }));
    }
    entry_after(&world, StatusCode::OK, done)
}

async fn conversation(State(world): Shared, Path(group): Path<String>) -> Response {
    let desk = world.desk();
    answer(desk.chat(&group).map(|chat| shapes::conversation(&desk, chat, &world.settings.username)))
}

#[derive(Deserialize)]
struct Before {
    before: Option<i64>,
}

/// Newest first. `before` (a message's `timestamp`) selects the next page.
async fn messages(State(world): Shared, Path(group): Path<String>, Query(page): Query<Before>) -> Response {
    let desk = world.desk();
    let switches = desk.switches.rows;
    let before = page.before.filter(|_| !switches.ignores_before);
    let now = crate::clock::now().as_millisecond();
    let shown_since = now.saturating_sub(i64::try_from(switches.shown_after_ms).unwrap_or(i64::MAX));
    let before = |row: &&Row| {
        let at = row.created.as_millisecond();
        before.is_none_or(|before| at < before) && (switches.shown_after_ms == 0 || at <= shown_since)
    };
    answer(desk.chat(&group).map(|chat| {
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
    match world.write(|desk| desk.user_says(&group, &message, &reflected_field, attachments)) {
        Ok((row, receipt)) => {
            world.agent_hears(&group, &message);
            let response = shapes::result(StatusCode::OK, &shapes::message(&row));
            Effect::on(response, &row.group, Some(receipt))
        }
        Err(refusal) => shapes::refused(refusal),
    }
}

fn unreadable(error: &serde_json::Error) -> Response {
    let detail = error.to_string();
    shapes::error(StatusCode::BAD_REQUEST, "Exception while reading request", Some(&detail))
}

fn answer(found: Result<Value, Refusal>) -> Response {
    found.map_or_else(shapes::refused, |value| shapes::result(StatusCode::OK, &value))
}

/// Answers an action that wrote a row, with the resulting queue entry.
fn entry_after(world: &World, status: StatusCode, done: Result<(Row, Receipt), Refusal>) -> Response {
    match done {
        Ok((row, receipt)) => {
            let response = shapes::result(status, &entry_of(world, &world.desk(), &row.group));
            Effect::on(response, &row.group, Some(receipt))
        }
        Err(refusal) => shapes::refused(refusal),
    }
}

fn entry_now(world: &World, desk: &Desk, group: &str, done: Result<(), Refusal>) -> Response {
    match done {
        Ok(()) => Effect::on(shapes::result(StatusCode::OK, &entry_of(world, desk, group)), group, None),
        Err(refusal) => shapes::refused(refusal),
    }
}

fn entry_of(world: &World, desk: &Desk, group: &str) -> Value {
    let entry = desk.chat(group).ok().and_then(|chat| chat.entry());
    entry.map_or(Value::Null, |entry| shapes::queue_entry(desk, group, entry, &world.settings.username))
}
