//! Wall-clock time. Only this file reads the wall clock; durations are measured with `tokio::time::Instant`.
//!
//! Processes on several machines compare times: one stamps a message, another one computes its age. So each process
//! follows the broker's clock ([`follow`]) if its own clock differs by [`CORRECTED_MIN_MS`] or more.
//! Guarantees: millisecond precision, so that a time survives every engine and wire format unchanged. A process that has
//! not compared its clock uses the clock of the machine.
//! Not responsible for: reading the broker's clock (`queue/rabbit/broker_clock.rs`).

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// The smallest difference from the broker's clock that is corrected. The broker tells whole seconds only.
pub const CORRECTED_MIN_MS: i64 = 5_000;
/// A correction changes if the difference has changed by this much.
const CHANGED_MIN_MS: i64 = 2_000;
const UNKNOWN: i64 = i64::MIN;

/// The milliseconds by which this machine is ahead of the broker, or [`UNKNOWN`].
static AHEAD_MS: AtomicI64 = AtomicI64::new(UNKNOWN);
/// The milliseconds that [`now`] subtracts.
static CORRECTION_MS: AtomicI64 = AtomicI64::new(0);

/// Follows a clock that this machine is ahead of by this many milliseconds. Returns the correction before and after.
pub fn follow(ahead_ms: i64) -> (i64, i64) {
    AHEAD_MS.store(ahead_ms, Ordering::Relaxed);
    let before = CORRECTION_MS.load(Ordering::Relaxed);
    let after = correction(before, ahead_ms);
    CORRECTION_MS.store(after, Ordering::Relaxed);
    (before, after)
}

/// How far this machine is ahead of the broker; `None` if the broker's clock was not read yet.
pub fn ahead() -> Option<SignedDuration> {
    let ahead = AHEAD_MS.load(Ordering::Relaxed);
    (ahead != UNKNOWN).then(|| SignedDuration::from_millis(ahead))
}

fn correction(before: i64, ahead: i64) -> i64 {
    if ahead.saturating_abs() < CORRECTED_MIN_MS {
        0
    } else if ahead.saturating_sub(before).saturating_abs() < CHANGED_MIN_MS {
        before
    } else {
        ahead
    }
}

/// The current time for everything that processes compare with each other, cut to milliseconds.
pub fn now() -> Timestamp {
    let ahead = SignedDuration::from_millis(CORRECTION_MS.load(Ordering::Relaxed));
    let machine = machine();
    machine.checked_sub(ahead).unwrap_or(machine)
}

/// The current time of this machine, for a comparison with a time of another company: tokens, signatures, certificates.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn machine() -> Timestamp {
    #[cfg(test)]
    if let Some(shown) = hands::shown() {
        return shown;
    }
    cut(Timestamp::now())
}

fn cut(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// How long ago `then` was; zero if it lies in the future (clocks of several machines differ).
pub fn since(then: Timestamp) -> std::time::Duration {
    std::time::Duration::try_from(now().duration_since(then)).unwrap_or_default()
}

/// The test clock: on the thread of a test, wall time follows tokio's paused clock. Code that runs under a
/// `Watch` adds the offset of that watch, and so do the tasks that it starts.
#[cfg(test)]
pub(crate) mod hands {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::Timestamp;
    use tokio::time::Instant;

    thread_local! {
        static HELD: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    }

    /// The error of one worker's clock in milliseconds.
    pub(crate) type Watch = Arc<AtomicI64>;

    tokio::task_local! {
        static WORN: Watch;
    }

    /// Runs `start` with the offset of this watch.
    pub(crate) fn wearing<T>(watch: &Watch, start: impl FnOnce() -> T) -> T {
        WORN.sync_scope(Arc::clone(watch), start)
    }

    /// A task inherits the watch of the code that starts it.
    pub(crate) fn handed_down<T>(task: impl Future<Output = T>) -> impl Future<Output = T> {
        WORN.scope(WORN.try_with(Arc::clone).unwrap_or_default(), task)
    }

    /// Sets the wall time to `at`; it then advances with the clock of the runtime.
    pub(crate) fn hold(at: Timestamp) {
        HELD.set(Some((at, Instant::now())));
    }

    /// Lets the wall time run by itself again.
    pub(crate) fn release() {
        HELD.set(None);
    }

    pub(super) fn shown() -> Option<Timestamp> {
        let (at, since) = HELD.get()?;
        let passed = i64::try_from(since.elapsed().as_millis()).ok()?;
        let wrong = WORN.try_with(|watch| watch.load(Ordering::Relaxed)).unwrap_or(0);
        Timestamp::from_millisecond(at.as_millisecond() + passed + wrong).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_real_difference_is_corrected_and_small_changes_do_not_count() {
        for (before, ahead, after) in [
            (0, 4_999, 0),
            (0, -4_999, 0),
            (0, 3_600_000, 3_600_000),
            (0, -5_000, -5_000),
            (3_600_000, 3_600_900, 3_600_000),
            (3_600_000, 3_602_500, 3_602_500),
            (3_600_000, 100, 0),
        ] {
            assert_eq!(correction(before, ahead), after, "{before} {ahead}");
        }
    }

    #[test]
    fn a_time_is_cut_to_milliseconds_and_not_rounded() {
        let cut = |time: &str| cut(time.parse().unwrap()).to_string();
        assert_eq!(cut("2026-11-26T10:00:00.123999999Z"), "2026-11-26T10:00:00.123Z");
        assert_eq!(cut("2026-11-26T10:00:00.123Z"), "2026-11-26T10:00:00.123Z");
    }
}
