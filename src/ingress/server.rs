//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Guarantees: a client that does not send its head in time, or idles that long on a kept connection, is cut; a head has a bound;
//! the number of connections is bounded, and strangers cannot keep out who has proven itself (`places.rs`); who is refused for
//! what the head says is cut after the answer; on stop nothing new is accepted and what is in the air gets its answer.
//! Leaves to others: bodies (`body.rs`), the end of patience with a drain (`tasks.rs`).

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

use super::places::{Place, Places};
use crate::tasks::{self, Stop};

/// The largest head of a request. Each connection may hold as much.
const HEAD_BYTES_MAX: usize = 32 << 10;
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
    http.max_buf_size(HEAD_BYTES_MAX);
    let places = Arc::new(Places::default());
    let graceful = GracefulShutdown::new();
    while let Some((stream, address)) = next(&listener, &places, &stop).await {
        let Some(place) = places.take(address) else {
            tracing::debug!(from = %address, "no place for a connection");
            continue;
        };
        let (place, router) = (Arc::new(place), router.clone());
        let held = Arc::clone(&place);
        let service = service_fn(move |request| answer(router.clone(), Arc::clone(&place), request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        drop(tasks::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                },
                () = held.lost() => tracing::debug!(from = %held.address(), "an idle connection made room"),
            }
        }));
    }
    // Refuse new connections at once, so that a balancer turns to another ingress.
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// From where a request came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

async fn answer(
    router: Router,
    place: Arc<Place>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    place.answering();
    request.extensions_mut().insert(Peer(place.address()));
    let mut response = router.oneshot(request.map(Body::new)).await?;
    let is_proven = place.answered(response.status().is_success());
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

/// The next connection; `None` once it is time to stop.
async fn next(listener: &TcpListener, places: &Places, stop: &Stop) -> Option<(TcpStream, IpAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => return None,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Answers are small and awaited: they must not wait for more bytes.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer.ip().to_canonical()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                places.make_room();
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
