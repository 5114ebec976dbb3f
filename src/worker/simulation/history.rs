//! The generator of histories: everything in a history is drawn from its seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::queue::model::FaultPlan;

/// The kind of faults in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BrokerWeather {
    /// All faults at once.
    Storm,
    /// Some conversations never succeed; there is no other fault.
    Poison,
    /// The destination is unavailable for a while; there is no other fault.
    Outage,
    /// Clocks of workers step, and one conversation always fails; there is no other fault.
    Clocks,
}

/// One conversation.
#[derive(Debug, Clone)]
pub(super) struct HistoryLine {
    pub(super) poison: Option<Poison>,
    /// The times of its messages since the start.
    pub(super) moments: Vec<Duration>,
}

/// Why a conversation never succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poison {
    Rejected,
    Failing,
    Hanging,
}

/// How a destination is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    Refusing,
    Failing,
    Asking,
    Page,
    Hanging,
}

/// A fault on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The consumers of this partition lose it.
    Lose(u16),
    /// The broker is unreachable.
    Away(Duration),
    /// A worker and the broker do not reach each other, for at least this long.
    Cut(Duration),
    Stop,
    Kill,
    Join,
    /// The wall clock of a worker is wrong by this many seconds for this long. Monotonic clocks are not affected.
    Step(i64, Duration),
}

/// The random faults of the platform, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackgroundNoise {
    pub(super) lost_answer: u32,
    pub(super) late_effect: u32,
    pub(super) error: u32,
    pub(super) asks: u32,
    pub(super) rejects: u32,
    pub(super) refuses: u32,
    pub(super) page: u32,
    pub(super) hangs: u32,
}

#[derive(Debug, Clone)]
pub(super) struct History {
    pub(super) seed: u64,
    pub(super) weather: BrokerWeather,
    pub(super) workers: usize,
    pub(super) partitions: u16,
    pub(super) prefetch: u16,
    pub(super) concurrency: usize,
    pub(super) lines: Vec<HistoryLine>,
    pub(super) noise: BackgroundNoise,
    pub(super) outages: Vec<(Duration, Duration, Outage)>,
    pub(super) events: Vec<(Duration, Event)>,
    pub(super) mishaps: FaultPlan,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl History {
    pub(super) fn draw(seed: u64, weather: BrokerWeather) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut history = Self {
            seed,
            weather,
            workers: 1,
            partitions: random.random_range(1..=2),
            prefetch: *[4, 8, 16, 64].choose(random).unwrap(),
            concurrency: random.random_range(1..=6),
            lines: lines(random),
            noise: BackgroundNoise::default(),
            outages: Vec::new(),
            events: Vec::new(),
            mishaps: FaultPlan::default(),
        };
        match weather {
            BrokerWeather::Storm => history.storm(random),
            BrokerWeather::Poison => history.poison(random),
            BrokerWeather::Outage => history.outage(random),
            BrokerWeather::Clocks => history.clocks(random),
        }
        history
    }

    fn storm(&mut self, random: &mut StdRng) {
        self.workers = random.random_range(1..=3);
        let mut rate = |most: u32| if random.random_bool(0.5) { random.random_range(0..=most) } else { 0 };
        self.noise = BackgroundNoise {
            lost_answer: rate(80),
            late_effect: rate(40),
            error: rate(200),
            asks: rate(30),
            rejects: rate(50),
            refuses: rate(60),
            page: rate(30),
            hangs: rate(30),
        };
        self.mishaps = FaultPlan { unconfirmed: rate(60), refused: rate(60) };
        for line in &mut self.lines {
            line.poison = poison(random, 0.1);
        }
        if random.random_bool(0.3) {
            self.outages.push(outage(random, 8));
        }
        for _ in 0..random.random_range(0..=5) {
            let at = ms(random.random_range(0..14_000));
            self.events.push((at, event(random, self.partitions)));
        }
        self.events.sort_by_key(|(at, _)| *at);
        // A cut-off worker gets no new messages: only a conversation that keeps failing shows whether the worker still
        // sends.
        if self.events.iter().any(|(_, event)| matches!(event, Event::Cut(_))) {
            self.lines[0].poison = Some(Poison::Failing);
        }
    }

    fn poison(&mut self, random: &mut StdRng) {
        self.concurrency = 4;
        self.prefetch = *[8, 16, 64].choose(random).unwrap();
        self.lines.push(HistoryLine { poison: None, moments: moments(random) });
        self.lines[0].poison = poison(random, 1.0);
        self.lines[1].poison = poison(random, 0.5);
    }

    fn outage(&mut self, random: &mut StdRng) {
        // No crowded window: a lane that fills the window alone is charged for the time, even in an outage.
        self.prefetch = 128;
        self.outages.push(outage(random, 40));
    }

    fn clocks(&mut self, random: &mut StdRng) {
        self.workers = random.random_range(1..=2);
        self.concurrency = 4;
        self.prefetch = 128;
        self.lines[0].poison = Some(Poison::Failing);
        for _ in 0..random.random_range(1..=4) {
            let at = ms(random.random_range(0..14_000));
            self.events.push((at, step(random)));
        }
        self.events.sort_by_key(|(at, _)| *at);
    }

    /// How far the clocks may be ahead in total, and how long they are behind.
    pub(super) fn wrong_clocks(&self) -> (Duration, Duration) {
        let (mut ahead, mut behind) = (Duration::ZERO, Duration::ZERO);
        for (_, event) in &self.events {
            match event {
                Event::Step(by, _) if *by > 0 => ahead += Duration::from_secs(by.unsigned_abs()),
                Event::Step(_, long) => behind += *long,
                _ => {}
            }
        }
        (ahead, behind)
    }
}

fn step(random: &mut StdRng) -> Event {
    let by = *[2, 20, 60, 600, 3600].choose(random).unwrap();
    let long = ms(random.random_range(100..15_000));
    Event::Step(if random.random_bool(0.5) { by } else { -by }, long)
}

fn lines(random: &mut StdRng) -> Vec<HistoryLine> {
    (0..random.random_range(3..=7)).map(|_| HistoryLine { poison: None, moments: moments(random) }).collect()
}

fn moments(random: &mut StdRng) -> Vec<Duration> {
    let burst = random.random_bool(0.3);
    let count = random.random_range(1..=10);
    let mut at: Vec<_> =
        (0..count).map(|_| ms(random.random_range(0..if burst { 300 } else { 12_000 }))).collect();
    at.sort();
    at
}

fn poison(random: &mut StdRng, chance: f64) -> Option<Poison> {
    let kinds = [Poison::Rejected, Poison::Failing, Poison::Hanging];
    random.random_bool(chance).then(|| *kinds.choose(random).unwrap())
}

fn outage(random: &mut StdRng, longest: u64) -> (Duration, Duration, Outage) {
    let kinds = [Outage::Refusing, Outage::Failing, Outage::Asking, Outage::Page, Outage::Hanging];
    let from = ms(random.random_range(0..10_000));
    (from, from + ms(random.random_range(500..longest * 1000)), *kinds.choose(random).unwrap())
}

fn event(random: &mut StdRng, partitions: u16) -> Event {
    let long = ms(random.random_range(100..15_000));
    match random.random_range(0..8) {
        0 | 1 => Event::Lose(random.random_range(0..partitions)),
        2 => Event::Away(long / 4),
        3 => Event::Cut(long),
        4 => Event::Stop,
        5 => Event::Kill,
        6 => step(random),
        _ => Event::Join,
    }
}
