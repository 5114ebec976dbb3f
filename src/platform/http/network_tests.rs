//! Tests of the way to the outside with real sockets: proxies, certificates, answers with unusual heads, old connections.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::pool::{POOL_AGE_AFTER_FAILURE, POOL_AGE_MAX};
use super::*;
use crate::tls::TlsFault;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// A certificate authority with a folder for its files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate with its key.
struct Issued {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, folder: tempfile::tempdir().unwrap() }
    }

    fn issue(&self, host: &str, years: std::ops::Range<i32>) -> Issued {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.distinguished_name.push(DnType::CommonName, format!("made for {host}"));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn ca_file(&self) -> PathBuf {
        self.write("ca.pem", &self.issuer.pem())
    }
}

/// A server on loopback. It records the head of each request, with the number of its connection.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<(usize, String)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn plain(answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(None, answer).await
    }

    async fn tls(issued: Issued, client_ca: Option<&Authority>) -> Self {
        let key = PrivateKeyDer::try_from(issued.key.serialize_der()).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = rustls::ServerConfig::builder();
        let builder = match client_ca {
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).unwrap();
                builder
                    .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(issued.chain, key).unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), |_| OK.to_vec()).await
    }

    async fn start(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
        let (seen, answer) = (heads.clone(), Arc::new(answer));
        let task = crate::tasks::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, seen, answer) = (tls.clone(), seen.clone(), answer.clone());
                crate::tasks::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, connection, &seen, &*answer).await;
                            }
                        }
                        None => serve(stream, connection, &seen, &*answer).await,
                    }
                });
            }
        });
        Self { port, heads, task }
    }

    fn url(&self, scheme: &str) -> Url {
        Url::parse(&format!("{scheme}://localhost:{}/x", self.port)).unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().iter().map(|(_, head)| head.clone()).collect()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    seen: &Mutex<Vec<(usize, String)>>,
    answer: &(dyn Fn(usize) -> Vec<u8> + Send + Sync),
) {
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream).await {
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push((connection, head));
            seen.len() - 1
        };
        if stream.write_all(&answer(number)).await.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        stream.read_line(&mut head).await.ok().filter(|count| *count > 0)?;
        if head[before..].trim().is_empty() {
            return Some(head);
        }
    }
}

/// The URL of a server without TLS: it reads what comes first, answers and closes.
async fn without_tls(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    crate::tasks::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer).await;
    });
    url
}

/// A forward proxy with a password. It forwards every name to one port of loopback, so no name has to exist.
struct ForwardProxy {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ForwardProxy {
    async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = heads.clone();
        let task = crate::tasks::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                crate::tasks::spawn(forward(BufReader::new(stream), target, seen.clone()));
            }
        });
        Self { port, heads, task }
    }

    fn rules(&self, user: &str) -> NetworkSettings {
        let address = format!("http://{user}127.0.0.1:{}", self.port);
        let proxy = ProxyAddress::parse(&address, "http.proxy").unwrap();
        let except = HostPattern::parse("direct.invalid").unwrap();
        NetworkSettings { proxy: ProxyRules::all(proxy, vec![except]), ..NetworkSettings::default() }
    }
}

