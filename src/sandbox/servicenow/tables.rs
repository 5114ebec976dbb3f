//! The Table API for the tables of an integration's setup. The tables only store rows. Stored rows have no effect:
//! the callback settings of the sandbox decide whether the instance posts callbacks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};

use super::conversation_messages;
use super::shapes;
use super::workspace::{AgentWorkspace, RefusedAction, record_id};
use crate::sandbox::settings::{ChatTableAccess, TableAccess};
use crate::sandbox::state::SandboxState;

type Shared = State<Arc<SandboxState>>;
type TableRow = BTreeMap<String, String>;

/// The tables of this instance. The rows of `chat_queue` come from the workspace.
const KNOWN: [&str; 14] = [
    "awa_queue",
    "chat_queue",
    ENTRIES,
    "incident",
    MESSAGES,
    conversation_messages::TABLE,
    "sys_properties",
    "sys_rest_message",
    "sys_rest_message_fn",
    "sys_rest_message_fn_headers",
    "sys_script",
    "sys_user",
    "sysevent_register",
    "sysevent_script_action",
];

/// The tables of Connect Support. Their rows come from the workspace.
const ENTRIES: &str = "chat_queue_entry";
const MESSAGES: &str = "live_message";

/// The table whose rows get a number.
const TASKS: &str = "incident";

#[derive(Debug)]
pub(crate) struct RecordTables {
    rows: Mutex<BTreeMap<String, Vec<TableRow>>>,
}

impl Default for RecordTables {
    /// Creates one queue of Advanced Work Assignment, as in any instance with agents.
    fn default() -> Self {
        let tables = Self { rows: Mutex::default() };
        let queue = [("name", "IT Service Desk chat"), ("active", "true")];
        let queue = queue.map(|(name, value)| (name.to_owned(), value.to_owned()));
        tables.insert("awa_queue", "system", queue.into());
        tables
    }
}

impl RecordTables {
    pub(crate) fn all(&self, table: &str) -> Vec<TableRow> {
        self.lock().get(table).cloned().unwrap_or_default()
    }

    pub(crate) fn insert(&self, table: &str, user: &str, mut row: TableRow) -> TableRow {
        row.insert("sys_id".to_owned(), record_id());
        row.insert("sys_created_by".to_owned(), user.to_owned());
        let mut tables = self.lock();
        let rows = tables.entry(table.to_owned()).or_default();
        if table == TASKS {
            row.insert("number".to_owned(), format!("INC{:07}", rows.len() + 10_001));
        }
        rows.push(row.clone());
        row
    }

