//! Tests of OAuth tokens against small remote sides: the grant, the number of requests, and the error of each
//! failure.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::http::header::AUTHORIZATION;
use axum::routing::{get, post};
use tokio::sync::watch;

use super::super::{ServiceNow, ServiceNowLogin, ServiceNowSettings};
use super::*;
use crate::platform::peer::{self, Peer};

const SECRETS: [&str; 4] = ["hush-client", "hush-refresh", "hush-rotated", "hush-access"];

fn client(url: &Url, refresh_token: Option<&str>) -> ServiceNow {
    let login = ServiceNowLogin::OAuth {
        username: Some("chatbot_interface".into()),
        client_id: "id & more".into(),
        client_secret: SECRETS[0].into(),
        refresh_token: refresh_token.map(Into::into),
    };
    ServiceNow::new(peer::http(), ServiceNowSettings { host_url: url.clone(), login, queue_id: None })
}

type Asked = Vec<std::collections::BTreeMap<String, String>>;

/// A store in memory, as two processes share it.
#[derive(Default)]
struct MemoryStore(watch::Sender<Option<String>>);

impl RefreshTokenStore for MemoryStore {
    fn newest(&self) -> BoxFuture<'_, Option<SecretString>> {
        let newest = self.0.borrow().clone().map(SecretString::from);
        Box::pin(async { newest })
    }

    fn other_than<'a>(&'a self, refused: &'a SecretString) -> BoxFuture<'a, Option<SecretString>> {
        Box::pin(async {
            let mut kept = self.0.subscribe();
            let is_other =
                |token: &Option<String>| token.as_ref().is_some_and(|it| it != refused.expose_secret());
            let other = tokio::time::timeout(Duration::from_secs(1), kept.wait_for(is_other)).await;
            other.ok()?.ok()?.clone().map(SecretString::from)
        })
    }

    fn keep(&self, token: SecretString) -> BoxFuture<'_, bool> {
        self.0.send_replace(Some(token.expose_secret().to_owned()));
        Box::pin(async { true })
    }
}

