//! The sandbox's connections. Its own loop, because only here can a connection be closed without an answer.

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

use super::gate::Cut;
use super::world::World;

pub(super) async fn serve(listener: TcpListener, router: Router, world: Arc<World>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                world.crew.start(connection(stream, router));
            }
            // Out of descriptors: the next accept fails at once as well, so let some connections end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    // A failure here costs some milliseconds and nothing else.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| answer(router.clone(), request));
    // It ends with an error when the caller goes away or the answer is a cut; both are wanted.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(router: Router, request: hyper::Request<Incoming>) -> Result<Response, ConnectionCut> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    if response.extensions().get::<Cut>().is_some() { Err(ConnectionCut) } else { Ok(response) }
}

#[derive(Debug, thiserror::Error)]
#[error("the script cut this connection")]
struct ConnectionCut;
