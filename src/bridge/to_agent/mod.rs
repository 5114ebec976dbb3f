//! Carries a user's side of a chat to the agents: the start, the messages, typing and the end.
//!
//! Guarantees: each file is about one API of ServiceNow or one part of a start.
//! Not responsible for: the messages of the agents (`to_bot/`), open chats without a message (`watch/`).

pub(super) mod handoff;
pub(super) mod incident;
pub(super) mod late_start;
pub(super) mod routing;
pub(super) mod transcript;
pub(super) mod virtual_agent;

pub use incident::IncidentSettings;
pub use virtual_agent::VirtualAgentOptions;
