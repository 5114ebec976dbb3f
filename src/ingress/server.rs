//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Guarantees: a client that does not send its head in time, or idles that long on a kept connection, is cut; the
//! number of connections is bounded; on stop nothing new is accepted and what is in the air gets its answer.
//! Leaves to others: bodies (`body.rs`), the end of patience with a drain (`tasks.rs`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::tasks::{self, Stop};

/// More clients than this wait in the backlog; a relay behind a handful of platforms never sees it.
const CONNECTIONS_MAX: usize = 4096;
/// How long to breathe when the system has no socket to give.
const BREATH: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    read_timeout: Duration,
    stop: Stop,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    // A caller may close its half after the request and still wait for the answer.
    http.timer(TokioTimer::new()).header_read_timeout(read_timeout).keep_alive(true).half_close(true);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    while let Some(stream) = next(&listener, &stop).await {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = stop.wait() => break,
        };
        let service = router.clone().map_request(|request: hyper::Request<_>| request.map(Body::new));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        drop(tasks::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        }));
    }
    // Refuse new connections at once, so that a balancer turns to another ingress.
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// The next connection; `None` once it is time to stop.
async fn next(listener: &TcpListener, stop: &Stop) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => return None,
        };
        match accepted {
            Ok((stream, _)) => {
                // Answers are small and awaited: they must not wait for more bytes.
                let _ = stream.set_nodelay(true);
                return Some(stream);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
