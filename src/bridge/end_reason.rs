//! The side that ended a chat.
//!
//! Guarantees: the reason of a chat's end has one spelling, whether a poll or a refused message shows the end.
//! Not responsible for: recording the end (`conversation/state.rs`).

use crate::platform::ChatState;

/// The side that ended the chat, by the state of the queue entry (`src/platform/servicenow/FACTS.md`).
pub(super) const fn ended_by(state: ChatState) -> Option<&'static str> {
    match state {
        ChatState::ClosedComplete => Some("agent"),
        ChatState::ClosedEscalated => Some("escalated"),
        ChatState::ClosedByClient => Some("user"),
        ChatState::ClosedAbandoned => Some("abandoned"),
        ChatState::Waiting | ChatState::InProgress | ChatState::Other(_) => None,
    }
}
