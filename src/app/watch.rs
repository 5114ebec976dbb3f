//! Watches the directory, the clock, the queues of the broker and the spool, for the metrics, `/readyz` and the log.
//!
//! Guarantees: a lasting trouble is logged once at level WARN, again every [`REMIND_EVERY`], and its end once. It is known
//! within 20 s. A trouble never ends the process.
//! Not responsible for: the broker's connection (`queue/rabbit/connections.rs`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::broker_policies::{BrokerPolicies, QueueFindings, UnsafeQueue};
use crate::clock;
use crate::conversation::{DedupKey, Directory, DirectoryError};
use crate::message::MessageId;
use crate::queue::Queue;
use crate::queue::spool::Spool;
use crate::tasks::CancellationToken;
use crate::telemetry::Metrics;

const SPOOL_EVERY: Duration = Duration::from_secs(1);
const CLOCK_EVERY: Duration = Duration::from_secs(2);
const MAJORITY_EVERY: Duration = Duration::from_secs(1);
/// The most queues that one line of the log names.
const NAMED_MAX: usize = 5;
const POLICIES_EVERY: Duration = Duration::from_secs(10);
const DIRECTORY_EVERY: Duration = Duration::from_secs(4);
/// The pause after a failed test. A single slow answer is no trouble yet.
const DIRECTORY_AGAIN: Duration = Duration::from_secs(1);
const REMIND_EVERY: Duration = Duration::from_secs(600);

/// The state of the directory, shared with `/readyz`.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectoryHealth(Arc<Mutex<DirectoryState>>);

#[derive(Debug, Default)]
struct DirectoryState {
    trouble: Option<String>,
    was_usable: bool,
}

impl DirectoryHealth {
    /// Why the directory cannot be used; `None` if it can.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Whether this process could use the directory before.
    pub(super) fn was_usable(&self) -> bool {
        self.state().was_usable
    }

    pub(super) fn set(&self, trouble: Option<String>) {
        let mut state = self.state();
        state.was_usable |= trouble.is_none();
        state.trouble = trouble;
    }

    fn state(&self) -> MutexGuard<'_, DirectoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows that the directory cannot be used.
fn show(error: &DirectoryError, health: &DirectoryHealth, metrics: &Metrics, log: &mut LogLimit) {
    let reason = error.to_string();
    metrics.directory_up.set(0);
    if log.allows(state(error)) {
        tracing::warn!(state = state(error), reason, "the directory cannot be used");
    }
    health.set(Some(reason));
}

/// Whether a trouble is logged now: if it is new or different, and every [`REMIND_EVERY`].
#[derive(Debug, Default)]
struct LogLimit(Option<(String, Instant)>);

impl LogLimit {
    fn allows(&mut self, trouble: &str) -> bool {
        let is_known =
            self.0.as_ref().is_some_and(|(known, at)| known == trouble && at.elapsed() < REMIND_EVERY);
        if !is_known {
            self.0 = Some((trouble.to_owned(), Instant::now()));
        }
        !is_known
    }

