//! The admin listener: metrics and health on a separate port, together with the admin console.
//!
//! Guarantees: metrics and health do not need the queue, so they answer while the queue is unreachable.
//! Not responsible for: the conditions of readiness (`app.rs`), the admin console (`console/`).

mod console;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;

pub use console::{AdminConsole, AdminRole, AdminToken, ConsoleFacts, ConsoleOpeners};

use crate::dead_letters::DeadLetterError;
use crate::http_server::problem::{self, ApiError};
use crate::http_server::request_id::request_id;
use crate::http_server::server;
use crate::queue::QueueError;
use crate::tasks::CancellationToken;
use crate::telemetry::Metrics;

/// The time limit for the head of a request.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of `/readyz`. The error is a sentence for the operator.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The data that the admin listener shows.
#[derive(Clone)]
pub struct AdminState {
    /// The metrics of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Whether the process is ready.
    pub ready: Readiness,
    /// The admin console, if there is a token for it.
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
    server::serve(listener, router(state), READ_TIMEOUT, None, stop).await
}

fn router(state: AdminState) -> Router {
    let console = console::router(&state);
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || problem::healthy(TEXT, "alive\n".to_owned())))
        .route("/readyz", get(readiness))
        .fallback(async || ApiError::UnknownRoute.into_response(&request_id(None)))
        .method_not_allowed_fallback(async || {
            ApiError::WrongMethod("GET, HEAD").into_response(&request_id(None))
        })
        .with_state(state)
        .merge(console)
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

impl From<DeadLetterError> for ApiError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Queue(QueueError::Busy(why)) => Self::Busy(why),
            // The answer does not contain the cause, so the log does.
            DeadLetterError::Queue(error) => {
                tracing::warn!(%error, "could not read the dead-letter queue");
                error.into()
            }
            DeadLetterError::Directory(error) => {
                tracing::warn!(%error, "could not reach the directory, which is needed to work on dead letters");
                Self::DirectoryAway
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::Body;
    use axum::http::header::CONTENT_TYPE;
    use axum::http::{Method, Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    struct Answer {
        status: u16,
        content_type: String,
        body: String,
    }

    async fn ask(router: &Router, method: Method, path: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let (status, content_type) = (response.status().as_u16(), response.headers()[CONTENT_TYPE].clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let content_type = content_type.to_str().unwrap().to_owned();
        Answer { status, content_type, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    #[tokio::test]
    async fn metrics_and_health_are_answered() {
        let ready = Arc::new(AtomicBool::new(false));
        let is_ready = Arc::clone(&ready);
        let router = router(AdminState {
            metrics: Arc::new(Metrics::new("embedded").unwrap()),
            ready: Arc::new(move || {
                if is_ready.load(Ordering::Relaxed) {
                    Ok(())
                } else {
                    Err("the queue is not connected".into())
                }
            }),
            console: None,
        });
        let get = async |path: &str| ask(&router, Method::GET, path).await;
        assert_eq!(get("/livez").await.status, 200);
        let answer = get("/readyz").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "the queue is not connected\n"));
        ready.store(true, Ordering::Relaxed);
        assert_eq!(get("/readyz").await.status, 200);
        let metrics = get("/metrics").await;
        assert!(metrics.content_type.starts_with("text/plain; version=0.0.4"));
        assert!(metrics.body.contains("causeway_build_info"));
        assert_eq!(get("/v1/callbacks/servicenow").await.status, 404);
        assert_eq!(ask(&router, Method::POST, "/metrics").await.status, 405);
    }
}
