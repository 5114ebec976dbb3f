//! The jobs that each system runs, and their measurements.
//!
//! *Through*: HTTP in, queue, HTTP out, at the highest rate with a bounded number of messages in transit; then at
//! half the highest rate, for latency. *Drain*: the system's own front fills the queue, then its worker is started.
//! *Kill*: the worker is killed while messages flow, and started again.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::account::{self, Usage};
use super::broker::Broker;
use super::catalogue::{IN_FLIGHT, Place, Role, System, target};
use super::driver::{Driver, Posting, pass, until};
use super::ledger::{Counts, Ledger};
use super::load::{Pace, Target};
use super::postgres::Postgres;
use super::running::Running;
use super::shape::Shape;

/// The time limit of a start. Some peers need several seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time without an arrival no more arrivals are expected.
const SILENCE: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_millis(1000);
/// A rate that no system reaches on any machine.
const FASTEST: usize = 60_000;

/// The settings that all jobs of a run share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) broker: Broker,
    pub(crate) driver: Driver,
    pub(crate) window: Duration,
    pub(crate) delay: Duration,
    pub(crate) conversations: u32,
    pub(crate) connections: u32,
    /// The number of messages in transit in a closed loop.
    pub(crate) outstanding: usize,
    pub(crate) body: usize,
    /// Additional settings of Causeway for this run.
    pub(crate) settings: Vec<(String, String)>,
    /// PostgreSQL of a two-way run.
    pub(crate) postgres: Option<Postgres>,
    pub(crate) nonce: AtomicU32,
}

/// The results of a window of time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Flow {
    /// Messages a second.
    pub(crate) rate: f64,
    /// Processor seconds for 1,000 messages: the system, the broker, load and sink.
    pub(crate) cpu: f64,
    pub(crate) broker_cpu: f64,
    pub(crate) postgres_cpu: f64,
    pub(crate) driver_cpu: f64,
    /// Memory of the system at the end of the window.
    pub(crate) megabytes: f64,
    /// The number of processors that other programs on the machine used.
    pub(crate) others: f64,
    /// The number of parallel requests at the sink.
    pub(crate) peak: u32,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
}

impl Latency {
    pub(crate) fn of(sorted: &[f64]) -> Self {
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index"
            )]
            let index = (sorted.len() as f64 * share) as usize;
            sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Half {
    pub(crate) flow: Flow,
    pub(crate) ingress: Latency,
    pub(crate) delivery: Latency,
    pub(crate) whole: Latency,
}

/// The results of a kill of the worker.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Kill {
    pub(crate) accepted: u64,
    /// The number of posts that were refused or not answered, and repeated.
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) overtaken: u64,
    /// The time from the kill to the next arrival in seconds.
    pub(crate) back: f64,
}

struct Snapshot {
    at: Instant,
    counts: Counts,
    system: Usage,
    broker: Usage,
    postgres: Usage,
    driver: Usage,
    machine: f64,
}

impl Bench {
    fn place(&self, name: &str, amqp: String) -> anyhow::Result<Place> {
        let folder = target().join("scratch").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let settings = self.settings.clone();
        let (sink, ports) = (self.driver.sink_address, free_ports()?);
        Ok(Place { amqp, sink, ports, worker: 0, folder, postgres: None, settings })
    }

    pub(crate) async fn stage(&self, system: System) -> anyhow::Result<Stage<'_>> {
        // Another benchmark may run on the same broker.
        let name = format!("bench-{}-{}", std::process::id(), system.name);
        self.driver.sink.delay(self.delay);
        let amqp = self.broker.fresh(&name).await?;
        let place = self.place(&name, amqp)?;
        let log = target().join("logs").join(format!("{}.log", system.name));
        std::fs::create_dir_all(target().join("logs"))?;
        let (shape, nonce) = (Shape::Relay, None);
        Ok(Stage { bench: self, system, place, name, log, shape, nonce, first: 0, processes: Vec::new() })
    }

    pub(crate) fn ledger(&self, room: usize) -> Arc<Ledger> {
        Arc::new(Ledger::new(self.next_nonce(), self.conversations, 0, room))
    }

    pub(crate) fn next_nonce(&self) -> u32 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    fn room(&self) -> usize {
        FASTEST * usize::try_from(self.window.as_secs() + 5).unwrap_or(60)
    }
}

