//! Computes the delays between attempts: exponential, capped, with full jitter. Only this file uses the `backoff`
//! crate.
//!
//! Guarantees: a delay lies between zero and the current step. A step never exceeds the cap, for every setting (also
//! zero, also a factor below one).

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use rand::{Rng, RngExt as _};

/// `delivery.retry.*`
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySettings {
    /// The first step.
    pub initial: Duration,
    /// The factor between two steps.
    pub factor: f64,
    /// The cap of a step.
    pub max: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { initial: Duration::from_millis(250), factor: 2.0, max: Duration::from_secs(30) }
    }
}

/// The position of one message in its retry schedule.
#[derive(Debug, Clone)]
pub struct Backoff {
    steps: ExponentialBackoff,
}

impl Backoff {
    /// Starts at the first step.
    pub fn new(settings: &RetrySettings) -> Self {
        let initial = settings.initial.min(settings.max);
        Self {
            steps: ExponentialBackoff {
                current_interval: initial,
                initial_interval: initial,
                // We draw the jitter ourselves, because the crate spreads the delay around the step instead of below
                // the step.
                randomization_factor: 0.0,
                multiplier: settings.factor.max(1.0),
                max_interval: settings.max,
                max_elapsed_time: None,
                ..ExponentialBackoff::default()
            },
        }
    }

    /// The next delay.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let cap = self.steps.max_interval;
        let step = self.steps.next_backoff().unwrap_or(cap).min(cap);
        step.mul_f64(rng.random_range(0.0..=1.0))
    }
}

/// The random source of the jitter.
pub fn rng() -> impl Rng {
    #[cfg(test)]
    return loaded::rng();
    #[cfg(not(test))]
    rand::rng()
}

/// A seeded random source: the same seed gives the same numbers, so that a simulation can be repeated.
#[cfg(test)]
pub(crate) mod loaded {
    use std::cell::RefCell;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    thread_local! {
        static LOADED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// Seeds the random source of this thread.
    pub(crate) fn load(seed: u64) {
        LOADED.set(Some(StdRng::seed_from_u64(seed)));
    }

    pub(super) fn rng() -> StdRng {
        let drawn = LOADED.with_borrow_mut(|dice| dice.as_mut().map(|dice| dice.random()));
        drawn.map_or_else(rand::make_rng, StdRng::seed_from_u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    proptest! {
        #[test]
        fn a_delay_never_passes_its_step(initial in 0_u64..2_000_000, max in 0_u64..60_000_000, factor in 0.0..10.0_f64, seed: u64) {
            let settings = RetrySettings {
                initial: Duration::from_micros(initial),
                factor,
                max: Duration::from_micros(max),
            };
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(&settings);
            let mut step = settings.initial.min(settings.max);
            for _ in 0..20 {
                let delay = backoff.next(&mut rng);
                prop_assert!(delay <= step + Duration::from_micros(1), "{delay:?} > {step:?}");
                step = step.mul_f64(factor.max(1.0)).min(settings.max);
            }
        }
    }

    #[test]
    fn the_steps_grow_to_the_cap() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(&RetrySettings::default());
        let longest = (0..200).map(|_| backoff.next(&mut rng)).max().unwrap();
        assert!(longest > Duration::from_secs(15) && longest <= Duration::from_secs(30), "{longest:?}");
    }
}
