//! The JSON answers of the instance: objects in the shape that ServiceNow's own browser client reads, and two shapes
//! of errors: the platform's (`error`, `status`) and Connect's own (a bare string as `result`).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::workspace::{
    AgentChat, AgentQueue, AgentWorkspace, MessageRow, RefusedAction, WorkItem, WorkItemState,
};
use crate::sandbox::settings::RowSwitches;

/// `{"result": …}`.
pub(crate) fn result(status: StatusCode, value: &Value) -> Response {
    as_json(status, &json!({ "result": value }))
}

/// The platform's error shape.
pub(crate) fn error(status: StatusCode, message: &str, detail: Option<&str>) -> Response {
    as_json(status, &json!({ "error": { "message": message, "detail": detail }, "status": "failure" }))
}

pub(crate) fn unauthenticated() -> Response {
    let mut response = error(
        StatusCode::UNAUTHORIZED,
        "User Not Authenticated",
        Some("Required to provide Auth information"),
    );
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("BASIC realm=\"Service-now\""));
    response
}

pub(crate) fn no_such_resource(path: &str) -> Response {
    let message = "Requested URI does not represent any resource";
    error(StatusCode::BAD_REQUEST, message, Some(&format!("{message}: {path}")))
}

pub(crate) fn refused(refusal: RefusedAction) -> Response {
    match refusal {
        RefusedAction::NotFound => error(
            StatusCode::NOT_FOUND,
            "No Record found",
            Some("Record doesn't exist or ACL restricts the record retrieval"),
        ),
        RefusedAction::QueueClosed { words, status } => {
            result(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN), &json!(words))
        }
        RefusedAction::NotAllowed(words) => result(StatusCode::FORBIDDEN, &json!(words)),
    }
}

/// ServiceNow's usual body for an error status.
pub(crate) fn plain_failure(status: StatusCode) -> Response {
    match status {
        StatusCode::UNAUTHORIZED => unauthenticated(),
        StatusCode::NOT_FOUND => refused(RefusedAction::NotFound),
        StatusCode::FORBIDDEN => error(status, "Insufficient rights to query records", None),
        StatusCode::TOO_MANY_REQUESTS => error(status, "Rate limit exceeded", None),
        _ => error(status, status.canonical_reason().unwrap_or("Failure"), None),
    }
}

fn as_json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json;charset=UTF-8")], value.to_string()).into_response()
}

pub(crate) fn queue(workspace: &AgentWorkspace, queue: &AgentQueue) -> Value {
    let settings = &queue.settings;
    let mut object = json!({
        "sys_id": settings.id,
        "name": settings.name,
        "question": "How can I help you?",
        "average_wait_time": settings.wait,
        "waiting_count": workspace.waiting(&settings.id).len(),
        "escalate_to": settings.escalate_to.as_deref().unwrap_or_default(),
        "is_agent_for": false,
    });
    if !queue.open {
        object["not_available"] = json!(settings.not_available);
    }
    object
}

pub(crate) fn queue_entry(
    workspace: &AgentWorkspace,
    group: &str,
    entry: &WorkItem,
    opened_by: &str,
) -> Value {
    let position = (entry.state == WorkItemState::Waiting).then(|| workspace.ahead(group, entry));
    let wait = workspace.queues.get(&entry.queue).map_or("", |queue| queue.settings.wait.as_str());
    let transfer = entry.transfer.as_ref();
    let assigned_to = entry.assigned_to.as_deref().unwrap_or_default();
    if workspace.switches.connect.sparse_entries {
        return json!({
            "sys_id": entry.sys_id, "queue": entry.queue, "group": group, "assigned_to": assigned_to,
            "state": entry.state.number(),
        });
    }
    json!({
        "sys_id": entry.sys_id,
        "queue": entry.queue,
        "group": group,
        "assigned_to": assigned_to,
        "number": entry.number,
        "position": position.map_or(0, |ahead| ahead + 1),
        "short_description": entry.short_description,
        "state": entry.state.number(),
        "wait_time": entry.work_start.map_or(String::new(), |start| waited(entry.opened, start)),
        "average_wait_time": wait,
        "work_start": entry.work_start.map(stamp).unwrap_or_default(),
        "work_end": entry.work_end.map(stamp).unwrap_or_default(),
        "opened_by": opened_by,
        "sys_updated_on": stamp(entry.updated),
        "transfer_state": transfer.map_or("", |transfer| transfer.state),
        "transfer_from": transfer.and_then(|transfer| transfer.from.as_deref()).unwrap_or_default(),
        "transfer_to": transfer.map_or("", |transfer| transfer.to.as_str()),
        "transfer_change": false,
        "transfer_should_close": false,
        "transfer_updated_on": transfer.map(|_| stamp(entry.updated)).unwrap_or_default(),
    })
}

pub(crate) fn message(row: &MessageRow) -> Value {
    json!({
        "sys_id": row.sys_id,
        "id": row.sys_id,
        "group": row.group,
        "profile": profile(&row.created_by),
        "created_by": row.created_by,
        "created_on": stamp(row.created),
        "timestamp": row.created.as_millisecond(),
        "formatted_message": row.text,
        "reflected_field": row.reflected_field,
        "internal": row.internal,
        "links": [],
        "attachments": row.attachments,
        "mentions": [],
    })
}

/// A row of `live_message` as the Table API shows it: the columns have their own names.
pub(crate) fn table_message(row: &MessageRow) -> Value {
    json!({
        "sys_id": row.sys_id, "group": row.group, "formatted_message": row.text, "sys_created_by": row.created_by,
        "sys_created_on": stamp(row.created), "internal": row.internal,
    })
}

pub(crate) fn conversation(workspace: &AgentWorkspace, chat: &AgentChat, user: &str) -> Value {
    let entry = chat.entry();
    let members: Vec<Value> = std::iter::once(user)
        .chain(entry.and_then(|entry| entry.assigned_to.as_deref()))
        .map(|name| json!({ "sys_id": profile(name), "name": name, "table": "sys_user" }))
        .collect();
    json!({
        "sys_id": chat.group,
        "group": chat.group,
        "name": entry.map_or("", |entry| entry.number.as_str()),
        "members": members,
        "access": "support",
        "description": entry.map_or("", |entry| entry.short_description.as_str()),
        "restricted": false,
        "avatar": "",
        "document": entry.map_or("", |entry| entry.sys_id.as_str()),
        "table": "chat_queue_entry",
        "visible": true,
        "last_viewed": "",
        "unread_messages": 0,
        "last_message": { "message": chat.rows.last().map_or("", |row| row.text.as_str()) },
        "queueEntry": entry.map(|entry| queue_entry(workspace, &chat.group, entry, user)),
    })
}

/// The `live_profile` of a user. The same name always gives the same id.
fn profile(name: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string()
}

pub(crate) fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn waited(from: Timestamp, to: Timestamp) -> String {
    format!("{} Seconds", to.as_second() - from.as_second())
}

/// A text as the instance stores it. OWASP's java-html-sanitizer writes some characters as references.
pub(crate) fn stored(text: &str, switches: RowSwitches) -> String {
    if !switches.sanitizes {
        return text.to_owned();
    }
    let mut written = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '@' | '=' | '+' | '\'' | '"' | '`' => written.push_str(&format!("&#{};", u32::from(letter))),
            '&' => written.push_str("&amp;"),
            '<' => written.push_str("&lt;"),
            '>' => written.push_str("&gt;"),
            _ => written.push(letter),
        }
    }
    written
}
