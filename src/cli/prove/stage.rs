//! The environment of a run: the sandbox, the processes, the proxies between them, a folder.
//!
//! Guarantees: the settings do not depend on the environment variables. Every connection can be broken. Everything is
//! on loopback, except the broker that the user names.
//! Not responsible for: breaking it (`faults.rs`).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use url::Url;

use super::broker::Broker;
use super::fleet::{Member, Variables, free_address};
use super::load::Callers;
use super::plan::Ground;
use super::proxy::Proxy;
use super::witness::{PARTITIONS, Witness};
use super::{Args, TOKEN};
use crate::cli::Failure;
use crate::cli::folder::Folder;
use crate::config::{Environment, Purpose, Settings};
use crate::platform::{Http, HttpSettings};
use crate::sandbox::{Accept, AgentSettings, Sandbox, SandboxSettings};

/// Causeway's timeout for a call to a platform.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// Longer than [`PATIENCE`], as the settings require. The broker gives up a silent worker after two to three of
/// these.
const HEARTBEAT: Duration = Duration::from_secs(6);
/// The callers' timeout.
const CALLERS_WAIT: Duration = Duration::from_secs(8);
/// More than the number of concurrent requests. The witness keeps everything else that a run needs.
const LEDGER_KEEPS: usize = 20_000;
/// Enough to answer a late message that its chat is over.
const CHATS_KEPT: usize = 500;

#[derive(Debug)]
pub(super) struct Wires {
    pub(super) callers: Proxy,
    /// The proxy of the ingress, then the proxy of each worker.
    brokers: Vec<Proxy>,
    pub(super) servicenow: Proxy,
    pub(super) xo: Proxy,
}

impl Wires {
    pub(super) fn broker(&self, place: usize) -> anyhow::Result<&Proxy> {
        self.brokers.get(place).context("there is no broker here")
    }
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sandbox: Sandbox,
    pub(super) witness: Witness,
    pub(super) wires: Wires,
    /// The ingress and the workers, or the only process of the embedded engine.
    pub(super) members: Vec<Member>,
    /// Settings for reading the queue and the dead letters without any proxy.
    pub(super) desk: Settings,
    pub(super) ground: Ground,
    broker: Option<Broker>,
    pub(super) folder: Folder,
}

