//! Tests of the public and the admin listener over real sockets, with an unreachable queue. `tests/it/ingress.rs`
//! tests the answers of a reachable queue with each engine.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::message::{Destination, Destinations, KnownBot};
use crate::queue::QueueTuning;
use crate::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
use crate::queue::rabbit::{BrokerUrl, QueueDeclare, RabbitQueue, RabbitSettings, RabbitUse, TopologyNames};
use crate::tls::TlsFiles;

const LIMIT: usize = 1 << 20;
const CALLBACKS: &str = "/v1/callbacks/servicenow";
const EVENT: &str =
    r#"{"group":"g1","formatted_message":"secret words","sys_created_by":"ada","sys_id":"m1"}"#;

/// The queue of these tests, which is never reachable.
fn absent_queue() -> Queue {
    // No process listens on port 1.
    Queue::Rabbit(RabbitQueue::open(RabbitSettings {
        url: BrokerUrl::parse("amqp://guest:guest@127.0.0.1:1/%2f").unwrap(),
        tls: TlsFiles::default(),
        names: TopologyNames::default(),
        declare: QueueDeclare::Make,
        heartbeat: Duration::from_secs(15),
        tuning: QueueTuning {
            destinations: Destinations::new([Destination::ServiceNow, Destination::Xo]),
            partitions: 8,
            prefetch: 256,
            publish_timeout: Duration::from_secs(5),
        },
        usage: RabbitUse::Publish,
        worker: "none".into(),
    }))
}

struct Relay {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    server: JoinHandle<io::Result<()>>,
}

fn settings() -> IngressSettings {
    IngressSettings {
        body_limit: LIMIT,
        read_timeout: Duration::from_secs(20),
        servicenow: CallbackAuth {
            token: "t".into(),
            hmac_secret: "shared".into(),
            own_user: Some("relay".into()),
            ..CallbackAuth::default()
        },
        handoffs_token: "bearer-token".into(),
        bot_side: BotSide::default(),
        botkit: super::BotKitIngress::default(),
    }
}

async fn relay(settings: IngressSettings) -> Relay {
    relay_on(absent_queue(), settings).await
}

async fn relay_on(queue: Queue, settings: IngressSettings) -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new("rabbitmq").unwrap());
    let budget = Arc::new(ReadBudget::new(settings.body_limit));
    let state = IngressState {
        queue,
        spool: None,
        spools_handoffs: false,
        directory: None,
        availability: None,
        idempotency_keys: IdempotencyKeys::default(),
        metrics: Arc::clone(&metrics),
        settings: settings.into(),
        budget,
    };
    let stop = CancellationToken::default();
    let server = tasks::spawn(serve_public(listener, Arc::new(state), None, None, stop.clone()));
    Relay { address, metrics, stop, server }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().replace("urn:causeway:problem:", "")
    }
}

/// Reads one answer, head and body.
async fn answer_on(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).await.unwrap(),
            1,
            "cut after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8(bytes).unwrap();
            let length = head.to_ascii_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length: ").map(|length| length.parse::<usize>().unwrap())
            });
            break (head, length.unwrap_or(0));
        }
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    Answer { status: head[9..12].parse().unwrap(), body: String::from_utf8(body).unwrap(), head }
}

async fn exchange(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    answer_on(&mut stream).await
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

const JSON: &str = "Content-Type: application/json\r\nx-causeway-token: t\r\n";
const BEARER: &str = "Content-Type: application/json\r\nAuthorization: Bearer bearer-token\r\n";

#[tokio::test]
async fn nothing_is_accepted_while_the_queue_is_away() {
    let relay = relay(settings()).await;
    let start = r#"{"type":"start","conversation_id":"c","message":"m"}"#;
    for request in [
        post(CALLBACKS, JSON, EVENT),
        post(CALLBACKS, JSON, "not readable"),
        post("/v1/callbacks/servicenow?token=t", "", EVENT),
        post("/v1/handoffs", BEARER, start),
    ] {
        let answer = exchange(relay.address, &request).await;
        assert_eq!((answer.status, answer.kind().as_str()), (503, "queue_away"), "{request}");
        assert_eq!(answer.header("retry-after"), Some("2"));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.json()["request_id"], answer.header("x-request-id").unwrap());
        assert!(!answer.body.contains("secret words"));
    }
}

