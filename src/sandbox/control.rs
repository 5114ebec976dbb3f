//! The sandbox's own controls over HTTP, for people and for tests in other processes. `GET /sandbox` lists them. The
//! answer to an invalid body explains the mistake. There is no login, because a sandbox contains no real data.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::botkit::BotKitSwitches;
use super::fault_rules::{FaultRule, Operation, Side};
use super::ledger::LedgerEntry;
use super::servicenow::workspace::{AgentWorkspace, RefusedAction};
use super::settings::SandboxSwitches;
use super::state::SandboxState;

type Shared = State<Arc<SandboxState>>;

const HELP: &str = include_str!("help.txt");

/// The address of the examples.
const EXAMPLE: &str = "127.0.0.1:8090";

/// The help, with the address at which the caller has reached the sandbox.
async fn help(headers: HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_address = |host: &&str| {
        host.chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | ':' | '-' | '[' | ']'))
    };
    HELP.replace(EXAMPLE, host.filter(is_address).unwrap_or(EXAMPLE))
}

pub(super) fn router() -> Router<Arc<SandboxState>> {
    Router::new()
        .route("/sandbox", get(help))
        .route("/sandbox/rules", get(rules).post(add_rule).delete(clear_rules))
        .route("/sandbox/rules/{id}", delete(remove_rule))
        .route("/sandbox/ledger", get(ledger).delete(clear_ledger))
        .route("/sandbox/totals", get(totals))
        .route("/sandbox/chats", get(chats))
        .route("/sandbox/switches", get(switches).post(set_switches))
        .route("/sandbox/tokens", delete(revoke_tokens))
        .route("/sandbox/botkit", get(botkit_switches).post(set_botkit_switches))
        .route("/sandbox/agents/{group}/{deed}", post(agent))
        .route("/sandbox/queues/{id}/{change}", post(queue))
}

async fn rules(State(world): Shared) -> Response {
    Json(json!({ "rules": world.script.rules() })).into_response()
}

async fn add_rule(State(world): Shared, body: Bytes) -> Response {
    let rule: FaultRule = match serde_json::from_slice(&body) {
        Ok(rule) => rule,
        Err(error) => return wrong(&format!("not a rule: {error}; see GET /sandbox")),
    };
    if let Some(mistake) = rule.mistake() {
        return wrong(&mistake);
    }
    (StatusCode::CREATED, Json(json!({ "id": world.script.fail(rule) }))).into_response()
}

async fn clear_rules(State(world): Shared) -> StatusCode {
    world.script.clear();
    StatusCode::NO_CONTENT
}

