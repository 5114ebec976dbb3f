//! Writes the log line of a refused request.
//!
//! Guarantees: the line contains the address of the sender and no other content of the request. For each route and
//! reason at most [`LINES_MAX`] lines are written in [`PERIOD`]. The next line contains the number of suppressed
//! lines.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const LINES_MAX: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// The data of a refused request that is logged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusalEntry<'a> {
    pub(crate) route: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) status: u16,
    pub(crate) request_id: &'a str,
    pub(crate) from: Option<IpAddr>,
}

/// Writes the line, or counts it as suppressed.
pub(crate) fn write(refused: RefusalEntry<'_>) {
    static PERIODS: Mutex<Option<LogPeriods>> = Mutex::new(None);
    let mut periods = PERIODS.lock().unwrap_or_else(PoisonError::into_inner);
    let left_out = periods.get_or_insert_default().line(refused.route, refused.reason, Instant::now());
    drop(periods);
    let Some(left_out) = left_out else { return };
    let RefusalEntry { route, reason, status, request_id, from } = refused;
    let from = from.map(tracing::field::display);
    tracing::info!(request_id, route, status, reason, from, left_out, "request refused");
}

#[derive(Debug, Default)]
struct LogPeriods(HashMap<(&'static str, &'static str), LogPeriod>);

#[derive(Debug)]
struct LogPeriod {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl LogPeriods {
    /// Returns `None` if the line is suppressed, and otherwise the number of lines suppressed since the last one.
    fn line(&mut self, route: &'static str, reason: &'static str, now: Instant) -> Option<u64> {
        let new = LogPeriod { began: now, lines: 0, left_out: 0 };
        let period = self.0.entry((route, reason)).or_insert(new);
        if now.saturating_duration_since(period.began) >= PERIOD {
            (period.began, period.lines) = (now, 0);
        }
        if period.lines == LINES_MAX {
            period.left_out += 1;
            return None;
        }
        period.lines += 1;
        Some(std::mem::take(&mut period.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn omitted_lines_are_counted() {
        let mut periods = LogPeriods::default();
        let mut line = |reason| periods.line("servicenow", reason, Instant::now());
        let written = (0..500).filter_map(|_| line("unauthorized")).collect::<Vec<_>>();
        assert_eq!(written, [0; LINES_MAX as usize]);
        assert_eq!(line("empty_body"), Some(0), "another reason has lines of its own");
        tokio::time::advance(PERIOD).await;
        assert_eq!((line("unauthorized"), line("unauthorized")), (Some(490), Some(0)));
    }
}
