//! Simulates thousands of histories in seconds: the real worker, gate, breaker, backoff, classification and platform client
//! on a paused clock, between a model of the queue (`queue/model/`) and a model of XO (`platform.rs`).
//!
//! A history (`history.rs`) is drawn from its seed: the times of the messages, the answers of the platform, the faults. It
//! is played (`play.rs`) and checked (`checker.rs`). The same seed gives the same history: a worker takes random numbers only
//! from `delivery/backoff.rs`, and every `select!` on its path is biased. There is one exception: if several pumps wake at
//! the same instant, tokio decides which one runs first (`watch` wakes in no order). So one seed is played many times.
//!
//! `CAUSEWAY_SIMULATION_SEED=17 cargo test simulation` plays one seed again and prints the events if a promise breaks.
//! `CAUSEWAY_SIMULATION_HISTORIES=100000` plays this many histories, starting with that seed.

mod checker;
mod history;
mod platform;
mod play;

use history::{BrokerWeather, History};
pub(super) use play::{delivery_settings, http, metrics, worker_settings};

fn told(name: &str) -> Option<u64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "not a setting: how many histories a developer wants to see"
    )]
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap())
}

/// Plays histories of this kind until one breaks a promise.
fn survives(weather: BrokerWeather, usually: u64) {
    let one = told("CAUSEWAY_SIMULATION_SEED");
    let many = told("CAUSEWAY_SIMULATION_HISTORIES");
    let first = one.unwrap_or(1);
    let seeds: Vec<u64> = match (one, many) {
        (Some(seed), None) => vec![seed; 50],
        _ => (first..first + many.unwrap_or(usually)).collect(),
    };
    for seed in seeds {
        let history = History::draw(seed, weather);
        let played = play::play(&history);
        let broken = checker::judge(&history, &played);
        assert!(
            broken.is_empty(),
            "seed {seed} ({weather:?}) broke {} promises: CAUSEWAY_SIMULATION_SEED={seed} plays it again\n{}\n{}",
            broken.len(),
            broken.join("\n"),
            checker::tell(&history, &played, &broken),
        );
    }
}

#[test]
fn whatever_breaks_nothing_is_lost_overtaken_or_repeated_without_cause() {
    survives(BrokerWeather::Storm, 250);
}

#[test]
fn poisoned_conversations_hold_up_no_other() {
    survives(BrokerWeather::Poison, 300);
}

#[test]
fn an_outage_costs_probes_and_no_messages() {
    survives(BrokerWeather::Outage, 300);
}

#[test]
fn a_step_of_the_clock_loses_and_delays_nothing() {
    survives(BrokerWeather::Clocks, 150);
}

#[test]
fn the_same_seed_is_the_same_history() {
    for weather in [BrokerWeather::Poison, BrokerWeather::Outage] {
        let drawn = (1..60).map(|seed| History::draw(seed, weather));
        for history in drawn.filter(|history| history.partitions == 1) {
            let [one, other] = [play::play(&history), play::play(&history)].map(|played| played.footprint());
            assert_eq!(one, other, "seed {} ({weather:?})", history.seed);
        }
    }
}
