//! Builds a running Causeway from the settings: queue, directory, clients, gates, listeners, tasks.
//!
//! Guarantees: every address is bound before any request is accepted. A failed part stops the process, so that its
//! supervisor restarts it. A shutdown takes at most `drain`. Not responsible for: the work of the parts.

mod availability;
mod broker_policies;
mod certificates;
mod components;
mod console;
mod file_watch;
mod housekeeping;
mod reload;
mod signals;
mod stores;
mod systemd;
mod tls_watch;
mod token_store;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::admin::{self, AdminConsole, AdminState};
use crate::bridge::{PollSettings, TimeLimits};
use crate::config::{self, ReloadableSettings, Settings, SpooledSenders};
use crate::conversation::{Directory, DirectoryError};
use crate::dead_letters::retention;
use crate::http_server::{self, ReadBudget};
use crate::ingress::{self, IdempotencyKeys, IngressSettings, IngressState};
use crate::live::Live;
use crate::queue::rabbit::RabbitUse;
use crate::queue::spool::Spool;
use crate::queue::{Queue, keep_bodies_in};
use crate::tasks::{CancellationToken, TaskSet};
use crate::telemetry::{Metrics, replace_log_settings};
use crate::tls::ServerTls;
use crate::worker::Worker;
pub use broker_policies::{BrokerPolicies, QueueFindings, UnsafeQueue};
pub use certificates::{KnownCertificate, certificates};
pub use components::{HttpClients, proxies, servicenow, xo};
use components::{file_server, ingress_settings, worker_parts, worker_settings};
use reload::ChangeHandlers;
pub use signals::ShutdownReason;
use signals::SignalHandler;
pub use stores::{broker_version, declare, open_admin, open_directory, open_queue, place, tuning};
use stores::{directory_settings, open, open_spool, start_directory};
use systemd::SystemdNotifier;
use watch::DirectoryHealth;

/// How long a callback waits for a start that may open its group.
const UNKNOWN_GROUP_WAIT: Duration = Duration::from_secs(30);
/// How long a process that starts is not ready because it has not reached the broker yet. Later an ingress with room in its
/// spool is ready without the broker.
const FIRST_CONNECT: Duration = Duration::from_secs(5);
/// How long an ingress that starts is not ready because it has not reached the directory yet. An orchestrator that replaces
/// processes one after another keeps the older ones meanwhile. Later the ingress is ready: callbacks need no directory.
const FIRST_DIRECTORY: Duration = Duration::from_secs(60);

/// The roles of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRoles {
    /// Both.
    Serve,
    /// HTTP to queue.
    Ingress,
    /// Queue to the platforms.
    Worker,
    /// The admin console alone.
    Console,
}

impl ServiceRoles {
    const fn takes(self) -> bool {
        matches!(self, Self::Serve | Self::Ingress)
    }

    const fn delivers(self) -> bool {
        matches!(self, Self::Serve | Self::Worker)
    }

    const fn usage(self) -> RabbitUse {
        match self {
            Self::Serve | Self::Worker => RabbitUse::Work,
            Self::Ingress => RabbitUse::Publish,
            Self::Console => RabbitUse::Admin,
        }
    }
}

/// A running Causeway.
#[derive(Debug)]
pub struct App {
    /// The address of the public listener, if this process has one.
    pub public: Option<SocketAddr>,
    /// The address of the admin listener.
    pub admin: SocketAddr,
    queue: Queue,
    spool: Option<Spool>,
    directory: Option<Directory>,
    metrics: Arc<Metrics>,
    tasks: TaskSet,
    /// The parts that take changed settings.
    handlers: ChangeHandlers,
    drain: Duration,
}

/// Runs until SIGTERM or SIGINT. `source` is where the settings are read again.
pub async fn run(settings: Settings, source: ReloadableSettings, roles: ServiceRoles) -> anyhow::Result<()> {
    let mut signals = SignalHandler::hear().context("cannot listen for signals")?;
    let stop = CancellationToken::default();
    let mut app = tokio::select! {
        app = Box::pin(App::start(settings, roles, &stop)) => app?,
        interrupted = signals.stop() => return Err(interrupted.into()),
    };
    let handlers = std::mem::take(&mut app.handlers);
    let systemd = SystemdNotifier::new(source.environment());
    let reload = reload::run(source, handlers, signals.take_hangup(), systemd.clone(), stop.clone());
    app.tasks.start("settings", reload);
    systemd.start_watchdog(&stop);
    systemd.ready();
    let mut ended = std::pin::pin!(app.finish());
    tokio::select! {
        ended = &mut ended => return ended,
        _ = signals.stop() => {}
    }
    tracing::info!(
        "stopping: no new messages are taken, attempts in flight finish; a second signal ends it at once"
    );
    systemd.stopping();
    stop.cancel();
    tokio::select! {
        ended = ended => ended,
        interrupted = signals.stop() => Err(interrupted.into()),
    }
}