#[tokio::test]
async fn our_own_message_needs_no_queue() {
    let relay = relay(settings()).await;
    let answer =
        exchange(relay.address, &post(CALLBACKS, JSON, r#"{"group":"g","sys_created_by":"relay"}"#)).await;
    assert_eq!((answer.status, answer.body.as_str()), (202, r#"{"status":"ignored"}"#));
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test]
async fn each_mistake_has_its_status() {
    let relay = relay(settings()).await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\nx-causeway-token: t\r\n";
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let cases = [
        (get("/", ""), 404, "unknown_route"),
        (post("/v1/callbacks/servicenow/", JSON, EVENT), 404, "unknown_route"),
        (get("/metrics", ""), 404, "unknown_route"),
        (get(CALLBACKS, ""), 405, "wrong_method"),
        (post("/v1/conversations/c", BEARER, "{}"), 405, "wrong_method"),
        (post(CALLBACKS, "", EVENT), 401, "unauthorized"),
        (post(CALLBACKS, "x-causeway-token: wrong\r\n", EVENT), 401, "unauthorized"),
        (post("/v1/handoffs", "", "{}"), 401, "unauthorized"),
        (get("/v1/conversations/c", ""), 401, "unauthorized"),
        (get("/v1/conversations/c", BEARER), 503, "directory_away"),
        (get("/v1/availability", ""), 401, "unauthorized"),
        (get("/v1/availability", BEARER), 404, "no_servicenow_login"),
        (post(CALLBACKS, form, EVENT), 415, "wrong_content_type"),
        (post(CALLBACKS, JSON, ""), 400, "empty_body"),
        (post(CALLBACKS, JSON, " \n"), 400, "empty_body"),
        (post("/v1/handoffs", BEARER, "{"), 400, "not_json"),
        (post("/v1/handoffs", BEARER, "[1]"), 422, "invalid"),
        (post("/v1/handoffs", BEARER, r#"{"type":"start"}"#), 422, "invalid"),
    ];
    for (request, status, kind) in cases {
        let answer = exchange(relay.address, &request).await;
        assert_eq!((answer.status, answer.kind().as_str()), (status, kind), "{request}");
        let problem = answer.json();
        assert!(!problem["errors"].as_array().unwrap().is_empty(), "{problem}");
        assert!(problem["errors"][0]["field"].is_string(), "{problem}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{request}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{request}");
        assert!(answer.header("x-request-id").is_some());
    }
}

#[tokio::test]
async fn without_a_token_the_handoff_api_is_off() {
    let relay = relay(IngressSettings { handoffs_token: Default::default(), ..settings() }).await;
    for request in [
        post("/v1/handoffs", "Authorization: Bearer \r\n", "{}"),
        "GET /v1/conversations/c HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
    ] {
        let answer = exchange(relay.address, &request).await;
        assert_eq!((answer.status, answer.kind().as_str()), (404, "not_enabled"));
        assert!(answer.body.contains("ingress.handoffs.token"));
    }
}

#[tokio::test]
async fn a_sane_request_id_comes_back() {
    let relay = relay(settings()).await;
    let with = |id: &str| format!("GET / HTTP/1.1\r\nHost: x\r\nx-request-id: {id}\r\n\r\n");
    let answer = exchange(relay.address, &with("abc-1:2")).await;
    assert_eq!(answer.header("x-request-id"), Some("abc-1:2"));
    for insane in ["a b", "{}", &"x".repeat(129)] {
        let answer = exchange(relay.address, &with(insane)).await;
        let id = uuid::Uuid::parse_str(answer.header("x-request-id").unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 7);
    }
}

#[tokio::test]
async fn a_signed_body_is_checked_after_it_was_read() {
    use hmac::{KeyInit, Mac};
    let relay = relay(settings()).await;
    let at = crate::clock::now().as_second();
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"shared").unwrap();
    mac.update(format!("{at}.{EVENT}").as_bytes());
    let digest =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, mac.finalize().into_bytes());
    let signed = format!("x-causeway-signature: t={at},v1={digest}\r\n");
    assert_eq!(exchange(relay.address, &post(CALLBACKS, &signed, EVENT)).await.status, 503);
    assert_eq!(exchange(relay.address, &post(CALLBACKS, &signed, "{}")).await.status, 401);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_its_sender_sees_why() {
    let relay = relay(settings()).await;
    let body = "x".repeat(8 * LIMIT);
    let announced = exchange(relay.address, &post(CALLBACKS, JSON, &body)).await;
    assert_eq!((announced.status, announced.header("connection")), (413, Some("close")));
    assert!(announced.body.contains(&LIMIT.to_string()));

    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = format!("POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(exchange(relay.address, &format!("{head}{chunk}")).await.status, 413);

    // The request was refused before its body was sent, without a `100 Continue`.
    let head = format!(
        "POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\n{JSON}Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    );
    assert_eq!(exchange(relay.address, &head).await.status, 413);

    let exact = exchange(relay.address, &post(CALLBACKS, JSON, &"x".repeat(LIMIT))).await;
    assert_eq!(exact.status, 503);
}

#[tokio::test]
async fn the_credentials_are_checked_before_the_body_arrives() {
    let relay = relay(settings()).await;
    let head = format!("POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n");
    assert_eq!(exchange(relay.address, &head).await.status, 401);
}

#[tokio::test]
async fn bodies_of_unproven_senders_block_no_proven_sender() {
    let relay = relay(settings()).await;
    let at = crate::clock::now().as_second();
    let unproven = format!("x-causeway-signature: t={at},v1=aaaa\r\n");
    let head = |headers: &str, length: usize| {
        format!(
            "POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\n{headers}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(head(&unproven, LIMIT).as_bytes()).await.unwrap();
        assert_eq!(answer_on(&mut stream).await.status, 100, "its body is read");
        slow.push(stream);
    }
    let refused = exchange(relay.address, &head(&unproven, LIMIT)).await;
    assert_eq!((refused.status, refused.kind().as_str()), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(
        exchange(relay.address, &post(CALLBACKS, &unproven, EVENT)).await.status,
        401,
        "a small one is read"
    );
    let proven = exchange(relay.address, &post(CALLBACKS, JSON, &"x".repeat(LIMIT))).await;
    assert_eq!(proven.kind(), "queue_away");
}

/// Requests that need no queue, so that they succeed here.
const ECHO: &str = r#"{"group":"g","sys_created_by":"relay"}"#;

#[tokio::test]
async fn a_refused_connection_is_closed_after_the_answer() {
    let relay = relay(settings()).await;
    for request in [post(CALLBACKS, "", EVENT), post("/nobody", "", ""), post("/v1/conversations/c", "", "")]
    {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(answer_on(&mut stream).await.header("connection"), Some("close"), "{request}");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "{request}");
    }
    let mut proven = TcpStream::connect(relay.address).await.unwrap();
    for (request, status) in [
        (post(CALLBACKS, JSON, ECHO), 202),
        (post("/nobody", JSON, ECHO), 404),
        (post(CALLBACKS, "", ECHO), 401),
    ] {
        proven.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(answer_on(&mut proven).await.status, status);
    }
    assert_eq!(proven.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn idle_connections_block_no_other() {
    let relay = relay(settings()).await;
    let mut proven = TcpStream::connect(relay.address).await.unwrap();
    proven.write_all(post(CALLBACKS, JSON, ECHO).as_bytes()).await.unwrap();
    assert_eq!(answer_on(&mut proven).await.status, 202);
    let mut idle = Vec::new();
    for _ in 0..crate::http_server::connection_slots::STRANGERS_MAX {
        idle.push(TcpStream::connect(relay.address).await.unwrap());
    }
    assert_eq!(idle[0].read(&mut [0; 1]).await.unwrap_or(0), 0, "the first one made room");
    assert_eq!(exchange(relay.address, &post(CALLBACKS, JSON, ECHO)).await.status, 202);
    proven.write_all(post(CALLBACKS, JSON, ECHO).as_bytes()).await.unwrap();
    assert_eq!(answer_on(&mut proven).await.status, 202, "the proven one keeps its place");
}

#[tokio::test]
async fn a_head_without_an_end_is_cut() {
    let relay = relay(settings()).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nx-long: {}", "x".repeat(100 << 10));
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_slow_client_is_cut() {
    let relay = relay(IngressSettings { read_timeout: Duration::from_millis(200), ..settings() }).await;
    let mut slow = TcpStream::connect(relay.address).await.unwrap();
    slow.write_all(
        format!("POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 50\r\n\r\n{{").as_bytes(),
    )
    .await
    .unwrap();
    let answer = answer_on(&mut slow).await;
    assert_eq!((answer.status, answer.kind().as_str()), (408, "slow_body"));
    assert_eq!(slow.read(&mut [0; 16]).await.unwrap_or(0), 0);

    // An incomplete head only ends the connection. The same holds for a connection that never sends a byte.
    for sent in ["POST /v1/callb", ""] {
        let mut half_open = TcpStream::connect(relay.address).await.unwrap();
        half_open.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = half_open.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 2"));
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let relay = relay(settings()).await;
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    for _ in 0..3 {
        stream.write_all(post(CALLBACKS, JSON, EVENT).as_bytes()).await.unwrap();
        assert_eq!(answer_on(&mut stream).await.status, 503);
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_refuses_the_rest() {
    let relay = relay(settings()).await;
    let mut idle = TcpStream::connect(relay.address).await.unwrap();
    idle.write_all(post(CALLBACKS, JSON, EVENT).as_bytes()).await.unwrap();
    answer_on(&mut idle).await;

    let mut in_flight = TcpStream::connect(relay.address).await.unwrap();
    let head = format!(
        "POST {CALLBACKS} HTTP/1.1\r\nHost: x\r\n{JSON}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        EVENT.len()
    );
    in_flight.write_all(head.as_bytes()).await.unwrap();
    // The request is certainly in progress once its body is requested.
    assert_eq!(answer_on(&mut in_flight).await.status, 100);
    relay.stop.cancel();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "an idle connection is closed at once");
    assert!(TcpStream::connect(relay.address).await.is_err());
    assert!(!relay.server.is_finished());
    in_flight.write_all(EVENT.as_bytes()).await.unwrap();
    assert_eq!(answer_on(&mut in_flight).await.status, 503);
    relay.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn every_answer_is_counted() {
    let relay = relay(settings()).await;
    exchange(relay.address, &post(CALLBACKS, JSON, EVENT)).await;
    exchange(relay.address, &post("/v1/handoffs", "", "{}")).await;
    exchange(relay.address, "GET /v1/conversations/c HTTP/1.1\r\nHost: x\r\n\r\n").await;
    exchange(relay.address, "GET /nobody HTTP/1.1\r\nHost: x\r\n\r\n").await;
    for labels in [["servicenow", "503"], ["handoffs", "401"], ["conversations", "401"], ["other", "404"]] {
        assert_eq!(relay.metrics.ingress_requests.with_label_values(&labels).get(), 1, "{labels:?}");
        let duration = relay.metrics.ingress_duration.with_label_values(&labels[..1]);
        assert_eq!(duration.get_sample_count(), 1);
    }
}

/// If the user ends the chat, the user is notified at once and the chat is left in its turn. If the queue has room
/// for only one of the two messages, the stored one is the message from which the worker derives the other.
#[tokio::test]
async fn an_end_word_is_on_the_queue_before_the_user_is_told() {
    const BOT: &str = "st-1";
    let folder = tempfile::tempdir().unwrap();
    let tuning = QueueTuning {
        destinations: Destinations::new([Destination::ServiceNow, Destination::Callbacks]),
        partitions: 1,
        prefetch: 8,
        publish_timeout: Duration::from_secs(5),
    };
    let embedded = EmbeddedSettings { data_dir: folder.path().to_owned(), tuning, max_messages: Some(1) };
    let queue = Queue::Embedded(EmbeddedQueue::open(embedded).await.unwrap());
    let bot = BotCredential { bot_id: BOT.into(), app_id: "cs-1".into(), client_secret: "shared".into() };
    let botkit = BotKitIngress {
        bots: vec![bot],
        allowed_hosts: crate::message::AllowedHosts::new(vec!["xo.example".into()]),
        end_words: vec!["quit".into()],
        ..BotKitIngress::default()
    };
    let name = crate::message::BotName::parse("one").unwrap();
    let bot_side = BotSide { two_way: true, bots: vec![KnownBot { bot_id: BOT.into(), name }] };
    let relay = relay_on(queue.clone(), IngressSettings { botkit, bot_side, ..settings() }).await;
    let claims = serde_json::json!({ "appId": "cs-1" });
    let token =
        crate::sandbox::botkit::token(crate::sandbox::botkit::SigningAlgorithm::Hs256, &claims, "shared");
    let event = serde_json::json!({
        "requestId": "1", "message": "quit", "agent_transfer": true, "channel": { "from": "u-1", "type": "rtm" },
        "baseUrl": format!("https://xo.example/api/botsdk/stream/{BOT}"),
    });
    let headers = format!("Content-Type: application/json\r\ntoken: {token}\r\n");
    let path = format!("/sdk/bots/{BOT}/on_user_message");
    let answer = exchange(relay.address, &post(&path, &headers, &event.to_string())).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let depth = queue.depth().await.unwrap();
    let waiting = |destination| depth.waiting.get(&destination).copied().unwrap_or(0);
    assert_eq!((waiting(Destination::ServiceNow), waiting(Destination::Callbacks)), (1, 0));
}
