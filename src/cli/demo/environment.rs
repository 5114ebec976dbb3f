//! The environment of the demo: the sandbox, Causeway in the same process, a folder for its files, and the cleanup.
//!
//! Guarantees: the ports are free, the settings do not depend on the environment variables, and the files are removed
//! also after a failure.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::Url;

use super::metrics_scrape::MetricsScrape;
use crate::app::{App, ServiceRoles};
use crate::cli::CliFailure;
use crate::cli::folder::PrivateFolder;
use crate::config::{Environment, RunPurpose, Settings};
use crate::platform::http::HttpCall;
use crate::platform::{HttpClient, HttpSettings, NetworkSettings};
use crate::sandbox::botkit::{BotScript, BotStep, BotUser};
use crate::sandbox::{
    AgentAcceptance, AgentSettings, BodyStyle, BotKitSwitches, BotSettings, CallbackCredential,
    CallbackSettings, Sandbox, SandboxSettings,
};
use crate::tasks::{self, CancellationToken};

/// Time limit for each single wait.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The token of all listeners. It protects nothing: all data is generated and temporary.
const TOKEN: &str = "demo";
/// The bot's app is subscribed to OnMessage: what the user and the bot say goes through Causeway, too.
const ON_MESSAGE: bool = true;
/// The sandbox forgets older entries, because a kept demo can run for days.
const LEDGER_KEEPS: usize = 100_000;
const CHATS_KEPT: usize = 1_000;

/// The parts that the scenario and the witness use.
#[derive(Debug)]
pub(super) struct DemoClient {
    pub(super) sandbox: Sandbox,
    pub(super) settings: Settings,
    http: HttpClient,
    public: Url,
    admin: Url,
}

/// The running Causeway.
#[derive(Debug)]
pub(super) struct RelayTask(JoinHandle<anyhow::Result<()>>);

/// All parts that must be stopped or removed.
#[derive(Debug)]
pub(super) struct DemoEnvironment {
    pub(super) front: DemoClient,
    stop: CancellationToken,
    pub(super) relay: RelayTask,
    folder: PrivateFolder,
}

impl DemoEnvironment {
    /// Starts everything and waits until it is ready.
    pub(super) async fn set() -> Result<Self, CliFailure> {
        let folder = PrivateFolder::make("demo")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let sandbox = Sandbox::start(listener, sandbox_settings()).await;
        let settings = settings(&folder, &sandbox)?;
        let stop = CancellationToken::default();
        let app = Box::pin(App::start(settings.clone(), ServiceRoles::Serve, &stop)).await?;
        let public = app.public.context("the ingress has no address")?;
        let (public, admin) = (url(&format!("http://{public}"))?, url(&format!("http://{}", app.admin))?);
        let relay = RelayTask(tasks::spawn(app.finish()));
        let callbacks = public.join("/v1/callbacks/servicenow").map_err(anyhow::Error::from)?;
        let credential =
            CallbackCredential::Header { name: "x-causeway-token".to_owned(), value: TOKEN.to_owned() };
        // With this style each callback also contains the preceding message. An outage of ServiceNow's API then does
        // not delay callbacks.
        let style = BodyStyle::OwnRule;
        let callbacks = CallbackSettings { credential, style, ..CallbackSettings::to(callbacks.as_str()) };
        sandbox.set_callback(Some(callbacks));
        let network = NetworkSettings::default();
        let user_agent = "causeway-demo".to_owned();
        let http = HttpSettings { timeout: STEP_TIMEOUT, user_agent, network };
        let http = HttpClient::new(&http).map_err(anyhow::Error::from)?;
        sandbox.set_botkit_url(public.as_str().trim_end_matches('/'));
        let front = DemoClient { sandbox, settings, http, public, admin };
        let environment = Self { front, stop, relay, folder };
        until("Causeway is ready", async || environment.front.ready().await).await?;
        Ok(environment)
    }

    /// Stops everything and removes the files.
    pub(super) async fn tear_down(self) -> anyhow::Result<()> {
        self.stop.cancel();
        // If the relay ended by itself, the error was reported already, and a finished handle must not be awaited
        // again.
        let ended = if self.relay.0.is_finished() { Ok(()) } else { self.relay.0.await? };
        self.front.sandbox.stop().await;
        drop(self.folder);
        ended
    }
}