/// `causeway files`: serves file links only, without the broker and the directory.
pub async fn run_files(settings: &Settings, source: ReloadableSettings) -> anyhow::Result<()> {
    let mut signals = SignalHandler::hear().context("cannot listen for signals")?;
    let mut handlers = ChangeHandlers::default();
    log_changes(&mut handlers);
    let routes =
        file_server(settings, &mut handlers)?.context("files.public_url is not set, so no links exist")?;
    let stop = CancellationToken::default();
    let admin_listener = bind(settings.admin_listen, "admin.listen").await?;
    let (address, key) = match settings.files.listen {
        Some(listen) => (listen, "files.listen"),
        None => (settings.ingress.listen, "ingress.listen"),
    };
    let listener = bind(address, key).await?;
    let metrics = Arc::new(Metrics::new("none")?);
    let state = AdminState { metrics, ready: Arc::new(|| Ok(())), console: None };
    tracing::info!(files = ?listener.local_addr()?, admin = ?admin_listener.local_addr()?, "causeway serves files");
    let mut tasks = TaskSet::new(stop.clone());
    tasks.start("admin", admin::serve_admin(admin_listener, state, stop.clone()));
    let time = settings.ingress.read_timeout;
    let tls = match settings.files.listen {
        Some(_) => None,
        None => ingress_tls(settings, &mut tasks, &stop)?,
    };
    tasks.start("files", http_server::serve_routes(listener, routes, time, tls, stop.clone()));
    let systemd = SystemdNotifier::new(source.environment());
    let reload = reload::run(source, handlers, signals.take_hangup(), systemd.clone(), stop.clone());
    tasks.start("settings", reload);
    systemd.start_watchdog(&stop);
    systemd.ready();
    let mut ended = std::pin::pin!(tasks.finish(settings.drain));
    tokio::select! {
        ended = &mut ended => return ended.map_err(anyhow::Error::from),
        _ = signals.stop() => systemd.stopping(),
    }
    stop.cancel();
    tokio::select! {
        ended = ended => ended.map_err(anyhow::Error::from),
        interrupted = signals.stop() => Err(interrupted.into()),
    }
}

impl App {
    /// Binds, opens and starts all parts. Returns when everything runs; the broker may still be unreachable.
    pub async fn start(
        settings: Settings,
        roles: ServiceRoles,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let admin = bind(settings.admin_listen, "admin.listen").await?;
        let public = match roles.takes() {
            true => Some(bind(settings.ingress.listen, "ingress.listen").await?),
            false => None,
        };
        let engine = if settings.queue.url.is_some() { "rabbitmq" } else { "embedded" };
        let metrics = Arc::new(Metrics::new(engine)?);
        metrics.show_destinations(&settings.destinations());
        keep_bodies_in(&settings.data_dir);
        let queue = open(&settings, roles.usage()).await?;
        let remembers = settings.servicenow.is_some()
            || settings.ingress.handoffs_token.is_set()
            || !settings.xo.bots.is_empty();
        let (directory, trouble) = if remembers { start_directory(&settings).await? } else { (None, None) };
        if let Some(directory) = &directory {
            directory.measure_commits(metrics.directory_commit.clone());
        }
        let spool = if roles.takes() { open_spool(&settings, &queue).await? } else { None };
        let mut app = Self {
            public: public.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: admin.local_addr()?,
            queue,
            spool,
            directory,
            metrics,
            tasks: TaskSet::new(stop.clone()),
            handlers: ChangeHandlers::default(),
            drain: settings.drain,
        };
        log_changes(&mut app.handlers);
        app.follow_stores(&settings);
        app.watch_queue(stop);
        let health = app.watch_parts(&settings, roles, trouble, stop)?;
        let worker = match roles.delivers() {
            true => Some(app.start_worker(&settings, stop)?),
            false => None,
        };
        let console = console::build(&settings, app.queue.clone(), &mut app.handlers);
        app.start_admin(admin, worker, health, console, stop);
        if let Some(public) = public {
            app.start_ingress(public, &settings, roles, stop).await?;
        }
        let public = app.public.map(tracing::field::display);
        tracing::info!(engine, public, admin = %app.admin, ?roles, "causeway runs");
        Ok(app)
    }

    /// Runs until shutdown or until a part fails, then drains and closes everything in order.
    pub async fn finish(self) -> anyhow::Result<()> {
        let ended = self.tasks.finish(self.drain).await;
        if let Some(spool) = &self.spool {
            spool.close().await;
        }
        self.queue.close().await;
        if let Some(directory) = &self.directory {
            directory.close().await;
        }
        ended.map_err(anyhow::Error::from)
    }