    /// Forgets the trouble. Returns whether there was one.
    fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

async fn pause(stop: &CancellationToken, time: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

/// The state of a database, in one word for a log line.
const fn state(error: &DirectoryError) -> &'static str {
    match error {
        DirectoryError::Unavailable(_) | DirectoryError::Pooled(_) => "away",
        DirectoryError::Full(_) => "full",
        DirectoryError::ReadOnly(_) => "read-only",
        DirectoryError::Refused(_) => "refused",
        DirectoryError::Tables(_) => "tables",
        DirectoryError::Tls(..) => "tls",
        DirectoryError::Mismatch(_) => "unfit",
    }
}

/// Tests the directory again and again. An unreachable one counts after two failed tests, any other trouble at once. `error`
/// is the trouble at the start.
pub(super) async fn directory(
    (directory, error): (Directory, Option<DirectoryError>),
    health: DirectoryHealth,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let key = DedupKey::SelfTest(MessageId::fresh());
    let (mut failures, mut log) = (0_u32, LogLimit::default());
    match error {
        Some(error) => {
            failures = 1;
            show(&error, &health, &metrics, &mut log);
        }
        None => health.set(None),
    }
    loop {
        let tested = tokio::select! {
            tested = directory.probe(key) => tested,
            () = stop.cancelled() => return Ok(()),
        };
        match tested {
            Ok(()) => {
                failures = 0;
                health.set(None);
                metrics.directory_up.set(1);
                if log.end() {
                    tracing::info!("the directory can be used again");
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures > 1 || !matches!(error, DirectoryError::Unavailable(_)) {
                    show(&error, &health, &metrics, &mut log);
                }
            }
        }
        let time = if failures == 0 { DIRECTORY_EVERY } else { DIRECTORY_AGAIN };
        if !pause(&stop, time).await {
            return Ok(());
        }
    }
}

/// Shows the difference of the clocks, which the engine measures and logs.
pub(super) async fn clock(metrics: Arc<Metrics>, stop: CancellationToken) -> Result<(), String> {
    loop {
        if let Some(ahead) = clock::ahead() {
            metrics.clock_ahead.set(ahead.as_secs_f64());
        }
        if !pause(&stop, CLOCK_EVERY).await {
            return Ok(());
        }
    }
}

/// Reads the policies of the queues.
pub(super) async fn policies(
    policies: BrokerPolicies,
    queue: Queue,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let (mut unsafe_log, mut failure_log) = (LogLimit::default(), LogLimit::default());
    loop {
        let read = tokio::select! {
            read = policies.findings() => read,
            () = stop.cancelled() => return Ok(()),
        };
        match read {
            Ok(QueueFindings { unsafe_queues: found, without_majority }) => {
                queue.note_without_majority(&without_majority);
                if failure_log.end() {
                    tracing::info!("the policies of the broker can be read again");
                }
                metrics.unsafe_queues.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
                if found.is_empty() {
                    if unsafe_log.end() {
                        tracing::info!("no policy of the broker deletes messages any more");
                    }
                } else {
                    let queues: Vec<_> = found.iter().map(UnsafeQueue::to_string).collect();
                    let queues = queues.join("; ");
                    if unsafe_log.allows(&queues) {
                        tracing::warn!(queues, "a policy of the broker deletes messages");
                    }
                }
            }
            Err(reason) => {
                queue.note_without_majority(&[]);
                if failure_log.allows(&reason) {
                    tracing::warn!(reason, "queue.management_url: the policies of the broker cannot be read");
                }
            }
        }
        if !pause(&stop, POLICIES_EVERY).await {
            return Ok(());
        }
    }
}

/// The queues that confirm nothing, for `/readyz`.
pub(super) fn silence(queue: &Queue) -> Option<String> {
    let silent = queue.without_majority();
    let first = silent.first()?;
    Some(format!(
        "{} queues of the broker confirm nothing: too few of their nodes run ({first}, ...)",
        silent.len()
    ))
}

/// Shows the queues that confirm nothing because too few of their nodes run.
pub(super) async fn majority(
    queue: Queue,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut log = LogLimit::default();
    loop {
        let silent = queue.without_majority();
        metrics.silent_queues.set(i64::try_from(silent.len()).unwrap_or(i64::MAX));
        if silent.is_empty() {
            if log.end() {
                tracing::info!("every queue of the broker confirms again");
            }
        } else if log.allows("silent") {
            let queues: Vec<_> = silent.iter().take(NAMED_MAX).map(String::as_str).collect();
            let (count, queues) = (silent.len(), queues.join(", "));
            tracing::warn!(count, queues, "queues of the broker confirm nothing: too few of their nodes run");
        }
        if !pause(&stop, MAJORITY_EVERY).await {
            return Ok(());
        }
    }
}

/// Shows the depth of the spool.
pub(super) async fn measure_spool(
    spool: Spool,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        metrics.spool_has_room.set(i64::from(spool.has_room()));
        if let Ok(depth) = spool.depth().await {
            metrics.spool_messages.set(i64::try_from(depth.messages).unwrap_or(i64::MAX));
            let age = depth.oldest.map_or(0.0, |oldest| clock::since(oldest).as_secs_f64());
            metrics.spool_oldest_age.set(age);
        }
        if !pause(&stop, SPOOL_EVERY).await {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lasting_trouble_is_logged_once_and_then_seldom() {
        let mut log = LogLimit::default();
        assert!(!log.end());
        assert!(log.allows("away"));
        assert!(!log.allows("away"));
        assert!(log.allows("full"), "another trouble is news");
        tokio::time::advance(REMIND_EVERY).await;
        assert!(log.allows("full"));
        assert!(log.end() && log.allows("full"), "a trouble that comes back is news");
    }
}
