//! The state of a deployment as `causeway status` and the start page of the console show it, and the decision whether the state needs a person.
//!
//! Guarantees: an unknown value is `null`, never 0. Each part has its own error.
//! Not responsible for: reading the state (`process.rs`, `cli/status/gather.rs`), layout (`cli/status/text.rs`, the console).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{age, counted};
use crate::clock;

/// The age in seconds of a spooled message that needs a person, as in the alert `CausewaySpoolNotDraining`.
const SPOOL_LATE: u64 = 120;
/// The time before the expiry of a certificate that needs a person, as in the alert `CausewayCertificateExpires`.
const CERTIFICATE_LATE: jiff::SignedDuration = jiff::SignedDuration::from_hours(14 * 24);
/// The difference of the clocks in seconds that needs a person, as in the alert `CausewayClockWrong`.
const CLOCK_WRONG: f64 = 5.0;

/// The whole state. `JSON` in `cli/status/mod.rs` describes the fields.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct DeploymentStatus {
    pub(crate) at: String,
    pub(crate) version: String,
    pub(crate) engine: Option<String>,
    /// The data folder, or host and vhost of the broker, or the address of `--admin`.
    pub(crate) deployment: String,
    /// Sentences for a person; empty if all is well.
    pub(crate) needs_attention: Vec<String>,
    pub(crate) process: ProcessStatus,
    pub(crate) queue: QueueStatus,
    /// The spool of this process, which must be an ingress.
    pub(crate) spool: SpoolStatus,
    pub(crate) destinations: Vec<DestinationStatus>,
    /// The certificates that the process knows.
    pub(crate) certificates: Vec<CertificateStatus>,
    pub(crate) directory: DirectoryStatus,
    pub(crate) dead_letters: DeadLetterStatus,
}