async fn forward(mut stream: BufReader<TcpStream>, target: u16, seen: Arc<Mutex<Vec<String>>>) {
    while let Some(head) = read_head(&mut stream).await {
        seen.lock().unwrap().push(head.clone());
        if !head.to_lowercase().contains("\r\nproxy-authorization: basic dtpw\r\n") {
            let refused = b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(refused).await.unwrap();
            continue;
        }
        let mut there = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
        if head.starts_with("CONNECT forbidden.invalid") {
            stream.write_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        }
        if head.starts_with("CONNECT") {
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
            return;
        }
        there.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; OK.len()];
        there.read_exact(&mut answer).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

fn client(network: NetworkSettings) -> HttpClient {
    let timeout = Duration::from_secs(5);
    HttpClient::new(&HttpSettings { timeout, user_agent: "causeway-test".into(), network }).unwrap()
}

fn trusting(files: &[&Path], client: Option<(PathBuf, PathBuf)>) -> NetworkSettings {
    let authorities = files.iter().map(|path| path.to_path_buf()).collect();
    NetworkSettings { tls: TlsFiles { authorities, client }, ..NetworkSettings::default() }
}

async fn get(client: &HttpClient, url: &str) -> Result<u16, NoAnswer> {
    let call = HttpCall {
        method: Method::GET,
        url: Url::parse(url).unwrap(),
        headers: HeaderMap::new(),
        body: None,
    };
    client.call(call).await.map(|reply| reply.status.as_u16())
}

#[tokio::test]
async fn every_call_goes_through_the_proxy_with_its_password() {
    let authority = Authority::new("Test CA");
    let plain = Server::plain(|_| OK.to_vec()).await;
    let secure = Server::tls(authority.issue("far.invalid", 2020..2090), None).await;
    let (proxy, tunnel) = (ForwardProxy::to(plain.port).await, ForwardProxy::to(secure.port).await);

    let http = client(proxy.rules("u:p@"));
    assert_eq!(get(&http, "http://far.invalid:81/path?a=b").await, Ok(200));
    let heads = proxy.heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("GET http://far.invalid:81/path?a=b HTTP/1.1\r\n"), "{heads:?}");

    let mut network = tunnel.rules("u:p@");
    network.tls.authorities = vec![authority.ca_file()];
    let https = client(network);
    assert_eq!(get(&https, "https://far.invalid/path").await, Ok(200));
    let heads = tunnel.heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("CONNECT far.invalid:443 HTTP/1.1\r\n"), "{heads:?}");
    // The platform does not see the credentials of the proxy.
    assert!(!secure.heads()[0].to_lowercase().contains("proxy"), "{:?}", secure.heads());

    // A name that is called directly is looked up here, and does not exist.
    let direct = get(&http, "http://direct.invalid/").await.unwrap_err();
    assert_eq!((direct.sent, direct.kind), (SentState::No, NoAnswerKind::Connect));
    assert_eq!(proxy.heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refusal_of_the_proxy_is_not_one_of_the_platform() {
    let plain = Server::plain(|_| OK.to_vec()).await;
    let proxy = ForwardProxy::to(plain.port).await;
    for user in ["", "u:wrong@"] {
        let http = client(proxy.rules(user));
        for url in ["http://far.invalid/", "https://far.invalid/"] {
            let refused = get(&http, url).await.unwrap_err();
            assert_eq!((refused.sent, refused.kind), (SentState::No, NoAnswerKind::Proxy), "{url}");
            assert!(refused.detail.contains("407"), "{refused}");
        }
    }
    let refused = get(&client(proxy.rules("u:p@")), "https://forbidden.invalid/").await.unwrap_err();
    assert_eq!((refused.sent, refused.kind), (SentState::No, NoAnswerKind::Proxy));
    assert_eq!(plain.heads(), Vec::<String>::new());

    let network = proxy.rules("u:p@");
    drop(proxy);
    tokio::task::yield_now().await;
    let gone = peer_is_gone(&network).await;
    assert_eq!((gone.sent, gone.kind), (SentState::No, NoAnswerKind::Proxy));
}

/// The task of a dropped server ends soon, not at once.
async fn peer_is_gone(network: &NetworkSettings) -> NoAnswer {
    loop {
        match get(&client(network.clone()), "http://far.invalid/").await {
            Err(error) if error.detail.contains("refused (os error") => return error,
            _ => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn an_authority_of_the_settings_is_trusted_and_no_other() {
    let (ours, other) = (Authority::new("Corporate CA"), Authority::new("Other CA"));
    let server = Server::tls(ours.issue("localhost", 2020..2090), None).await;
    let url = server.url("https");
    assert_eq!(get(&client(trusting(&[&ours.ca_file()], None)), url.as_str()).await, Ok(200));
    for files in [vec![], vec![other.ca_file()]] {
        let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
        let error = get(&client(trusting(&files, None)), url.as_str()).await.unwrap_err();
        assert_eq!((error.sent, error.kind), (SentState::No, NoAnswerKind::Tls(TlsFault::UnknownIssuer)));
        let words = error.to_string();
        assert!(words.contains("made for localhost") && words.contains("Corporate CA"), "{words}");
    }
}

#[tokio::test]
async fn a_failure_of_tls_has_its_reason() {
    let authority = Authority::new("Corporate CA");
    let ca = authority.ca_file();
    let http = client(trusting(&[&ca], None));
    let expired = Server::tls(authority.issue("localhost", 2001..2002), None).await;
    let early = Server::tls(authority.issue("localhost", 2089..2090), None).await;
    let renamed = Server::tls(authority.issue("other.example", 2020..2090), None).await;
    let strict = Server::tls(authority.issue("localhost", 2020..2090), Some(&authority)).await;
    let plain = without_tls(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let closing = without_tls(b"").await;
    let url = |server: &Server, scheme: &str| server.url(scheme).to_string();
    for (url, kind, words) in [
        (
            url(&expired, "https"),
            NoAnswerKind::Tls(TlsFault::Expired),
            "localhost) has expired on 2002-01-01",
        ),
        (url(&early, "https"), NoAnswerKind::Tls(TlsFault::NotYetValid), "not valid before 2089-01-01"),
        (
            url(&renamed, "https"),
            NoAnswerKind::Tls(TlsFault::WrongName),
            "for other.example, not for localhost",
        ),
        (url(&strict, "https"), NoAnswerKind::Tls(TlsFault::ClientCertificate), "refused or missing"),
        (plain, NoAnswerKind::Tls(TlsFault::NotTls), "not TLS"),
        (closing, NoAnswerKind::Tls(TlsFault::Other), "closed the connection"),
        (url(&renamed, "http"), NoAnswerKind::NotHttp, "not HTTP"),
    ] {
        let error = get(&http, &url).await.unwrap_err();
        assert!(error.kind == kind && error.to_string().contains(words), "{kind:?}: {error:?} {error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_it() {
    let authority = Authority::new("Corporate CA");
    let strict = Server::tls(authority.issue("localhost", 2020..2090), Some(&authority)).await;
    let own = authority.issue("causeway", 2020..2090);
    let certificate = authority.write("client.pem", &own.pem);
    let key = authority.write("client.key", &own.key.serialize_pem());
    let both = authority.write("both.pem", &format!("{}{}", own.pem, own.key.serialize_pem()));
    let files = TlsFiles { authorities: vec![], client: Some((certificate.clone(), key.clone())) };
    let expiry = files.client_expiry().unwrap();
    assert_eq!((expiry.subject.as_str(), expiry.day().as_str()), ("CN=made for causeway", "2090-01-01"));
    for pair in [(certificate, key), (both.clone(), both)] {
        let http = client(trusting(&[&authority.ca_file()], Some(pair)));
        assert_eq!(get(&http, strict.url("https").as_str()).await, Ok(200));
    }
}

#[test]
fn a_file_that_cannot_be_used_says_why() {
    let authority = Authority::new("Corporate CA");
    let (own, old) = (authority.issue("causeway", 2020..2090), authority.issue("causeway", 2001..2002));
    let file = |name: &str, text: &str| authority.write(name, text);
    let (good, key) = (file("good.pem", &own.pem), file("good.key", &own.key.serialize_pem()));
    let (expired, foreign) = (file("old.pem", &old.pem), file("old.key", &old.key.serialize_pem()));
    let locked = file(
        "locked.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let damaged = file("damaged.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let der = authority.folder.path().join("ca.der");
    std::fs::write(&der, authority.issuer.der()).unwrap();
    let files = |authorities: Vec<PathBuf>, client| TlsFiles { authorities, client }.check();
    let ca = |path: &PathBuf| files(vec![path.clone()], None);
    let client =
        |certificate: &PathBuf, key: &PathBuf| files(vec![], Some((certificate.clone(), key.clone())));
    assert_eq!(files(vec![authority.ca_file()], Some((good.clone(), key.clone()))), []);
    for (found, says) in [
        (ca(&expired), "every certificate has expired, the last one on 2002-01-01"),
        (ca(&key), "contains no certificate"),
        (ca(&damaged), "certificate 1 is unreadable"),
        (ca(&der), "convert it with openssl"),
        (ca(&PathBuf::from("/nowhere/ca.pem")), "cannot read /nowhere/ca.pem: No such file"),
        (client(&expired, &foreign), "has expired on 2002-01-01"),
        (client(&good, &foreign), "does not belong"),
        (client(&good, &good), "no private key"),
        (client(&good, &locked), "is encrypted"),
    ] {
        assert!(found.len() == 1 && found[0].to_string().contains(says), "{says}: {found:?}");
    }
    // An authority that has been replaced may stay in the file.
    assert_eq!(ca(&file("both.pem", &format!("{}{}", old.pem, authority.issuer.pem()))), []);
}

#[tokio::test]
async fn the_head_of_an_answer_may_be_long_or_odd() {
    let many: String = (0..900).map(|n| format!("x-h{n}: v\r\n")).collect();
    let odd = [b"x-m\xe9: \xff\r\nno colon\r\nspace before : v\r\n: no name\r\n".to_vec(), many.into_bytes()];
    let server = Server::plain(move |number| {
        [b"HTTP/1.1 200 OK\r\n".to_vec(), odd[number % 2].clone(), b"content-length: 2\r\n\r\n{}".to_vec()]
            .concat()
    })
    .await;
    let http = client(NetworkSettings::default());
    for _ in 0..4 {
        assert_eq!(get(&http, server.url("http").as_str()).await, Ok(200));
    }
}

/// The number of the connection of each request.
async fn connections(answer: &'static [u8], pause: Duration, requests: usize) -> Vec<usize> {
    let server = Server::plain(move |_| answer.to_vec()).await;
    let http = client(NetworkSettings::default());
    for _ in 0..requests {
        let _ = get(&http, server.url("http").as_str()).await;
        tokio::time::pause();
        tokio::time::advance(pause).await;
        tokio::time::resume();
    }
    server.heads.lock().unwrap().iter().map(|(connection, _)| *connection).collect()
}

#[tokio::test]
async fn a_connection_is_left_although_it_is_always_in_use() {
    // The connection of a busy destination would never be idle.
    let ok = connections(OK, POOL_AGE_MAX / 4, 9).await;
    assert_eq!(ok, [0, 0, 0, 0, 1, 1, 1, 1, 2]);
    let away = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let failed = connections(away, POOL_AGE_AFTER_FAILURE / 2, 5).await;
    assert_eq!(failed, [0, 0, 1, 1, 2]);
}