    fn start_worker(&mut self, settings: &Settings, stop: &CancellationToken) -> anyhow::Result<Worker> {
        let parts = worker_parts(settings, self)?;
        let deliverer = &parts.deliverer;
        if let (Some(servicenow), Some(directory)) = (&settings.servicenow, &self.directory) {
            let poll = PollSettings {
                waiting: servicenow.poll_waiting,
                active: servicenow.poll_active,
                time_limits: TimeLimits { wait: servicenow.wait_limit, idle: servicenow.idle_limit },
            };
            self.tasks.start("poll", deliverer.clone().poll(poll, stop.clone()));
            if !settings.xo.bots.is_empty() {
                let every = settings.xo.extend_every;
                self.tasks.start("keep-alive", deliverer.clone().keep_alive(every, stop.clone()));
            }
            if settings.queue.url.is_some()
                && let Some(client) = components::live_servicenow(settings, &mut self.handlers)?
            {
                let answering = availability::answer_questions(client, directory.clone(), stop.clone());
                self.tasks.start("availability", answering);
            }
            self.tasks.start(
                "housekeeping",
                housekeeping::run(
                    directory.clone(),
                    (settings.journal_kept, settings.directory_kept),
                    self.metrics.clone(),
                    stop.clone(),
                ),
            );
        }
        if let Some(kept) = settings.dead_kept {
            self.tasks.start("retention", retention::run(self.queue.clone(), kept, stop.clone()));
        }
        if settings.servicenow.is_some() {
            self.tasks.start("queues", deliverer.clone().check_queues(settings.queues(), stop.clone()));
        }
        let worker = worker_settings(settings);
        Ok(Worker::start(&mut self.tasks, stop, parts, &worker))
    }

    fn start_admin(
        &mut self,
        listener: TcpListener,
        worker: Option<Worker>,
        health: DirectoryHealth,
        console: Option<AdminConsole>,
        stop: &CancellationToken,
    ) {
        let (queue, spool) = (self.queue.clone(), self.spool.clone());
        let (began, was_connected) = (Instant::now(), AtomicBool::new(false));
        let takes = self.public.is_some();
        let ready = move || {
            if let Some(reason) = queue.unready() {
                if !was_connected.load(Ordering::Relaxed) && began.elapsed() < FIRST_CONNECT {
                    return Err(format!("the queue is not usable yet: {reason}"));
                }
                // An ingress that is not ready gets no more requests, and its senders do not repeat them.
                return match &spool {
                    Some(spool) if spool.has_room() => Ok(()),
                    Some(_) => Err(format!(
                        "the spool is full or cannot be written, and the queue is not usable: {reason}"
                    )),
                    None => Err(format!("the queue is not usable: {reason}")),
                };
            }
            was_connected.store(true, Ordering::Relaxed);
            if let Some(silent) =
                watch::silence(&queue).filter(|_| spool.as_ref().map_or(!takes, |it| !it.has_room()))
            {
                return Err(silent);
            }
            // A process that also takes messages stays ready: their senders do not repeat them.
            let may_wait = !takes || (!health.was_usable() && began.elapsed() < FIRST_DIRECTORY);
            match (health.trouble().filter(|_| may_wait), &worker) {
                (Some(trouble), _) => Err(format!("the directory is not usable: {trouble}")),
                (None, Some(worker)) => worker.ready(),
                (None, None) => Ok(()),
            }
        };
        let state = AdminState { metrics: self.metrics.clone(), ready: Arc::new(ready), console };
        self.tasks.start("admin", admin::serve_admin(listener, state, stop.clone()));
    }

    async fn start_ingress(
        &mut self,
        listener: TcpListener,
        settings: &Settings,
        roles: ServiceRoles,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        // A separate ingress has no login for ServiceNow: `causeway files` serves the files then.
        let files =
            if roles == ServiceRoles::Serve { file_server(settings, &mut self.handlers)? } else { None };
        let beside = match (files, settings.files.listen) {
            (Some(files), Some(listen)) => {
                let own = bind(listen, "files.listen").await?;
                let time = settings.ingress.read_timeout;
                self.tasks.start("files", http_server::serve_routes(own, files, time, None, stop.clone()));
                None
            }
            (files, _) => files,
        };
        if let Some(spool) = &self.spool {
            spool.drain(&mut self.tasks, stop);
            let measure = watch::measure_spool(spool.clone(), self.metrics.clone(), stop.clone());
            self.tasks.start("spool metrics", measure);
        }
        let state = IngressState {
            queue: self.queue.clone(),
            spool: self.spool.clone(),
            spools_handoffs: settings.ingress.spool == SpooledSenders::All,
            directory: self
                .directory
                .clone()
                .filter(|_| settings.ingress.handoffs_token.is_set() || !settings.xo.bots.is_empty()),
            availability: availability::availability(settings, self.directory.as_ref(), &mut self.handlers)?,
            idempotency_keys: IdempotencyKeys::default(),
            metrics: self.metrics.clone(),
            settings: self.live_ingress_settings(settings),
            budget: Arc::new(ReadBudget::new(settings.ingress.body_limit)),
        };
        let tls = ingress_tls(settings, &mut self.tasks, stop)?;
        let serving = ingress::serve_public(listener, Arc::new(state), beside, tls, stop.clone());
        self.tasks.start("ingress", serving);
        Ok(())
    }

