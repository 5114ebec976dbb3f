//! The admin listener: metrics and health on a separate port, together with the admin console.
//!
//! Guarantees: metrics and health do not need the queue, so they answer while the queue is unreachable.
//! Not responsible for: the conditions of readiness (`app.rs`), the admin console (`console/`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;

use super::console::{self, AdminConsole};
use super::problem::{self, ApiError};
use super::server;
use crate::tasks::CancellationToken;
use crate::telemetry::Metrics;

/// The time limit for the head of a request.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The data that the admin listener shows.
#[derive(Clone)]
pub struct AdminState {
    /// The metrics of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The result of `/readyz`. The error is a sentence for the operator.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The admin console, if `admin.token` is set.
    pub console: Option<AdminConsole>,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Serves metrics, health and the admin console until `stop`.
pub async fn serve_admin(
    listener: TcpListener,
    state: AdminState,
    stop: CancellationToken,
) -> io::Result<()> {
    let console = console::router(state.console.clone());
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || problem::healthy(TEXT, "alive\n".to_owned())))
        .route("/readyz", get(readiness))
        .fallback(async || ApiError::UnknownRoute.into_response(&super::request_id(None)))
        .method_not_allowed_fallback(async || {
            ApiError::WrongMethod("GET, HEAD").into_response(&super::request_id(None))
        })
        .with_state(state)
        .merge(console);
    server::serve(listener, router, READ_TIMEOUT, stop).await
}

const TEXT: &str = "text/plain; charset=utf-8";

async fn metrics(State(state): State<AdminState>) -> Response {
    match state.metrics.render() {
        Ok(text) => problem::healthy("text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => problem::unhealthy(&format!("could not render the metrics: {error}")),
    }
}

async fn readiness(State(state): State<AdminState>) -> Response {
    match (state.ready)() {
        Ok(()) => problem::healthy(TEXT, "ready\n".to_owned()),
        Err(reason) => problem::unhealthy(&reason),
    }
}
