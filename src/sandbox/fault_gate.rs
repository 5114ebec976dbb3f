//! The middleware for every request to a simulated platform: reads the request, records it in the ledger, matches it
//! against the script, and then serves it. A background task performs the action, so that the action also completes if
//! the caller gives up. A fault before the effect prevents the action.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::botkit;
use super::fault_rules::{InjectedFault, Operation, RetryAfter, SeenCall, Side, SpoiledCall};
use super::ledger::{ArrivedCall, LedgerPage};
use super::servicenow::workspace::RefusedAction;
use super::servicenow::{shapes, virtual_agent};
use super::settings::SandboxQueue;
use super::state::{DeliveryReceipt, SandboxState};

/// `glide.rest.max_content_length`.
const LARGEST_BODY: usize = 10 * 1024 * 1024;

/// Attached by a handler to its answer if the request had an effect.
#[derive(Debug, Clone)]
pub(super) struct CallEffect {
    conversation: Option<String>,
    receipt: Option<DeliveryReceipt>,
}

impl CallEffect {
    pub(super) fn on(
        mut response: Response,
        conversation: &str,
        receipt: Option<DeliveryReceipt>,
    ) -> Response {
        let conversation = Some(conversation.to_owned());
        response.extensions_mut().insert(Self { conversation, receipt });
        response
    }
}

/// Marks an answer that must not be sent: the connection is closed instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct CutConnection;

pub(super) async fn gate(State(world): State<Arc<SandboxState>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return plain_failure(side_of(parts.uri.path()), StatusCode::BAD_REQUEST);
    };
    let path = parts.uri.path_and_query().map_or_else(|| parts.uri.path().to_owned(), ToString::to_string);
    let (side, operation, mut arrival) = recognise(&parts.method, parts.uri.path(), &path, &body);
    let traceparent = parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
    arrival.traceparent = traceparent.map(str::to_owned);
    let (conversation, group) = (arrival.conversation.clone(), arrival.group.clone());
    let text = arrival.text.clone();
    let flight = world.ledger.open(side, operation, arrival);
    let names = [conversation.as_deref(), group.as_deref()];
    let spoil = world.script.judge(SeenCall { side, operation, names, text: text.as_deref() });
    if let Some(spoil) = &spoil {
        flight.page().spoiled(spoil.fault.name());
    }
    let request = Request::from_parts(parts, Body::from(body));
    let serve = GatedCall { world: world.clone(), page: flight.page().clone(), request, next };
    let response = match spoil {
        None => serve.carry_out().await,
        Some(SpoiledCall { after: false, fault: InjectedFault::Delay { ms } }) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            serve.carry_out().await
        }
        Some(SpoiledCall { after: false, fault }) => spoilt(fault, side, &world).await,
        Some(SpoiledCall { after: true, fault }) => {
            let response = serve.carry_out().await;
            match fault {
                InjectedFault::Delay { ms } => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    response
                }
                fault => spoilt(fault, side, &world).await,
            }
        }
    };
    if response.extensions().get::<CutConnection>().is_none() {
        flight.answered(response.status().as_u16());
    }
    response
}

struct GatedCall {
    world: Arc<SandboxState>,
    page: LedgerPage,
    request: Request,
    next: Next,
}

impl GatedCall {
    async fn carry_out(self) -> Response {
        let Self { world, page, request, next } = self;
        let (answer, answered) = oneshot::channel();
        world.task_group.start(async move {
            let response = next.run(request).await;
            if let Some(effect) = response.extensions().get::<CallEffect>().cloned() {
                page.applied(effect.conversation);
                if let Some(receipt) = effect.receipt {
                    receipt.settled().await;
                }
            }
            // The send fails if the caller has hung up. The action has happened nevertheless.
            let _ = answer.send(response);
        });
        match answered.await {
            Ok(response) => response,
            Err(_) => cut(),
        }
    }
}

fn cut() -> Response {
    let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
    response.extensions_mut().insert(CutConnection);
    response
}

/// The answer that a fault gives instead of the real one.
async fn spoilt(fault: InjectedFault, side: Side, world: &SandboxState) -> Response {
    match fault {
        InjectedFault::Status { status, body, headers } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = body.map_or_else(
                || plain_failure(side, status),
                |body| {
                    (status, [(header::CONTENT_TYPE, "application/json;charset=UTF-8")], body).into_response()
                },
            );
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        InjectedFault::Hang => std::future::pending().await,
        InjectedFault::Delay { .. } | InjectedFault::Cut => cut(),
        InjectedFault::HtmlPage => Html(
            "<!DOCTYPE html><html><head><title>Instance Hibernating</title></head>\
             <body><h1>Your instance is hibernating</h1></body></html>",
        )
        .into_response(),
        InjectedFault::Redirect => {
            (StatusCode::FOUND, [(header::LOCATION, "/login_redirect.do?sysparm_stack=no")]).into_response()
        }
        InjectedFault::Accepted => StatusCode::ACCEPTED.into_response(),
        InjectedFault::TooMany { retry_after } => too_many(retry_after, side),
        InjectedFault::ClosedQueue => {
            let words = world
                .settings
                .queues
                .first()
                .map_or_else(|| SandboxQueue::default().not_available, |queue| queue.not_available.clone());
            shapes::refused(RefusedAction::QueueClosed { words, status: 403 })
        }
    }
}