    /// Watches everything that an operator should know before messages are late.
    fn watch_parts(
        &mut self,
        settings: &Settings,
        roles: ServiceRoles,
        trouble: Option<DirectoryError>,
        stop: &CancellationToken,
    ) -> anyhow::Result<DirectoryHealth> {
        let health = DirectoryHealth::default();
        let metrics = &self.metrics;
        metrics.directory_up.set(1);
        metrics.spool_has_room.set(1);
        if let Some(directory) = &self.directory {
            // `/readyz` must not be earlier than the first test.
            health.set(trouble.as_ref().map(DirectoryError::to_string));
            let started = (directory.clone(), trouble);
            let watch = watch::directory(started, health.clone(), metrics.clone(), stop.clone());
            self.tasks.start("directory", watch);
        }
        let watch = certificates::watch(
            Arc::new(settings.clone()),
            self.directory.clone(),
            metrics.clone(),
            stop.clone(),
        );
        self.tasks.start("certificates", watch);
        if settings.queue.url.is_some() {
            self.tasks.start("clock", watch::clock(metrics.clone(), stop.clone()));
            let watch = watch::majority(self.queue.clone(), metrics.clone(), stop.clone());
            self.tasks.start("majority", watch);
        }
        if let Some(policies) = BrokerPolicies::new(settings)?.filter(|_| roles.delivers()) {
            let followed = policies.clone();
            self.handlers.add(move |settings| followed.replace_address(settings));
            let watch = watch::policies(policies, self.queue.clone(), metrics.clone(), stop.clone());
            self.tasks.start("policies", watch);
        }
        Ok(health)
    }

    /// The passwords of the broker and the database: the next connection uses the new ones.
    fn follow_stores(&mut self, settings: &Settings) {
        let (broker, directory) = (settings.queue.url.clone(), settings.directory.clone());
        self.handlers.add(move |settings| {
            if let (Some(broker), Some(changed)) = (&broker, &settings.queue.url) {
                broker.replace_login(changed);
            }
            if let (config::DirectoryConfig::Postgres(url), config::DirectoryConfig::Postgres(changed)) =
                (&directory, &settings.directory)
                && url.get().expose_secret() != changed.get().expose_secret()
            {
                url.set((*changed.get()).clone());
            }
        });
    }

    fn live_ingress_settings(&mut self, settings: &Settings) -> Live<IngressSettings> {
        let live = Live::new(ingress_settings(settings));
        let followed = live.clone();
        self.handlers.add(move |settings| followed.set(ingress_settings(settings)));
        live
    }

    /// Keeps the gauge up to date, and ends the process on an error that cannot heal by itself.
    fn watch_queue(&mut self, stop: &CancellationToken) {
        let (queue, metrics, stop) = (self.queue.clone(), self.metrics.clone(), stop.clone());
        let mut connected = queue.connected();
        self.tasks.start("queue", async move {
            loop {
                metrics.broker_connected.set(i64::from(*connected.borrow_and_update()));
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    error = queue.broken() => return Err(error),
                    Ok(()) = connected.changed() => {}
                }
            }
        });
    }
}

/// TLS of the public listener, which follows its files.
fn ingress_tls(
    settings: &Settings,
    tasks: &mut TaskSet,
    stop: &CancellationToken,
) -> anyhow::Result<Option<ServerTls>> {
    let Some(files) = settings.ingress.tls.clone() else { return Ok(None) };
    let tls = ServerTls::open(files).map_err(|problem| anyhow::anyhow!("ingress.tls: {problem}"))?;
    tasks.start("tls", tls_watch::run(tls.clone(), stop.clone()));
    Ok(Some(tls))
}

fn log_changes(handlers: &mut ChangeHandlers) {
    handlers.add(|settings| replace_log_settings(&settings.log));
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}"))
}
