//! The admin API for dead letters. Each call needs `Authorization: Bearer <admin.token>`. `F` stands for the filters
//! of `causeway dead` (`destination`, `conversation`, `reason`, `since`, `until`, `id`): in the query of a GET, as
//! JSON in a POST. `reason` and `id` may be given several times, in JSON as a list.
//!
//! - `GET /dead-letters?F&limit=100`: `{"matching", "groups": [..], "dead_letters": [..]}`, without histories.
//! - `GET /dead-letters/{id}?reveal=true`: `{"dead_letters": [..]}` with histories, one for each dead letter.
//! - `GET /dead-letters/export?F`: JSON Lines with the texts.
//! - `POST /dead-letters/replay {F, "dry_run", "rate", "wait"}`: 200 with the plan, or 202 with the plan and the progress.
//!   `wait` (`"60s"`): the time limit for the outcomes of its messages.
//! - `GET /dead-letters/replay`: the progress of the newest replay of this process. `state` is `running`, `waiting` (all
//!   messages are published, and some outcomes are unknown), `done` or `stopped`. `outcomes` counts `delivered`,
//!   `died_again`, `answered`, `nothing_to_send` and `on_the_way`.
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
use super::{AdminConsole, ReplayRun, operator};
use crate::dead_letters::{DeadLetterFilter, filter, json};
use crate::http_server::problem::{self, ApiError};
use crate::http_server::refusal_log::{self, RefusalEntry};
use crate::http_server::request_id::request_id;
use crate::http_server::server::PeerAddress;
use crate::http_server::{body, credentials};
use crate::telemetry::{Act, Ending, audit};

const LIMITS: body::BodyLimits =
    body::BodyLimits { bytes: 1 << 20, time: std::time::Duration::from_secs(10), budget: None };

pub(super) async fn answer(console: &AdminConsole, mut request: Request) -> Response {
    let id = request_id(Some(request.headers()));
    let from = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    match dispatch(console, &mut request).await {
        Ok(response) => response,
        Err(refusal) => {
            let reason = refusal.slug();
            let response = refusal.into_response(&id);
            let (route, status) = ("dead-letters", response.status().as_u16());
            refusal_log::write(RefusalEntry { route, reason, status, request_id: &id, from });
            body::drain_body(request);
            response
        }
    }
}

async fn dispatch(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    if !credentials::bearer(&console.token.get(), request.headers()) {
        return Err(ApiError::Unauthorized("Bearer realm=\"causeway\""));
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
        ("GET", "export") => export(console, request).await,
        ("POST", "replay") => replay(console, request).await,
        ("POST", "discard") => discard(console, request).await,
        (_, "replay") => Err(ApiError::WrongMethod("GET, HEAD, POST")),
        (_, "discard") => Err(ApiError::WrongMethod("POST")),
        ("GET", id) => show(console, id, request).await,
        _ => Err(ApiError::WrongMethod("GET, HEAD")),
    }
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

async fn show(console: &AdminConsole, id: &str, request: &mut Request) -> Result<Response, ApiError> {
    let id = filter::id(id).map_err(|_| ApiError::UnknownDeadLetter)?;
    let DeadLetterQuery { reveal, .. } = only(in_address(request, &["reveal"])?)?;
    let found = console
        .find(&DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() }, usize::MAX)
        .await?;
    if found.letters.is_empty() {
        return Err(ApiError::UnknownDeadLetter);
    }
    if reveal {
        let (by, shown) = (operator(request), found.letters.len() as u64);
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

async fn export(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_address(request, &[])?;
    Ok(problem::answer(
        StatusCode::OK,
        "application/x-ndjson",
        console.export(asked.filter, operator(request)).await?,
    ))
}

async fn replay(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_body(request, &["dry_run", "rate", "wait"]).await?;
    if asked.dry_run {
        let plan = console.plan(&asked.filter).await?;
        return Ok(problem::found(&json!({ "plan": json::plan(&plan) })));
    }
    let plan = console.replay(asked.filter, asked.rate, asked.wait, operator(request)).await?;
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

async fn discard(console: &AdminConsole, request: &mut Request) -> Result<Response, ApiError> {
    let asked = in_body(request, &["confirm"]).await?;
    let Some(confirmed) = asked.confirm else {
        let why = "is missing: the number of dead letters to remove, as GET /dead-letters with the same filters counts them";
        return Err(ApiError::Invalid(vec![fault("confirm", why)]));
    };
    let gone = console.discard(&asked.filter, confirmed, &operator(request)).await?;
    Ok(problem::found(&json!({ "discarded": gone })))
}
