//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Guarantees: a connection is closed if its head does not arrive in time, or if the connection is idle as long. The
//! size of a head is bounded. The number of connections is bounded, and strangers cannot block proven connections
//! (`slots.rs`). A request that is refused because of its head closes its connection after the answer. On stop no
//! new connection is accepted, and requests in progress are answered.
//! Not responsible for: bodies (`body.rs`), the time limit of the shutdown (`tasks.rs`).

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::connection_slots::{ConnectionSlot, ConnectionSlots};
use crate::tasks::{self, CancellationToken};

/// The largest head of a request in bytes. Each connection may hold one.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The pause after a failed accept, for example if the system has no free socket.
const BREATH: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    read_timeout: Duration,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    // A caller may close its sending half after the request and still wait for the answer.
    http.timer(TokioTimer::new()).header_read_timeout(read_timeout).keep_alive(true).half_close(true);
    http.max_buf_size(HEAD_BYTES_MAX);
    let slots = Arc::new(ConnectionSlots::default());
    let graceful = GracefulShutdown::new();
    while let Some((stream, address)) = next(&listener, &slots, &stop).await {
        let Some(slot) = slots.take(address) else {
            tracing::debug!(from = %address, "connection refused: all places are taken");
            continue;
        };
        let (slot, router) = (Arc::new(slot), router.clone());
        let held = Arc::clone(&slot);
        let service = service_fn(move |request| answer(router.clone(), Arc::clone(&slot), request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        drop(tasks::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                },
                () = held.lost() => tracing::debug!(from = %held.address(), "idle connection closed to make room"),
            }
        }));
    }
    // New connections are refused at once, so that a load balancer uses another ingress.
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// The remote address of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

async fn answer(
    router: Router,
    slot: Arc<ConnectionSlot>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    slot.answering();
    request.extensions_mut().insert(PeerAddress(slot.address()));
    let mut response = router.oneshot(request.map(Body::new)).await?;
    let is_proven = slot.answered(response.status().is_success());
    let is_stranger = match response.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => !is_proven,
        _ => false,
    };
    if is_stranger {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Accepts the next connection. `None` when `stop` is requested.
async fn next(
    listener: &TcpListener,
    slots: &ConnectionSlots,
    stop: &CancellationToken,
) -> Option<(TcpStream, IpAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return None,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Answers are small and urgent, so they must not wait for more bytes.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer.ip().to_canonical()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                slots.make_room();
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
