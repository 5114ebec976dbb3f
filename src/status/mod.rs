//! The state of a deployment: what one process knows, and whether the state needs a person.
//!
//! Not responsible for: asking the queue and the directory (`cli/status/gather.rs`), layout.

mod metrics;
mod process;
mod report;

pub(crate) use metrics::MetricSamples;
pub(crate) use process::{WITHOUT_MAJORITY, breaker, of_process};
pub(crate) use report::{
    DeadLetterStatus, DeploymentStatus, DestinationStatus, DirectoryStatus, ProcessState, ProcessStatus,
    QueueStatus,
};

/// The value of a gauge that counts.
pub(crate) fn whole(value: f64) -> u64 {
    if value.is_finite() && value > 0.0 { value.round() as u64 } else { 0 }
}

/// A duration in its largest unit: `42s`, `15m`, `3h`, `12d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A count with its noun: `1 message`, `2 messages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