/// The port is below the range that the kernel gives to outgoing connections.
fn free_ports() -> anyhow::Result<[u16; 8]> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = [0; 8];
    for port in &mut ports {
        *port = loop {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            ensure!(step < 1_000_000, "no free ports");
            let candidate = 14_000 + u16::try_from((std::process::id().wrapping_mul(37) + step) % 5_000)?;
            if TcpListener::bind(("127.0.0.1", candidate)).is_ok() {
                break candidate;
            }
        };
    }
    Ok(ports)
}

/// One system in one job, with its running processes.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    bench: &'a Bench,
    system: System,
    pub(crate) place: Place,
    name: String,
    log: PathBuf,
    /// The road of the messages.
    pub(crate) shape: Shape,
    /// The conversations of all jobs; without it each job has conversations of its own.
    pub(crate) nonce: Option<u32>,
    /// The number of the next message of these conversations.
    pub(crate) first: u32,
    pub(crate) processes: Vec<Running>,
}

impl Stage<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A ledger for the next job.
    pub(crate) fn ledger(&mut self, room: usize) -> Arc<Ledger> {
        let Some(nonce) = self.nonce else { return self.bench.ledger(room) };
        let (conversations, first) = (self.bench.conversations, self.first);
        let rounds = u32::try_from(room).unwrap_or(u32::MAX).div_ceil(conversations);
        self.first += rounds * conversations;
        Arc::new(Ledger::new(nonce, conversations, first, room))
    }

    /// Whether ingress and worker can run apart at the same time.
    pub(crate) const fn comes_apart(&self) -> bool {
        self.system.comes_apart()
    }

    pub(crate) async fn start(&mut self, role: Role) -> anyhow::Result<()> {
        for recipe in self.system.recipes(role, &self.place) {
            let mut running = Running::start(&recipe, &self.log)?;
            let ready = running.ready(PATIENCE).await;
            ready.with_context(|| format!("see {}", self.log.display()))?;
            self.processes.push(running);
        }
        Ok(())
    }

    /// Runs a verb of the command line to its end. Returns the seconds and the resources at the last measurement.
    pub(crate) async fn verb(&self, args: &[&str]) -> anyhow::Result<(f64, Usage)> {
        let recipe = self.system.verb(args, &self.place).context("only Causeway has verbs")?;
        let (began, mut running) = (Instant::now(), Running::start(&recipe, &self.log)?);
        let (mut used, mut most) = (Usage::default(), 0.0_f64);
        let ended = loop {
            if let Some(status) = running.ended()? {
                break status;
            }
            let now = account::usage(&[running.pid()]);
            if now.megabytes > 0.0 {
                (used, most) = (now, most.max(now.megabytes));
            }
            pass(Duration::from_millis(10)).await;
        };
        ensure!(ended.success(), "{args:?} ended with {ended}; see {}", self.log.display());
        Ok((began.elapsed().as_secs_f64(), Usage { megabytes: most, ..used }))
    }

    /// Ends all processes of the system.
    pub(crate) async fn stop(&mut self) {
        for running in self.processes.drain(..) {
            running.stop(Duration::from_secs(5)).await;
        }
    }

    pub(crate) async fn leave(mut self) -> anyhow::Result<()> {
        self.stop().await;
        let _ = std::fs::remove_dir_all(&self.place.folder);
        self.bench.broker.forget(&self.name).await
    }

    pub(crate) fn post(&self, ledger: &Arc<Ledger>, pace: Pace) -> Posting {
        let target = Target {
            address: self.place.listen(),
            path: self.system.path(self.shape),
            credential: self.shape.credential(),
            shape: self.shape,
            sink: self.place.sink,
            body_length: self.bench.body,
            connections: self.bench.connections.min(self.bench.conversations),
        };
        self.bench.driver.load(target, ledger, pace)
    }

    /// Processor seconds of the system and of the broker so far.
    pub(crate) fn cpu(&self) -> (f64, f64) {
        (account::usage(&self.pids()).cpu, self.bench.broker.usage().cpu)
    }

    /// The processes of the system.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Running::pid).collect()
    }

    fn snapshot(&self, ledger: &Ledger) -> Snapshot {
        let pids = self.pids();
        let own = account::usage(&[std::process::id()]);
        let system = account::usage(&pids);
        // The system's processes are also children of this process.
        let driver = Usage { cpu: own.cpu - system.cpu, ..own };
        let (broker, counts) = (self.bench.broker.usage(), ledger.counts());
        let postgres = self.bench.postgres.as_ref().map(Postgres::usage).unwrap_or_default();
        Snapshot { at: Instant::now(), counts, system, broker, postgres, driver, machine: account::machine() }
    }

    fn flow(&self, from: &Snapshot, to: &Snapshot, counted: impl Fn(&Counts) -> u64) -> Flow {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let messages = (counted(&to.counts) - counted(&from.counts)) as f64;
        let (thousands, seconds) = (messages / 1000.0, (to.at - from.at).as_secs_f64());
        let [system, broker, postgres, driver] = [
            to.system.cpu - from.system.cpu,
            to.broker.cpu - from.broker.cpu,
            to.postgres.cpu - from.postgres.cpu,
            to.driver.cpu - from.driver.cpu,
        ];
        Flow {
            rate: messages / seconds,
            cpu: system / thousands,
            broker_cpu: broker / thousands,
            postgres_cpu: postgres / thousands,
            driver_cpu: driver / thousands,
            megabytes: to.system.megabytes,
            others: ((to.machine - from.machine - system - broker - postgres - driver) / seconds).max(0.0),
            peak: self.bench.driver.sink.peak(),
        }
    }

    async fn warm_up(&self, ledger: &Ledger) -> anyhow::Result<()> {
        let flows = until(PATIENCE, || ledger.counts().arrived >= 100).await;
        ensure!(flows, "{} delivers nothing: {:?}; see {}", self.name, ledger.counts(), self.log.display());
        pass(WARM_UP).await;
        Ok(())
    }

    /// Waits until the given number has arrived, as long as there are arrivals.
    async fn after(&self, ledger: &Ledger, first: u64) -> anyhow::Result<()> {
        let (mut seen, mut since) = (0, Instant::now());
        while ledger.counts().arrived < first {
            if ledger.counts().arrived != seen {
                (seen, since) = (ledger.counts().arrived, Instant::now());
            }
            ensure!(since.elapsed() < SILENCE, "{} stopped at {seen} of {first}", self.name);
            pass(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until all accepted messages have arrived, or until arrivals stop. Returns the number of missing
    /// messages.
    pub(crate) async fn settled(&self, ledger: &Ledger) -> u64 {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let arrived = ledger.counts().arrived;
            if arrived != seen {
                (seen, since) = (arrived, Instant::now());
            }
            if arrived >= ledger.counts().accepted && ledger.missing() == 0 {
                return 0;
            }
            if since.elapsed() > SILENCE {
                return ledger.missing();
            }
            pass(Duration::from_millis(50)).await;
        }
    }

    /// Measures the highest rate. The processes are running.
    pub(crate) async fn through(&mut self) -> anyhow::Result<Flow> {
        self.through_after(0).await
    }

    /// The same measurement, started after the given number of messages.
    pub(crate) async fn through_after(&mut self, first: u32) -> anyhow::Result<Flow> {
        let ledger = self.ledger(self.bench.room() + first as usize);
        let posting = self.post(&ledger, Pace::Closed(self.bench.outstanding));
        self.warm_up(&ledger).await?;
        self.after(&ledger, u64::from(first)).await?;
        let from = self.snapshot(&ledger);
        pass(self.bench.window).await;
        let flow = self.flow(&from, &self.snapshot(&ledger), |counts| counts.arrived);
        posting.end().await;
        let missing = self.settled(&ledger).await;
        ensure!(missing == 0, "{} lost {missing} messages without any fault", self.name);
        Ok(flow)
    }

    /// Measures at a steady rate. The processes are running.
    pub(crate) async fn steady(&mut self, rate: f64) -> anyhow::Result<Half> {
        let ledger = self.ledger(self.bench.room());
        let posting = self.post(&ledger, Pace::Open(rate));
        self.warm_up(&ledger).await?;
        let (from, began) = (self.snapshot(&ledger), ledger.now());
        pass(self.bench.window).await;
        let (to, ended) = (self.snapshot(&ledger), ledger.now());
        posting.end().await;
        self.settled(&ledger).await;
        let times = ledger.times(began, ended);
        Ok(Half {
            flow: self.flow(&from, &to, |counts| counts.arrived),
            ingress: Latency::of(&times.ingress),
            delivery: Latency::of(&times.delivery),
            whole: Latency::of(&times.whole),
        })
    }

    /// Fills the queue through the system's own front for a window. Returns the results, and the ledger for the
    /// worker.
    pub(crate) async fn fill(&mut self, most: usize) -> anyhow::Result<(Flow, Arc<Ledger>)> {
        self.fill_within(most, self.bench.window).await
    }

    /// The same with a given limit.
    pub(crate) async fn fill_within(
        &mut self,
        most: usize,
        limit: Duration,
    ) -> anyhow::Result<(Flow, Arc<Ledger>)> {
        let ledger = self.ledger(most);
        self.start(Role::Front).await?;
        let posting = self.post(&ledger, Pace::Closed(usize::MAX));
        let flows = until(PATIENCE, || ledger.counts().accepted >= 100.min(most as u64)).await;
        ensure!(flows, "{} accepts nothing: {:?}; see {}", self.name, ledger.counts(), self.log.display());
        let from = self.snapshot(&ledger);
        until(limit, || posting.is_finished()).await;
        let flow = self.flow(&from, &self.snapshot(&ledger), |counts| counts.accepted);
        Ok((flow, self.filled(posting, ledger).await))
    }

    async fn filled(&mut self, posting: Posting, ledger: Arc<Ledger>) -> Arc<Ledger> {
        posting.end().await;
        if !self.system.front_is_queue() {
            self.stop().await;
        }
        ledger
    }

    /// Starts the worker on a filled queue and measures from 5 % delivered to 95 %, or to the end of the window. If a
    /// front must run, too, its cost is negligible.
    pub(crate) async fn drain(&mut self, ledger: &Arc<Ledger>) -> anyhow::Result<Flow> {
        self.drain_within(ledger, self.bench.window).await
    }

    /// The same with a given limit.
    pub(crate) async fn drain_within(
        &mut self,
        ledger: &Arc<Ledger>,
        limit: Duration,
    ) -> anyhow::Result<Flow> {
        let goal = ledger.counts().accepted;
        self.start(Role::Worker).await?;
        let begun = until(PATIENCE, || ledger.counts().arrived >= goal / 20).await;
        ensure!(begun, "{} drains nothing; see {}", self.name, self.log.display());
        let from = self.snapshot(ledger);
        until(limit, || ledger.counts().arrived >= goal / 20 * 19).await;
        Ok(self.flow(&from, &self.snapshot(ledger), |counts| counts.arrived))
    }

    /// Kills the worker while messages flow, starts it again, and waits for the last message.
    pub(crate) async fn kill(&mut self, rate: f64) -> anyhow::Result<Kill> {
        let role = if self.system.comes_apart() {
            self.start(Role::Front).await?;
            Role::Worker
        } else {
            Role::Whole
        };
        self.start(role).await?;
        let ledger = self.ledger(self.bench.room());
        let posting = self.post(&ledger, Pace::Open(rate));
        self.warm_up(&ledger).await?;
        drop(self.processes.pop());
        let (killed, arrived) = (Instant::now(), ledger.counts().arrived);
        self.start(role).await?;
        // Requests that were on their way to the sink still arrive.
        until(PATIENCE, || ledger.counts().arrived > arrived + IN_FLIGHT as u64).await;
        let back = killed.elapsed().as_secs_f64();
        pass(self.bench.window).await;
        posting.end().await;
        let lost = self.settled(&ledger).await;
        let Counts { accepted, refused, repeated, overtaken, .. } = ledger.counts();
        Ok(Kill { accepted, refused, lost, repeated, overtaken, back })
    }
}
