//! A relay under test: the sandbox on both sides, the real binary between them, on the engine of a bench.
//!
//! ```ignore
//! let relay = Plan::on(&bench).set("delivery.hold", "2s").start().await;
//! relay.open("c-1").await;
//! relay.say("c-1", "hello").await;
//! relay.sandbox.ledger().wait_for(|ledger| ..., PATIENCE).await;
//! ```
//! The ledger of the sandbox shows which calls arrived. The routes of the binary show its own state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use causeway::sandbox::{AgentAcceptance, AgentSettings, Sandbox, SandboxQueue, SandboxSettings};
use futures_util::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::binary::{Causeway, Running};
use super::matrix::Bench;
use super::wait::eventually;
use super::{http, ports};

/// The time limit for a debug binary on a busy machine with two cores. A call that takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const HANDOFFS_TOKEN: &str = "handoffs-token";
const CALLBACK_TOKEN: &str = "callback-token";

/// A relay that can be started.
#[derive(Debug)]
pub(crate) struct Plan {
    settings: Vec<(String, String)>,
    sandbox: SandboxSettings,
    listen: SocketAddr,
    roles: Vec<&'static str>,
}

impl Plan {
    /// One `causeway serve` that carries both directions: handoffs to ServiceNow, callbacks of foreign chats to XO's
    /// Callback URL, events of our own chats to the events URL. The agent of the sandbox does nothing by itself.
    pub(crate) fn on(bench: &Bench) -> Self {
        let agent = AgentSettings { accept: AgentAcceptance::Manual, ..AgentSettings::default() };
        Self {
            settings: bench.settings(),
            sandbox: SandboxSettings { agent, ..SandboxSettings::default() },
            listen: ports::free_address(),
            roles: vec!["serve"],
        }
    }

    /// Adds a setting by its key. It overrides a setting of the plan.
    pub(crate) fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.push((key.to_owned(), value.into()));
        self
    }

    /// The address at which the sandbox will listen.
    pub(crate) fn sandbox_address(&self) -> SocketAddr {
        self.listen
    }

    /// Ingress and workers as separate processes (RabbitMQ only). The ingress is `processes[0]`.
    pub(crate) fn apart(mut self, workers: usize) -> Self {
        self.roles = std::iter::once("ingress").chain(std::iter::repeat_n("worker", workers)).collect();
        self
    }

    /// Changes the sandbox before it starts.
    pub(crate) fn sandbox(mut self, change: impl FnOnce(&mut SandboxSettings)) -> Self {
        change(&mut self.sandbox);
        self
    }

    /// Starts all processes, and waits until they are ready.
    pub(crate) async fn start(self) -> Relay {
        let relay = self.start_unready().await;
        relay.ready().await;
        relay
    }

    /// Starts all processes. [`Relay::ready`] waits for them.
    pub(crate) async fn start_unready(self) -> Relay {
        let listener = tokio::net::TcpListener::bind(self.listen).await.expect("a sandbox's address");
        let (username, password) = (self.sandbox.username.clone(), self.sandbox.password.clone());
        let sandbox = Sandbox::start(listener, self.sandbox).await;
        let mut settings: Vec<(String, String)> = [
            ("servicenow.host_url", sandbox.servicenow_url().to_owned()),
            ("servicenow.username", username),
            ("servicenow.password", password),
            ("servicenow.queue_id", SandboxQueue::default().id),
            ("xo.callback_url", sandbox.xo_callback_url()),
            ("handoffs.events_url", sandbox.events_url()),
            ("ingress.handoffs.token", HANDOFFS_TOKEN.to_owned()),
            ("ingress.servicenow.token", CALLBACK_TOKEN.to_owned()),
            // Tests poll many chats often.
            ("servicenow.read_rate", "1000".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        settings.extend(self.settings);
        let processes = self.roles.into_iter().map(|role| Process::start(role, &settings)).collect();
        Relay { sandbox, processes, settings, client: http::client() }
    }
}

/// A running `causeway` process.
#[derive(Debug)]
pub(crate) struct Process {
    role: &'static str,
    public: u16,
    admin: u16,
    settings: Vec<(String, String)>,
    pub(crate) running: Running,
}

impl Process {
    fn start(role: &'static str, settings: &[(String, String)]) -> Self {
        let [public, admin] = ports::free_ports();
        let settings = settings.to_vec();
        Self { role, public, admin, running: Self::spawn(role, public, admin, &settings), settings }
    }

    fn spawn(role: &'static str, public: u16, admin: u16, settings: &[(String, String)]) -> Running {
        Causeway::new([role])
            .set("ingress.listen", format!("127.0.0.1:{public}"))
            .set("admin.listen", format!("127.0.0.1:{admin}"))
            .set("log.level", "info")
            .settings(settings)
            .spawn()
    }

    /// Starts the process again on the same ports, after its end. [`Relay::ready`] waits for the process.
    pub(crate) fn restart(&mut self) {
        assert!(!self.running.is_running(), "{} must have ended before it starts again", self.role);
        self.running = Self::spawn(self.role, self.public, self.admin, &self.settings);
    }

    /// Adds a setting for the next start.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// The URL of the ingress.
    pub(crate) fn public_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.public)
    }

    /// The URL of the admin listener.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }
}

