//! The admin API for dead letters and for the course of a message. Each call needs `Authorization: Bearer <token>` with
//! `admin.token` or one of `admin.tokens`. A token with the role `view` gets lists, histories, courses and the progress, and 403
//! for every other call. `F` stands for the filters
//! of `causeway dead` (`destination`, `conversation`, `reason`, `answer`, `since`, `until`, `id`): in the query of a GET, as
//! JSON in a POST. `answer` is the platform's answer to the last attempt: an HTTP status, `no answer` or `not sent`. `reason` and `id` may be given several times, in JSON as a list.
//!
//! - `GET /dead-letters?F&limit=100`: `{"matching", "groups": [..], "dead_letters": [..]}`, without histories.
//! - `GET /dead-letters/{id}?reveal=true`: `{"dead_letters": [..]}` with histories, one for each dead letter.
//! - `GET /dead-letters/export?F`: JSON Lines with the texts.
//! - `POST /dead-letters/replay {F, "dry_run", "rate", "wait"}`: 200 with the plan, or 202 with the plan and the progress.
//!   `wait` (`"60s"`): the time limit for the outcomes of its messages.
//! - `GET /dead-letters/replay`: the progress of the newest replay of this process. `state` is `running`, `waiting` (all
//!   messages are published, and some outcomes are unknown), `done` or `stopped`. `outcomes` counts `delivered`,
//!   `died_again`, `answered`, `nothing_to_send` and `on_the_way`.
//! - `POST /dead-letters/replay/stop`: stops the running replay, and answers the progress.
//! - `POST /dead-letters/edit {"id", "died_at", "body"}`: sends the message with another body under a new id, and removes the dead
//!   letter after the delivery: 202 `{"id": new id, "replay": progress}`. Needs `admin.edit`, and the reason `unreadable` or `rejected`.
//! - `GET /trace?name=NAME`: the course of a message or of a conversation, as `course.rs` describes it.
//! - `POST /dead-letters/discard {F, "confirm": N}`: removes the dead letters permanently, if N is their number.
//!
//! Refusals are problems as everywhere else. The status is 409 while another session reads the dead-letter queue.

use axum::extract::Request;
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::query::{DeadLetterQuery, fault};
use super::runs::ReplayRun;
use super::tokens::{self, AdminToken};
use super::{AdminConsole, operator};
use crate::dead_letters::{DeadLetterFilter, filter, json};
use crate::http_server::body;
use crate::http_server::problem::{self, ApiError};
use crate::http_server::refusal_log::{self, RefusalEntry};
use crate::http_server::request_id::request_id;
use crate::http_server::server::PeerAddress;
use crate::telemetry::{Act, Ending, Operator, audit};

const LIMITS: body::BodyLimits =
    body::BodyLimits { bytes: 1 << 20, time: std::time::Duration::from_secs(10), budget: None };

/// The route of a course.
const TRACE: &str = "/trace";

pub(super) async fn answer(console: &AdminConsole, mut request: Request) -> Response {
    let id = request_id(Some(request.headers()));
    let from = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let route = if request.uri().path() == TRACE { "trace" } else { "dead-letters" };
    match dispatch(console, &mut request).await {
        Ok(response) => response,
        Err(refusal) => {
            let reason = refusal.slug();
            let response = refusal.into_response(&id);
            let status = response.status().as_u16();
            refusal_log::write(RefusalEntry { route, reason, status, request_id: &id, from });
            body::drain_body(request);
            response
        }
    }
}

async fn dispatch(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let known = console.tokens.get();
    let token = tokens::bearer(&known, request.headers());
    let token = token.ok_or(ApiError::Unauthorized("Bearer realm=\"causeway\""))?;
    let by = operator(token, request);
    if request.uri().path() == TRACE {
        return trace(console, request).await;
    }
    let path = request.uri().path().trim_start_matches("/dead-letters").trim_start_matches('/').to_owned();
    let method = match request.method().as_str() {
        "HEAD" => "GET".to_owned(),
        other => other.to_owned(),
    };
    match (method.as_str(), path.as_str()) {
        ("GET", "") => list(console, request).await,
        ("GET", "replay") => {
            Ok(problem::found(&json!({ "replay": console.progress().map(|run| progress(&run)) })))
        }
        ("GET", "export") => export(console, act(token, by)?, request).await,
        ("POST", "replay") => replay(console, act(token, by)?, request).await,
        ("POST", "replay/stop") => {
            console.stop(&act(token, by)?);
            Ok(problem::found(&json!({ "replay": console.progress().map(|run| progress(&run)) })))
        }
        ("POST", "edit") => edit(console, act(token, by)?, request).await,
        ("POST", "discard") => discard(console, act(token, by)?, request).await,
        (_, "replay") => Err(ApiError::WrongMethod("GET, HEAD, POST")),
        (_, "discard" | "edit" | "replay/stop") => Err(ApiError::WrongMethod("POST")),
        ("GET", id) => show(console, id, (token, by), request).await,
        _ => Err(ApiError::WrongMethod("GET, HEAD")),
    }
}

/// The operator, if the token allows acts.
fn act(token: &AdminToken, by: Operator) -> Result<Operator, ApiError> {
    token.may_act().map(|()| by)
}

async fn trace(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    if !matches!(request.method().as_str(), "GET" | "HEAD") {
        return Err(ApiError::WrongMethod("GET, HEAD"));
    }
    let query = request.uri().query().unwrap_or_default();
    let mut name = None;
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if key != "name" {
            return Err(ApiError::Invalid(vec![fault(&key, "is not known here: use name")]));
        }
        name = Some(value.trim().to_owned());
    }
    let missing =
        "is missing: the id of a message, a conversation_id, or ServiceNow's group or number of a chat";
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::Invalid(vec![fault("name", missing)]))?;
    Ok(problem::found(&json!(console.course(&name).await?)))
}

