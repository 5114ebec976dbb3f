//! Defines a message on the queue, its kind and its destination. No I/O, no async.
//!
//! Guarantees: a [`Message`] always has a destination, a lane and a time of acceptance. The body is carried as
//! unchanged bytes, so a callback reaches XO exactly as ServiceNow wrote it.
//!
//! Not responsible for: storage (`queue/`), the content of a body (`handoff`, `callback`), the result of an attempt
//! (`outcome`).

mod attachment;
pub mod bot_turn;
pub mod callback;
pub mod current_trace;
pub mod dead_letter;
pub mod destination;
pub mod digest;
mod field_text;
pub mod handoff;
pub mod ids;
pub mod json;
pub mod outcome;
pub mod platform_words;
pub mod reply;
pub(crate) mod rich_text;
pub mod routing;
pub mod trace;

use bytes::Bytes;
use jiff::Timestamp;

pub use attachment::safe_file_name;
pub use callback::{Callback, Notice, NoticeEvent};
pub use dead_letter::{AttemptHistory, AttemptRecord, DeadLetter};
pub use destination::{BotName, BotSide, Destination, Destinations, KnownBot};
pub use digest::PayloadDigest;
pub use handoff::Handoff;
pub use ids::{ConversationId, IdProblem, LaneKey, MessageId};
pub use outcome::{DeadReason, Endpoint, Outcome, RetryReason, TripReason};
pub use platform_words::PlatformWords;
pub use reply::{AllowedHosts, ReplyHandle};
pub use trace::{RequestId, Trace, TraceParent};

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

            /// Parses the name.
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
    /// The kind of a message.
    Kind {
        /// Opens a chat with an agent.
        HandoffStart = "handoff.start",
        /// A message of the user.
        HandoffMessage = "handoff.message",
        /// The user is typing.
        HandoffTyping = "handoff.typing",
        /// The user left.
        HandoffEnd = "handoff.end",
        /// Creates a record for a handoff that found no agent.
        HandoffIncident = "handoff.incident",
        /// A message that ServiceNow posted.
        CallbackMessage = "callback.message",
        /// The agent joined, left or is typing, or the user waits.
        CallbackEvent = "callback.event",
        /// The chat is over on ServiceNow's side.
        CallbackEnded = "callback.ended",
        /// No agent comes, so the bot takes over.
        HandoffFailed = "handoff.failed",
        /// A message of a user to the bot. XO waits until the bot receives it.
        BotUserMessage = "bot.user_message",
        /// A message of the bot. XO waits until its user receives it.
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
        matches!(
            self,
            Self::HandoffStart
                | Self::HandoffMessage
                | Self::HandoffTyping
                | Self::HandoffEnd
                | Self::HandoffIncident
        )
    }

    /// Whether messages of this kind report something that happened in ServiceNow. A callback, a poll and gap repair may
    /// find the same event, and each of them puts a message with the same id on the queue.
    pub const fn may_be_queued_twice(self) -> bool {
        matches!(
            self,
            Self::CallbackMessage | Self::CallbackEvent | Self::CallbackEnded | Self::HandoffFailed
        )
    }

    /// Whether a user and a bot wait for messages of this kind.
    pub const fn is_bot_turn(self) -> bool {
        matches!(self, Self::BotUserMessage | Self::BotBotMessage | Self::BotAlert | Self::BotClientEvent)
    }

    /// Whether a message of this kind may be in a queue of this destination.
    pub fn fits(self, destination: Destination) -> bool {
        self.is_for_servicenow() == (destination == Destination::ServiceNow)
    }

    /// The kind that an unreadable message of a destination gets.
    pub const fn of_unreadable(destination: Destination) -> Self {
        match destination {
            Destination::ServiceNow => Self::HandoffMessage,
            _ => Self::CallbackMessage,
        }
    }
}

/// A message on the queue.
///
/// `Debug` omits the body, so that chat text never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The id: the same event has the same id, however often it is posted.
    pub id: MessageId,
    /// The kind.
    pub kind: Kind,
    /// The destination.
    pub destination: Destination,
    /// The lane.
    pub lane: LaneKey,
    /// When the ingress (or a replay) accepted the message. Deadlines count from this time. Millisecond precision.
    pub accepted_at: Timestamp,
    /// How often the message was replayed from the dead-letter queue.
    pub replays: u32,
    /// The digest of the body, if the caller chose the key of the request. It distinguishes another request with the
    /// same id.
    pub digest: Option<PayloadDigest>,
    /// The request that caused the message.
    pub trace: Trace,
    /// JSON in the format of `kind`.
    pub body: Bytes,
}

impl Message {
    /// Creates a message that is accepted now and takes over the trace of the running task.
    pub fn new(
        id: MessageId,
        kind: Kind,
        destination: Destination,
        lane: LaneKey,
        body: impl Into<Bytes>,
    ) -> Self {
        let (accepted_at, trace, body) = (crate::clock::now(), current_trace::current(), body.into());
        Self { id, kind, destination, lane, accepted_at, replays: 0, digest: None, trace, body }
    }

    /// The conversation of the message, or ServiceNow's chat if only the chat is known. `None` if the message is alone in its
    /// lane.
    pub fn chat_name(&self) -> Option<&str> {
        let lane = self.lane.as_str();
        if MessageId::parse(lane) == Ok(self.id) {
            return None;
        }
        Some(if self.kind.is_bot_turn() { bot_turn::conversation_of(&self.lane) } else { lane })
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
