//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Guarantees: a connection is closed if its head does not arrive in time, or if the connection is idle as long. The
//! size of a head is bounded. The number of connections is bounded, and strangers cannot block proven connections
//! (`slots.rs`). With TLS a handshake takes the place of a connection and ends in time, so that
//! slow handshakes delay no other connection. A request that is refused because of its head closes its connection after
//! the answer. On stop no new connection is accepted, and requests in progress are answered.
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
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::connection_slots::{ConnectionSlot, ConnectionSlots};
use crate::tasks::{self, CancellationToken};
use crate::tls::ServerTls;

/// The largest head of a request in bytes. Each connection may hold one.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The pause after a failed accept, for example if the system has no free socket.
const BREATH: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    read_timeout: Duration,
    tls: Option<ServerTls>,
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
        let slot = Arc::new(slot);
        let connection = ServedConnection {
            http: http.clone(),
            router: router.clone(),
            slot: Arc::clone(&slot),
            watcher: graceful.watcher(),
        };
        match tls.clone() {
            None => drop(tasks::spawn(connection.serve(stream, None))),
            Some(tls) => {
                let stop = stop.clone();
                drop(tasks::spawn(async move {
                    let shaken = tokio::select! {
                        shaken = handshake(stream, &tls, read_timeout) => shaken,
                        () = slot.lost() => None,
                        () = stop.cancelled() => None,
                    };
                    let Some(stream) = shaken else { return };
                    let certificate = stream.get_ref().1.peer_certificates().map(|_| ClientCertificate);
                    Box::pin(connection.serve(stream, certificate)).await;
                }));
            }
        }
    }
    // New connections are refused at once, so that a load balancer uses another ingress.
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// A connection that has a place.
struct ServedConnection {
    http: http1::Builder,
    router: Router,
    slot: Arc<ConnectionSlot>,
    watcher: Watcher,
}

impl ServedConnection {
    async fn serve<S>(self, stream: S, certificate: Option<ClientCertificate>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { http, router, slot, watcher } = self;
        let held = Arc::clone(&slot);
        let service =
            service_fn(move |request| answer(router.clone(), Arc::clone(&slot), certificate, request));
        let connection = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            },
            () = held.lost() => tracing::debug!(from = %held.address(), "idle connection closed to make room"),
        }
    }
}

/// Marks a request on a connection whose client has proven itself with a certificate of `ingress.tls.client_ca_file`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientCertificate;

/// The first byte of a TLS connection: a record of the type handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// The answer to a request without TLS.
const NEEDS_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/problem+json\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"This port speaks TLS: use https://\",\"status\":400}\n";

/// Shakes hands within `time`. `None` if the client does not speak TLS or is refused.
async fn handshake(stream: TcpStream, tls: &ServerTls, time: Duration) -> Option<TlsStream<TcpStream>> {
    let shake = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(None);
        }
        if first != [TLS_HANDSHAKE] {
            let mut stream = stream;
            stream.write_all(NEEDS_TLS).await?;
            // Unread bytes would reset the connection before the client reads the answer.
            let mut rest = [0; 4096];
            let _ = stream.read(&mut rest).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
        tls.acceptor().accept(stream).await.map(Some)
    };
    match tokio::time::timeout(time, shake).await {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(error)) => {
            tls.note_failure(&error);
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake took too long");
            None
        }
    }
}

/// The remote address of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

async fn answer(
    router: Router,
    slot: Arc<ConnectionSlot>,
    certificate: Option<ClientCertificate>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    slot.answering();
    request.extensions_mut().insert(PeerAddress(slot.address()));
    if let Some(certificate) = certificate {
        request.extensions_mut().insert(certificate);
    }
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
