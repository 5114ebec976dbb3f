//! Controls when a request to a destination may start: a free slot, the rate, the lease, the breaker.
//!
//! Guarantees: at most `concurrency` requests to a destination are in flight, and at most `rate` start in a second. No
//! request starts while the breaker is tripped, or while the broker may have given our partitions to another worker.
//! Large bodies in memory are limited to 24 MiB for each destination.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::breaker::CircuitBreaker;
use crate::message::Destination;
use crate::queue::BrokerLease;
use crate::telemetry::Metrics;

/// The memory limit for all large bodies of one destination, in KiB.
const LARGE_BODIES_KIB: usize = 24 << 10;
/// The maximum number of copies of a body during an attempt: as published, as read, and as sent with escapes.
const COPIES: usize = 4;

/// `delivery.<destination>.*`
#[derive(Debug, Clone)]
pub struct GateSettings {
    /// The maximum number of requests in flight.
    pub concurrency: usize,
    /// The maximum number of requests in a second.
    pub rate: Option<f64>,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { concurrency: 32, rate: None }
    }
}

/// The gate of one destination.
#[derive(Debug)]
pub struct Gate {
    destination: Destination,
    breaker: Arc<CircuitBreaker>,
    lease: BrokerLease,
    slots: Semaphore,
    /// One permit for each KiB.
    room: Arc<Semaphore>,
    rate_limiter: Option<RateLimiter>,
    metrics: Arc<Metrics>,
}

/// The permit to send one request. The slot is released when the permit is dropped.
#[derive(Debug)]
pub struct GatePermit<'a> {
    gate: &'a Gate,
    _slot: SemaphorePermit<'a>,
}

impl Drop for GatePermit<'_> {
    fn drop(&mut self) {
        self.gate.metrics.in_flight.with_label_values(&[self.gate.destination.as_str()]).dec();
    }
}

impl Gate {
    pub(crate) fn new(
        destination: Destination,
        settings: &GateSettings,
        breaker: Arc<CircuitBreaker>,
        lease: BrokerLease,
        metrics: Arc<Metrics>,
    ) -> Self {
        let slots = Semaphore::new(settings.concurrency.max(1));
        let room = Arc::new(Semaphore::new(LARGE_BODIES_KIB));
        Self {
            destination,
            breaker,
            lease,
            slots,
            room,
            rate_limiter: settings.rate.map(RateLimiter::new),
            metrics,
        }
    }

    /// The breaker of this destination.
    pub const fn breaker(&self) -> &Arc<CircuitBreaker> {
        &self.breaker
    }

    /// Waits for the memory that an attempt with a body of this size needs. Call this before [`Self::enter`], so that a
    /// large body that waits takes no slot from small ones. Cancel-safe.
    pub async fn room(&self, body_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = (body_bytes / 1024 + 1).saturating_mul(COPIES).min(LARGE_BODIES_KIB);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        Arc::clone(&self.room).acquire_many_owned(wanted).await.ok()
    }

    /// Waits for the permit to send a request; `None` while the breaker is not passing. `probing`: the caller holds the
    /// probe permit.
    ///
    /// Cancel-safe: a caller whose subscription is over drops the wait and starts no request.
    pub async fn enter(&self, probing: bool) -> Option<GatePermit<'_>> {
        let slot = self.slots.acquire().await.ok()?;
        if let Some(rate_limiter) = &self.rate_limiter {
            tokio::time::sleep_until(rate_limiter.next_slot()).await;
        }
        let mut lease = self.lease.clone();
        while !lease.holds(Instant::now()) {
            lease.renewed().await;
        }
        if !probing && !self.breaker.passes() {
            return None;
        }
        self.metrics.in_flight.with_label_values(&[self.destination.as_str()]).inc();
        Some(GatePermit { gate: self, _slot: slot })
    }
}

/// Spreads requests evenly over time.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    pub(crate) fn new(rate: f64) -> Self {
        Self { interval: Duration::from_secs_f64(1.0 / rate.max(0.001)), next: Mutex::new(None) }
    }

    /// Reserves the next request, and returns the time at which it may start.
    pub(crate) fn next_slot(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
        *next = Some(slot + self.interval);
        slot
    }

    /// Counts requests that were made without a reservation: the next reservations are later.
    pub(crate) fn spend(&self, requests: u64) {
        for _ in 0..requests {
            self.next_slot();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::delivery::breaker::BreakerSignal;
    use crate::message::TripReason;

    fn gate(settings: &GateSettings) -> Gate {
        let metrics = Arc::new(Metrics::new("embedded").unwrap());
        let breaker = CircuitBreaker::new(Destination::Xo, metrics.clone());
        Gate::new(Destination::Xo, settings, breaker, BrokerLease::Always, metrics)
    }

    #[tokio::test]
    async fn no_more_than_the_slots() {
        let gate = gate(&GateSettings { concurrency: 1, rate: None });
        let first = gate.enter(false).await.unwrap();
        let second = gate.enter(false);
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn large_bodies_wait_for_room_and_small_ones_for_nothing() {
        let gate = gate(&GateSettings::default());
        let held: Vec<_> = std::iter::from_fn(|| gate.room(2 << 20).now_or_never()).collect();
        assert_eq!(held.len(), 2, "2 MiB and what their attempts make of them");
        assert!(gate.enter(false).now_or_never().unwrap().is_some());
        drop(held);
        assert!(gate.room(usize::MAX).now_or_never().is_some(), "the largest one has all the room");
    }

    #[tokio::test(start_paused = true)]
    async fn no_faster_than_the_rate() {
        let gate = gate(&GateSettings { concurrency: 8, rate: Some(10.0) });
        let begun = Instant::now();
        for _ in 0..11 {
            gate.enter(false).await.unwrap();
        }
        assert_eq!(begun.elapsed().as_millis(), 1000);
    }

    #[tokio::test]
    async fn only_the_probe_passes_a_tripped_breaker() {
        let gate = gate(&GateSettings::default());
        gate.breaker().record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        assert!(gate.enter(false).await.is_none());
        assert!(gate.enter(true).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lease_nothing_starts() {
        let metrics = Arc::new(Metrics::new("rabbitmq").unwrap());
        let breaker = CircuitBreaker::new(Destination::Xo, metrics.clone());
        let answered = tokio::sync::watch::Sender::new(Some(Instant::now()));
        let lease = BrokerLease::For { answered: answered.subscribe(), term: Duration::from_secs(15) };
        let gate = Gate::new(Destination::Xo, &GateSettings::default(), breaker, lease, metrics);
        assert!(gate.enter(false).await.is_some());
        tokio::time::advance(Duration::from_secs(16)).await;
        let late = gate.enter(false);
        tokio::pin!(late);
        assert!(futures_util::poll!(late.as_mut()).is_pending());
        answered.send_replace(Some(Instant::now()));
        assert!(late.await.is_some());
    }
}
