//! Finds out why a publishing channel ended, and which messages caused the end.
//!
//! The broker refuses a message by closing its channel, without saying which message.
//! Guarantees: only the refused messages get the refusal. All other messages are published again under their ids. The
//! broker may already have some of these, and workers suppress the repeats.

use lapin::{Error, ErrorKind};

use super::connections::BrokerConnections;
use super::names::{Exchange, TopologyNames};
use super::publisher::{LeftRequests, PublishRequest};
use super::topology::code;
use crate::queue::QueueError;

/// The reason of the end of a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChannelEnd {
    /// A message was larger than this number of bytes.
    TooLarge(usize),
    /// The user may not publish to this exchange, or it does not exist.
    Refused(Exchange, String),
    /// Any other reason: the outcome of the channel's messages is unknown.
    Lost(String),
}

impl ChannelEnd {
    pub(super) fn of(error: &Error, names: &TopologyNames) -> Self {
        let reason = error.to_string();
        let (ErrorKind::ProtocolError(told), Some(code)) = (error.kind(), code(error)) else {
            return Self::Lost(reason);
        };
        let text = told.get_message().as_str();
        match code {
            406 => most_bytes(text).map_or(Self::Lost(reason), Self::TooLarge),
            403 | 404 => {
                let named =
                    |exchange: &Exchange| text.contains(&format!("exchange '{}'", names.exchange(*exchange)));
                match [Exchange::Messages, Exchange::DeadLetters].into_iter().find(named) {
                    Some(exchange) => Self::Refused(exchange, reason),
                    None => Self::Lost(reason),
                }
            }
            _ => Self::Lost(reason),
        }
    }

    /// Refuses the messages that caused the end, and returns the others, to be published again, each lane in its order.
    pub(super) fn sort_out(self, left: LeftRequests, connections: &BrokerConnections) -> Vec<PublishRequest> {
        let LeftRequests { in_doubt, unsent } = left;
        match self {
            Self::TooLarge(limit) if in_doubt.iter().any(|request| request.body_bytes() > limit) => {
                tracing::warn!(limit, "a message is larger than the broker takes (max_message_size)");
                connections.takes_at_most(limit);
                let to_blame = |request: &PublishRequest| request.body_bytes() > limit;
                refuse(in_doubt.into_iter().chain(unsent), to_blame, || QueueError::TooLarge(limit))
            }
            Self::Refused(exchange, reason) => {
                connections.refuses(exchange, &reason);
                let to_blame = |request: &PublishRequest| request.exchange() == exchange;
                refuse(in_doubt.into_iter().chain(unsent), to_blame, || QueueError::Refused(reason.clone()))
            }
            Self::TooLarge(_) | Self::Lost(_) => {
                // Dropping the unsent requests reports to their callers that the connection broke.
                let reason = match self {
                    Self::Lost(reason) => reason,
                    _ => "the broker closed the channel".to_owned(),
                };
                in_doubt.into_iter().for_each(|it| it.refuse(QueueError::Unavailable(reason.clone())));
                Vec::new()
            }
        }
    }
}

fn refuse(
    requests: impl Iterator<Item = PublishRequest>,
    is_to_blame: impl Fn(&PublishRequest) -> bool,
    error: impl Fn() -> QueueError,
) -> Vec<PublishRequest> {
    let mut again = Vec::new();
    for request in requests {
        if is_to_blame(&request) {
            request.refuse(error());
        } else {
            again.push(request);
        }
    }
    again
}

/// The limit in "message size 70000 is larger than configured max size 65536".
fn most_bytes(text: &str) -> Option<usize> {
    let (_, limit) = text.split_once("max size ")?;
    limit.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};

    use super::*;

    fn end(kind: AMQPSoftError, text: &str) -> ChannelEnd {
        let names = TopologyNames::parse("c.").unwrap();
        ChannelEnd::of(&ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())).into(), &names)
    }

    #[test]
    fn the_reason_is_read_from_the_broker_s_words() {
        let text = "PRECONDITION_FAILED - message size 70000 is larger than configured max size 65536";
        assert_eq!(end(AMQPSoftError::PRECONDITIONFAILED, text), ChannelEnd::TooLarge(65_536));
        let text = "PRECONDITION_FAILED - invalid expiration";
        assert!(matches!(end(AMQPSoftError::PRECONDITIONFAILED, text), ChannelEnd::Lost(_)));
        for text in [
            "ACCESS_REFUSED - access to exchange 'c.dlx' in vhost 'v' refused for user 'u'",
            "ACCESS_REFUSED - write access to exchange 'c.dlx' in vhost 'v' refused for user 'u'",
        ] {
            assert!(
                matches!(
                    end(AMQPSoftError::ACCESSREFUSED, text),
                    ChannelEnd::Refused(Exchange::DeadLetters, _)
                ),
                "{text}"
            );
        }
        let text = "NOT_FOUND - no exchange 'c.in' in vhost 'v'";
        assert!(matches!(end(AMQPSoftError::NOTFOUND, text), ChannelEnd::Refused(Exchange::Messages, _)));
    }
}