async fn remove_rule(State(world): Shared, Path(id): Path<u64>) -> StatusCode {
    if world.script.remove(id) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LedgerFilter {
    side: Option<Side>,
    operation: Option<Operation>,
    conversation: Option<String>,
    applied: Option<bool>,
    outbound: Option<bool>,
    since: Option<u64>,
    limit: Option<usize>,
}

impl LedgerFilter {
    fn fits(&self, entry: &LedgerEntry) -> bool {
        let named = |wanted: &String| [&entry.conversation, &entry.group].contains(&&Some(wanted.clone()));
        self.side.is_none_or(|side| side == entry.side)
            && self.operation.is_none_or(|operation| operation == entry.operation)
            && self.conversation.as_ref().is_none_or(named)
            && self.applied.is_none_or(|applied| applied == entry.applied)
            && self.outbound.is_none_or(|outbound| outbound == entry.outbound)
            && self.since.is_none_or(|since| entry.seq > since)
    }
}

async fn ledger(State(world): Shared, Query(filter): Query<LedgerFilter>) -> Response {
    let mut entries = world.ledger.find(|entry| filter.fits(entry));
    entries.truncate(filter.limit.unwrap_or(usize::MAX));
    Json(json!({ "entries": entries, "overlaps": world.ledger.overlaps() })).into_response()
}

async fn clear_ledger(State(world): Shared) -> StatusCode {
    world.ledger.clear();
    StatusCode::NO_CONTENT
}

async fn totals(State(world): Shared) -> Response {
    let list: Vec<Value> = world
        .ledger
        .totals()
        .into_iter()
        .map(|(side, operation, count)| json!({ "side": side, "operation": operation, "count": count }))
        .collect();
    Json(json!({ "totals": list })).into_response()
}

async fn revoke_tokens(State(world): Shared) -> StatusCode {
    world.tokens.revoke();
    StatusCode::NO_CONTENT
}

async fn chats(State(world): Shared) -> Response {
    let workspace = world.workspace();
    let chats = workspace.chats().map(|chat| {
        json!({
            "group": chat.group,
            "state": chat.state().number(),
            "number": chat.entry().map(|entry| &entry.number),
            "queue": chat.entry().map(|entry| &entry.queue),
            "messages": chat.rows.len(),
        })
    });
    Json(json!({ "chats": chats.collect::<Vec<Value>>() })).into_response()
}

async fn switches(State(world): Shared) -> Response {
    Json(world.workspace().switches).into_response()
}

async fn set_switches(State(world): Shared, body: Bytes) -> Response {
    match serde_json::from_slice::<SandboxSwitches>(&body) {
        Ok(switches) => {
            world.workspace().switches = switches;
            Json(switches).into_response()
        }
        Err(error) => wrong(&format!("not switches: {error}; see GET /sandbox")),
    }
}

async fn botkit_switches(State(world): Shared) -> Response {
    Json(world.botkit.switches()).into_response()
}

async fn set_botkit_switches(State(world): Shared, body: Bytes) -> Response {
    match serde_json::from_slice::<BotKitSwitches>(&body) {
        Ok(switches) => {
            world.botkit.set(switches);
            Json(switches).into_response()
        }
        Err(error) => wrong(&format!("not switches: {error}; see GET /sandbox")),
    }
}

#[derive(Deserialize)]
struct SaidBody {
    text: String,
}

async fn agent(State(world): Shared, Path((group, action)): Path<(String, String)>, body: Bytes) -> Response {
    let row = |action: fn(&mut AgentWorkspace, &str) -> _| {
        world.write(|workspace| action(workspace, &group)).map(drop)
    };
    let done = match action.as_str() {
        "accept" => row(AgentWorkspace::agent_accepts),
        "close" => row(AgentWorkspace::agent_closes),
        "leave" => row(AgentWorkspace::agent_leaves),
        "escalate" => world.workspace().escalates(&group, None),
        "say" => match serde_json::from_slice::<SaidBody>(&body) {
            Ok(said) => world.write(|workspace| workspace.agent_says(&group, &said.text)).map(drop),
            Err(error) => return wrong(&format!("say wants {{\"text\": \"…\"}}: {error}")),
        },
        other => return wrong(&format!("{other}: an agent can accept, say, close, leave or escalate")),
    };
    match done {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(RefusedAction::NotFound) => problem(StatusCode::NOT_FOUND, "there is no such chat (or queue)"),
        Err(RefusedAction::NotAllowed(words) | RefusedAction::QueueClosed { words, .. }) => {
            problem(StatusCode::CONFLICT, &words)
        }
    }
}

async fn queue(State(world): Shared, Path((id, change)): Path<(String, String)>) -> Response {
    let open = match change.as_str() {
        "open" => true,
        "close" => false,
        other => return wrong(&format!("{other}: a queue can open or close")),
    };
    match world.workspace().queues.get_mut(&id) {
        Some(queue) => {
            queue.open = open;
            StatusCode::NO_CONTENT.into_response()
        }
        None => problem(StatusCode::NOT_FOUND, "there is no such queue"),
    }
}

pub(super) fn wrong(detail: &str) -> Response {
    problem(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({ "status": status.as_u16(), "detail": detail }))).into_response()
}