/// The process behind `admin.listen`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ProcessStatus {
    pub(crate) address: String,
    pub(crate) state: ProcessState,
    pub(crate) version: Option<String>,
    /// Why the process is not ready or not reachable.
    pub(crate) error: Option<String>,
    /// How far its clock is ahead of the broker's.
    pub(crate) clock_ahead_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProcessState {
    Ready,
    NotReady,
    #[default]
    NotReachable,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct QueueStatus {
    pub(crate) workers: Option<u64>,
    pub(crate) unroutable: Option<u64>,
    /// The queues whose policy deletes messages.
    pub(crate) unsafe_policies: Option<u64>,
    /// The queues of which too few nodes run.
    pub(crate) without_majority: Option<u64>,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SpoolStatus {
    pub(crate) messages: Option<u64>,
    pub(crate) oldest_age_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct DestinationStatus {
    pub(crate) destination: String,
    pub(crate) breaker: Option<&'static str>,
    pub(crate) waiting: Option<u64>,
    pub(crate) in_flight: Option<u64>,
    pub(crate) oldest_age_seconds: Option<u64>,
    pub(crate) partitions: Option<u16>,
    /// Partitions with a worker. With `--admin`: the partitions of this process.
    pub(crate) consumed: Option<u64>,
    pub(crate) dead_letters: Option<u64>,
}

/// Of several hosts of a peer the certificate that expires first.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CertificateStatus {
    pub(crate) peer: String,
    /// `server`, or `client` for our own certificate.
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) expires: jiff::Timestamp,
}

impl CertificateStatus {
    fn find_problems(&self, found: &mut Vec<String>) {
        if self.expires.duration_since(clock::now()) < CERTIFICATE_LATE {
            let Self { peer, kind, subject, expires } = self;
            let day = expires.strftime("%Y-%m-%d");
            let whose = if kind == "server" { "of" } else { "of Causeway for" };
            found.push(format!("the certificate {whose} {peer} ({subject}) expires on {day}: renew it"));
        }
    }
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct DirectoryStatus {
    pub(crate) kind: Option<String>,
    pub(crate) conversations: Option<BTreeMap<String, u64>>,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct DeadLetterStatus {
    pub(crate) total: Option<u64>,
    pub(crate) by_reason: Option<BTreeMap<String, u64>>,
    /// Why the reasons are unknown.
    pub(crate) error: Option<String>,
}

impl DeploymentStatus {
    /// Fills `needs_attention`. `late` is the age in seconds at which a waiting message is half-way to its deadline.
    /// `is_remote`: the process alone was asked.
    pub(crate) fn find_problems(&mut self, late: u64, is_remote: bool) {
        let mut found = Vec::new();
        self.check_process(is_remote, &mut found);
        if let Some(error) = &self.queue.error {
            found.push(format!("the queue cannot be asked: {error}"));
        }
        if let Some(unroutable) = self.queue.unroutable.filter(|count| *count > 0) {
            let what = counted(unroutable, "message");
            found.push(format!("{what} found no queue: `causeway check` says why"));
        }
        if let Some(count) = self.queue.without_majority.filter(|count| *count > 0) {
            let what = counted(count, "queue");
            found.push(format!("too few nodes of the broker run for {what}: start the other nodes"));
        }
        if let Some(count) = self.queue.unsafe_policies.filter(|count| *count > 0) {
            let what = counted(count, "queue");
            found.push(format!(
                "a policy of the broker deletes messages of {what}: `causeway check` names it"
            ));
        }
        if let Some(seconds) = self.spool.oldest_age_seconds.filter(|age| *age > SPOOL_LATE) {
            found.push(format!("the broker has not confirmed a spooled message for {}", age(seconds)));
        }
        for one in &self.destinations {
            one.find_problems(late, &mut found);
        }
        self.certificates.iter().for_each(|one| one.find_problems(&mut found));
        if let Some(error) = &self.directory.error {
            found.push(format!("the directory cannot be asked: {error}"));
        }
        if let Some(total) = self.dead_letters.total.filter(|total| *total > 0) {
            let what = counted(total, "dead letter");
            found.push(format!("{what} to replay or to discard: `causeway dead count`"));
        }
        self.needs_attention = found;
    }

    fn check_process(&self, is_remote: bool, found: &mut Vec<String>) {
        let ProcessStatus { address, state, error, .. } = &self.process;
        if let Some(ahead) = self.process.clock_ahead_seconds.filter(|ahead| ahead.abs() >= CLOCK_WRONG) {
            let way = if ahead > 0.0 { "ahead of" } else { "behind" };
            found.push(format!("the clock of the process is {:.0} s {way} the broker's", ahead.abs()));
        }
        let error = error.as_deref().unwrap_or_default();
        match state {
            ProcessState::Ready => {}
            ProcessState::NotReady => found.push(format!("the process at {address} is not ready: {error}")),
            // With a broker the processes usually run elsewhere.
            ProcessState::NotReachable if is_remote => {
                found.push(format!("no process answers at {address}: {error}"));
            }
            ProcessState::NotReachable if self.engine.as_deref() == Some("embedded") => {
                found.push(format!("not running: no process answers at {address} (admin.listen)"));
            }
            ProcessState::NotReachable if self.queue.workers == Some(0) => {
                found.push("no worker runs".to_owned());
            }
            ProcessState::NotReachable => {}
        }
    }
}

impl DestinationStatus {
    fn find_problems(&self, late: u64, found: &mut Vec<String>) {
        let name = &self.destination;
        if let Some(state) = self.breaker.filter(|state| *state != "passing") {
            found.push(format!("the breaker of {name} is {state}: `causeway check` asks {name}"));
        }
        if let Some(seconds) = self.oldest_age_seconds.filter(|age| *age > late) {
            found.push(format!("a message to {name} has waited for {}", age(seconds)));
        }
        if let (Some(consumed), Some(of)) = (self.consumed, self.partitions)
            && let Some(missing) = u64::from(of).checked_sub(consumed).filter(|missing| *missing > 0)
        {
            found.push(format!("{missing} of {of} partitions of {name} have no worker now"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> DeploymentStatus {
        DeploymentStatus {
            engine: Some("rabbitmq".into()),
            process: ProcessStatus { state: ProcessState::Ready, ..ProcessStatus::default() },
            queue: QueueStatus { workers: Some(2), unroutable: Some(0), ..QueueStatus::default() },
            destinations: vec![DestinationStatus {
                destination: "xo".into(),
                breaker: Some("passing"),
                oldest_age_seconds: Some(10),
                partitions: Some(8),
                consumed: Some(8),
                ..DestinationStatus::default()
            }],
            dead_letters: DeadLetterStatus { total: Some(0), ..DeadLetterStatus::default() },
            ..DeploymentStatus::default()
        }
    }

    fn problems_of(change: impl FnOnce(&mut DeploymentStatus)) -> String {
        let mut report = well();
        change(&mut report);
        report.find_problems(450, false);
        report.needs_attention.join("; ")
    }

    #[test]
    fn each_problem_needs_a_person() {
        assert_eq!(problems_of(|_| {}), "");
        let said = problems_of(|report| report.process.state = ProcessState::NotReady);
        assert!(said.contains("is not ready"), "{said}");
        let said = problems_of(|report| {
            report.engine = Some("embedded".into());
            report.process.state = ProcessState::NotReachable;
        });
        assert!(said.contains("not running"), "{said}");
        assert_eq!(problems_of(|report| report.process.state = ProcessState::NotReachable), "");
        let said = problems_of(|report| {
            report.process.state = ProcessState::NotReachable;
            report.queue.workers = Some(0);
        });
        assert_eq!(said, "no worker runs");
        let mut report = well();
        report.process.state = ProcessState::NotReachable;
        report.find_problems(450, true);
        assert!(report.needs_attention[0].starts_with("no process answers"), "{report:?}");
        for (change, words) in [
            ((|report| report.queue.error = Some("away".into())) as fn(&mut DeploymentStatus), "away"),
            (|report| report.queue.unroutable = Some(1), "1 message found no queue"),
            (
                |report| report.queue.without_majority = Some(3),
                "too few nodes of the broker run for 3 queues",
            ),
            (|report| report.queue.unsafe_policies = Some(2), "deletes messages of 2 queues"),
            (|report| report.process.clock_ahead_seconds = Some(-3600.2), "3600 s behind the broker's"),
            (|report| report.spool.oldest_age_seconds = Some(180), "a spooled message for 3m"),
            (|report| report.destinations[0].breaker = Some("tripped"), "the breaker of xo is tripped"),
            (|report| report.destinations[0].oldest_age_seconds = Some(500), "has waited for 8m"),
            (|report| report.destinations[0].consumed = Some(6), "2 of 8 partitions of xo"),
            (
                |report| {
                    report.certificates.push(CertificateStatus {
                        peer: "broker".into(),
                        kind: "server".into(),
                        subject: "CN=rabbit".into(),
                        expires: clock::now() + jiff::SignedDuration::from_hours(24),
                    });
                },
                "the certificate of broker (CN=rabbit) expires on",
            ),
            (|report| report.directory.error = Some("gone".into()), "gone"),
            (|report| report.dead_letters.total = Some(2), "2 dead letters"),
        ] {
            let said = problems_of(change);
            assert!(said.contains(words), "{said}");
        }
    }
}