    fn update(&self, table: &str, sys_id: &str, change: TableRow) -> Option<TableRow> {
        let mut tables = self.lock();
        let row = tables.get_mut(table)?.iter_mut().find(|row| row["sys_id"] == sys_id)?;
        row.extend(change);
        Some(row.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<TableRow>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn router() -> Router<Arc<SandboxState>> {
    Router::new()
        .route("/api/now/table/{table}", get(list).post(insert))
        .route("/api/now/table/{table}/{sys_id}", get(one).patch(update).put(update))
}

#[derive(Deserialize)]
struct TableQuery {
    sysparm_query: Option<String>,
    sysparm_fields: Option<String>,
    sysparm_limit: Option<usize>,
}

async fn list(State(world): Shared, Path(table): Path<String>, Query(asked): Query<TableQuery>) -> Response {
    if let Some(refusal) = refuse(&world, &table, false) {
        return refusal;
    }
    let Some(terms) = terms(asked.sysparm_query.as_deref().unwrap_or_default()) else {
        return shapes::error(StatusCode::BAD_REQUEST, "Invalid query detected", None);
    };
    let hidden = access(&world) == TableAccess::Hidden;
    let rows = if hidden { Vec::new() } else { rows(&world, &table) };
    let fits = |row: &TableRow| terms.iter().all(|term| term.fits(row));
    let fields = asked.sysparm_fields.unwrap_or_default();
    let wanted: Vec<&str> = fields.split(',').filter(|name| !name.is_empty()).collect();
    let shown = rows.into_iter().filter(fits).take(asked.sysparm_limit.unwrap_or(10_000)).map(|row| {
        let named = |name: &String| wanted.is_empty() || wanted.contains(&name.as_str());
        row.into_iter().filter(|(name, _)| named(name)).collect::<TableRow>()
    });
    shapes::result(StatusCode::OK, &json!(shown.collect::<Vec<_>>()))
}

async fn one(State(world): Shared, Path((table, sys_id)): Path<(String, String)>) -> Response {
    if let Some(refusal) = refuse(&world, &table, false) {
        return refusal;
    }
    let hidden = access(&world) == TableAccess::Hidden;
    let found = rows(&world, &table).into_iter().find(|row| row["sys_id"] == sys_id && !hidden);
    found.map_or_else(
        || shapes::refused(RefusedAction::NotFound),
        |row| shapes::result(StatusCode::OK, &json!(row)),
    )
}

async fn insert(State(world): Shared, Path(table): Path<String>, body: Bytes) -> Response {
    match written(&world, &table, &body) {
        Ok(row) => {
            let made = world.tables.insert(&table, &world.settings.username, row);
            shapes::result(StatusCode::CREATED, &json!(made))
        }
        Err(refusal) => *refusal,
    }
}

async fn update(
    State(world): Shared,
    Path((table, sys_id)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    match written(&world, &table, &body) {
        Ok(change) => world.tables.update(&table, &sys_id, change).map_or_else(
            || shapes::refused(RefusedAction::NotFound),
            |row| shapes::result(StatusCode::OK, &json!(row)),
        ),
        Err(refusal) => *refusal,
    }
}

/// The fields that the request may write.
fn written(world: &SandboxState, table: &str, body: &Bytes) -> Result<TableRow, Box<Response>> {
    if let Some(refusal) = refuse(world, table, true) {
        return Err(Box::new(refusal));
    }
    let fields: BTreeMap<String, Value> = serde_json::from_slice(body).map_err(|_| {
        let words = "Exception while reading request";
        Box::new(shapes::error(StatusCode::BAD_REQUEST, words, None))
    })?;
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut row: TableRow = fields.into_iter().map(|(name, value)| (name, text(value))).collect();
    if access(world) == TableAccess::NoScripts {
        row.remove("script");
    }
    Ok(row)
}

fn rows(world: &SandboxState, table: &str) -> Vec<TableRow> {
    let row = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let workspace = world.workspace();
    match table {
        "chat_queue" => {}
        ENTRIES | MESSAGES | conversation_messages::TABLE => return chat_rows(&workspace, table),
        _ => return world.tables.all(table),
    }
    let queues = workspace.queues.values().map(|queue| {
        [("sys_id", queue.settings.id.as_str()), ("name", &queue.settings.name), ("active", "true")]
            .map(row)
            .into()
    });
    queues.collect()
}

/// The rows of a table of chats, oldest first, each value as text.
fn chat_rows(workspace: &AgentWorkspace, table: &str) -> Vec<TableRow> {
    let user = workspace.user.as_str();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let shown: Vec<Value> = match table {
        conversation_messages::TABLE => conversation_messages::rows(workspace),
        ENTRIES => {
            let entries =
                workspace.chats().flat_map(|chat| chat.entries.iter().map(move |entry| (chat, entry)));
            entries.map(|(chat, entry)| shapes::queue_entry(workspace, &chat.group, entry, user)).collect()
        }
        _ => workspace.chats().flat_map(|chat| &chat.rows).map(shapes::table_message).collect(),
    };
    let named = shown.iter().filter_map(Value::as_object);
    let mut rows: Vec<TableRow> =
        named.map(|row| row.iter().map(|(name, value)| (name.clone(), text(value))).collect()).collect();
    if chat_access(workspace, table) == ChatTableAccess::Own {
        rows.retain(|row| row.get("sys_created_by").is_some_and(|by| by == user));
    }
    let age = |row: &TableRow| row.get("sys_created_on").cloned();
    rows.sort_by_key(age);
    rows
}

/// The user's rights to a table of chats.
fn chat_access(workspace: &AgentWorkspace, table: &str) -> ChatTableAccess {
    match table {
        ENTRIES | MESSAGES => workspace.switches.chat_tables,
        conversation_messages::TABLE => workspace.switches.conversation_rows.access,
        _ => ChatTableAccess::All,
    }
}

fn access(world: &SandboxState) -> TableAccess {
    world.workspace().switches.tables
}

fn refuse(world: &SandboxState, table: &str, writes: bool) -> Option<Response> {
    if !KNOWN.contains(&table) {
        let words = format!("Invalid table {table}");
        return Some(shapes::error(StatusCode::BAD_REQUEST, &words, None));
    }
    let chats_refused = chat_access(&world.workspace(), table) == ChatTableAccess::Refused;
    match access(world) {
        _ if chats_refused => {
            Some(shapes::error(StatusCode::FORBIDDEN, "Insufficient rights to query records", None))
        }
        TableAccess::Refused => {
            Some(shapes::error(StatusCode::FORBIDDEN, "Insufficient rights to query records", None))
        }
        TableAccess::ReadOnly if writes => {
            let detail = "ACL Exception Insert Failed due to security constraints";
            Some(shapes::error(StatusCode::FORBIDDEN, "Operation Failed", Some(detail)))
        }
        _ => None,
    }
}

/// One condition of a query.
struct QueryTerm {
    name: String,
    operator: &'static str,
    value: String,
}

impl QueryTerm {
    fn parse(term: &str) -> Option<Self> {
        let end = term.bytes().position(|byte| !byte.is_ascii_lowercase() && byte != b'_')?;
        let (name, rest) = term.split_at(end);
        let with = |operator: &'static str| Some((operator, rest.strip_prefix(operator)?));
        let (operator, value) = [">=", "<=", "=", "IN"].into_iter().find_map(with)?;
        Some(Self { name: name.to_owned(), operator, value: value.to_owned() })
    }

    fn fits(&self, row: &TableRow) -> bool {
        let Some(found) = row.get(&self.name) else { return false };
        match self.operator {
            ">=" => *found >= self.value,
            "<=" => *found <= self.value,
            "IN" => self.value.split(',').any(|value| value == found),
            _ => *found == self.value,
        }
    }
}

/// Parses conditions with `^` between them. `None` for any other query, because this instance does not support it.
fn terms(query: &str) -> Option<Vec<QueryTerm>> {
    let terms = query.split('^').filter(|term| !term.is_empty() && *term != "EQ");
    terms.filter(|term| !term.starts_with("ORDERBY")).map(QueryTerm::parse).collect()
}