/// An instance that replaces the refresh token at each use and refuses the old ones.
async fn rotating_instance() -> (Peer, Arc<StdMutex<Vec<bool>>>) {
    let granted = Arc::<StdMutex<Vec<bool>>>::default();
    let (log, current) = (granted.clone(), StdMutex::new((SECRETS[1].to_owned(), 0)));
    let current = Arc::new(current);
    let token = post(async move |body: String| {
        let form: std::collections::BTreeMap<String, String> =
            url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        let mut current = current.lock().unwrap();
        let fits = form["refresh_token"] == current.0;
        log.lock().unwrap().push(fits);
        let json = [("content-type", "application/json")];
        if !fits {
            return (StatusCode::BAD_REQUEST, json, r#"{"error":"invalid_grant"}"#.to_owned());
        }
        current.1 += 1;
        current.0 = format!("hush-rotated-{}", current.1);
        let body =
            format!(r#"{{"access_token":"hush-access","refresh_token":"{}","expires_in":1800}}"#, current.0);
        (StatusCode::OK, json, body)
    });
    let queues = get(async || ([("content-type", "application/json")], r#"{"result":[]}"#));
    let router =
        Router::new().route("/oauth_token.do", token).route("/api/now/connect/support/queues", queues);
    (Peer::serving(router).await, granted)
}

#[tokio::test]
async fn processes_share_the_newest_refresh_token() {
    let (peer, granted) = rotating_instance().await;
    let store = Arc::new(MemoryStore::default());
    let process = || client(&peer.url, Some(SECRETS[1])).keeping_tokens_in(store.clone());
    // At once: one of them is refused, takes the token of the other one, and asks once more.
    let (one, other) = (process(), process());
    let (first, second) = tokio::join!(one.queues(), other.queues());
    first.unwrap();
    second.unwrap();
    // After a restart the configured token is old, and the kept one is used.
    let before = granted.lock().unwrap().len();
    process().queues().await.unwrap();
    let granted = granted.lock().unwrap();
    assert_eq!((granted.len(), granted[before]), (before + 1, true), "{granted:?}");
}

/// An instance that accepts only the newest token that it issued. `life` is its `expires_in`.
struct Instance {
    peer: Peer,
    asked: Arc<StdMutex<Asked>>,
    /// Tokens up to this number are refused.
    revoked: Arc<AtomicUsize>,
}

async fn instance(life: &'static str) -> Instance {
    let (asked, revoked) = (Arc::<StdMutex<Asked>>::default(), Arc::<AtomicUsize>::default());
    let (log, bar) = (asked.clone(), revoked.clone());
    let token = post(async move |body: String| {
        let form = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        let number = {
            let mut log = log.lock().unwrap();
            log.push(form);
            log.len()
        };
        // Long enough for all other calls to start waiting.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let json = format!(
            r#"{{"access_token":"hush-access-{number}","refresh_token":"hush-rotated-{number}","token_type":"Bearer"{life}}}"#
        );
        ([("content-type", "application/json")], json)
    });
    let queues = get(async move |headers: axum::http::HeaderMap| {
        let shown = headers[AUTHORIZATION].to_str().unwrap().to_owned();
        let number: usize = shown.strip_prefix("Bearer hush-access-").unwrap().parse().unwrap();
        if number <= bar.load(Ordering::SeqCst) {
            return (axum::http::StatusCode::UNAUTHORIZED, [("content-type", "application/json")], "{}");
        }
        (axum::http::StatusCode::OK, [("content-type", "application/json")], r#"{"result":[]}"#)
    });
    let router =
        Router::new().route("/oauth_token.do", token).route("/api/now/connect/support/queues", queues);
    Instance { peer: Peer::serving(router).await, asked, revoked }
}

impl Instance {
    fn times(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_kept() {
    let instance = instance(r#","expires_in":1800"#).await;
    let client = client(&instance.peer.url, None);
    for _ in 0..3 {
        client.queues().await.unwrap();
    }
    assert_eq!(instance.times(), 1);
    let form = instance.asked.lock().unwrap()[0].clone();
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!((form["client_id"].as_str(), form["client_secret"].as_str()), ("id & more", SECRETS[0]));
    assert!(!form.contains_key("refresh_token"));
}

#[tokio::test]
async fn a_burst_of_refusals_makes_one_renewal_with_the_rotated_token() {
    let instance = instance("").await;
    let client = client(&instance.peer.url, Some(SECRETS[1]));
    client.queues().await.unwrap();
    instance.revoked.store(1, Ordering::SeqCst);
    let calls = (0..40).map(|_| client.queues());
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(instance.times(), 2);
    let asked = instance.asked.lock().unwrap();
    assert_eq!(asked[0]["refresh_token"], SECRETS[1]);
    assert_eq!(asked[1]["refresh_token"], "hush-rotated-1");
    assert!(asked.iter().all(|form| form["grant_type"] == "refresh_token"));
}

#[tokio::test]
async fn a_second_refusal_stands() {
    let instance = instance("").await;
    let client = client(&instance.peer.url, None);
    instance.revoked.store(usize::MAX, Ordering::SeqCst);
    let error = client.queues().await.unwrap_err();
    assert!(matches!(
        &error,
        CallError::Answer(ErrorAnswer { status: 401, kind: AnswerKind::Credentials, .. })
    ));
    assert_eq!(instance.times(), 2, "one renewal, no more");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_lapses() {
    let instance = instance(r#","expires_in":"1""#).await;
    let client = client(&instance.peer.url, None);
    client.queues().await.unwrap();
    // No token was ever refused, so the client requested the second one in time.
    let renewed = async {
        while instance.times() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.queues().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), renewed).await.unwrap();
}

#[tokio::test]
async fn a_token_for_ever_is_kept_for_a_month() {
    for life in [
        r#","expires_in":18446744073709551615"#,
        r#","expires_in":"18446744073709551615""#,
        r#","expires_in":1e300"#,
    ] {
        let instance = instance(life).await;
        let client = client(&instance.peer.url, None);
        for _ in 0..2 {
            client.queues().await.unwrap();
        }
        assert_eq!(instance.times(), 1, "{life}");
    }
}

async fn trouble(answer: &str) -> CallError {
    let peer = Peer::saying(answer).await;
    let error = client(&peer.url, Some(SECRETS[1])).queues().await.unwrap_err();
    assert_eq!(peer.heard.lock().unwrap().len(), 1, "only the token was asked for");
    let shown = format!("{error} {error:?}");
    assert!(SECRETS.iter().all(|secret| !shown.contains(secret)), "{shown}");
    error
}

#[tokio::test]
async fn a_refused_renewal_is_a_matter_of_credentials() {
    for status in ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found"] {
        let body = r#"{"error_description":"access_denied","error":"server_error"}"#;
        let error = trouble(&format!("HTTP/1.1 {status}\ncontent-type: application/json\n\n{body}")).await;
        let CallError::Answer(answer) = &error else { panic!("{error}") };
        // A 404, too: with its own status it would mean that the chat is over.
        assert_eq!((answer.status, &answer.kind), (401, &AnswerKind::Credentials));
        assert!(error.to_string().contains("server_error, access_denied"), "{error}");
    }
}

#[tokio::test]
async fn other_troubles_are_what_they_are_and_nothing_was_sent() {
    let kind = |error: CallError| match error {
        CallError::Answer(answer) => (answer.status, answer.kind),
        CallError::NoAnswer(no_answer) => panic!("{no_answer}"),
    };
    let html = trouble("HTTP/1.1 200 OK\ncontent-type: text/html\n\n<html>Hibernating").await;
    assert_eq!(kind(html), (200, AnswerKind::NotReady(NotReady::Html)));
    let login = trouble("HTTP/1.1 302 Found\nlocation: /login\n\n").await;
    assert_eq!(kind(login).1, AnswerKind::NotReady(NotReady::Redirect));
    // A 502 of the call itself would leave it open whether the call was made. This error does not.
    assert_eq!(kind(trouble("HTTP/1.1 502 Bad Gateway\n\n").await), (503, AnswerKind::Temporary));
    assert_eq!(kind(trouble("HTTP/1.1 429 Slow\nretry-after: 3\n\n").await).1, AnswerKind::Throttled);
    let empty = "HTTP/1.1 200 OK\ncontent-type: application/json\n\n{\"access_token\":\"\"}";
    let cut = Peer::cutting().await;
    let cut = client(&cut.url, None).queues().await.unwrap_err();
    for error in [trouble(empty).await, cut] {
        assert!(matches!(error, CallError::NoAnswer(NoAnswer { sent: SentState::No, .. })), "{error:?}");
    }
}

#[tokio::test]
async fn all_waiting_callers_get_the_refusal() {
    let peer = Peer::saying("HTTP/1.1 401 Unauthorized\n\n").await;
    let client = client(&peer.url, None);
    let calls = (0..20).map(|_| client.queues());
    for answer in futures_util::future::join_all(calls).await {
        assert!(matches!(answer, Err(CallError::Answer(ErrorAnswer { kind: AnswerKind::Credentials, .. }))));
    }
    assert_eq!(peer.heard.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_renewal_outlives_its_caller() {
    let instance = instance("").await;
    let client = client(&instance.peer.url, Some(SECRETS[1]));
    let impatient = tokio::time::timeout(Duration::from_millis(10), client.queues()).await;
    assert!(impatient.is_err(), "the token takes longer than that");
    client.queues().await.unwrap();
    assert_eq!(instance.times(), 1);
}