impl RelayTask {
    /// Waits until Causeway ends by itself, which is an error.
    pub(super) async fn failure(&mut self) -> anyhow::Error {
        match (&mut self.0).await {
            Ok(Err(error)) => error.context("Causeway stopped"),
            Ok(Ok(())) => anyhow::anyhow!("Causeway stopped"),
            Err(error) => error.into(),
        }
    }
}

fn sandbox_settings() -> SandboxSettings {
    let agent = AgentSettings {
        accept: AgentAcceptance::Manual,
        greeting: "Hello, this is Beth. Let me have a look.".to_owned(),
        ..AgentSettings::default()
    };
    let menu = BotStep::say("Hello, I am the help desk bot. What is it about?");
    let script = BotScript::help_desk()
        .answers("hello", vec![menu])
        .answers("fire", vec![BotStep::say("That is one for an agent."), BotStep::HandOver]);
    let bots = vec![BotSettings { script, ..BotSettings::default() }];
    let botkit = BotKitSwitches { on_message: ON_MESSAGE, ..BotKitSwitches::default() };
    let (keep, keep_chats) = (Some(LEDGER_KEEPS), Some(CHATS_KEPT));
    SandboxSettings {
        agent,
        bots,
        botkit,
        keep,
        keep_chats,
        events_token: Some(TOKEN.to_owned()),
        ..SandboxSettings::default()
    }
}

/// The demo's own settings, independent of environment variables and files.
fn settings(folder: &PrivateFolder, sandbox: &Sandbox) -> Result<Settings, CliFailure> {
    let built_in = SandboxSettings::default();
    let data_dir =
        folder.path().to_str().context("the path of the system's temporary folder is not valid UTF-8")?;
    let bot = built_in.bots.first().cloned().unwrap_or_default();
    let queue_id = built_in.queues.first().map(|queue| queue.id.as_str()).unwrap_or_default();
    let pairs = [
        ("CAUSEWAY_DATA_DIR", data_dir),
        ("CAUSEWAY_DRAIN", "5s"),
        // A laptop's disk may be slow, and the demo does not repeat a request.
        ("CAUSEWAY_QUEUE__PUBLISH_TIMEOUT", "20s"),
        // With few partitions the probe soon finds the partition that has messages.
        ("CAUSEWAY_QUEUE__PARTITIONS", "2"),
        ("CAUSEWAY_SERVICENOW__HOST_URL", sandbox.servicenow_url()),
        ("CAUSEWAY_SERVICENOW__USERNAME", &built_in.username),
        ("CAUSEWAY_SERVICENOW__PASSWORD", &built_in.password),
        ("CAUSEWAY_SERVICENOW__QUEUE_ID", queue_id),
        ("CAUSEWAY_SERVICENOW__POLL_WAITING", "300ms"),
        ("CAUSEWAY_SERVICENOW__POLL_ACTIVE", "300ms"),
        ("CAUSEWAY_XO__CALLBACK_URL", &sandbox.xo_callback_url()),
        ("CAUSEWAY_XO__BOT_ID", &bot.bot_id),
        ("CAUSEWAY_XO__APP_ID", &bot.app_id),
        ("CAUSEWAY_XO__CLIENT_SECRET", &bot.client_secret),
        ("CAUSEWAY_HANDOFFS__EVENTS_URL", &sandbox.events_url()),
        ("CAUSEWAY_HANDOFFS__EVENTS_TOKEN", TOKEN),
        ("CAUSEWAY_INGRESS__LISTEN", "127.0.0.1:0"),
        ("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", TOKEN),
        ("CAUSEWAY_INGRESS__HANDOFFS__TOKEN", TOKEN),
        ("CAUSEWAY_ADMIN__LISTEN", "127.0.0.1:0"),
        ("CAUSEWAY_ADMIN__TOKEN", TOKEN),
        ("CAUSEWAY_ADMIN__EDIT", "true"),
    ];
    Ok(Settings::load(None, &Environment::from(pairs), RunPurpose::Serve)?)
}

