//! The state that one process knows by its metrics, for `causeway status --admin` and for the start page of the console.
//!
//! Guarantees: an unknown value is `None`. On RabbitMQ, breakers and messages in flight are values of one worker; a worker
//! without a partition of a destination reports nothing about the destination. Neither the queue nor the directory is asked.

use super::report::{
    CertificateStatus, DeadLetterStatus, DeploymentStatus, DestinationStatus, DirectoryStatus, ProcessState,
    ProcessStatus, QueueStatus, SpoolStatus,
};
use super::{MetricSamples, whole};
use crate::clock;

/// The gauge of the queues of which too few nodes run.
pub(crate) const WITHOUT_MAJORITY: &str = "causeway_queues_without_majority";
/// The names of the values of `causeway_breaker_state`.
const BREAKER_STATES: [&str; 3] = ["passing", "tripped", "probing"];

/// The state of a deployment as this process knows it, without the list of problems. The gauges tell only the total of the dead
/// letters.
pub(crate) fn of_process(process: ProcessStatus, samples: &MetricSamples) -> DeploymentStatus {
    let count = |name: &str| samples.sum(name).map(whole);
    let messages = count("causeway_spool_messages");
    let oldest = count("causeway_spool_oldest_age_seconds");
    let destinations = destinations(samples);
    let engine = samples.label("causeway_build_info", "engine").map(str::to_owned);
    // On the embedded engine one process is the worker.
    let owns = destinations.iter().any(|one| one.consumed.is_some_and(|count| count > 0));
    let is_worker = engine.as_deref() == Some("embedded") && process.state != ProcessState::NotReachable;
    DeploymentStatus {
        at: clock::now().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine,
        deployment: process.address.clone(),
        destinations,
        queue: QueueStatus {
            workers: is_worker.then_some(u64::from(owns)),
            unroutable: count("causeway_unroutable_messages"),
            unsafe_policies: count("causeway_queues_with_unsafe_policy"),
            without_majority: count(WITHOUT_MAJORITY),
            error: None,
        },
        spool: SpoolStatus {
            messages,
            oldest_age_seconds: oldest.filter(|_| messages.is_some_and(|count| count > 0)),
        },
        directory: DirectoryStatus {
            kind: None,
            conversations: samples.by_label("causeway_conversations", "state"),
            error: (count("causeway_directory_up") == Some(0))
                .then(|| "its process cannot use it".to_owned()),
        },
        certificates: certificates(samples),
        dead_letters: DeadLetterStatus {
            total: count("causeway_dead_letter_messages"),
            ..DeadLetterStatus::default()
        },
        process,
        ..DeploymentStatus::default()
    }
}

fn certificates(samples: &MetricSamples) -> Vec<CertificateStatus> {
    let labels = ["peer", "kind", "subject"];
    let found = samples.with_labels("causeway_certificate_expiry_timestamp_seconds", labels).into_iter();
    let status = |([peer, kind, subject], seconds): ([String; 3], f64)| {
        let expires = jiff::Timestamp::from_second(whole(seconds).try_into().ok()?).ok()?;
        Some(CertificateStatus { peer, kind, subject, expires })
    };
    found.filter_map(status).collect()
}

/// Every destination that this process has a gauge for.
fn destinations(samples: &MetricSamples) -> Vec<DestinationStatus> {
    let names = samples.labels("causeway_queue_messages", "destination").into_iter();
    let status = |destination: String| {
        let sample = |metric: &str| samples.of(metric, &destination).map(whole);
        let waiting = sample("causeway_queue_messages");
        let oldest = sample("causeway_oldest_message_age_seconds");
        DestinationStatus {
            breaker: sample("causeway_breaker_state").and_then(breaker),
            waiting,
            in_flight: sample("causeway_in_flight"),
            oldest_age_seconds: oldest.filter(|_| waiting.is_some_and(|count| count > 0)),
            partitions: None,
            consumed: sample("causeway_partitions_owned"),
            dead_letters: None,
            destination,
        }
    };
    names.map(status).collect()
}

/// The name of a value of `causeway_breaker_state`.
pub(crate) fn breaker(state: u64) -> Option<&'static str> {
    BREAKER_STATES.get(usize::try_from(state).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_metrics() {
        let samples = MetricSamples::parse(
            "causeway_queue_messages{destination=\"xo\"} 3\ncauseway_breaker_state{destination=\"xo\"} 1\n\
             causeway_in_flight{destination=\"xo\"} 0\ncauseway_partitions_owned{destination=\"xo\"} 8\n\
             causeway_oldest_message_age_seconds{destination=\"xo\"} 12.4\ncauseway_dead_letter_messages 4\n\
             causeway_build_info{engine=\"embedded\"} 1",
        );
        let process = ProcessStatus { state: ProcessState::Ready, ..ProcessStatus::default() };
        let status = of_process(process, &samples);
        let [one] = status.destinations.as_slice() else { panic!("{status:?}") };
        assert_eq!((one.destination.as_str(), one.breaker, one.waiting), ("xo", Some("tripped"), Some(3)));
        assert_eq!((one.in_flight, one.consumed, one.oldest_age_seconds), (Some(0), Some(8), Some(12)));
        assert_eq!((one.partitions, one.dead_letters), (None, None));
        assert_eq!((status.queue.workers, status.dead_letters.total), (Some(1), Some(4)));
        assert_eq!(status.dead_letters.by_reason, None, "the gauges do not tell the reasons");
    }
}
