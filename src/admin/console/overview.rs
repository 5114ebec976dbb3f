//! The state of the deployment for the start page of the console.
//!
//! Guarantees: no dead letter is read, so the page is quick with any number of dead letters. The values are those of the metrics of
//! this process, of the counters of the queue, and, for the reasons on RabbitMQ, of the newest complete list in the console. A queue
//! that does not answer hides no other part.
//! Not responsible for: the decision whether the state needs a person (`status/`), layout (`view/overview.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::ConsoleSite;
use crate::clock;
use crate::dead_letters::{DeadLetterSummary, summary_by};
use crate::message::{DeadReason, Destination};
use crate::queue::{QueueDepth, QueueError};
use crate::status::{self, DeploymentStatus, MetricSamples, ProcessState, ProcessStatus};

/// The time limit of the queue. The gauges of this process answer instead.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reasons of all dead letters when the console last read all of them.
#[derive(Debug, Clone)]
pub(super) struct CountedReasons {
    pub(super) at: Timestamp,
    by_reason: BTreeMap<DeadReason, u64>,
}

impl CountedReasons {
    pub(super) fn of(entries: &[DeadLetterSummary]) -> Self {
        let groups = summary_by(entries, |entry| entry.reason).into_iter();
        Self { at: clock::now(), by_reason: groups.map(|(reason, group)| (reason, group.count)).collect() }
    }
}

/// What the start page shows.
#[derive(Debug)]
pub(super) struct Overview {
    pub(super) status: DeploymentStatus,
    /// The time of the reasons, if they are not of this moment.
    pub(super) counted_at: Option<Timestamp>,
}

impl ConsoleSite {
    pub(super) async fn overview(&self) -> Overview {
        let (console, facts) = (&self.console, &self.console.facts);
        let samples = MetricSamples::parse(&self.metrics.render().unwrap_or_default());
        let (state, error) = match (self.ready)() {
            Ok(()) => (ProcessState::Ready, None),
            Err(reason) => (ProcessState::NotReady, Some(reason)),
        };
        let process = ProcessStatus {
            address: facts.address.clone(),
            state,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            error,
            clock_ahead_seconds: samples.sum("causeway_clock_ahead_seconds"),
        };
        let mut status = status::of_process(process, &samples);
        status.deployment = facts.place.clone();
        if !console.queue.shared() {
            for one in &mut status.destinations {
                one.partitions = Some(facts.partitions);
            }
        }
        let asked = tokio::time::timeout(QUEUE_TIMEOUT, async {
            Ok::<_, QueueError>((console.queue.depth().await?, console.queue.dead_reasons().await?))
        });
        let answers = match asked.await {
            Ok(answers) => answers.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", QUEUE_TIMEOUT.as_secs())),
        };
        let reasons = match answers {
            Ok((depth, reasons)) => {
                add_depth(&mut status, &depth);
                reasons
            }
            Err(error) => {
                status.queue.error = Some(error);
                // An ingress has no gauge of the dead letters, so its 0 means nothing.
                status.dead_letters.total = status.dead_letters.total.filter(|total| *total > 0);
                None
            }
        };
        let counted = console.counted().filter(|_| reasons.is_none());
        let counted_at = counted.as_ref().map(|counted| counted.at);
        let reasons = reasons.or_else(|| counted.map(|counted| counted.by_reason));
        let named = |(reason, count): (DeadReason, u64)| (reason.to_string(), count);
        status.dead_letters.by_reason = reasons.map(|reasons| reasons.into_iter().map(named).collect());
        status.find_problems(facts.late.as_secs(), false);
        Overview { status, counted_at }
    }
}

/// The queue counts for all processes, and the gauges count for this process.
fn add_depth(status: &mut DeploymentStatus, depth: &QueueDepth) {
    status.dead_letters.total = Some(depth.dead);
    status.queue.unroutable = Some(depth.unroutable);
    for one in &mut status.destinations {
        let Some(destination) = Destination::parse(&one.destination) else { continue };
        one.waiting = one.waiting.max(depth.waiting.get(&destination).copied());
        one.dead_letters = Some(depth.dead_of.get(&destination).copied().unwrap_or(0));
    }
}
