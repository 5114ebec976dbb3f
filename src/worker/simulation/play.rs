//! Plays a history: starts the workers, publishes the messages, applies the faults, and waits for an empty queue.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::history::{Event, History};
use super::platform::{AskedCall, PlatformWorld, body, id, worker_name};
use crate::bridge::{
    BotKitSettings, Deliverer, DelivererParts, DeliverySettings, ReadBack, UnknownGroup, VirtualAgentOptions,
};
use crate::clock::hands::{self, Watch};
use crate::delivery::backoff::{RetrySettings, loaded};
use crate::delivery::{GateSettings, Gates};
use crate::message::{BotSide, Destination, Destinations, Kind, LaneKey, Message};
use crate::platform::{HttpClient, HttpSettings, NetworkSettings, Xo, XoSettings};
use crate::queue::model::{BrokerRecord, ModelBroker, ModelQueue};
use crate::queue::{PartitionId, Queue, QueueTuning};
use crate::tasks::{self, CancellationToken, TaskFailure, TaskSet};
use crate::telemetry::Metrics;
use crate::worker::{MessageDeadlines, Worker, WorkerParts, WorkerSettings};

pub(super) const HEARTBEAT: Duration = Duration::from_secs(4);
/// Below the heartbeat, as the settings require: a worker without a lease has ended its last call before the broker gives
/// up the worker.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The time of correct clocks when a history begins.
pub(super) const BEGINNING: &str = "2026-11-22T10:00:00Z";
pub(super) const HOLD: Duration = Duration::from_secs(8);
pub(super) const DEADLINE: Duration = Duration::from_secs(45);
const DRAIN: Duration = Duration::from_secs(25);
const NOISE_ENDS: Duration = Duration::from_secs(14);

/// The record of a played history.
#[derive(Debug)]
pub(super) struct PlayedHistory {
    pub(super) start: Instant,
    pub(super) asked: Vec<AskedCall>,
    pub(super) effects: Vec<(Instant, usize, usize)>,
    pub(super) record: BrokerRecord,
    /// When each message was last accepted.
    pub(super) accepted: BTreeMap<(usize, usize), Instant>,
    /// When the shutdown of each worker began.
    pub(super) stopped: Vec<(usize, Instant)>,
    pub(super) broken: Vec<String>,
}

impl PlayedHistory {
    /// Two plays with equal footprints are the same.
    pub(super) fn footprint(&self) -> Vec<String> {
        let since = |at: Instant| at - self.start;
        let asked = self.asked.iter().map(|it| {
            format!(
                "{:?} {} {}/{} {:?} {:?}",
                since(it.began),
                it.worker,
                it.line,
                it.n,
                it.ended.map(since),
                it.heard
            )
        });
        let effects = self.effects.iter().map(|(at, line, n)| format!("{:?} {line}/{n}", since(*at)));
        asked.chain(effects).collect()
    }
}

/// A running worker.
struct WorkerHand {
    number: usize,
    name: String,
    queue: ModelQueue,
    stop: CancellationToken,
    tasks: TaskSet,
    lease: JoinHandle<()>,
    watch: Watch,
}

struct SimulationStage<'a> {
    history: &'a History,
    random: StdRng,
    start: Instant,
    broker: Arc<ModelBroker>,
    world: Arc<PlatformWorld>,
    hands: Vec<WorkerHand>,
    hired: usize,
    stopping: Vec<JoinHandle<(usize, Result<(), TaskFailure>)>>,
    stopped: Vec<(usize, Instant)>,
}

/// Plays the history on a clock of its own.
pub(super) fn play(history: &History) -> PlayedHistory {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let played = runtime.unwrap().block_on(async {
        hands::hold(BEGINNING.parse().unwrap());
        loaded::load(history.seed);
        SimulationStage::set(history).play().await
    });
    hands::release();
    played
}

pub(in crate::worker) fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new("rabbitmq").unwrap())).clone()
}

pub(in crate::worker) fn http() -> HttpClient {
    static HTTP: OnceLock<HttpClient> = OnceLock::new();
    let new = || {
        HttpClient::new(&HttpSettings {
            timeout: TIMEOUT,
            user_agent: "simulation".into(),
            network: NetworkSettings::default(),
        })
        .unwrap()
    };
    HTTP.get_or_init(new).clone()
}

