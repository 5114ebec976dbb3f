//! Metrics and logs for operators. No other room names a metric or sets up logging.
//!
//! Guarantees: metrics and logs contain no chat text and no secrets, and a metric has no unbounded label.

mod audit;
mod log_writer;
mod logs;
mod message_log;
mod metrics;
mod names;

pub use audit::{Act, Ending, Operator, audit};
pub use log_writer::flush as flush_logs;
pub use logs::{LogFormat, LogSettings, logged_conversation, replace_log_settings, start_logging};
pub use message_log::{Settled, log_accepted, log_settled};
pub use metrics::Metrics;
pub(crate) use metrics::end_label;
