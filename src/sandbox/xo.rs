//! The simulated XO: the Callback URL of its built-in integration, and the receiver of the events of API
//! conversations. `botkit/` contains XO's BotKit API, with the same script and ledger.
//!
//! The real answers of XO's Callback URL are not published. The sandbox answers 200 with a small JSON object.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::fault_gate::{CallEffect, gate, plain_failure};
use super::fault_rules::Side;
use super::state::SandboxState;

pub(super) fn router(world: &Arc<SandboxState>) -> Router<Arc<SandboxState>> {
    Router::new()
        .route("/xo/callback", post(callback))
        .route("/xo/events", post(event))
        .route("/xo/{*unknown}", any(async || plain_failure(Side::Xo, StatusCode::NOT_FOUND)))
        .layer(from_fn_with_state(world.clone(), gate))
}

async fn callback(headers: HeaderMap, body: Bytes) -> Response {
    taken(Side::Xo, &headers, &body, |object| name(object, "group"))
}

async fn event(State(world): State<Arc<SandboxState>>, headers: HeaderMap, body: Bytes) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let right =
        world.settings.events_token.as_ref().is_none_or(|token| {
            given.and_then(|given| given.strip_prefix("Bearer ")) == Some(token.as_str())
        });
    if !right {
        return plain_failure(Side::Events, StatusCode::UNAUTHORIZED);
    }
    taken(Side::Events, &headers, &body, |object| {
        name(object, "conversation_id").or_else(|| name(object, "group"))
    })
}

/// Accepts any JSON object whose content type is JSON.
fn taken(
    side: Side,
    headers: &HeaderMap,
    body: &[u8],
    conversation: impl Fn(&Value) -> Option<String>,
) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return plain_failure(side, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(object) if object.is_object() => {
            let response = Json(json!({ "status": "success" })).into_response();
            CallEffect::on(response, &conversation(&object).unwrap_or_default(), None)
        }
        _ => plain_failure(side, StatusCode::BAD_REQUEST),
    }
}

fn name(object: &Value, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned)
}