/// A 429 of a rate-limit rule has a `Retry-After`; a 429 of a full semaphore queue has none.
fn too_many(retry_after: RetryAfter, side: Side) -> Response {
    let mut response = plain_failure(side, StatusCode::TOO_MANY_REQUESTS);
    let now = crate::clock::now();
    let (seconds, value) = match retry_after {
        RetryAfter::None => return response,
        RetryAfter::Seconds(seconds) => (seconds, seconds.to_string()),
        RetryAfter::Date(seconds) => {
            let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
            let date = std::time::UNIX_EPOCH + since_1970 + Duration::from_secs(seconds);
            (seconds, httpdate::fmt_http_date(date))
        }
    };
    let reset = now.as_second().saturating_add_unsigned(seconds);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(header::RETRY_AFTER, value);
    }
    if side == Side::ServiceNow {
        headers.insert("X-RateLimit-Limit", HeaderValue::from_static("1000"));
        headers.insert("X-RateLimit-Reset", HeaderValue::from(reset));
        headers.insert("X-RateLimit-Rule", HeaderValue::from_static("0c5f3f4c87b1230041f9a3a2f7cb0bd0"));
    }
    response
}

pub(super) fn plain_failure(side: Side, status: StatusCode) -> Response {
    match side {
        Side::ServiceNow => shapes::plain_failure(status),
        Side::Xo | Side::Events | Side::BotKit => {
            let words = status.canonical_reason().unwrap_or("Failure");
            let body = json!({ "errors": [{ "msg": words, "code": status.as_u16() }] });
            (status, axum::Json(body)).into_response()
        }
    }
}

fn side_of(path: &str) -> Side {
    match path {
        "/xo/events" => Side::Events,
        _ if botkit::is_ours(path) => Side::BotKit,
        _ if path.starts_with("/xo") => Side::Xo,
        _ => Side::ServiceNow,
    }
}

/// Determines side, operation and conversation of a request from its path and, if readable, its body.
fn recognise(method: &Method, path: &str, full_path: &str, body: &Bytes) -> (Side, Operation, ArrivedCall) {
    let side = side_of(path);
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let field = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut arrival = ArrivedCall {
        method: method.to_string(),
        path: full_path.to_owned(),
        body: String::from_utf8_lossy(body).into_owned(),
        ..ArrivedCall::default()
    };
    let operation = match side {
        Side::ServiceNow if path == virtual_agent::PATH => {
            arrival.group = field("clientSessionId").or_else(|| field("userId"));
            arrival.conversation.clone_from(&arrival.group);
            arrival.message_id = field("requestId");
            arrival.event = field("action");
            arrival.text = json["message"]["text"].as_str().map(str::to_owned);
            virtual_agent::operation(method, arrival.event.as_deref())
        }
        Side::ServiceNow => {
            let (operation, group) = connect_operation(method, path, full_path);
            arrival.group = group;
            arrival.text = field("message");
            arrival.conversation.clone_from(&arrival.group);
            operation
        }
        Side::Xo => {
            arrival.group = field("group");
            arrival.conversation.clone_from(&arrival.group);
            arrival.message_id = field("sys_id");
            arrival.text = field("formatted_message").or_else(|| field("message"));
            if path == "/xo/callback" { Operation::Callback } else { Operation::Other }
        }
        Side::BotKit => {
            arrival.text = botkit::words(&json);
            arrival.conversation = botkit::user_of(&json);
            botkit::operation(path)
        }
        Side::Events => {
            arrival.group = field("group");
            arrival.conversation = field("conversation_id").or_else(|| arrival.group.clone());
            arrival.message_id = field("id");
            arrival.event = field("type");
            arrival.text = field("message").or_else(|| field("text"));
            Operation::Event
        }
    };
    (side, operation, arrival)
}

fn connect_operation(method: &Method, path: &str, full_path: &str) -> (Operation, Option<String>) {
    if path == "/oauth_token.do" {
        return (Operation::Token, None);
    }
    if path.starts_with("/api/now/table/") {
        return (Operation::Table, None);
    }
    let segments: Vec<&str> = path.trim_start_matches("/api/now/connect/").split('/').collect();
    let post = method == Method::POST;
    let (operation, group) = match segments.as_slice() {
        ["support", "queues", _, "sessions"] => (if post { Operation::Start } else { Operation::Read }, None),
        ["support", "queues", ..] if !post => (Operation::Queue, None),
        ["support", "sessions"] => {
            let query = full_path.split_once('?').map_or("", |(_, query)| query);
            let group = query.split('&').find_map(|pair| pair.strip_prefix("group_id="));
            return (Operation::State, group.map(str::to_owned));
        }
        ["support", "sessions", group, "leave"] => (Operation::Leave, Some(*group)),
        ["support", "sessions", group, ..] => (Operation::Other, Some(*group)),
        ["conversations", group, "messages"] if post => (Operation::Message, Some(*group)),
        ["conversations", group, ..] => (Operation::Read, Some(*group)),
        _ => (Operation::Other, None),
    };
    (operation, group.map(str::to_owned))
}