fn url(text: &str) -> anyhow::Result<Url> {
    Url::parse(text).with_context(|| format!("{text} is not a valid URL"))
}

/// Polls until `holds` returns true. After the time limit, the error names the condition.
pub(super) async fn until(what: &str, holds: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let asked = async {
        while !holds().await? {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    };
    let gave_up = || {
        let seconds = STEP_TIMEOUT.as_secs();
        Err(anyhow::anyhow!("gave up after {seconds} s of waiting until {what}: --log info may say why"))
    };
    tokio::time::timeout(STEP_TIMEOUT, asked).await.unwrap_or_else(|_| gave_up())
}

impl DemoClient {
    /// A user of the bot.
    pub(super) fn bot_user(&self, user: &str) -> BotUser {
        self.sandbox.bot_user(self.public.as_str(), user)
    }

    /// Posts a handoff request as a bot does. Every status except 202 is an error.
    pub(super) async fn hand_off(&self, request: &Value) -> anyhow::Result<()> {
        let url = self.public.join("/v1/handoffs")?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {TOKEN}"))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = Some(Bytes::from(request.to_string()));
        let reply = self.http.call(HttpCall { method: Method::POST, url, headers, body }).await;
        let reply = reply.map_err(|error| anyhow::anyhow!("POST /v1/handoffs: {error}"))?;
        if reply.status != StatusCode::ACCEPTED {
            bail!("POST /v1/handoffs was answered {} instead of 202", reply.status);
        }
        Ok(())
    }

    async fn ready(&self) -> anyhow::Result<bool> {
        Ok(self.get("/readyz").await?.0 == StatusCode::OK)
    }

    pub(super) async fn scrape(&self) -> anyhow::Result<MetricsScrape> {
        let (status, text) = self.get("/metrics").await?;
        if status != StatusCode::OK {
            bail!("GET /metrics was answered {status}");
        }
        Ok(MetricsScrape(text))
    }

    async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let url = self.admin.join(path)?;
        let call = HttpCall { method: Method::GET, url, headers: HeaderMap::new(), body: None };
        let told = |error| anyhow::anyhow!("GET {path}: {error}");
        let reply = self.http.call(call).await.map_err(told)?;
        let body = reply.body.map_err(told)?;
        Ok((reply.status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Commands to try in another terminal.
    pub(super) fn invitation(&self) -> String {
        let address = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        let (public, admin, sandbox) = (address(&self.public), address(&self.admin), self.sandbox.url());
        let data = self.settings.data_dir.display();
        format!(
            r#"  {admin}/desk   # the console, in a browser; its token is {TOKEN}

  C={public}   # Causeway: handoffs and callbacks
  M={admin}   # Causeway: metrics and health
  S={sandbox}   # the sandbox: ServiceNow, the bot side, and faults for both

  # ask for a human, see the conversation and its group, let the agent take it and write
  curl $C/v1/handoffs -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \
       -d '{{"type": "start", "conversation_id": "mine", "message": "Hello?"}}'
  curl $C/v1/conversations/mine -H 'Authorization: Bearer {TOKEN}'
  curl -X POST $S/sandbox/agents/GROUP/accept
  curl $S/sandbox/agents/GROUP/say -d '{{"text": "Have you tried water?"}}'
  curl "$S/sandbox/ledger?side=events&conversation=mine"

  # write to the bot as a user of XO; "agent" hands over; see what was read
  curl $S/sandbox/users/me/say -d '{{"text": "menu"}}'
  curl $S/sandbox/users/me

  # take ServiceNow down, write, watch, bring it back ($S/sandbox lists every fault)
  curl $S/sandbox/rules -d '{{"side": "servicenow", "fault": {{"kind": "html_page"}}}}'
  curl $C/v1/handoffs -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \
       -d '{{"type": "message", "conversation_id": "mine", "message": "Still there?"}}'
  curl -s $M/metrics | grep ^causeway_
  curl -X DELETE $S/sandbox/rules

  # look at dead letters and conversations from beside
  CAUSEWAY_DATA_DIR={data} CAUSEWAY_QUEUE__PARTITIONS=2 causeway dead list
  CAUSEWAY_DATA_DIR={data} causeway conversations list"#
        )
    }
}