impl<'a> SimulationStage<'a> {
    fn set(history: &'a History) -> Self {
        let tuning = QueueTuning {
            destinations: Destinations::new([Destination::Xo]),
            partitions: history.partitions,
            prefetch: history.prefetch,
            publish_timeout: Duration::from_secs(5),
        };
        let broker = ModelBroker::new(history.seed, tuning, HEARTBEAT, history.mishaps);
        Self {
            history,
            random: StdRng::seed_from_u64(history.seed),
            start: Instant::now(),
            world: PlatformWorld::new(history, broker.clone()),
            broker,
            hands: Vec::new(),
            hired: 0,
            stopping: Vec::new(),
            stopped: Vec::new(),
        }
    }

    async fn play(mut self) -> PlayedHistory {
        for _ in 0..self.history.workers {
            self.hire();
        }
        let accepted = Arc::default();
        let writers = self.history.lines.iter().enumerate().map(|(line, it)| {
            tasks::spawn(write(
                self.broker.join(&format!("ingress-{line}")),
                line,
                it.moments.clone(),
                Arc::clone(&accepted),
            ))
        });
        let writers: Vec<_> = writers.collect();
        for (at, event) in self.history.events.clone() {
            sleep_until(self.start + at).await;
            self.happens(event).await;
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let mut broken = self.quiet().await;
        while let Some(hand) = self.hands.pop() {
            self.dismiss(hand);
        }
        for stopping in std::mem::take(&mut self.stopping) {
            if let (number, Err(failure)) = stopping.await.unwrap() {
                broken.push(format!("worker {number} ended badly: {failure}"));
            }
        }
        // Late effects arrive.
        sleep(Duration::from_secs(5)).await;
        let mut book = self.world.book();
        broken.append(&mut book.broken);
        PlayedHistory {
            start: self.start,
            asked: std::mem::take(&mut book.asked),
            effects: std::mem::take(&mut book.effects),
            record: self.broker.record(),
            accepted: std::mem::take(&mut *accepted.lock().unwrap()),
            stopped: std::mem::take(&mut self.stopped),
            broken,
        }
    }

    /// Waits until the queue is empty, at most as long as the last deadline and the steps after it may take.
    async fn quiet(&self) -> Vec<String> {
        let outage = self.history.outages.iter().map(|(_, to, _)| *to).max().unwrap_or_default();
        let (_, behind) = self.history.wrong_clocks();
        let noise = NOISE_ENDS.max(outage).max(self.start.elapsed());
        let limit = noise + DEADLINE + behind + Duration::from_secs(45);
        while self.broker.left() > 0 {
            sleep(Duration::from_millis(200)).await;
            if self.start.elapsed() > limit {
                return vec![format!("{} messages have come to no end", self.broker.left())];
            }
        }
        Vec::new()
    }

    fn hire(&mut self) {
        let number = self.hired;
        self.hired += 1;
        let name = worker_name(self.history.seed, number);
        let model = self.broker.join(&name);
        let queue = Queue::Model(model.clone());
        let world = self.world.clone();
        let lease = queue.lease();
        let http = http().allowed_while(move || lease.holds(Instant::now()));
        let http = http.answered_by(move |call| Box::pin(world.clone().answer(number, call)));
        let callback_url = Some("http://xo.test/callback".parse().unwrap());
        let gate = GateSettings { concurrency: self.history.concurrency, rate: None };
        let gates = Gates::new(&queue, &BTreeMap::from([(Destination::Xo, gate)]), metrics());
        let parts = DelivererParts {
            servicenow: None,
            xo: Xo::new(http, XoSettings { callback_url, ..XoSettings::default() }),
            directory: None,
            queue: queue.clone(),
            gates: gates.clone(),
            metrics: metrics(),
        };
        self.world.employ(&gates);
        let parts = WorkerParts {
            queue,
            deliverer: Deliverer::new(parts, delivery_settings()),
            gates,
            directory: None,
            replay_notes: None,
            metrics: metrics(),
        };
        let stop = CancellationToken::default();
        let mut tasks = TaskSet::new(stop.clone());
        let (watch, settings) = (Watch::default(), worker_settings(self.history.prefetch));
        hands::wearing(&watch, || {
            Worker::start(&mut tasks, &stop, parts, &settings);
        });
        let lease = tasks::spawn(self.broker.clone().keep_lease(name.clone()));
        let (broker, introduced) = (self.broker.clone(), name.clone());
        tasks::spawn(async move {
            sleep(Duration::from_secs(2)).await;
            broker.introduce(&introduced);
        });
        self.hands.push(WorkerHand { number, name, queue: model, stop, tasks, lease, watch });
    }

    /// Shuts the worker down cleanly.
    fn dismiss(&mut self, hand: WorkerHand) {
        hand.stop.cancel();
        self.stopped.push((hand.number, Instant::now()));
        self.stopping.push(tasks::spawn(async move {
            let ended = hand.tasks.finish(DRAIN).await;
            hand.lease.abort();
            Queue::Model(hand.queue).close().await;
            (hand.number, ended)
        }));
    }

    async fn happens(&mut self, event: Event) {
        let one = self.random.random_range(0..self.hands.len());
        match event {
            Event::Lose(index) => self.broker.lose(PartitionId { destination: Destination::Xo, index }),
            Event::Join => self.hire(),
            Event::Stop => {
                let hand = self.hands.remove(one);
                self.dismiss(hand);
            }
            Event::Kill => {
                let hand = self.hands.remove(one);
                hand.lease.abort();
                drop(hand.tasks);
                // The calls of a killed worker end before the broker can notice.
                sleep(Duration::from_millis(1)).await;
                self.broker.leave(&hand.name);
            }
            Event::Step(by, long) => {
                let (watch, by) = (Arc::clone(&self.hands[one].watch), by * 1000);
                watch.fetch_add(by, Ordering::Relaxed);
                tasks::spawn(async move {
                    sleep(long).await;
                    watch.fetch_sub(by, Ordering::Relaxed);
                });
            }
            Event::Away(long) => {
                let broker = self.broker.clone();
                broker.go_away();
                tasks::spawn(async move {
                    sleep(long).await;
                    broker.come_back();
                });
            }
            Event::Cut(long) => {
                let name = self.hands[one].name.clone();
                let given_up = HEARTBEAT * 2 + HEARTBEAT.mul_f64(self.random.random_range(0.0..1.0));
                let noticed = HEARTBEAT * 2 + HEARTBEAT.mul_f64(self.random.random_range(0.0..0.5));
                tasks::spawn(cut(self.broker.clone(), name, long, given_up, noticed));
            }
        }
        if self.hands.is_empty() {
            self.hire();
        }
    }
}

/// Cuts the traffic between a worker and the broker. Chance decides which side notices first; neither notices a short cut.
async fn cut(
    broker: Arc<ModelBroker>,
    worker: String,
    long: Duration,
    given_up: Duration,
    noticed: Duration,
) {
    if !broker.cut(&worker) {
        return;
    }
    if long >= given_up.min(noticed) {
        sleep(given_up.min(noticed)).await;
        if given_up < noticed {
            broker.give_up(&worker)
        } else {
            broker.notice(&worker)
        }
        sleep(given_up.abs_diff(noticed)).await;
        if given_up < noticed { broker.notice(&worker) } else { broker.give_up(&worker) }
    } else {
        sleep(long).await;
    }
    broker.heal(&worker);
}

/// Publishes a conversation as the ingress does: one message after the other, each one again until it is confirmed.
async fn write(
    queue: ModelQueue,
    line: usize,
    moments: Vec<Duration>,
    accepted: Arc<Mutex<BTreeMap<(usize, usize), Instant>>>,
) {
    let start = Instant::now();
    let queue = Queue::Model(queue);
    let lane = LaneKey::parse(&format!("line-{line}")).unwrap();
    for (n, at) in moments.into_iter().enumerate() {
        sleep_until(start + at).await;
        loop {
            accepted.lock().unwrap().insert((line, n), Instant::now());
            let message = Message::new(
                id(line, n),
                Kind::CallbackMessage,
                Destination::Xo,
                lane.clone(),
                body(line, n),
            );
            if queue.publish(&message).await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
    }
}

pub(in crate::worker) fn delivery_settings() -> DeliverySettings {
    DeliverySettings {
        routes: crate::message::routing::QueueRoutes::default(),
        files: crate::bridge::FileSettings::default(),
        queue_id: None,
        unknown_group: UnknownGroup::default(),
        unknown_group_wait: Duration::from_secs(30),
        bot_side: BotSide::default(),
        relays_callbacks: true,
        tells_events: false,
        serves_bots: false,
        read_back: ReadBack::default(),
        bulk_read: false,
        read_rate: 1000.0,
        virtual_agent: VirtualAgentOptions::default(),
        incident: None,
        botkit: BotKitSettings::default(),
    }
}

pub(in crate::worker) fn worker_settings(prefetch: u16) -> WorkerSettings {
    let deadlines = MessageDeadlines { message: DEADLINE, ..MessageDeadlines::default() };
    let retry = RetrySettings { max: Duration::from_secs(5), ..RetrySettings::default() };
    WorkerSettings { retry, deadlines, hold: HOLD, prefetch }
}
