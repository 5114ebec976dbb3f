//! The admin listener: metrics and health, on a port of their own.
//!
//! Guarantees: nothing here needs the queue to answer, so that it answers while the queue is away.
//! Leaves to others: what ready means (`app.rs`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;

use super::problem::{self, Refusal};
use super::server;
use crate::tasks::Stop;
use crate::telemetry::Metrics;

/// How long the head of a request may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What the admin listener tells.
#[derive(Clone)]
pub struct AdminState {
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` says; the error is a sentence for the operator.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Serves metrics and health until `stop`.
pub async fn serve_admin(listener: TcpListener, state: AdminState, stop: Stop) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || problem::healthy(TEXT, "alive\n".to_owned())))
        .route("/readyz", get(readiness))
        .fallback(async || Refusal::UnknownRoute.into_response(&super::request_id(None)))
        .method_not_allowed_fallback(async || {
            Refusal::WrongMethod("GET, HEAD").into_response(&super::request_id(None))
        })
        .with_state(state);
    server::serve(listener, router, READ_TIMEOUT, stop).await
}

const TEXT: &str = "text/plain; charset=utf-8";

async fn metrics(State(state): State<AdminState>) -> Response {
    match state.metrics.render() {
        Ok(text) => problem::healthy("text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => problem::unhealthy(&format!("the metrics cannot be rendered: {error}")),
    }
}

async fn readiness(State(state): State<AdminState>) -> Response {
    match (state.ready)() {
        Ok(()) => problem::healthy(TEXT, "ready\n".to_owned()),
        Err(reason) => problem::unhealthy(&reason),
    }
}
