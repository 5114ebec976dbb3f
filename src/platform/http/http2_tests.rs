//! Tests of HTTP/2 over TLS, as a platform offers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use h2::server::{Connection, SendResponse};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;

type Tls = TlsStream<TcpStream>;

/// The reaction of the first connection to its first request. All later requests and connections are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Answered,
    /// The request is refused unread.
    Refused,
    /// The connection breaks.
    Cut,
    /// The connection stays open, but nothing is read or written any more.
    BlackHole,
    /// The request is answered, and the connection closes gracefully.
    Last,
}

struct Platform {
    url: Url,
    client: HttpClient,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Platform {
    async fn start(first: First) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = crate::tasks::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let first = if count.fetch_add(1, Ordering::SeqCst) == 0 { first } else { First::Answered };
                let acceptor = acceptor.clone();
                crate::tasks::spawn(async move {
                    let tls = acceptor.accept(stream).await.unwrap();
                    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                    serve(h2::server::handshake(tls).await.unwrap(), first).await;
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, own.cert.pem()).unwrap();
        let tls = TlsFiles { authorities: vec![ca_file], client: None };
        let network = NetworkSettings { tls, ..NetworkSettings::default() };
        let timeout = Duration::from_secs(600);
        let client =
            HttpClient::new(&HttpSettings { timeout, user_agent: "causeway-test".into(), network }).unwrap();
        Self { url, client, connections, task }
    }

    async fn call(&self) -> Result<StatusCode, NoAnswer> {
        let call = HttpCall {
            method: Method::POST,
            url: self.url.clone(),
            headers: HeaderMap::new(),
            body: Some("{}".into()),
        };
        self.client.call(call).await.map(|reply| reply.status)
    }
}

async fn serve(mut connection: Connection<Tls, Bytes>, first: First) {
    let mut what = first;
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        match std::mem::replace(&mut what, First::Answered) {
            First::Answered => answer(respond),
            First::Refused => respond.send_reset(h2::Reason::REFUSED_STREAM),
            First::Cut => return,
            First::BlackHole => return std::future::pending().await,
            First::Last => {
                answer(respond);
                connection.graceful_shutdown();
            }
        }
    }
}

fn answer(mut respond: SendResponse<Bytes>) {
    let _ = respond.send_response(axum::http::Response::new(()), true);
}

#[tokio::test]
async fn it_is_used_where_it_is_offered_and_one_connection_does() {
    let platform = Platform::start(First::Answered).await;
    assert_eq!(platform.call().await, Ok(StatusCode::OK));
    for answered in join_all((0..40).map(|_| platform.call())).await {
        assert_eq!(answered, Ok(StatusCode::OK));
    }
    assert_eq!(platform.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_refused_unread_was_not_processed() {
    let platform = Platform::start(First::Refused).await;
    let refused = platform.call().await.expect_err("the first is refused");
    assert_eq!((refused.sent, refused.kind), (SentState::No, NoAnswerKind::Reset));
    assert_eq!(platform.call().await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn a_connection_that_breaks_may_have_been_heard() {
    let platform = Platform::start(First::Cut).await;
    let cut = platform.call().await.expect_err("the first is cut");
    assert_eq!((cut.sent, cut.kind), (SentState::Maybe, NoAnswerKind::Reset));
    assert_eq!(platform.call().await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn a_silent_connection_is_given_up_before_the_next_request_goes_into_it() {
    let platform = Platform::start(First::BlackHole).await;
    // The call's own timeout is ten minutes.
    let lost = tokio::time::timeout(Duration::from_secs(60), platform.call()).await.expect("found by a ping");
    assert_eq!(lost.map_err(|lost| lost.sent), Err(SentState::Maybe));
    assert_eq!(platform.call().await, Ok(StatusCode::OK));
    assert_eq!(platform.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_worker_that_stops_in_order_delays_no_other() {
    let platform = Platform::start(First::Last).await;
    for _ in 0..20 {
        assert_eq!(platform.call().await, Ok(StatusCode::OK));
    }
    assert_eq!(platform.connections.load(Ordering::SeqCst), 2);
}
