//! Tests that a request answered with 2xx is on the queue, and that a refusal explains its reason.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::binary::Causeway;
use crate::harness::matrix::Engine;
use crate::harness::proxy::Proxy;
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;
use crate::harness::{http, ports};

const CALLBACKS: &str = "/v1/callbacks/servicenow";
const HANDOFFS: &str = "/v1/handoffs";

fn url(relay: &Relay, path: &str) -> String {
    format!("{}{path}", relay.processes[0].public_url())
}

/// Every body that a `live_message` rule is known to send, by file name.
fn bodies() -> BTreeMap<String, Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/servicenow");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.starts_with("callback-"))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

fn signature(secret: &str, at: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    format!("t={at},v1={}", BASE64.encode(mac.finalize().into_bytes()))
}

/// The same body with each kind of credential.
fn proven(relay: &Relay, body: &[u8]) -> Vec<RequestBuilder> {
    let client = http::client();
    let post = |query: &str| {
        let request = client.post(url(relay, &format!("{CALLBACKS}{query}")));
        request.header("content-type", "application/json").body(body.to_vec())
    };
    let now = causeway::clock::now().as_second();
    vec![
        post("").basic_auth("door-user", Some("door-password")),
        post("").header("x-causeway-token", "callback-token"),
        post("?token=callback-token"),
        post("").header("x-causeway-signature", signature("door-secret", now, body)),
    ]
}

async fn answered(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    assert!(answer.headers().contains_key("x-request-id"));
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

on_every_engine! {
    async fn every_credential_and_every_body_is_taken(bench: Bench) {
        let relay = Plan::on(&bench)
            .set("ingress.servicenow.username", "door-user")
            .set("ingress.servicenow.password", "door-password")
            .set("ingress.servicenow.hmac_secret", "door-secret")
            .start()
            .await;
        let bodies = bodies();
        assert!(bodies.len() >= 10);
        let mut by_event: BTreeMap<String, String> = BTreeMap::new();
        for (name, body) in &bodies {
            for request in proven(&relay, body) {
                let (status, answer) = answered(request).await;
                assert_eq!(status, StatusCode::ACCEPTED, "{name}: {answer}");
                if name == "callback-no-json.txt" {
                    assert_eq!(answer["status"], "dead_lettered", "{name}");
                    continue;
                }
                assert_eq!(answer["status"], "accepted", "{name}");
                let text = String::from_utf8_lossy(body);
                let sys_id = text.split(['"', ' ']).find(|word| word.starts_with("msg0")).unwrap().to_owned();
                let id = answer["id"].as_str().unwrap().to_owned();
                assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 5);
                assert_eq!(*by_event.entry(sys_id).or_insert(id.clone()), id, "{name}: one event, one id");
            }
        }
        // XO has each event once and unchanged. Unreadable events are kept with every byte.
        relay.until("each event once", |relay| {
            let came = relay.called_back().into_values().flatten().count();
            if came == by_event.len() { Ok(()) } else { Err(format!("{came} of {}", by_event.len())) }
        }).await;
        let taken = relay.sandbox.ledger().xo_callbacks();
        let first = &taken["5f1c0a2edb31220064d3f2f6bf961901"][0];
        assert_eq!(first.body.as_bytes(), bodies["callback-escaped-newline.json"]);
        let raw = String::from_utf8(bodies["callback-no-json.txt"].clone()).unwrap();
        let dead = relay.dead_letters_at_least(4).await;
        assert!(dead.iter().all(|dead| dead["reason"] == "unreadable" && dead["body"] == raw), "{dead:?}");
        let id = dead[0]["id"].as_str().unwrap();
        let shown = relay.tool(["dead", "show", "--id", id, "--reveal"]).run(PATIENCE).await;
        assert!(shown.stdout.contains("unreadable: ") && shown.stdout.contains(raw.trim()), "{}", shown.stdout);
        let hidden = relay.tool(["dead", "show", "--id", id, "--json"]).run(PATIENCE).await;
        let hidden: Value = serde_json::from_str(&hidden.stdout).unwrap();
        assert_eq!((&hidden["matching"], &hidden["dead_letters"][0]["body_bytes"]), (&json!(1), &json!(raw.len())));
        assert_eq!(taken.values().flatten().count(), relay.called_back().into_values().flatten().count());
    }

    async fn a_handoff_posted_again_is_the_same_message(bench: Bench) {
        let relay = Plan::on(&bench).start().await;
        relay.open("c-1").await;
        let message = json!({"type": "message", "conversation_id": "c-1", "message": "only once"});
        let ids = [
            relay.try_handoff(&message, Some("key-1")).await.unwrap().id(),
            relay.try_handoff(&message, Some("key-1")).await.unwrap().id(),
        ];
        assert_eq!(ids[0], ids[1]);
        let last = json!({"type": "message", "conversation_id": "c-1", "message": "the last", "id": "key-2"});
        let group = relay.sandbox.groups()[0].clone();
        assert_eq!(relay.handoff(last.clone()).await.id(), relay.handoff(last).await.id());
        relay.say("c-1", "over").await;
        let expected = ["hello from c-1", "only once", "the last", "over"];
        relay.until("what was said", |relay| {
            let said = relay.said(&group);
            if said.last().is_some_and(|last| last == "over") { Ok(()) } else { Err(format!("{said:?}")) }
        }).await;
        assert_eq!(relay.said(&group), expected);
    }
}

