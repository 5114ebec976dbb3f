//! A relay under test: the sandbox on both sides, the real binary between them, on the engine of a bench.
//!
//! ```ignore
//! let relay = Plan::on(&bench).set("delivery.hold", "2s").start().await;
//! relay.open("c-1").await;
//! relay.say("c-1", "hello").await;
//! relay.sandbox.ledger().wait_for(|ledger| ..., PATIENCE).await;
//! ```
//! What arrived is in the sandbox's ledger; what the binary says of itself is asked over its own doors.

use std::collections::BTreeMap;
use std::time::Duration;

use causeway::sandbox::{Accept, AgentSettings, QueueSettings, Sandbox, SandboxSettings};
use futures_util::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::binary::{Causeway, Running};
use super::matrix::Bench;
use super::wait::eventually;
use super::{http, ports};

/// Long enough for a debug binary on a busy machine of two cores; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const HANDOFFS_TOKEN: &str = "handoffs-token";
const CALLBACK_TOKEN: &str = "callback-token";

/// What is about to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    settings: Vec<(String, String)>,
    sandbox: SandboxSettings,
    roles: Vec<&'static str>,
}

impl Plan {
    /// One `causeway serve` that carries both directions: handoffs to ServiceNow, callbacks of foreign chats to XO's
    /// Callback URL, events of our own chats to the events URL. The sandbox's agent does nothing by itself.
    pub(crate) fn on(bench: &Bench) -> Self {
        let agent = AgentSettings { accept: Accept::Manual, ..AgentSettings::default() };
        Self {
            settings: bench.settings(),
            sandbox: SandboxSettings { agent, ..SandboxSettings::default() },
            roles: vec!["serve"],
        }
    }

    /// A setting by its key; wins over what the plan would choose.
    pub(crate) fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.push((key.to_owned(), value.into()));
        self
    }

    /// Ingress and workers as processes of their own (RabbitMQ only): the ingress is `processes[0]`.
    pub(crate) fn apart(mut self, workers: usize) -> Self {
        self.roles = std::iter::once("ingress").chain(std::iter::repeat_n("worker", workers)).collect();
        self
    }

    /// Changes the sandbox before it starts.
    pub(crate) fn sandbox(mut self, change: impl FnOnce(&mut SandboxSettings)) -> Self {
        change(&mut self.sandbox);
        self
    }

    /// Starts everything and waits until it is ready.
    pub(crate) async fn start(self) -> Relay {
        let listener =
            tokio::net::TcpListener::bind(ports::free_address()).await.expect("a sandbox's address");
        let (username, password) = (self.sandbox.username.clone(), self.sandbox.password.clone());
        let sandbox = Sandbox::start(listener, self.sandbox).await;
        let mut settings: Vec<(String, String)> = [
            ("servicenow.host_url", sandbox.servicenow_url().to_owned()),
            ("servicenow.username", username),
            ("servicenow.password", password),
            ("servicenow.queue_id", QueueSettings::default().id),
            ("xo.callback_url", sandbox.xo_callback_url()),
            ("handoffs.events_url", sandbox.events_url()),
            ("ingress.handoffs.token", HANDOFFS_TOKEN.to_owned()),
            ("ingress.servicenow.token", CALLBACK_TOKEN.to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        settings.extend(self.settings);
        let processes = self.roles.into_iter().map(|role| Process::start(role, &settings)).collect();
        let relay = Relay { sandbox, processes, settings, client: http::client() };
        relay.ready().await;
        relay
    }
}

/// One running `causeway`.
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

    /// Starts it again, after its end, where it was before. [`Relay::ready`] waits for it.
    pub(crate) fn restart(&mut self) {
        assert!(!self.running.is_running(), "{} must have ended before it starts again", self.role);
        self.running = Self::spawn(self.role, self.public, self.admin, &self.settings);
    }

    /// Another setting for its next start.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Where its ingress listens.
    pub(crate) fn public_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.public)
    }

    /// Where its admin listener is.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }
}

/// What a door answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Answer {
    /// The id of what was taken.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.status, StatusCode::ACCEPTED, "{}", self.body);
        self.body["id"].as_str().expect("an id").to_owned()
    }
}

/// Everything that runs. It ends when the value goes.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) sandbox: Sandbox,
    /// The first one has the ingress.
    pub(crate) processes: Vec<Process>,
    settings: Vec<(String, String)>,
    client: Client,
}

impl Relay {
    /// Waits until every process says that it is ready.
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

    /// Starts one more process of this role, with the same settings.
    pub(crate) async fn add(&mut self, role: &'static str) {
        self.processes.push(Process::start(role, &self.settings));
        self.ready().await;
    }

