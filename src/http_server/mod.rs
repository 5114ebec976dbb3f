//! The HTTP server that the public listener, the admin listener and the file links share: connections, bodies, refusals,
//! credentials.
//!
//! Guarantees: each listener has the same limits and the same format of a refusal. Strangers cannot use up the memory or
//! the connections of the process.
//! Not responsible for: routes (`ingress/`, `admin/`, `files/`), outgoing calls (`platform/http.rs`).

pub(crate) mod body;
pub(crate) mod connection_slots;
pub(crate) mod credentials;
pub(crate) mod problem;
pub(crate) mod read_budget;
pub(crate) mod refusal_log;
pub(crate) mod request_id;
pub(crate) mod secrets;
pub(crate) mod server;

use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use tokio::net::TcpListener;

use problem::ApiError;
pub use read_budget::ReadBudget;
use request_id::request_id;
pub use secrets::AcceptedSecrets;

use crate::tasks::CancellationToken;
use crate::tls::ServerTls;

/// Serves `routes` on a listener of their own until `stop`. Every other address is answered as on the public listener.
pub async fn serve_routes(
    listener: TcpListener,
    routes: Router,
    read_timeout: Duration,
    tls: Option<ServerTls>,
    stop: CancellationToken,
) -> io::Result<()> {
    let unknown = async |request: Request| {
        let id = request_id(Some(request.headers()));
        let mut response = ApiError::UnknownRoute.into_response(&id);
        request_id::add_to(response.headers_mut(), &id);
        response
    };
    server::serve(listener, routes.fallback(unknown), read_timeout, tls, stop).await
}
