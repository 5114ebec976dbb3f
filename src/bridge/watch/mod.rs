//! Watches the open chats: reads their state and their lost messages, follows a chat to another queue, and ends a chat that
//! waits or is silent for too long.
//!
//! Guarantees: reading is limited by `servicenow.read_rate`. One worker at a time watches a chat.
//! Not responsible for: the messages of the queue (`to_agent/`, `to_bot/`).

mod bulk_read;
mod escalation;
pub(super) mod gaps;
mod poll;
mod time_limits;
mod virtual_agent_gaps;

pub(super) use poll::ChatWatcher;
pub use poll::{PollSettings, TimeLimits};
