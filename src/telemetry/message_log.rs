//! Writes the two log lines of a message: the message was accepted, and the message was settled.
//!
//! Guarantees: both lines have the same ids, so one id finds the way of a message from the door to its delivery. The
//! lines contain no text of the chat, no words of a platform and no secret. No line is built if its level is off.
//! Not responsible for: the format of a line (`logs.rs`).
//!
//! Both lines have the target `causeway::message`. So `log.level = "info,causeway::message=warn"` switches them off.

use std::time::Duration;

use tracing::Level;

use super::logs::logged_conversation;
use crate::clock;
use crate::message::{DeadReason, Destination, Message, Outcome};

const TARGET: &str = "causeway::message";

/// How a message was settled.
#[derive(Debug, Clone, Copy)]
pub enum Settled<'a> {
    /// The message was acked after this outcome.
    Acked(&'a Outcome),
    /// The message became a dead letter.
    DeadLettered(DeadReason),
}

impl Settled<'_> {
    const fn outcome(self) -> &'static str {
        match self {
            Self::Acked(outcome) => outcome.as_str(),
            Self::DeadLettered(_) => "dead_lettered",
        }
    }

    const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Acked(_) => None,
            Self::DeadLettered(reason) => Some(reason.as_str()),
        }
    }
}

/// One line about a message: the fields of every line, then the given ones.
macro_rules! log_message {
    ($words:literal, $message:ident, $($field:tt)*) => {{
        let Names { conversation, group } = names($message);
        tracing::info!(
            target: TARGET,
            id = %$message.id,
            kind = $message.kind.as_str(),
            destination = $message.destination.as_str(),
            conversation_id = conversation.and_then(logged_conversation),
            group = group.and_then(logged_conversation),
            request_id = $message.trace.request_id.as_deref(),
            trace_id = $message.trace.parent.as_ref().map(|parent| parent.trace_id()),
            $($field)*,
            $words
        );
    }};
}

/// Logs that the queue has stored a message of a caller. `took`: the time until the queue confirmed.
pub fn log_accepted(message: &Message, took: Duration) {
    if tracing::enabled!(target: TARGET, Level::INFO) {
        log_message!("message accepted", message, duration_ms = milliseconds(took));
    }
}

/// Logs that a message leaves the queue. The duration counts from the time of acceptance.
pub fn log_settled(message: &Message, settled: Settled<'_>, attempts: u32) {
    if tracing::enabled!(target: TARGET, Level::INFO) {
        log_message!(
            "message settled",
            message,
            attempts,
            duration_ms = milliseconds(clock::since(message.accepted_at)),
            outcome = settled.outcome(),
            reason = settled.reason()
        );
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The name of the conversation, or of ServiceNow's chat if only the chat is known.
struct Names<'a> {
    conversation: Option<&'a str>,
    group: Option<&'a str>,
}

fn names(message: &Message) -> Names<'_> {
    let name = message.chat_name();
    match message.destination {
        Destination::Xo | Destination::Callbacks => Names { conversation: None, group: name },
        _ => Names { conversation: name, group: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ConversationId, Kind, LaneKey, MessageId, bot_turn};

    fn named(kind: Kind, destination: &str, lane: LaneKey) -> (Option<String>, Option<String>) {
        let destination = Destination::parse(destination).unwrap();
        let message = Message::new(MessageId::derived("test", "1"), kind, destination, lane, "{}");
        let Names { conversation, group } = names(&message);
        (conversation.map(str::to_owned), group.map(str::to_owned))
    }

    #[test]
    fn a_line_names_the_conversation_or_the_chat() {
        let lane = |text: &str| LaneKey::parse(text).unwrap();
        let (conversation, group) = ((Some("c-1".to_owned()), None), (None, Some("g-1".to_owned())));
        assert_eq!(named(Kind::HandoffMessage, "servicenow", lane("c-1")), conversation);
        assert_eq!(named(Kind::CallbackMessage, "events", lane("c-1")), conversation);
        assert_eq!(named(Kind::CallbackMessage, "callbacks", lane("g-1")), group);
        assert_eq!(named(Kind::CallbackMessage, "xo", lane("g-1")), group);
        let to_bot = bot_turn::lane(Kind::BotUserMessage, &ConversationId::parse("c-1").unwrap());
        assert_eq!(named(Kind::BotUserMessage, "bot:one", to_bot), conversation);
        let alone = LaneKey::alone(MessageId::derived("test", "1"));
        assert_eq!(named(Kind::CallbackMessage, "xo", alone), (None, None));
    }
}
