//! What travels: a message, its kind and its destination. No I/O, no async.
//!
//! Guarantees: a [`Message`] always names its destination, its lane and the moment it was accepted; its body is
//! carried as bytes, untouched, so that a callback reaches XO exactly as ServiceNow wrote it.
//! Leaves to others: how it is stored (`queue/`), what its body means (`handoff`, `callback`), what became of it (`outcome`).

mod attachment;
pub mod bot_turn;
pub mod callback;
pub mod dead_letter;
pub mod destination;
pub mod digest;
pub mod handoff;
pub mod ids;
pub mod json;
pub mod outcome;
pub mod platform_words;
pub mod reply;
pub(crate) mod rich_text;
pub mod routing;

use bytes::Bytes;
use jiff::Timestamp;

pub use attachment::safe_file_name;
pub use callback::{Callback, Notice, NoticeEvent};
pub use dead_letter::{AttemptRecord, DeadLetter, Story};
pub use destination::{BotName, BotSide, Destination, Destinations, KnownBot};
pub use digest::PayloadDigest;
pub use handoff::Handoff;
pub use ids::{ConversationId, IdProblem, LaneKey, MessageId};
pub use outcome::{DeadReason, Endpoint, Outcome, RetryReason, TripReason};
pub use platform_words::PlatformWords;
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
        /// Words of a user who is with the bot: XO waits until the bot hears them.
        BotUserMessage = "bot.user_message",
        /// Words of the bot: XO waits until its user hears them.
        BotBotMessage = "bot.bot_message",
        /// An alert task of the bot fired.
        BotAlert = "bot.alert",
        /// The user's client reports something to the bot.
        BotClientEvent = "bot.client_event",
    }
}

impl Kind {
    /// Whether messages of this kind go to ServiceNow. All others go to the bot side.
    pub const fn is_for_servicenow(self) -> bool {
        matches!(self, Self::HandoffStart | Self::HandoffMessage | Self::HandoffTyping | Self::HandoffEnd)
    }

    /// Whether a user and a bot wait for it.
    pub const fn is_bot_turn(self) -> bool {
        matches!(self, Self::BotUserMessage | Self::BotBotMessage | Self::BotAlert | Self::BotClientEvent)
    }

    /// Whether a message of this kind may be in a queue of this destination.
    pub fn fits(self, destination: Destination) -> bool {
        self.is_for_servicenow() == (destination == Destination::ServiceNow)
    }

    /// What an unreadable message of a destination counts as.
    pub const fn of_unreadable(destination: Destination) -> Self {
        match destination {
            Destination::ServiceNow => Self::HandoffMessage,
            _ => Self::CallbackMessage,
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
    /// What it is.
    pub kind: Kind,
    /// Where it goes.
    pub destination: Destination,
    /// The line that it stands in.
    pub lane: LaneKey,
    /// When the ingress (or a replay) took it: deadlines count from here. Millisecond precision.
    pub accepted_at: Timestamp,
    /// How often it came back from the dead letters.
    pub replays: u32,
    /// Set if the caller chose what makes two requests the same message: another request under the same id is told by it.
    pub digest: Option<PayloadDigest>,
    /// JSON, its shape told by `kind`.
    pub body: Bytes,
}

impl Message {
    /// A message accepted now.
    pub fn new(
        id: MessageId,
        kind: Kind,
        destination: Destination,
        lane: LaneKey,
        body: impl Into<Bytes>,
    ) -> Self {
        let (accepted_at, body) = (crate::clock::now(), body.into());
        Self { id, kind, destination, lane, accepted_at, replays: 0, digest: None, body }
    }

    /// The same message with the digest of its body.
    #[must_use]
    pub fn with_digest(self) -> Self {
        Self { digest: Some(PayloadDigest::of(&self.body)), ..self }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("destination", &self.destination)
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
            Destination::Xo,
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
