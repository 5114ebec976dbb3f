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

use super::shapes;
use super::workspace::{RefusedAction, record_id};
use crate::sandbox::settings::TableAccess;
use crate::sandbox::state::SandboxState;

type Shared = State<Arc<SandboxState>>;
type TableRow = BTreeMap<String, String>;

/// The tables of this instance. The rows of `chat_queue` come from the workspace.
const KNOWN: [&str; 11] = [
    "awa_queue",
    "chat_queue",
    "incident",
    "sys_properties",
    "sys_rest_message",
    "sys_rest_message_fn",
    "sys_rest_message_fn_headers",
    "sys_script",
    "sys_user",
    "sysevent_register",
    "sysevent_script_action",
];

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
    let fits = |row: &TableRow| terms.iter().all(|(name, value)| row.get(name) == Some(value));
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
    if table != "chat_queue" {
        return world.tables.all(table);
    }
    let row = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let workspace = world.workspace();
    let queues = workspace.queues.values().map(|queue| {
        [("sys_id", queue.settings.id.as_str()), ("name", &queue.settings.name), ("active", "true")]
            .map(row)
            .into()
    });
    queues.collect()
}

fn access(world: &SandboxState) -> TableAccess {
    world.workspace().switches.tables
}

fn refuse(world: &SandboxState, table: &str, writes: bool) -> Option<Response> {
    if !KNOWN.contains(&table) {
        let words = format!("Invalid table {table}");
        return Some(shapes::error(StatusCode::BAD_REQUEST, &words, None));
    }
    match access(world) {
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

/// Parses `name=value^name=value`. `None` for any other query, because this instance does not support it.
fn terms(query: &str) -> Option<Vec<(String, String)>> {
    let terms = query.split('^').filter(|term| !term.is_empty() && *term != "EQ");
    terms
        .map(|term| {
            let (name, value) = term.split_once('=')?;
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            plain.then(|| (name.to_owned(), value.to_owned()))
        })
        .collect()
}
