//! A forward proxy with a password, as the only way out of a company's network.
//!
//! It forwards every name to one address of loopback, so that a test can use names that do not exist. It closes each
//! connection after one request of the absolute form, and keeps CONNECT tunnels open.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The proxy. It runs until the runtime of the test ends.
#[derive(Debug)]
pub(crate) struct ForwardProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

const USER: &str = "causeway";
/// A password with characters that a URL must encode.
pub(crate) const PASSWORD: &str = "pr0xy:P@ss/w";
const ENCODED: &str = "pr0xy%3AP%40ss%2Fw";

impl ForwardProxy {
    /// Starts a proxy that forwards everything to `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address for the proxy");
        let address = listener.local_addr().expect("the listener is bound");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = seen.clone();
        super::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                super::spawn(forward(BufReader::new(stream), target, log.clone()));
            }
        });
        Self { address, seen }
    }

    /// The URL with user and password.
    pub(crate) fn url(&self) -> String {
        format!("http://{USER}:{ENCODED}@{}", self.address)
    }

    /// The URL without a password.
    pub(crate) fn bare_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The method and the target of each request that had the password.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn forward(mut stream: BufReader<TcpStream>, target: SocketAddr, seen: Arc<Mutex<Vec<String>>>) {
    let Some(head) = read_head(&mut stream).await else { return };
    let credentials = format!("proxy-authorization: basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    if !head.iter().any(|line| line.trim().eq_ignore_ascii_case(&credentials)) {
        let refused =
            b"HTTP/1.1 407 Proxy Authentication Required\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let _ = stream.write_all(refused).await;
        return;
    }
    let mut words = head[0].split_whitespace();
    let (method, uri) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {uri}"));
    let Ok(mut there) = TcpStream::connect(target).await else { return };
    if method == "CONNECT" {
        let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    } else {
        let path = url::Url::parse(uri).expect("the absolute form");
        let path = path[url::Position::BeforePath..].to_owned();
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        for line in &head[1..] {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            if !matches!(name.as_str(), "proxy-authorization" | "connection" | "proxy-connection") {
                request.push_str(line);
            }
        }
        if there.write_all(request.as_bytes()).await.is_err() {
            return;
        }
    }
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
}

/// The lines of a head, the last one empty.
async fn read_head(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
        let is_end = line.trim().is_empty();
        lines.push(line);
        if is_end {
            return Some(lines);
        }
    }
}
