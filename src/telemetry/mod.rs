//! What an operator sees: metrics and logs. Nobody else names a metric or sets up logging.
//!
//! Guarantees: neither holds chat text, secrets or, in a metric, an unbounded label.

mod logs;
mod metrics;
mod names;

pub use logs::{LogFormat, LogSettings, start_logging};
pub use metrics::Metrics;
