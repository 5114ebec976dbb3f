//! Promise: each example of `deploy/examples` works with the real binary and the sandbox, as its page says.

use std::path::{Path, PathBuf};

use causeway::platform::WebhookKey;
use causeway::sandbox::{CallbackCredential, CallbackSettings};
use rquickjs::{Context, Runtime};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::leash::Leash;
use crate::harness::matrix::Engine;
use crate::harness::relay::{PATIENCE, Plan, Relay};
use crate::harness::wait::eventually;
use crate::harness::xo::FakeXo;
use crate::harness::{http, ports, told};

const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n not really";
const SCRIPT_NODE: &str = include_str!("../../deploy/examples/script_node.js");

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name)
}

/// The commands below one heading of the page.
fn commands(heading: &str) -> String {
    let page = std::fs::read_to_string(example("README.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("the page has no section {heading}"));
    let blocks = section.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let commands: String = blocks.collect();
    assert!(!commands.is_empty(), "the section {heading} has no commands");
    commands
}

/// A shell that runs the commands of the page.
struct Shell {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Shell {
    fn of(relay: &Relay, xo: &FakeXo) -> Self {
        let process = &relay.processes[0];
        let variables = vec![
            ("CAUSEWAY", process.public_url()),
            ("ADMIN", process.admin_url()),
            ("HANDOFFS_TOKEN", "handoffs-token".to_owned()),
            ("ADMIN_TOKEN", "admin-token".to_owned()),
            ("CALLBACK_TOKEN", "callback-token".to_owned()),
            ("CALLBACK_SECRET", "signing-secret".to_owned()),
            ("BOT_ID", xo.bot.bot_id.clone()),
            ("APP_ID", xo.bot.app_id.clone()),
            ("CLIENT_SECRET", xo.bot.client_secret.clone()),
        ];
        Self { folder: tempfile::tempdir().unwrap(), variables }
    }

    /// Runs the commands below a heading; each of them must succeed. Returns what they print.
    async fn run(&self, heading: &str) -> String {
        let script = format!("set -euo pipefail\n{}{}", commands("Set up"), commands(heading));
        let mut bash = tokio::process::Command::new("bash");
        bash.arg("-c").arg(&script).current_dir(self.folder.path()).env_clear();
        bash.env("PATH", told("PATH").unwrap_or_default());
        bash.envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        let output = bash.output().await.expect("bash starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{heading}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }
}

/// The agent's words come back as callbacks.
fn call_back(relay: &Relay) {
    let credential =
        CallbackCredential::Header { name: "x-causeway-token".into(), value: "callback-token".into() };
    let url = format!("{}/v1/callbacks/servicenow", relay.processes[0].public_url());
    relay.sandbox.set_callback(Some(CallbackSettings { credential, ..CallbackSettings::to(url) }));
}

/// The link of the first file that an event told.
fn link_in(relay: &Relay, conversation: &str) -> Option<String> {
    let entries = relay.sandbox.ledger().events().remove(conversation).unwrap_or_default();
    let events = entries.iter().filter_map(|entry| serde_json::from_str::<Value>(&entry.body).ok());
    events.filter_map(|event| event["attachments"][0]["url"].as_str().map(str::to_owned)).next()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs curl and openssl: tests/run installs them"]
async fn the_calls_of_the_page_are_taken() {
    let bench = Engine::Embedded.bench().expect("it is always there");
    let xo = FakeXo::start().await;
    let [port] = ports::free_ports();
    let plan = xo.settings(Plan::on(&bench)).set("files.public_url", format!("http://127.0.0.1:{port}"));
    let plan = plan.set("files.listen", format!("127.0.0.1:{port}")).set("admin.token", "admin-token");
    let relay = plan.set("ingress.servicenow.hmac_secret", "signing-secret").start().await;
    call_back(&relay);
    let mut shell = Shell::of(&relay, &xo);

    let opened = shell.run("Open a conversation").await;
    assert_eq!(opened.matches("\"status\":\"accepted\"").count(), 4, "{opened}");
    assert!(opened.contains("\"state\":"), "{opened}");
    relay.reaches("c-1", "waiting").await;
    let group = relay.sandbox.groups().remove(0);
    relay
        .until("the message that was posted twice", |relay| {
            let said = relay.said(&group);
            let count = said.iter().filter(|text| text.contains("still burning")).count();
            if count == 1 { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;

    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    relay.sandbox.agent_sends_file(&group, "plan.png", "image/png", PICTURE).await.expect("a file");
    relay.until("a link", |relay| link_in(relay, "c-1").map(drop).ok_or_else(|| "no link".to_owned())).await;
    shell.variables.push(("LINK", link_in(&relay, "c-1").unwrap_or_default()));
    shell.run("Open a file").await;
    assert_eq!(std::fs::read(shell.folder.path().join("plan.png")).unwrap(), PICTURE);

    shell.run("End the conversation").await;
    relay.reaches("c-1", "ended").await;
    let called_back = shell.run("Post a callback").await;
    let count = |status: &str| called_back.matches(&format!("\"status\":\"{status}\"")).count();
    assert_eq!((count("accepted"), count("dead_lettered")), (2, 1), "{called_back}");
    let event = shell.run("Post a BotKit event").await;
    assert!(event.contains("\"ackMessage\":true"), "{event}");
    let dead = shell.run("Look at dead letters").await;
    assert!(dead.contains("\"replay\":1") && dead.contains("\"discarded\":1"), "{dead}");
    let alive = shell.run("Ask whether it lives").await;
    assert!(alive.starts_with("alive\nready\n") && alive.contains("causeway_breaker_state{"), "{alive}");
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEXT_SECRET: &str = "whsec_bmV4dC1rZXktb2YtdGhlLWV4YW1wbGUtcmVjZWl2ZXI=";

/// A receiver takes what it should take, and shows a whole conversation in its order.
async fn the_receiver_works(program: &str, script: &str) {
    let [port] = ports::free_ports();
    let script = example(script).display().to_string();
    let args = [program, &script, &port.to_string(), "events-token", NEXT_SECRET].map(str::to_owned);
    let receiver = Leash::start("private-receiver", "TERM", &args);
    let url = format!("http://127.0.0.1:{port}/events");
    eventually("the receiver", PATIENCE, async || {
        let log = receiver.log_tail();
        if log.contains("listening on") { Ok(()) } else { Err(log) }
    })
    .await;

    let client = http::client();
    let now = causeway::clock::now().as_second();
    let sign = |secret: &str, at: i64, body: &str| {
        WebhookKey::parse(secret).expect("a key").sign("e-1", at, body.as_bytes())
    };
    let post = async |token: &str, body: &str, at: i64, signature: &str| {
        let request = client.post(&url).bearer_auth(token).header("content-type", "application/json");
        let request = request.header("webhook-id", "e-1").header("webhook-timestamp", at);
        let request = request.header("webhook-signature", signature).body(body.to_owned());
        request.send().await.expect("an answer").status().as_u16()
    };
    let event = json!({"id": "e-1", "type": "callback.ended", "conversation_id": "c-0", "reason": "agent"});
    let event = event.to_string();
    let event = event.as_str();
    let mut answers = Vec::new();
    for (token, body) in [
        ("wrong", event),
        ("events-token", "{"),
        ("events-token", "[]"),
        ("events-token", event),
        ("events-token", event),
    ] {
        answers.push(post(token, body, now, &sign(NEXT_SECRET, now, body)).await);
    }
    assert_eq!(answers, [401, 400, 400, 204, 204]);
    let (ours, old) = (sign(NEXT_SECRET, now, event), now - 400);
    for (body, at, signature, status) in [
        (event, now, "", 401),
        (event, now, &*sign(SECRET, now, event), 401),
        (event, old, &*sign(NEXT_SECRET, old, event), 401),
        (event, now - 1, &*ours, 401),
        (&*format!("{event} "), now, &*ours, 401),
        (event, now, &*format!("{} {ours}", sign(SECRET, now, event)), 204),
    ] {
        assert_eq!(post("events-token", body, at, signature).await, status, "{at} {signature}");
    }

    let bench = Engine::Embedded.bench().expect("it is always there");
    let plan = Plan::on(&bench).set("handoffs.events_url", url.clone());
    let plan = plan.set("handoffs.events_token", "events-token").set("servicenow.poll_waiting", "200ms");
    // The receiver has the next secret already.
    let plan = plan.set("handoffs.events_secret", SECRET).set("handoffs.events_secret_next", NEXT_SECRET);
    let relay = plan.set("servicenow.poll_active", "200ms").start().await;
    call_back(&relay);
    let group = relay.open("c-1").await;
    relay.sandbox.agent_accept(&group).await.expect("the chat waits");
    for words in ["one", "two", "three"] {
        relay.sandbox.agent_says(&group, words).await.expect("the chat is open");
    }
    relay.sandbox.agent_closes(&group).await.expect("the chat is open");
    eventually("the end of the conversation", PATIENCE, async || {
        let log = receiver.log_tail();
        if log.contains("c-1 ended: ") { Ok(()) } else { Err(log) }
    })
    .await;
    let log = receiver.log_tail();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("c-1 ")).collect();
    let agent: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("c-1 agent: ")).collect();
    // The agent's greeting comes first.
    assert_eq!(agent[1..], ["one", "two", "three"], "{log}");
    assert_eq!((lines.first(), lines.last()), (Some(&"c-1 waiting"), Some(&"c-1 ended: agent")), "{log}");
    assert_eq!(log.matches("c-0 ended: agent").count(), 1, "a repeat is shown once: {log}");
    assert_eq!(relay.dead_letters().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3: tests/run installs it"]
async fn the_receiver_in_python_shows_a_conversation() {
    the_receiver_works("python3", "receiver.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs node: tests/run installs it"]
async fn the_receiver_in_node_shows_a_conversation() {
    the_receiver_works("node", "receiver.mjs").await;
}

/// What the script node leaves in XO's context.
fn built(context: &Value) -> Option<(Value, String)> {
    let runtime = Runtime::new().unwrap();
    let engine = Context::full(&runtime).unwrap();
    let built: Option<String> = engine.with(|js| {
        js.globals().set("contextText", context.to_string()).unwrap();
        js.eval::<(), _>("var context = JSON.parse(contextText);").unwrap();
        js.eval::<(), _>(format!("{SCRIPT_NODE}\nundefined;")).ok()?;
        js.eval("JSON.stringify([context.causewayRequest, context.causewayKey])").ok()
    });
    let [request, key]: [String; 2] = serde_json::from_str(&built?).unwrap();
    Some((serde_json::from_str(&request).unwrap(), key))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_node_builds_a_request_that_is_taken_once() {
    let words = "it says \"no\"\nand {{burns}}";
    let context = json!({"session": {
        "UserContext": {"_id": "u-1", "firstName": "Ada", "lastName": "Lovelace", "emailId": "ada@example.com"},
        "BotUserSession": {"conversationSessionId": "5f1c4ac4c0a8010e01d3e7a1", "currentLanguage": "en",
            "lastMessage": {"messagePayload": {"message": {"body": words}}}}}});
    let (request, key) = built(&context).expect("a request");
    assert_eq!(request["user"]["name"], "Ada Lovelace");
    let bench = Engine::Embedded.bench().expect("it is always there");
    let relay = Plan::on(&bench).start().await;
    let first = relay.try_handoff(&request, Some(&key)).await.expect("an answer").id();
    let second = relay.try_handoff(&request, Some(&key)).await.expect("an answer").id();
    assert_eq!(first, second);
    relay.reaches("xo-5f1c4ac4c0a8010e01d3e7a1", "waiting").await;
    let groups = relay.sandbox.groups();
    assert_eq!(groups.len(), 1, "{groups:?}");
    let said = relay.said(&groups[0]);
    assert!(said.iter().any(|text| text.contains(words)), "{said:?}");

    // The user alone is enough; without any name two users would share a conversation.
    let (request, key) = built(&json!({"session": {"UserContext": {"_id": "u-2"}}})).expect("a request");
    assert_eq!((key.as_str(), &request["message"]), ("xo-u-2:start", &json!("A user asks for an agent.")));
    relay.try_handoff(&request, Some(&key)).await.expect("an answer").id();
    assert_eq!(built(&json!({"session": {}})), None);
}