    /// The same with settings of its own, which win.
    pub(crate) async fn add_with(&mut self, role: &'static str, own: &[(&str, String)]) {
        let mut settings = self.settings.clone();
        settings.extend(own.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.processes.push(Process::start(role, &settings));
        self.ready().await;
    }

    /// Posts a handoff to the first process; `Err` when there was no answer at all.
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

    /// Asks for a chat; its first text is `hello from <conversation>`.
    pub(crate) async fn start(&self, conversation: &str) -> String {
        let message = format!("hello from {conversation}");
        self.handoff(json!({"type": "start", "conversation_id": conversation, "message": message})).await.id()
    }

    /// Says something in a chat.
    pub(crate) async fn say(&self, conversation: &str, text: &str) -> String {
        self.handoff(json!({"type": "message", "conversation_id": conversation, "message": text})).await.id()
    }

    /// Ends a chat.
    pub(crate) async fn end(&self, conversation: &str) -> String {
        self.handoff(json!({"type": "end", "conversation_id": conversation, "reason": "user"})).await.id()
    }

    /// Asks for a chat and waits until it is open; returns ServiceNow's group.
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

    /// Posts a callback of ServiceNow to the first process; `Err` when there was no answer at all.
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

    /// Posts `each` callbacks of every group, a group's in order and one at a time, `at_once` groups at a time. The text
    /// of the n-th of group g is `g #n`. Each must be accepted.
    pub(crate) async fn callbacks(&self, groups: &[String], each: usize, at_once: usize) {
        let lines = groups.iter().map(|group| async move {
            for n in 0..each {
                self.callback(group, &numbered(group, n), &format!("{group}-{n}")).await.id();
            }
        });
        futures_util::stream::iter(lines).for_each_concurrent(at_once, |line| line).await;
    }

    /// The same for messages of conversations; each must be accepted.
    pub(crate) async fn messages(&self, conversations: &[String], each: usize, at_once: usize) {
        let lines = conversations.iter().map(|conversation| async move {
            for n in 0..each {
                self.say(conversation, &numbered(conversation, n)).await;
            }
        });
        futures_util::stream::iter(lines).for_each_concurrent(at_once, |line| line).await;
    }

    /// The value of a metric, added up over all processes and all series that have these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut sum = 0.0;
        for process in &self.processes {
            sum += self.metric_of(process, name, labels).await.expect("metrics");
        }
        sum
    }

    /// The same of one process; `Err` when it does not answer.
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

    /// Waits until a metric is what it should be.
    pub(crate) async fn metric_is(&self, name: &str, labels: &[(&str, &str)], right: impl Fn(f64) -> bool) {
        eventually(&format!("{name} {labels:?} to be right"), PATIENCE, async || {
            let value = self.metric(name, labels).await;
            if right(value) { Ok(()) } else { Err(format!("{value}")) }
        })
        .await;
    }

    /// Every dead letter with its story and its text, as `causeway dead export` writes them, oldest death first.
    pub(crate) async fn dead_letters(&self) -> Vec<Value> {
        let exported = self.tool(["dead", "export", "--yes"]).run(PATIENCE).await;
        assert_eq!(exported.code, Some(0), "{}{}", exported.stdout, exported.stderr);
        exported.stdout.lines().map(|line| serde_json::from_str(line).expect("a dead letter")).collect()
    }

    /// Waits until there are so many dead letters, and returns them.
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

    /// The same with any number of arguments.
    pub(crate) fn verb(&self, args: &[&str]) -> Causeway {
        Causeway::new([]).args(args).settings(&self.settings)
    }

    /// Waits until the ledger is as it should be; when it is not in time, `seen` says what it is instead.
    pub(crate) async fn until(&self, what: &str, mut seen: impl FnMut(&Relay) -> Result<(), String>) {
        eventually(what, PATIENCE, async || seen(self)).await;
    }

    /// Asks every process to end in an orderly way, and returns their exit codes.
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

    /// What the user said in a chat, as ServiceNow has it: the start's text, then each message.
    pub(crate) fn said(&self, group: &str) -> Vec<String> {
        self.sandbox.ledger().servicenow_texts().remove(group).unwrap_or_default()
    }

    /// What XO's Callback URL took, by group, in the order of effects.
    pub(crate) fn called_back(&self) -> BTreeMap<String, Vec<String>> {
        let taken = self.sandbox.ledger().xo_callbacks();
        let texts = |entries: Vec<causeway::sandbox::Entry>| {
            entries.into_iter().map(|entry| entry.text.unwrap_or_default()).collect()
        };
        taken.into_iter().map(|(group, entries)| (group, texts(entries))).collect()
    }
}

/// The text of the n-th message of a line.
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

/// The value of one line of Prometheus' text format, if it is of this metric and has these labels.
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
