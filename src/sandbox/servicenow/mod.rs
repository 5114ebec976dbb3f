//! The simulated ServiceNow instance. [`connect`] is the Connect Support API, [`virtual_agent`] the Virtual Agent
//! API. Another API of the instance is another router merged here, with the same login, script and ledger.

pub(super) mod callback_sender;
pub(super) mod connect;
pub(super) mod conversation_messages;
pub(super) mod files;
pub(super) mod oauth;
pub(super) mod session;
pub(super) mod shapes;
pub(super) mod tables;
pub(super) mod virtual_agent;
pub(super) mod workspace;

use std::sync::Arc;

use axum::http::Uri;
use axum::middleware::from_fn_with_state;
use axum::{Router, response::Response};

use super::fault_gate::gate;
use super::state::SandboxState;

pub(super) fn router(world: &Arc<SandboxState>) -> Router<Arc<SandboxState>> {
    Router::new()
        .merge(connect::router())
        .merge(tables::router())
        .merge(files::router())
        .merge(virtual_agent::router())
        .fallback(unknown)
        .layer(from_fn_with_state(world.clone(), session::session_layer))
        // A token request has no login yet, so this route is outside the login check.
        .merge(oauth::router())
        .layer(from_fn_with_state(world.clone(), gate))
}

async fn unknown(uri: Uri) -> Response {
    shapes::no_such_resource(uri.path())
}
