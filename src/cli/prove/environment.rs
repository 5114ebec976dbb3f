//! The environment of a run: the sandbox, the processes, the proxies between them, a folder.
//!
//! Guarantees: the settings do not depend on the environment variables. Every connection can be broken. Everything is
//! on loopback, except the broker that the user names.
//! Not responsible for: breaking it (`nemesis.rs`).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use url::Url;

use super::broker::BrokerControl;
use super::fault_plan::FaultScope;
use super::generator::LoadGenerator;
use super::observer::{HistoryObserver, PARTITIONS};
use super::processes::{ProveProcess, Variables, free_address};
use super::proxy::TcpProxy;
use super::{ProveArgs, TOKEN};
use crate::cli::CliFailure;
use crate::cli::folder::PrivateFolder;
use crate::config::{Environment, RunPurpose, Settings};
use crate::platform::{HttpClient, HttpSettings, NetworkSettings};
use crate::sandbox::{AgentAcceptance, AgentSettings, Sandbox, SandboxSettings};

/// Causeway's timeout for a call to a platform.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Longer than [`CALL_TIMEOUT`], as the settings require. The broker gives up a silent worker after two to three of
/// these.
const HEARTBEAT: Duration = Duration::from_secs(6);
/// The callers' timeout.
const CALLERS_WAIT: Duration = Duration::from_secs(8);
/// More than the number of concurrent requests. The witness keeps everything else that a run needs.
const LEDGER_KEEPS: usize = 20_000;
/// Enough to answer a late message that its chat is over.
const CHATS_KEPT: usize = 500;

#[derive(Debug)]
pub(super) struct ProxySet {
    pub(super) callers: TcpProxy,
    /// The proxy of the ingress, then the proxy of each worker.
    brokers: Vec<TcpProxy>,
    pub(super) servicenow: TcpProxy,
    pub(super) xo: TcpProxy,
}

impl ProxySet {
    pub(super) fn broker(&self, place: usize) -> anyhow::Result<&TcpProxy> {
        self.brokers.get(place).context("there is no broker here")
    }
}

#[derive(Debug)]
pub(super) struct ProveEnvironment {
    pub(super) sandbox: Sandbox,
    pub(super) observer: HistoryObserver,
    pub(super) wires: ProxySet,
    /// The ingress and the workers, or the only process of the embedded engine.
    pub(super) members: Vec<ProveProcess>,
    /// Settings for reading the queue and the dead letters without any proxy.
    pub(super) admin_settings: Settings,
    pub(super) scope: FaultScope,
    broker: Option<BrokerControl>,
    pub(super) folder: PrivateFolder,
}

impl ProveEnvironment {
    /// Starts everything and waits until it is ready.
    pub(super) async fn set(args: &ProveArgs, began: Instant) -> Result<Self, CliFailure> {
        let folder = PrivateFolder::make("prove")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let platform = listener.local_addr()?.to_string();
        let sandbox = Sandbox::start(listener, sandbox_settings()).await;
        let observer = HistoryObserver::new(&uuid::Uuid::new_v4().simple().to_string()[..8], began);
        observer.attend(sandbox.ledger());
        let public = free_address()?;
        let workers = if args.queue_url.is_some() { args.workers } else { 1 };
        let mut brokers = Vec::new();
        if let Some(url) = &args.queue_url {
            let broker = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5672));
            for _ in 0..=workers {
                brokers.push(TcpProxy::start(broker.clone()).await?);
            }
        }
        let wires = ProxySet {
            callers: TcpProxy::start(public.to_string()).await?,
            brokers,
            servicenow: TcpProxy::start(platform.clone()).await?,
            xo: TcpProxy::start(platform).await?,
        };
        let shared = shared(args, &folder, &wires, public)?;
        let admin_settings = admin_settings(&shared, args)?;
        let members = members(args, &shared, &wires, &folder, workers)?;
        let scope = FaultScope {
            broker: args.queue_url.is_some(),
            broker_control: args.broker_ctl.is_some(),
            workers,
            call_timeout: HEARTBEAT * 3 + Duration::from_secs(1),
        };
        let broker = args.broker_ctl.as_ref().map(|command| BrokerControl::new(command, folder.path()));
        let environment = Self { sandbox, observer, wires, members, admin_settings, scope, broker, folder };
        environment.refuse_what_is_not_ours().await?;
        for member in &environment.members {
            member.start().await?;
        }
        Ok(environment)
    }

    /// Fails if messages wait in the vhost: foreign messages would be delivered to the sandbox.
    async fn refuse_what_is_not_ours(&self) -> Result<(), CliFailure> {
        if !self.scope.broker {
            return Ok(());
        }
        let queue = crate::app::open_queue(&self.admin_settings).await?;
        let depth = queue.depth().await;
        queue.close().await;
        let depth = depth.map_err(anyhow::Error::from)?;
        let waiting: u64 = depth.waiting.values().sum();
        if waiting > 0 {
            let why = "messages wait in this vhost: they would be delivered to the sandbox. Name an empty vhost of its \
                       own in --queue-url";
            return Err(CliFailure::Usage(why.to_owned()));
        }
        Ok(())
    }

    pub(super) fn ingress(&self) -> &ProveProcess {
        // `set` creates at least one member.
        &self.members[0]
    }

    pub(super) fn worker(&self, number: usize) -> anyhow::Result<&ProveProcess> {
        let place = if self.scope.broker { 1 + number } else { 0 };
        self.members.get(place).context("there is no such worker")
    }

    pub(super) fn callers(&self) -> anyhow::Result<LoadGenerator> {
        let http = HttpClient::new(&HttpSettings {
            timeout: CALLERS_WAIT,
            user_agent: "causeway-prove".to_owned(),
            network: NetworkSettings::default(),
        })?;
        let front = self.wires.callers.address();
        Ok(LoadGenerator {
            observer: self.observer.clone(),
            http,
            handoffs: Url::parse(&format!("http://{front}/v1/handoffs"))?,
            callbacks: Url::parse(&format!("http://{front}/v1/callbacks/servicenow"))?,
        })
    }

    pub(super) fn broker(&self) -> anyhow::Result<&BrokerControl> {
        self.broker.as_ref().context("--broker-ctl is not given")
    }

    /// Repairs everything that is still broken: proxies, rules, processes, the broker.
    pub(super) async fn mend(&self) -> anyhow::Result<()> {
        self.sandbox.script().clear();
        let wires = &self.wires;
        for wire in [&wires.callers, &wires.servicenow, &wires.xo].into_iter().chain(&wires.brokers) {
            wire.heal();
        }
        if let Some(broker) = &self.broker {
            broker.bring_back().await?;
        }
        for member in &self.members {
            member.mend().await?;
        }
        Ok(())
    }

    pub(super) async fn end(&self) {
        // An interrupted run must not leave the user's broker stopped.
        if let Some(broker) = &self.broker
            && let Err(error) = broker.bring_back().await
        {
            tracing::warn!("{error:#}");
        }
        for member in &self.members {
            member.end().await;
        }
    }
}

