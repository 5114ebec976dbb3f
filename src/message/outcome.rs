//! Everything that can become of an attempt, and why a message died.
//!
//! Guarantees: there is no "ignored": an outcome either ends a message or says when it is tried again.
//! Leaves to others: the table from answers to outcomes (`delivery/classify.rs`), acting on them (`worker/settle.rs`).

use std::time::Duration;

use super::named;

named! {
    /// Why a message became a dead letter.
    DeadReason {
        /// The destination refused it for good.
        Rejected = "rejected",
        /// Its deadline passed.
        Expired = "expired",
        /// No code can read it; the raw bytes are kept.
        Unreadable = "unreadable",
        /// Its conversation never opened.
        ConversationFailed = "conversation_failed",
        /// Its conversation is over.
        ConversationOver = "conversation_over",
        /// Nobody knows its conversation.
        UnknownConversation = "unknown_conversation",
        /// It kept failing for `delivery.hold` while its destination served others.
        Exhausted = "exhausted",
    }
}

named! {
    /// Why an attempt is to be repeated; also the label of `causeway_retries_total`.
    RetryReason {
        /// 5xx.
        ServerError = "server_error",
        /// 429, or any answer with `Retry-After`.
        Throttled = "throttled",
        /// No answer in time: the outcome is unknown.
        Timeout = "timeout",
        /// No connection: nothing was sent.
        Connect = "connect",
        /// The connection broke: the outcome may be unknown.
        Reset = "reset",
        /// 408, 425 and answers that are no answer.
        TryLater = "try_later",
        /// 401 of one reply address, while the bot's other addresses take the same credential.
        Unauthorized = "unauthorized",
        /// Something of our own was not there: directory, broker.
        Internal = "internal",
    }
}

named! {
    /// Why a whole destination is not ready: trips the breaker at once.
    TripReason {
        /// 202, an HTML page, a redirect: nobody is at home.
        NotReady = "not_ready",
        /// The credentials were refused, also after a refresh.
        Credentials = "credentials",
        /// Failure after failure, and no success between.
        Failing = "failing",
        /// The destination said when to come back.
        Throttled = "throttled",
    }
}

named! {
    /// The remote side that an attempt spoke to. One destination can have several; each can be down by itself.
    Endpoint {
        /// The ServiceNow instance.
        ServiceNow = "servicenow",
        /// XO's Callback URL.
        XoCallback = "xo_callback",
        /// Where events of API conversations go.
        Events = "events",
        /// XO's BotKit reply URLs.
        XoBotKit = "xo_botkit",
    }
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has it.
    Delivered,
    /// The destination gave a final business answer ("no agent"): done, and the bot side is told.
    Answered,
    /// Delivered before; nothing was sent.
    Repeated,
    /// Put on the queue of its real destination under the same id. Only that destination delivers it.
    Routed,
    /// Worth nothing any more or not supported there (typing): counted, not kept.
    Dropped,
    /// Try again.
    Retry {
        /// Why.
        reason: RetryReason,
        /// The destination may have taken it: look before the next try.
        ambiguous: bool,
        /// Nobody may call the destination before this has passed (`Retry-After`).
        floor: Option<Duration>,
    },
    /// The destination as a whole is not ready; no attempt of this message is counted.
    Pause {
        /// Why.
        reason: TripReason,
        /// The destination said how long.
        floor: Option<Duration>,
    },
    /// Held for what it depends on (the start that may be opening its conversation), at most so long after acceptance.
    Held {
        /// Counted from acceptance.
        at_most: Duration,
        /// What it dies of when the time is over.
        then: DeadReason,
    },
    /// It will never be taken.
    Dead(DeadReason),
}

impl Outcome {
    /// The label of `causeway_delivery_attempts_total`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Answered => "answered",
            Self::Repeated => "repeated",
            Self::Routed => "routed",
            Self::Dropped => "dropped",
            Self::Retry { .. } => "retry",
            Self::Pause { .. } => "paused",
            Self::Held { .. } => "held",
            Self::Dead(_) => "refused",
        }
    }
}