fn in_address(request: &Request, also: &[&str]) -> Result<DeadLetterQuery, ApiError> {
    DeadLetterQuery::of_form(request.uri().query().unwrap_or_default(), also)
}

async fn in_body(request: &mut Request, also: &[&str]) -> Result<DeadLetterQuery, ApiError> {
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let read: Bytes = body::read(&headers, request.body_mut(), LIMITS).await?;
    DeadLetterQuery::of_json(&read, also)
}

async fn list(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_address(request, &["limit"])?;
    let found = console.find(&asked.filter, asked.limit).await?;
    let brief = found.letters.iter().map(|dead| {
        let mut letter = json::letter(dead, false);
        if let Some(fields) = letter.as_object_mut() {
            fields.remove("story");
        }
        letter
    });
    Ok(problem::found(&json!({
        "matching": found.entries.len(),
        "groups": json::groups(&found.entries),
        "dead_letters": brief.collect::<Value>(),
    })))
}

async fn show(
    console: &AdminConsole,
    id: &str,
    (token, by): (&AdminToken, Operator),
    request: &mut Request,
) -> Result<Response, ApiError> {
    let id = filter::id(id).map_err(|_| ApiError::UnknownDeadLetter)?;
    let DeadLetterQuery { reveal, .. } = only(in_address(request, &["reveal"])?)?;
    if reveal {
        token.may_act()?;
    }
    let found = console
        .find(&DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() }, usize::MAX)
        .await?;
    if found.letters.is_empty() {
        return Err(ApiError::UnknownDeadLetter);
    }
    if reveal {
        let shown = found.letters.len() as u64;
        audit(Act::Reveal, &by, format_args!("id={id}"), shown, Ending::Done(None));
    }
    let letters = found.letters.iter().map(|dead| json::letter(dead, reveal));
    Ok(problem::found(&json!({ "dead_letters": letters.collect::<Value>() })))
}

/// Refuses filters in addition to an id in the path.
fn only(asked: DeadLetterQuery) -> Result<DeadLetterQuery, ApiError> {
    match asked.filter.written().first() {
        None => Ok(asked),
        Some((name, _)) => {
            Err(ApiError::Invalid(vec![fault(name, "cannot be combined with an id in the path")]))
        }
    }
}

async fn export(console: &AdminConsole, by: Operator, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_address(request, &[])?;
    Ok(problem::answer(StatusCode::OK, "application/x-ndjson", console.export(asked.filter, by).await?))
}

async fn replay(console: &AdminConsole, by: Operator, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_body(request, &["dry_run", "rate", "wait"]).await?;
    if asked.dry_run {
        let plan = console.plan(&asked.filter).await?;
        return Ok(problem::found(&json!({ "plan": json::plan(&plan) })));
    }
    let plan = console.replay(asked.filter, asked.rate, asked.wait, by).await?;
    let run = console.progress().map(|run| progress(&run));
    let mut response = problem::accepted(&json!({ "plan": json::plan(&plan), "replay": run }));
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/dead-letters/replay"));
    Ok(response)
}

fn progress(run: &ReplayRun) -> Value {
    let state = match &run.ended {
        None if run.published => "waiting",
        None => "running",
        Some((_, None)) => "done",
        Some((_, Some(_))) => "stopped",
    };
    json!({
        "state": state,
        "to_replay": run.to_replay,
        "replayed": run.replay_counts.replayed,
        "to_take_out": run.to_clear,
        "taken_out": run.replay_counts.cleared,
        "outcomes": json::outcomes(&run.outcomes),
        "began_at": run.began.to_string(),
        "ended_at": run.ended.as_ref().map(|(at, _)| at.to_string()),
        "error": run.ended.as_ref().and_then(|(_, trouble)| trouble.as_deref()),
    })
}

async fn discard(console: &AdminConsole, by: Operator, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_body(request, &["confirm"]).await?;
    let Some(confirmed) = asked.confirm else {
        let why = "is missing: the number of dead letters to remove, as GET /dead-letters with the same filters counts them";
        return Err(ApiError::Invalid(vec![fault("confirm", why)]));
    };
    let gone = console.discard(&asked.filter, confirmed, &by).await?;
    Ok(problem::found(&json!({ "discarded": gone })))
}

async fn edit(console: &AdminConsole, by: Operator, request: &mut Request) -> Result<Response, ApiError> {
    console.may_edit()?;
    body::is_json(request.headers())?;
    let headers = request.headers().clone();
    let read: Bytes = body::read(&headers, request.body_mut(), LIMITS).await?;
    let asked: Value = serde_json::from_slice(&read)
        .map_err(|error| ApiError::NotJson { line: error.line(), column: error.column() })?;
    let text = |name: &str| {
        let missing = || ApiError::Invalid(vec![fault(name, "is missing, or is not a text")]);
        asked[name].as_str().ok_or_else(missing)
    };
    let wrong = |name: &str, why: String| ApiError::Invalid(vec![fault(name, &why)]);
    let id = filter::id(text("id")?).map_err(|why| wrong("id", why))?;
    let died_at = match &asked["died_at"] {
        Value::Null => None,
        _ => Some(filter::moment(text("died_at")?).map_err(|why| wrong("died_at", why))?),
    };
    let id = console.edit((id, died_at), text("body")?.to_owned(), by).await?;
    let run = console.progress().map(|run| progress(&run));
    Ok(problem::accepted(&json!({ "id": id.to_string(), "replay": run })))
}
