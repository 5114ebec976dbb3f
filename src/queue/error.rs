//! The errors of queue operations.

/// The reason why a queue operation failed. The caller may always try again later.
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
    /// The broker's user lacks a right, or an exchange or a queue is missing. The queue works again after an operator
    /// has fixed this.
    #[error("{0}")]
    Refused(String),
    /// The message is larger than the broker's limit. A repeat of the same message is refused again.
    #[error("the message is larger than {0} bytes, the limit of the broker (max_message_size)")]
    TooLarge(usize),
}
