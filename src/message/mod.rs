//! What travels: a message, its kind and its destination. No I/O, no async.
//!
//! Guarantees: a [`Message`] always names its destination, its lane and the moment it was accepted; its body is
//! carried as bytes, untouched, so that a callback reaches XO exactly as ServiceNow wrote it.
//! Leaves to others: how it is stored (`queue/`), what its body means (`handoff`, `callback`), what became of it (`outcome`).

pub mod callback;
pub mod dead_letter;
pub mod handoff;
pub mod ids;
pub mod outcome;
pub mod reply;
pub(crate) mod rich_text;

use bytes::Bytes;
use jiff::Timestamp;

pub use callback::{Callback, Notice, NoticeEvent};
pub use dead_letter::{AttemptRecord, DeadLetter, Story};
pub use handoff::Handoff;
pub use ids::{ConversationId, IdProblem, LaneKey, MessageId};
pub use outcome::{DeadReason, Endpoint, Outcome, RetryReason, TripReason};
pub use reply::{AllowedHosts, ReplyHandle};

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the wire, in metrics and on the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Reads the name back.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Where a message goes.
    Destination {
        /// The human side.
        ServiceNow = "servicenow",
        /// The bot side.
        Xo = "xo",
    }
}

named! {
    /// What a message is.
    Kind {
        /// Opens a chat with a human.
        HandoffStart = "handoff.start",
        /// Something the user wrote.
        HandoffMessage = "handoff.message",
        /// The user is typing.
        HandoffTyping = "handoff.typing",
        /// The user left.
        HandoffEnd = "handoff.end",
        /// Something ServiceNow posted.
        CallbackMessage = "callback.message",
        /// The agent joined, left, waits, types.
        CallbackEvent = "callback.event",
        /// The chat is over on ServiceNow's side.
        CallbackEnded = "callback.ended",
        /// No human will come: the bot takes over.
        HandoffFailed = "handoff.failed",
    }
}

impl Kind {
    /// Each kind goes to exactly one destination.
    pub const fn destination(self) -> Destination {
        match self {
            Self::HandoffStart | Self::HandoffMessage | Self::HandoffTyping | Self::HandoffEnd => {
                Destination::ServiceNow
            }
            Self::CallbackMessage | Self::CallbackEvent | Self::CallbackEnded | Self::HandoffFailed => {
                Destination::Xo
            }
        }
    }
}

/// What travels on the queue.
///
/// Its `Debug` leaves the body out: chat text never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The same event has the same id, however often it is posted.
    pub id: MessageId,
    /// What it is, and by that where it goes.
    pub kind: Kind,
    /// The line that it stands in.
    pub lane: LaneKey,
    /// When the ingress (or a replay) took it: deadlines count from here. Millisecond precision.
    pub accepted_at: Timestamp,
    /// How often it came back from the dead letters.
    pub replays: u32,
    /// JSON, its shape told by `kind`.
    pub body: Bytes,
}

impl Message {
    /// A message accepted now.
    pub fn new(id: MessageId, kind: Kind, lane: LaneKey, body: impl Into<Bytes>) -> Self {
        Self { id, kind, lane, accepted_at: crate::clock::now(), replays: 0, body: body.into() }
    }

    /// Under this id it is remembered that it was buried, as it is now: a replay may bury it once more.
    pub(crate) fn buried(&self) -> MessageId {
        MessageId::derived("buried", &format!("{}:{}", self.id, self.replays))
    }

    /// Where it goes.
    pub const fn destination(&self) -> Destination {
        self.kind.destination()
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("lane", &self.lane)
            .field("accepted_at", &self.accepted_at)
            .field("replays", &self.replays)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_text() {
        let message = Message::new(
            MessageId::fresh(),
            Kind::CallbackMessage,
            LaneKey::parse("g").unwrap(),
            r#"{"formatted_message":"secret words"}"#,
        );
        assert!(!format!("{message:?}").contains("secret"));
    }

    #[test]
    fn names_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        }
    }
}
