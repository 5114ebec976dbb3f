//! The trace of the running task: the request or the message that is processed now.
//!
//! Guarantees: each new message takes over the trace of the task that creates it. So a notice or a message of gap repair
//! carries the ids of the message that caused it, and no stage passes the ids on by hand. Without a trace a message
//! carries none.
//!
//! Not responsible for: the format of the ids (`trace.rs`). A task that is started with `tasks::spawn` has no
//! trace of its own.

use super::Trace;

tokio::task_local! {
    static CURRENT: Trace;
}

/// Runs `work` under this trace.
pub fn within<F: Future>(trace: Trace, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(trace, work)
}

/// The trace of the running task.
pub fn current() -> Trace {
    CURRENT.try_with(Trace::clone).unwrap_or_default()
}

/// Reads the trace of the running task without a copy.
pub fn with_current<T>(read: impl FnOnce(&Trace) -> T) -> Option<T> {
    CURRENT.try_with(read).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Destination, Kind, LaneKey, Message, MessageId, RequestId};

    #[tokio::test]
    async fn a_new_message_takes_over_the_trace_of_its_cause() {
        let message = || {
            let (id, lane) = (MessageId::fresh(), LaneKey::parse("g-1").unwrap());
            Message::new(id, Kind::CallbackMessage, Destination::Xo, lane, "{}")
        };
        let trace = Trace { request_id: RequestId::parse("r-1"), parent: None };
        let inside = within(trace.clone(), async { message() }).await;
        assert_eq!((inside.trace, message().trace), (trace, Trace::default()));
    }
}
