//! Watches the open chats: reads their state and their lost messages, follows a chat to another queue, and ends a chat that
//! waits or is silent for too long.
//!
//! Guarantees: reading is limited by `servicenow.read_rate`. One worker at a time watches a chat.
//! Not responsible for: the messages of the queue (`to_agent/`, `to_bot/`).

pub(super) mod bulk_read;
pub(super) mod escalation;
pub(super) mod gaps;
pub(super) mod lifecycle_metrics;
pub(super) mod poll;
pub(super) mod time_limits;

pub use gaps::ReadBack;
pub use poll::PollSettings;
pub use time_limits::TimeLimits;
