//! Wall time. The one place that reads it; everything that measures a span uses `tokio::time::Instant` instead.
//!
//! Guarantees: millisecond precision, so that a time survives every engine and wire unchanged.

use jiff::{Timestamp, TimestampRound, Unit};

/// The current time, cut to milliseconds.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc)).unwrap_or(now)
}

/// How long ago `then` was; zero where it lies in the future (clocks of several machines differ).
pub fn since(then: Timestamp) -> std::time::Duration {
    std::time::Duration::try_from(now().duration_since(then)).unwrap_or_default()
}
