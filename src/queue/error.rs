//! Why the queue did not do what it was asked for.

/// Why a queue operation failed. In all cases the caller may try again later.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker is unreachable, blocked or too slow, or the disk fails.
    #[error("the queue cannot be reached: {0}")]
    Unavailable(String),
    /// The queue accepts no more messages.
    #[error("the queue is full")]
    Full,
    /// Another process or session has exclusive access.
    #[error("{0}")]
    Busy(String),
    /// The queue does not fit the settings or the version of this program: an operator must act.
    #[error("{0}")]
    Mismatch(String),
    /// The user of the broker lacks a right, or an exchange or a queue is missing. This heals when an operator has acted.
    #[error("{0}")]
    Refused(String),
    /// The message is larger than the broker takes. The same message is refused again.
    #[error("the message is larger than {0} bytes, the limit of the broker (max_message_size)")]
    TooLarge(usize),
}
