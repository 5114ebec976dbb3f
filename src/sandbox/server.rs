//! The sandbox's connections. The sandbox has its own accept loop, because it must be able to close a connection
//! without an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::fault_gate::CutConnection;
use super::state::SandboxState;

pub(super) async fn serve(listener: TcpListener, router: Router, world: Arc<SandboxState>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                world.task_group.start(connection(stream, router));
            }
            // Without free file descriptors the next accept fails at once, too. The pause lets some connections end
            // first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    // Without `TCP_NODELAY` an answer only takes some milliseconds longer.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| answer(router.clone(), request));
    // An error means that the caller went away or that a rule cut the connection. Both are expected.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(router: Router, request: hyper::Request<Incoming>) -> Result<Response, ConnectionCut> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    if response.extensions().get::<CutConnection>().is_some() { Err(ConnectionCut) } else { Ok(response) }
}

#[derive(Debug, thiserror::Error)]
#[error("a rule of the script cut this connection")]
struct ConnectionCut;
