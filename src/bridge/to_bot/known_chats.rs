//! The conversations of chats whose messages were routed before.
//!
//! Why: the conversation of a chat never changes. Without this file each message of an agent is looked up twice: here, and again
//! at its destination.
//! Guarantees: bounded memory. Only chats with a receiver are remembered. If a conversation was erased since, the messages of
//! its chat still reach the queue of its destination, where they are handled as messages of an unknown chat.
//! Not responsible for: routing (`callback_routing.rs`), recognising a repeat at the destination (`worker/deduplication.rs`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::delivery::RecentKeys;
use crate::message::{ConversationId, Destination, Kind, Message};

/// About 15 MB with usual ids.
const CHATS_MAX: usize = 65_536;

/// The newest chats that were found in the directory.
#[derive(Debug)]
pub(in crate::bridge) struct KnownChats(Mutex<RecentKeys<String, ConversationId>>);

impl Default for KnownChats {
    fn default() -> Self {
        Self(Mutex::new(RecentKeys::with_limit(CHATS_MAX)))
    }
}

impl KnownChats {
    fn chats(&self) -> MutexGuard<'_, RecentKeys<String, ConversationId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn conversation_of(&self, group: &str) -> Option<ConversationId> {
        self.chats().get(group).cloned()
    }

    pub(super) fn add(&self, group: &str, conversation: &ConversationId) {
        self.chats().add(group.to_owned(), conversation.clone());
    }

    /// Whether the message is a callback of a known chat.
    pub(in crate::bridge) fn knows(&self, message: &Message) -> bool {
        message.destination == Destination::Callbacks
            && message.kind == Kind::CallbackMessage
            && self.chats().contains(message.lane.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{LaneKey, MessageId};

    #[test]
    fn only_the_callback_of_a_known_chat_is_known() {
        let chats = KnownChats::default();
        chats.add("g-1", &ConversationId::parse("c-1").unwrap());
        let message = |kind, destination, lane| {
            Message::new(MessageId::fresh(), kind, destination, LaneKey::parse(lane).unwrap(), "{}")
        };
        let callback = |lane| message(Kind::CallbackMessage, Destination::Callbacks, lane);
        assert!(chats.knows(&callback("g-1")) && !chats.knows(&callback("g-2")));
        assert!(!chats.knows(&message(Kind::CallbackEnded, Destination::Callbacks, "g-1")));
        assert!(!chats.knows(&message(Kind::CallbackMessage, Destination::Events, "g-1")));
        assert_eq!(chats.conversation_of("g-1").unwrap().as_str(), "c-1");
    }
}
