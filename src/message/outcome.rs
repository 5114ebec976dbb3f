//! Defines the outcomes of an attempt, and the reasons of dead letters.
//!
//! Guarantees: every outcome either ends a message or says when the message is tried again; no failure is ignored.
//!
//! Not responsible for: the table from answers to outcomes (`delivery/classify.rs`), acting on an outcome
//! (`worker/policy.rs`).

use std::time::Duration;

use super::named;

named! {
    /// The reason why a message was dead-lettered.
    DeadReason {
        /// The destination refused the message for good.
        Rejected = "rejected",
        /// The deadline of the message passed.
        Expired = "expired",
        /// The message cannot be parsed; the raw bytes are kept.
        Unreadable = "unreadable",
        /// The conversation never opened.
        ConversationFailed = "conversation_failed",
        /// The conversation is over.
        ConversationOver = "conversation_over",
        /// The conversation is unknown.
        UnknownConversation = "unknown_conversation",
        /// The message kept failing for `delivery.hold` while other messages to its destination succeeded.
        Exhausted = "exhausted",
    }
}

named! {
    /// The reason why an attempt is repeated; also the label of `causeway_retries_total`.
    RetryReason {
        /// 5xx.
        ServerError = "server_error",
        /// 429, or any answer with `Retry-After`.
        Throttled = "throttled",
        /// No answer within the time limit: the result is unknown.
        Timeout = "timeout",
        /// No connection: nothing was sent.
        Connect = "connect",
        /// The connection broke: the result may be unknown.
        Reset = "reset",
        /// 408, 425 and invalid answers.
        TryLater = "try_later",
        /// 401 of one reply address, while the bot's other addresses accept the same credential.
        Unauthorized = "unauthorized",
        /// An internal error: the directory or the broker is unavailable.
        Internal = "internal",
    }
}

named! {
    /// The reason why a whole destination is not ready, which trips the breaker at once.
    TripReason {
        /// 202, an HTML page or a redirect: the instance is not available.
        NotReady = "not_ready",
        /// The credentials were refused, also after a refresh.
        Credentials = "credentials",
        /// Repeated failures without a success between them.
        Failing = "failing",
        /// The destination asked for a pause.
        Throttled = "throttled",
    }
}

named! {
    /// The remote endpoint that an attempt called. One destination can have several endpoints, and each can be down by
    /// itself.
    Endpoint {
        /// The ServiceNow instance.
        ServiceNow = "servicenow",
        /// XO's Callback URL.
        XoCallback = "xo_callback",
        /// The events URL of API conversations.
        Events = "events",
        /// XO's BotKit reply URLs.
        XoBotKit = "xo_botkit",
    }
}

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination accepted the message.
    Delivered,
    /// Declined: the destination gave a final business answer ("no agent"). The message is settled, and the bot side is
    /// notified.
    Declined,
    /// The message was delivered before; nothing was sent.
    Repeated,
    /// The message was put on the queue of its real destination under the same id. Only that destination delivers the
    /// message.
    Routed,
    /// The message is worthless by now or not supported there (typing). It is counted and not kept.
    Dropped,
    /// Another attempt must follow.
    Retry {
        /// The reason.
        reason: RetryReason,
        /// The message is possibly delivered: look before the next attempt.
        ambiguous: bool,
        /// No call may go to the destination before this time has passed (`Retry-After`).
        floor: Option<Duration>,
    },
    /// The destination as a whole is not ready. The attempt is not counted.
    Pause {
        /// The reason.
        reason: TripReason,
        /// The time that the destination asked for.
        floor: Option<Duration>,
    },
    /// Deferred until a condition holds (for example, the start of its conversation has opened the chat), for a limited
    /// time after acceptance.
    Deferred {
        /// The time limit, counted from acceptance.
        at_most: Duration,
        /// The reason of the dead letter after the time limit.
        then: DeadReason,
    },
    /// The destination will never accept the message.
    Dead(DeadReason),
}

impl Outcome {
    /// The label of `causeway_delivery_attempts_total`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Declined => "answered",
            Self::Repeated => "repeated",
            Self::Routed => "routed",
            Self::Dropped => "dropped",
            Self::Retry { .. } => "retry",
            Self::Pause { .. } => "paused",
            Self::Deferred { .. } => "held",
            Self::Dead(_) => "refused",
        }
    }
}