/// The answer of a route.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Answer {
    /// The id of the accepted message.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.status, StatusCode::ACCEPTED, "{}", self.body);
        self.body["id"].as_str().expect("an id").to_owned()
    }
}

/// All processes. They end when the value is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) sandbox: Sandbox,
    /// The first process has the ingress.
    pub(crate) processes: Vec<Process>,
    pub(crate) settings: Vec<(String, String)>,
    client: Client,
}

impl Relay {
    /// Waits until every process reports that it is ready.
    pub(crate) async fn ready(&self) {
        for process in &self.processes {
            let url = format!("{}/readyz", process.admin_url());
            eventually(&format!("{} to be ready", process.role), PATIENCE, async || {
                let seen = match self.client.get(&url).send().await {
                    Ok(answer) if answer.status().is_success() => return Ok(()),
                    Ok(answer) => format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()),
                    Err(error) => error.to_string(),
                };
                Err(format!("{seen}\n--- stderr\n{}{}", process.running.stderr(), process.running.stdout()))
            })
            .await;
        }
    }

    /// Starts another process of this role with the same settings.
    pub(crate) async fn add(&mut self, role: &'static str) {
        self.processes.push(Process::start(role, &self.settings));
        self.ready().await;
    }

    /// Starts another process of this role. Its own settings override the others.
    pub(crate) async fn add_with(&mut self, role: &'static str, own: &[(&str, String)]) {
        let mut settings = self.settings.clone();
        settings.extend(own.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.processes.push(Process::start(role, &settings));
        self.ready().await;
    }

    /// Posts a handoff to the first process. `Err` if there was no answer at all.
    pub(crate) async fn try_handoff(&self, body: &Value, key: Option<&str>) -> Result<Answer, String> {
        let url = format!("{}/v1/handoffs", self.processes[0].public_url());
        let request = json_post(&self.client, &url, body).bearer_auth(HANDOFFS_TOKEN);
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        answer(request).await
    }

    /// Posts a handoff that must be answered.
    pub(crate) async fn handoff(&self, body: Value) -> Answer {
        self.try_handoff(&body, None).await.expect("an answer")
    }

    /// Requests a chat whose first text is `hello from <conversation>`.
    pub(crate) async fn start(&self, conversation: &str) -> String {
        let message = format!("hello from {conversation}");
        self.handoff(json!({"type": "start", "conversation_id": conversation, "message": message})).await.id()
    }

    /// Sends a message of the user.
    pub(crate) async fn say(&self, conversation: &str, text: &str) -> String {
        self.handoff(json!({"type": "message", "conversation_id": conversation, "message": text})).await.id()
    }

    /// Ends a chat.
    pub(crate) async fn end(&self, conversation: &str) -> String {
        self.handoff(json!({"type": "end", "conversation_id": conversation, "reason": "user"})).await.id()
    }

    /// Requests a chat and waits until it is open. Returns ServiceNow's group.
    pub(crate) async fn open(&self, conversation: &str) -> String {
        self.start(conversation).await;
        eventually(&format!("{conversation} to be open"), PATIENCE, async || {
            let shown = self.conversation(conversation).await;
            let group = shown.body["servicenow"]["group"].as_str().map(str::to_owned);
            group.ok_or_else(|| format!("{} {}", shown.status, shown.body))
        })
        .await
    }

    /// `GET /v1/conversations/{id}`.
    pub(crate) async fn conversation(&self, conversation: &str) -> Answer {
        let url = format!("{}/v1/conversations/{conversation}", self.processes[0].public_url());
        answer(self.client.get(url).bearer_auth(HANDOFFS_TOKEN)).await.expect("an answer")
    }

    /// `GET /v1/availability` with this query.
    pub(crate) async fn availability(&self, query: &str) -> Answer {
        let url = format!("{}/v1/availability{query}", self.processes[0].public_url());
        answer(self.client.get(url).bearer_auth(HANDOFFS_TOKEN)).await.expect("an answer")
    }

    /// Waits until a conversation has this state.
    pub(crate) async fn reaches(&self, conversation: &str, state: &str) {
        eventually(&format!("{conversation} to be {state}"), PATIENCE, async || {
            let shown = self.conversation(conversation).await;
            if shown.body["state"] == state {
                Ok(())
            } else {
                Err(format!("{} {}", shown.status, shown.body))
            }
        })
        .await;
    }

    /// Posts a callback of ServiceNow to the first process. `Err` if there was no answer at all.
    pub(crate) async fn try_callback(&self, group: &str, text: &str, sys_id: &str) -> Result<Answer, String> {
        let url = format!("{}/v1/callbacks/servicenow", self.processes[0].public_url());
        let body = json!({
            "group": group, "formatted_message": text, "sys_created_by": "beth.anglin", "last_message": "",
            "sys_id": sys_id,
        });
        answer(json_post(&self.client, &url, &body).header("x-causeway-token", CALLBACK_TOKEN)).await
    }

    /// Posts a callback that must be answered.
    pub(crate) async fn callback(&self, group: &str, text: &str, sys_id: &str) -> Answer {
        self.try_callback(group, text, sys_id).await.expect("an answer")
    }

    /// Posts `each` callbacks of every group: in order and one at a time for a group, `at_once` groups concurrently.
    /// The text of the n-th callback of group g is `g #n`. Each must be accepted.
    pub(crate) async fn callbacks(&self, groups: &[String], each: usize, at_once: usize) {
        let lines = groups.iter().map(|group| async move {
            for n in 0..each {
                self.callback(group, &numbered(group, n), &format!("{group}-{n}")).await.id();
            }
        });
        futures_util::stream::iter(lines).for_each_concurrent(at_once, |line| line).await;
    }

    /// Posts messages of conversations in the same way; each must be accepted.
    pub(crate) async fn messages(&self, conversations: &[String], each: usize, at_once: usize) {
        let lines = conversations.iter().map(|conversation| async move {
            for n in 0..each {
                self.say(conversation, &numbered(conversation, n)).await;
            }
        });
        futures_util::stream::iter(lines).for_each_concurrent(at_once, |line| line).await;
    }

    /// The sum of a metric over all processes and all series with these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut sum = 0.0;
        for process in &self.processes {
            sum += self.metric_of(process, name, labels).await.expect("metrics");
        }
        sum
    }

    /// The sum of a metric of one process. `Err` if the process does not answer.
    pub(crate) async fn metric_of(
        &self,
        process: &Process,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Result<f64, String> {
        let asked = self.client.get(format!("{}/metrics", process.admin_url())).send().await;
        let text =
            asked.map_err(|error| error.to_string())?.text().await.map_err(|error| error.to_string())?;
        Ok(text.lines().filter_map(|line| sample(line, name, labels)).sum())
    }

    /// Waits until a metric has the right value.
    pub(crate) async fn metric_is(&self, name: &str, labels: &[(&str, &str)], right: impl Fn(f64) -> bool) {
        eventually(&format!("{name} {labels:?} to be right"), PATIENCE, async || {
            let value = self.metric(name, labels).await;
            if right(value) { Ok(()) } else { Err(format!("{value}")) }
        })
        .await;
    }

    /// Every dead letter with its history and its text, from `causeway dead export`, in the order of death.
    pub(crate) async fn dead_letters(&self) -> Vec<Value> {
        let exported = self.tool(["dead", "export", "--yes"]).run(PATIENCE).await;
        assert_eq!(exported.code, Some(0), "{}{}", exported.stdout, exported.stderr);
        exported.stdout.lines().map(|line| serde_json::from_str(line).expect("a dead letter")).collect()
    }

    /// Waits until there are this many dead letters, and returns them.
    pub(crate) async fn dead_letters_at_least(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} dead letters"), PATIENCE, async || {
            let dead = self.dead_letters().await;
            if dead.len() >= count { Ok(dead) } else { Err(format!("{dead:#?}")) }
        })
        .await
    }

    /// `causeway ARGS...` with the settings of this relay.
    pub(crate) fn tool<const N: usize>(&self, args: [&str; N]) -> Causeway {
        Causeway::new(args).settings(&self.settings)
    }

    /// `causeway ARGS...` with any number of arguments.
    pub(crate) fn verb(&self, args: &[&str]) -> Causeway {
        Causeway::new([]).args(args).settings(&self.settings)
    }

    /// Waits until the ledger has the right content. The last `Err` of `seen` says what is missing.
    pub(crate) async fn until(&self, what: &str, mut seen: impl FnMut(&Relay) -> Result<(), String>) {
        eventually(what, PATIENCE, async || seen(self)).await;
    }

    /// Asks every process to end in an orderly way, and returns the exit codes.
    pub(crate) async fn stop(&mut self) -> Vec<Option<i32>> {
        let mut codes = Vec::new();
        for process in &self.processes {
            process.running.sigterm();
        }
        for process in &mut self.processes {
            codes.push(process.running.exit(PATIENCE).await.code());
        }
        codes
    }

    /// The user's messages in a chat at ServiceNow: the text of the start, then each message.
    pub(crate) fn said(&self, group: &str) -> Vec<String> {
        self.sandbox.ledger().servicenow_texts().remove(group).unwrap_or_default()
    }

    /// The callbacks at XO's Callback URL, by group, in the order of effects.
    pub(crate) fn called_back(&self) -> BTreeMap<String, Vec<String>> {
        let taken = self.sandbox.ledger().xo_callbacks();
        let texts = |entries: Vec<causeway::sandbox::LedgerEntry>| {
            entries.into_iter().map(|entry| entry.text.unwrap_or_default()).collect()
        };
        taken.into_iter().map(|(group, entries)| (group, texts(entries))).collect()
    }
}

