//! The result of one attempt, and the history of the earlier attempts of a message.
//!
//! Guarantees: an [`Attempt`] has an [`Outcome`] in each case, also after an internal error. Its `error` holds no text of the
//! chat and none of the platform's words.
//! Not responsible for: the next step of the message (`worker/policy.rs`).

use crate::conversation::DirectoryError;
use crate::message::{DeadReason, Destination, Endpoint, Outcome, PlatformWords, RetryReason};
use crate::platform::CallError;
use crate::queue::QueueError;

use super::classify::{Operation, classify};

/// The result of one attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The outcome, which decides the next step.
    pub outcome: Outcome,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// The error, without the chat's text and without the platform's words.
    pub error: String,
    /// The platform's words, which may repeat the chat's text.
    pub said: PlatformWords,
    /// The endpoint that was called.
    pub endpoint: Endpoint,
    /// The attempt has recorded its outcome in the directory, together with its other changes.
    pub is_recorded: bool,
}

impl Attempt {
    pub(crate) fn of(endpoint: Endpoint, outcome: Outcome, error: impl Into<String>) -> Self {
        let (error, said) = (error.into(), PlatformWords::default());
        Self { outcome, status: None, error, said, endpoint, is_recorded: false }
    }

    pub(crate) fn delivered(endpoint: Endpoint) -> Self {
        Self::of(endpoint, Outcome::Delivered, "")
    }

    pub(crate) fn recorded(self) -> Self {
        Self { is_recorded: true, ..self }
    }

    /// The destination that answered or failed in an attempt of a message to `destination`.
    pub fn remote(&self, destination: Destination) -> Destination {
        if self.endpoint == Endpoint::ServiceNow { Destination::ServiceNow } else { destination }
    }

    pub(crate) fn dead(endpoint: Endpoint, reason: DeadReason, why: impl Into<String>) -> Self {
        Self::of(endpoint, Outcome::Dead(reason), why)
    }

    pub(crate) fn called(endpoint: Endpoint, error: &CallError, operation: Operation) -> Self {
        Self {
            outcome: classify(error, operation),
            status: error.status(),
            error: error.to_string(),
            said: error.said(),
            endpoint,
            is_recorded: false,
        }
    }

    /// An attempt that failed for a reason inside Causeway. `ambiguous`: the platform may have been called already.
    pub(crate) fn internal(endpoint: Endpoint, ambiguous: bool, error: InternalError) -> Self {
        if error.is_final {
            return Self::dead(endpoint, DeadReason::Rejected, error.trouble);
        }
        Self::internal_error(endpoint, ambiguous, error.trouble)
    }

    /// A temporary failure inside Causeway.
    pub(crate) fn internal_error(endpoint: Endpoint, ambiguous: bool, error: impl Into<String>) -> Self {
        let outcome = Outcome::Retry { reason: RetryReason::Internal, ambiguous, floor: None };
        Self::of(endpoint, outcome, error)
    }
}

/// An internal error. The attempt is repeated, unless the error is final.
#[derive(Debug)]
pub(crate) struct InternalError {
    pub(crate) trouble: String,
    /// A repeat fails in the same way: the message is given up at once.
    pub(crate) is_final: bool,
}

impl InternalError {
    /// The directory or the queue is unavailable.
    pub(crate) fn temporary(trouble: impl ToString) -> Self {
        Self { trouble: trouble.to_string(), is_final: false }
    }
}

impl From<DirectoryError> for InternalError {
    fn from(error: DirectoryError) -> Self {
        Self::temporary(error)
    }
}

impl From<QueueError> for InternalError {
    fn from(error: QueueError) -> Self {
        Self { is_final: matches!(error, QueueError::TooLarge(_)), ..Self::temporary(error) }
    }
}

/// The history of a message before this attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PriorAttempts {
    /// The number of earlier attempts of this worker.
    pub count: u32,
    /// An earlier attempt may have reached the destination, so the message is possibly delivered: look before sending.
    pub possibly_delivered: bool,
    /// The message failed while other messages succeeded. Another failure says nothing about the destination.
    pub fails_alone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_the_broker_never_takes_is_not_repeated() {
        let attempt = |error: QueueError| Attempt::internal(Endpoint::Events, false, error.into()).outcome;
        assert_eq!(attempt(QueueError::TooLarge(65_536)), Outcome::Dead(DeadReason::Rejected));
        for heals in [QueueError::Full, QueueError::Refused("no right".into())] {
            assert!(matches!(attempt(heals), Outcome::Retry { ambiguous: false, .. }));
        }
    }
}
