//! Wall-clock time. Only this file reads the wall clock; durations are measured with `tokio::time::Instant`.
//!
//! Guarantees: millisecond precision, so that a time survives every engine and wire format unchanged.

use jiff::Timestamp;

/// The current time, cut to milliseconds.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn now() -> Timestamp {
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
    fn a_time_is_cut_to_milliseconds_and_not_rounded() {
        let cut = |time: &str| cut(time.parse().unwrap()).to_string();
        assert_eq!(cut("2026-11-26T10:00:00.123999999Z"), "2026-11-26T10:00:00.123Z");
        assert_eq!(cut("2026-11-26T10:00:00.123Z"), "2026-11-26T10:00:00.123Z");
    }
}