/// The text of the n-th message of a lane.
pub(crate) fn numbered(line: &str, n: usize) -> String {
    format!("{line} #{n}")
}

fn json_post(client: &Client, url: &str, body: &Value) -> reqwest::RequestBuilder {
    client.post(url).header("content-type", "application/json").body(body.to_string())
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer, String> {
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status();
    let text = response.text().await.map_err(|error| error.to_string())?;
    Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
}

/// The value of a line of Prometheus' text format, if the line has this metric and these labels.
fn sample(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (set, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ")?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let has =
        |(label, wanted): &(&str, &str)| set.split(',').any(|pair| pair == format!("{label}=\"{wanted}\""));
    labels.iter().all(has).then(|| value.trim().parse().ok())?
}

#[test]
fn a_sample_is_found_by_its_labels() {
    let line = "causeway_breaker_state{destination=\"xo\",reason=\"a\"} 2";
    assert_eq!(sample(line, "causeway_breaker_state", &[("destination", "xo")]), Some(2.0));
    assert_eq!(sample(line, "causeway_breaker_state", &[("destination", "servicenow")]), None);
    assert_eq!(sample(line, "causeway_breaker", &[]), None);
    assert_eq!(sample("causeway_broker_connected 1", "causeway_broker_connected", &[]), Some(1.0));
}