fn sandbox_settings() -> SandboxSettings {
    let agent = AgentSettings { accept: AgentAcceptance::Manual, ..AgentSettings::default() };
    let (keep, keep_chats) = (Some(LEDGER_KEEPS), Some(CHATS_KEPT));
    SandboxSettings { agent, keep, keep_chats, ..SandboxSettings::default() }
}

/// The settings that all processes share.
fn shared(
    args: &ProveArgs,
    folder: &PrivateFolder,
    wires: &ProxySet,
    public: SocketAddr,
) -> anyhow::Result<Variables> {
    let built_in = SandboxSettings::default();
    let path = folder.path().to_str().context("the path of the temporary folder is not valid UTF-8")?;
    let queue_id = built_in.queues.first().map(|queue| queue.id.clone()).unwrap_or_default();
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    let directory = args.directory_url.clone().unwrap_or_else(|| format!("sqlite:{path}/directory.db"));
    let pairs = [
        ("DATA_DIR", path.to_owned()),
        ("DIRECTORY__URL", directory),
        ("QUEUE__PARTITIONS", PARTITIONS.to_string()),
        ("QUEUE__HEARTBEAT", seconds(HEARTBEAT)),
        ("SERVICENOW__HOST_URL", format!("http://{}", wires.servicenow.address())),
        ("SERVICENOW__USERNAME", built_in.username),
        ("SERVICENOW__PASSWORD", built_in.password),
        ("SERVICENOW__QUEUE_ID", queue_id),
        ("SERVICENOW__POLL_WAITING", "60s".to_owned()),
        ("SERVICENOW__POLL_ACTIVE", "60s".to_owned()),
        // A run leaves conversations open. The high limit keeps Causeway from ending them, which would change the
        // counts.
        ("SERVICENOW__WAIT_LIMIT", "30d".to_owned()),
        ("XO__CALLBACK_URL", format!("http://{}/xo/callback", wires.xo.address())),
        ("INGRESS__SPOOL", if args.no_spool { "off" } else { "callbacks" }.to_owned()),
        ("INGRESS__LISTEN", public.to_string()),
        ("INGRESS__SERVICENOW__TOKEN", TOKEN.to_owned()),
        ("INGRESS__HANDOFFS__TOKEN", TOKEN.to_owned()),
        ("DELIVERY__SERVICENOW__TIMEOUT", seconds(CALL_TIMEOUT)),
        ("DELIVERY__XO__TIMEOUT", seconds(CALL_TIMEOUT)),
        // Poisoned conversations must become dead letters while the run lasts.
        ("DELIVERY__HOLD", "3s".to_owned()),
        ("DELIVERY__RETRY__MAX", "1s".to_owned()),
        ("LOG__FORMAT", "text".to_owned()),
        ("LOG__LEVEL", args.log.clone()),
    ];
    Ok(pairs.map(|(key, value)| (format!("CAUSEWAY_{key}"), value)).to_vec())
}

fn admin_settings(shared: &Variables, args: &ProveArgs) -> Result<Settings, CliFailure> {
    let url = args.queue_url.as_ref().map(ToString::to_string);
    let pairs = shared.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let queue = url.iter().map(|url| ("CAUSEWAY_QUEUE__URL", url.as_str()));
    let environment: Environment = pairs.chain(queue).collect();
    Ok(Settings::load(None, &environment, RunPurpose::Serve)?)
}

fn members(
    args: &ProveArgs,
    shared: &Variables,
    wires: &ProxySet,
    folder: &PrivateFolder,
    workers: usize,
) -> anyhow::Result<Vec<ProveProcess>> {
    let Some(url) = &args.queue_url else {
        return Ok(vec![ProveProcess::new("serve".to_owned(), "serve", shared.clone(), folder.path())?]);
    };
    let mut members = Vec::new();
    for place in 0..=workers {
        let mut url = url.clone();
        let wire = wires.broker(place)?.address();
        url.set_host(Some("127.0.0.1")).context("--queue-url has no host")?;
        if url.set_port(Some(wire.port())).is_err() {
            bail!("--queue-url has no host");
        }
        let mut variables = shared.clone();
        variables.push(("CAUSEWAY_QUEUE__URL".to_owned(), url.to_string()));
        let (name, verb) = match place {
            0 => ("ingress".to_owned(), "ingress"),
            number => (format!("worker-{number}"), "worker"),
        };
        members.push(ProveProcess::new(name, verb, variables, folder.path())?);
    }
    Ok(members)
}