impl Stage {
    /// Starts everything and waits until it is ready.
    pub(super) async fn set(args: &Args, began: Instant) -> Result<Self, Failure> {
        let folder = Folder::make("prove")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let platform = listener.local_addr()?.to_string();
        let sandbox = Sandbox::start(listener, sandbox_settings()).await;
        let witness = Witness::new(&uuid::Uuid::new_v4().simple().to_string()[..8], began);
        witness.attend(sandbox.ledger());
        let public = free_address()?;
        let workers = if args.queue_url.is_some() { args.workers } else { 1 };
        let mut brokers = Vec::new();
        if let Some(url) = &args.queue_url {
            let broker = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5672));
            for _ in 0..=workers {
                brokers.push(Proxy::start(broker.clone()).await?);
            }
        }
        let wires = Wires {
            callers: Proxy::start(public.to_string()).await?,
            brokers,
            servicenow: Proxy::start(platform.clone()).await?,
            xo: Proxy::start(platform).await?,
        };
        let shared = shared(args, &folder, &wires, public)?;
        let desk = desk(&shared, args)?;
        let members = members(args, &shared, &wires, &folder, workers)?;
        let ground = Ground {
            broker: args.queue_url.is_some(),
            broker_control: args.broker_ctl.is_some(),
            workers,
            patience: HEARTBEAT * 3 + Duration::from_secs(1),
        };
        let broker = args.broker_ctl.as_ref().map(|command| Broker::new(command, folder.path()));
        let stage = Self { sandbox, witness, wires, members, desk, ground, broker, folder };
        stage.refuse_what_is_not_ours().await?;
        for member in &stage.members {
            member.start().await?;
        }
        Ok(stage)
    }

    /// Fails if messages wait in the vhost: foreign messages would be delivered to the sandbox.
    async fn refuse_what_is_not_ours(&self) -> Result<(), Failure> {
        if !self.ground.broker {
            return Ok(());
        }
        let queue = crate::app::open_queue(&self.desk).await?;
        let depth = queue.depth().await;
        queue.close().await;
        let depth = depth.map_err(anyhow::Error::from)?;
        let waiting: u64 = depth.waiting.values().sum();
        if waiting > 0 {
            let why = "messages wait in this vhost: they would be delivered to the sandbox. Name an empty vhost of its \
                       own in --queue-url";
            return Err(Failure::Usage(why.to_owned()));
        }
        Ok(())
    }

    pub(super) fn ingress(&self) -> &Member {
        // `set` creates at least one member.
        &self.members[0]
    }

    pub(super) fn worker(&self, number: usize) -> anyhow::Result<&Member> {
        let place = if self.ground.broker { 1 + number } else { 0 };
        self.members.get(place).context("there is no such worker")
    }

    pub(super) fn callers(&self) -> anyhow::Result<Callers> {
        let http =
            Http::new(&HttpSettings { timeout: CALLERS_WAIT, user_agent: "causeway-prove".to_owned() })?;
        let front = self.wires.callers.address();
        Ok(Callers {
            witness: self.witness.clone(),
            http,
            handoffs: Url::parse(&format!("http://{front}/v1/handoffs"))?,
            callbacks: Url::parse(&format!("http://{front}/v1/callbacks/servicenow"))?,
        })
    }

    pub(super) fn broker(&self) -> anyhow::Result<&Broker> {
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
    let agent = AgentSettings { accept: Accept::Manual, ..AgentSettings::default() };
    let (keep, keep_chats) = (Some(LEDGER_KEEPS), Some(CHATS_KEPT));
    SandboxSettings { agent, keep, keep_chats, ..SandboxSettings::default() }
}

/// The settings that all processes share.
fn shared(args: &Args, folder: &Folder, wires: &Wires, public: SocketAddr) -> anyhow::Result<Variables> {
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
        ("INGRESS__LISTEN", public.to_string()),
        ("INGRESS__SERVICENOW__TOKEN", TOKEN.to_owned()),
        ("INGRESS__HANDOFFS__TOKEN", TOKEN.to_owned()),
        ("DELIVERY__SERVICENOW__TIMEOUT", seconds(PATIENCE)),
        ("DELIVERY__XO__TIMEOUT", seconds(PATIENCE)),
        // Poisoned conversations must become dead letters while the run lasts.
        ("DELIVERY__HOLD", "3s".to_owned()),
        ("DELIVERY__RETRY__MAX", "1s".to_owned()),
        ("LOG__FORMAT", "text".to_owned()),
        ("LOG__LEVEL", args.log.clone()),
    ];
    Ok(pairs.map(|(key, value)| (format!("CAUSEWAY_{key}"), value)).to_vec())
}

fn desk(shared: &Variables, args: &Args) -> Result<Settings, Failure> {
    let url = args.queue_url.as_ref().map(ToString::to_string);
    let pairs = shared.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let queue = url.iter().map(|url| ("CAUSEWAY_QUEUE__URL", url.as_str()));
    let environment: Environment = pairs.chain(queue).collect();
    Ok(Settings::load(None, &environment, Purpose::Serve)?)
}

fn members(
    args: &Args,
    shared: &Variables,
    wires: &Wires,
    folder: &Folder,
    workers: usize,
) -> anyhow::Result<Vec<Member>> {
    let Some(url) = &args.queue_url else {
        return Ok(vec![Member::new("serve".to_owned(), "serve", shared.clone(), folder.path())?]);
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
        members.push(Member::new(name, verb, variables, folder.path())?);
    }
    Ok(members)
}
