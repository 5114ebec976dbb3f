//! Small remote sides for the unit tests of the clients, with real sockets on loopback.

use std::sync::{Arc, Mutex};

use axum::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::http::{HttpClient, HttpSettings, NetworkSettings};

/// A remote side that runs until it is dropped.
pub(super) struct Peer {
    pub(super) url: Url,
    /// The raw requests that a scripted peer has read.
    pub(super) heard: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listener() -> (TcpListener, Url) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    (listener, url)
}

/// An address without a listener.
pub(super) async fn nobody() -> Url {
    listener().await.1
}

/// A client with the usual settings.
pub(super) fn http() -> HttpClient {
    let timeout = std::time::Duration::from_secs(5);
    let network = NetworkSettings::default();
    HttpClient::new(&HttpSettings { timeout, user_agent: "causeway-test".into(), network }).unwrap()
}

impl Peer {
    /// A small server.
    pub(super) async fn serving(router: Router) -> Self {
        let (listener, url) = listener().await;
        let task = crate::tasks::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, heard: Arc::default(), task }
    }

    /// Answers every request with this text and closes. Head lines end with `\n`.
    pub(super) async fn saying(answer: impl Into<String>) -> Self {
        Self::scripted(Some(vec![wire(&answer.into())])).await
    }

    /// Answers with one text after the other, and repeats the last one.
    pub(super) async fn saying_each(answers: &[&str]) -> Self {
        Self::scripted(Some(answers.iter().map(|answer| wire(answer)).collect())).await
    }

    /// Reads the request and closes the connection.
    pub(super) async fn cutting() -> Self {
        Self::scripted(Some(vec![Vec::new()])).await
    }

    /// Reads the request and never answers.
    pub(super) async fn silent() -> Self {
        Self::scripted(None).await
    }

    async fn scripted(answers: Option<Vec<Vec<u8>>>) -> Self {
        let (listener, url) = listener().await;
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = heard.clone();
        let task = crate::tasks::spawn(async move {
            let mut held = Vec::new();
            let mut turn = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let Some(request) = read_request(&mut stream).await else { continue };
                log.lock().unwrap().push(request);
                match &answers {
                    Some(answers) => {
                        let answer = &answers[turn.min(answers.len() - 1)];
                        turn += 1;
                        let _ = stream.write_all(answer).await;
                    }
                    None => held.push(stream),
                }
            }
        });
        Self { url, heard, task }
    }
}

/// The raw text of an answer as it goes over the wire.
fn wire(answer: &str) -> Vec<u8> {
    let (head, body) = answer.split_once("\n\n").unwrap_or((answer, ""));
    let mut head = head.replace('\n', "\r\n");
    if !head.to_ascii_lowercase().contains("content-length") {
        head.push_str(&format!("\r\ncontent-length: {}", body.len()));
    }
    format!("{head}\r\n\r\n{body}").into_bytes()
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").map(|value| value.trim().parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}