async fn embedded() -> Relay {
    let bench = Engine::Embedded.bench().unwrap();
    let relay = Plan::on(&bench).set("ingress.body_limit", "64 KiB").start().await;
    // The folder must outlive the process.
    std::mem::forget(bench);
    relay
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_without_credentials_is_refused() {
    let relay = embedded().await;
    let client = http::client();
    let callback = || {
        let request = client.post(url(&relay, CALLBACKS)).header("content-type", "application/json");
        request.body(r#"{"group":"g","formatted_message":"x","sys_id":"s"}"#)
    };
    let old = signature("callback-token", causeway::clock::now().as_second() - 301, b"{}");
    let (_, none) = answered(callback()).await;
    for request in [
        callback().header("x-causeway-token", "callback-tokem"),
        callback().header("x-causeway-token", ""),
        callback().basic_auth("door-user", Some("callback-token")),
        callback().bearer_auth("callback-tokem"),
        callback().header("x-causeway-signature", old),
    ] {
        let (status, body) = answered(request).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(body["detail"], none["detail"], "no hint");
    }
    for path in [HANDOFFS, "/v1/conversations/c-1"] {
        let method = if path == HANDOFFS { reqwest::Method::POST } else { reqwest::Method::GET };
        for token in ["", "callback-token", "handoffs-tokem"] {
            let request = client.request(method.clone(), url(&relay, path)).bearer_auth(token);
            assert_eq!(answered(request).await.0, StatusCode::UNAUTHORIZED, "{path} {token:?}");
        }
    }
    assert_eq!(relay.metric("causeway_ingress_requests_total", &[("status", "202")]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_words_coming_back_are_ignored() {
    let relay = embedded().await;
    let echo = json!({"group": "g-echo", "formatted_message": "mine", "sys_created_by": "Chatbot_Interface",
        "sys_id": "echo-1"});
    let request = http::client().post(url(&relay, CALLBACKS)).header("x-causeway-token", "callback-token");
    let request = request.header("content-type", "application/json").body(echo.to_string());
    assert_eq!(answered(request).await, (StatusCode::ACCEPTED, json!({"status": "ignored"})));
    relay.callback("g-echo", "theirs", "not-an-echo").await.id();
    relay
        .until("the agent's words", |relay| {
            let seen = relay.called_back();
            if seen.is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
        })
        .await;
    assert_eq!(relay.called_back()["g-echo"], ["theirs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_handoff_is_named() {
    let relay = embedded().await;
    let long = "x".repeat((32 << 10) + 1);
    let wrong = json!({"type": "start", "conversation_id": "c".repeat(257), "message": long, "queue_id": 7,
        "transcript": [{"from": "user"}], "user": "Ada"});
    let refused = relay.handoff(wrong).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let named = |body: &Value| -> Vec<String> {
        let errors = body["errors"].as_array().unwrap();
        errors.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect()
    };
    let mut fields = named(&refused.body);
    fields.sort();
    assert_eq!(fields, ["conversation_id", "message", "queue_id", "transcript[0].text", "user"]);
    assert_eq!(named(&relay.handoff(json!({"type": "dance", "conversation_id": "c"})).await.body), ["type"]);
    assert_eq!(named(&relay.handoff(json!({})).await.body).len(), 2);

    let client = http::client();
    let post = |path: &str, kind: &str, body: String| {
        let request = client.post(url(&relay, path)).bearer_auth("handoffs-token");
        request.header("content-type", kind).body(body)
    };
    for (request, status) in [
        (post(HANDOFFS, "application/json", "{".into()), 400),
        (post(HANDOFFS, "application/json", String::new()), 400),
        (post(HANDOFFS, "text/plain", "{}".into()), 415),
        (post(HANDOFFS, "application/json", "x".repeat(65 << 10)), 413),
        (post("/v1/nothing", "application/json", "{}".into()), 404),
        (client.get(url(&relay, HANDOFFS)).bearer_auth("handoffs-token"), 405),
    ] {
        let (seen, body) = answered(request).await;
        assert_eq!(seen.as_u16(), status, "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_shown_as_documented() {
    let relay = embedded().await;
    let unknown = relay.conversation("nobody").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let group = relay.open("c-1").await;
    let shown = relay.conversation("c-1").await;
    assert_eq!(shown.status, StatusCode::OK);
    for time in ["opened_at", "updated_at"] {
        shown.body[time].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    let queue = causeway::sandbox::SandboxQueue::default();
    let expected = json!({
        "conversation_id": "c-1", "state": "waiting", "agent": null,
        "servicenow": {"group": group, "number": "CHAT0001001", "queue_id": queue.id, "position": 1, "wait": queue.wait},
        "opened_at": shown.body["opened_at"], "updated_at": shown.body["updated_at"],
    });
    assert_eq!(shown.body, expected);
}

on_every_rabbit! {
    async fn a_message_of_a_caller_that_hung_up_is_stored(bench: Bench) {
        let vhost = bench.vhost().unwrap();
        let proxy = Proxy::start(vhost.broker()).await;
        let relay = Plan::on(&bench).set("queue.url", vhost.url_through(proxy.addr())).start().await;
        // The broker's answer takes longer than the caller waits.
        proxy.delay(Duration::from_millis(700));
        let body = r#"{"group":"g-gone","formatted_message":"said and gone","sys_created_by":"a","sys_id":"s-gone"}"#;
        let address = relay.processes[0].public_url();
        let mut caller = tokio::net::TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "POST {CALLBACKS}?token=callback-token HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        caller.write_all(head.as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        drop(caller);
        relay.until("what a caller said before it hung up", |relay| {
            let seen = relay.called_back();
            if seen.contains_key("g-gone") { Ok(()) } else { Err(format!("{seen:?}")) }
        }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_broker_nothing_is_promised() {
    let folder = tempfile::tempdir().unwrap();
    let [broker, public, admin] = ports::free_ports();
    let mut ingress = Causeway::new(["ingress"])
        .set("data_dir", folder.path().to_str().unwrap())
        .set("queue.url", format!("amqp://guest:guest@127.0.0.1:{broker}/%2f"))
        .set("queue.publish_timeout", "500ms")
        .set("ingress.spool", "off")
        .set("ingress.listen", format!("127.0.0.1:{public}"))
        .set("admin.listen", format!("127.0.0.1:{admin}"))
        .set("ingress.servicenow.token", "callback-token")
        .set("ingress.handoffs.token", "handoffs-token")
        .spawn();
    let client = http::client();
    let admin = format!("http://127.0.0.1:{admin}");
    eventually("the ingress to live", PATIENCE, async || {
        assert!(ingress.is_running(), "{}", ingress.stderr());
        let alive = client.get(format!("{admin}/livez")).send().await.map_err(|error| error.to_string())?;
        if alive.status().is_success() { Ok(()) } else { Err(alive.status().to_string()) }
    })
    .await;
    assert_eq!(client.get(format!("{admin}/readyz")).send().await.unwrap().status(), 503);
    let unwell = Causeway::new(["healthcheck"])
        .set("admin.listen", admin.trim_start_matches("http://"))
        .run(PATIENCE)
        .await;
    assert_eq!(unwell.code, Some(1), "{unwell:?}");
    let handoff = json!({"type": "start", "conversation_id": "c-1", "message": "help"});
    for (path, body) in [(CALLBACKS, r#"{"group":"g"}"#.to_owned()), (HANDOFFS, handoff.to_string())] {
        let request = client
            .post(format!("http://127.0.0.1:{public}{path}"))
            .header("content-type", "application/json")
            .header("x-causeway-token", "callback-token")
            .bearer_auth("handoffs-token");
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait > 0);
    }
    // A refused request leaves no record.
    let asked =
        client.get(format!("http://127.0.0.1:{public}/v1/conversations/c-1")).bearer_auth("handoffs-token");
    assert_eq!(asked.send().await.unwrap().status(), StatusCode::NOT_FOUND);
}
