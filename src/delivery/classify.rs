//! Maps each error of a platform client to an outcome, as a pure table.
//!
//! Guarantees: no side effects; every error has exactly one outcome for each operation.
//!
//! Not responsible for: successes, deadlines (`worker/policy.rs`), the effect of an outcome on the breaker.

use crate::message::{DeadReason, Outcome, RetryReason, TripReason, named};
use crate::platform::{AnswerKind, CallError, ErrorAnswer, NoAnswer, NoAnswerKind, SentState};

named! {
    /// The operation for which a platform was called.
    Operation {
        /// Opens a chat.
        Start = "start",
        /// Writes into a chat.
        Send = "send",
        /// Leaves a chat.
        Leave = "leave",
        /// Creates a record over the Table API.
        Record = "record",
        /// Reads the state of a chat.
        State = "state",
        /// Posts ServiceNow's callback to XO.
        Callback = "callback",
        /// Posts an event of ours.
        Event = "event",
        /// Sends a text to a bot's user.
        Tell = "tell",
        /// Starts or ends a bot's agent session.
        Session = "session",
    }
}

impl Operation {
    /// Whether a 404 means that the chat is over: only these operations name a chat.
    const fn is_about_a_chat(self) -> bool {
        matches!(self, Self::Send | Self::Leave | Self::State)
    }

    /// Whether a repeated call does more than a single call.
    const fn repeats(self) -> bool {
        !matches!(self, Self::State | Self::Leave | Self::Session)
    }
}

/// The outcome of a failed attempt.
pub fn classify(error: &CallError, operation: Operation) -> Outcome {
    match error {
        CallError::Answer(answer) => answered(answer, operation),
        CallError::NoAnswer(no_answer) => unanswered(no_answer, operation),
    }
}

fn answered(answer: &ErrorAnswer, operation: Operation) -> Outcome {
    // A user who may not leave a chat, or a chat that is absent, means that the user has left.
    if operation == Operation::Leave && matches!(answer.status, 403 | 404 | 410) {
        return Outcome::Delivered;
    }
    // A session that is absent has ended.
    if operation == Operation::Session && matches!(answer.status, 404 | 410) {
        return Outcome::Delivered;
    }
    match &answer.kind {
        AnswerKind::NotReady(_) => Outcome::Pause { reason: TripReason::NotReady, floor: answer.retry_after },
        AnswerKind::Credentials => Outcome::Pause { reason: TripReason::Credentials, floor: None },
        AnswerKind::Business(_) if operation == Operation::Start => Outcome::Declined,
        // ServiceNow's answer if we are not a member of the conversation any more.
        AnswerKind::Business(_) if answer.status == 403 && operation.is_about_a_chat() => {
            Outcome::Dead(DeadReason::ConversationOver)
        }
        AnswerKind::Business(_) if answer.status == 403 => Outcome::Dead(DeadReason::Rejected),
        AnswerKind::Business(_) | AnswerKind::Temporary => later(answer, operation),
        AnswerKind::Gone if operation.is_about_a_chat() => Outcome::Dead(DeadReason::ConversationOver),
        AnswerKind::Gone | AnswerKind::Permanent => Outcome::Dead(DeadReason::Rejected),
        AnswerKind::Throttled => {
            Outcome::Retry { reason: RetryReason::Throttled, ambiguous: false, floor: answer.retry_after }
        }
    }
}

fn later(answer: &ErrorAnswer, operation: Operation) -> Outcome {
    let floor = answer.retry_after.filter(|_| answer.status == 503);
    let reason = match answer.status {
        _ if floor.is_some() => RetryReason::Throttled,
        500.. => RetryReason::ServerError,
        _ => RetryReason::TryLater,
    };
    // 425 and 503 say that the request was not started. Other answers may come from a request that was interrupted.
    let ambiguous = operation.repeats() && !matches!(answer.status, 425 | 503);
    Outcome::Retry { reason, ambiguous, floor }
}

fn unanswered(no_answer: &NoAnswer, operation: Operation) -> Outcome {
    let reason = match no_answer.kind {
        NoAnswerKind::Timeout => RetryReason::Timeout,
        NoAnswerKind::Connect | NoAnswerKind::Proxy | NoAnswerKind::Tls(_) => RetryReason::Connect,
        NoAnswerKind::Reset | NoAnswerKind::NotHttp => RetryReason::Reset,
        NoAnswerKind::BadBody | NoAnswerKind::TooLarge => RetryReason::TryLater,
        // An error of our own, which says nothing about the platform.
        NoAnswerKind::NoRight => RetryReason::Internal,
    };
    let ambiguous = no_answer.sent == SentState::Maybe && operation.repeats();
    Outcome::Retry { reason, ambiguous, floor: None }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::PlatformWords;
    use crate::platform::NotReady;
    use crate::tls::TlsFault;
    use Operation::{Callback, Event, Leave, Send, Session, Start, State, Tell};

    const FLOOR: Option<Duration> = Some(Duration::from_secs(17));
    const ALL: &[Operation] = Operation::ALL;

    fn answer(status: u16, kind: AnswerKind, retry_after: Option<Duration>) -> CallError {
        let (detail, said) = (String::new(), PlatformWords::default());
        CallError::Answer(ErrorAnswer { status, retry_after, kind, detail, said })
    }

    fn plain(status: u16) -> CallError {
        answer(status, AnswerKind::of_status(status), None)
    }

    fn business(status: u16) -> CallError {
        answer(status, AnswerKind::Business("Nobody is here".into()), None)
    }

    fn none(sent: SentState, kind: NoAnswerKind) -> CallError {
        CallError::NoAnswer(NoAnswer { sent, kind, detail: String::new() })
    }

    fn retry(reason: RetryReason, ambiguous: bool, floor: Option<Duration>) -> Outcome {
        Outcome::Retry { reason, ambiguous, floor }
    }

    fn expect(error: &CallError, operations: &[Operation], outcome: &Outcome) {
        for operation in operations {
            assert_eq!(classify(error, *operation), *outcome, "{error:?} on {operation}");
        }
    }

    #[test]
    fn not_ready_and_credentials_pause_the_destination() {
        let not_ready = |floor| Outcome::Pause { reason: TripReason::NotReady, floor };
        for (status, how) in [(202, NotReady::Accepted), (200, NotReady::Html)] {
            expect(&answer(status, AnswerKind::NotReady(how), None), ALL, &not_ready(None));
        }
        for status in [301, 302, 303, 307, 308] {
            expect(&plain(status), ALL, &not_ready(None));
        }
        expect(&answer(202, AnswerKind::NotReady(NotReady::Accepted), FLOOR), ALL, &not_ready(FLOOR));
        expect(&plain(401), ALL, &Outcome::Pause { reason: TripReason::Credentials, floor: None });
    }

    #[test]
    fn no_agent_is_an_answer_on_a_start_only() {
        for status in [403, 503] {
            expect(&business(status), &[Start], &Outcome::Declined);
        }
        expect(&business(403), &[Send, State], &Outcome::Dead(DeadReason::ConversationOver));
        expect(&business(403), &[Callback, Event, Tell, Session], &Outcome::Dead(DeadReason::Rejected));
        let later = retry(RetryReason::ServerError, false, None);
        expect(&business(503), &[Send, Leave, State, Callback, Event, Tell, Session], &later);
    }

    #[test]
    fn a_chat_that_is_not_there_is_over() {
        for status in [404, 410] {
            expect(&plain(status), &[Send, State], &Outcome::Dead(DeadReason::ConversationOver));
            expect(&plain(status), &[Start, Callback, Event, Tell], &Outcome::Dead(DeadReason::Rejected));
            expect(&plain(status), &[Session], &Outcome::Delivered);
        }
        for error in [plain(403), business(403), plain(404), plain(410)] {
            expect(&error, &[Leave], &Outcome::Delivered);
        }
    }

    #[test]
    fn a_permanent_refusal_is_dead_lettered() {
        for status in [400, 403, 405, 406, 409, 413, 415, 422, 451] {
            let operations =
                if status == 403 { &[Start, Send, State, Callback, Event, Tell, Session][..] } else { ALL };
            expect(&plain(status), operations, &Outcome::Dead(DeadReason::Rejected));
        }
    }

    #[test]
    fn a_temporary_failure_is_retried() {
        let repeating = &[Start, Send, Callback, Event, Tell];
        for (status, reason, ambiguous) in [
            (408, RetryReason::TryLater, true),
            (425, RetryReason::TryLater, false),
            (499, RetryReason::TryLater, true),
            (500, RetryReason::ServerError, true),
            (502, RetryReason::ServerError, true),
            (503, RetryReason::ServerError, false),
            (504, RetryReason::ServerError, true),
            (599, RetryReason::ServerError, true),
            (429, RetryReason::Throttled, false),
        ] {
            expect(&plain(status), repeating, &retry(reason, ambiguous, None));
            expect(&plain(status), &[Leave, State, Session], &retry(reason, false, None));
        }
    }

    #[test]
    fn retry_after_is_a_floor_on_429_and_503() {
        let floored = retry(RetryReason::Throttled, false, FLOOR);
        expect(&answer(429, AnswerKind::Throttled, FLOOR), ALL, &floored);
        expect(&answer(503, AnswerKind::Temporary, FLOOR), ALL, &floored);
        let without = retry(RetryReason::ServerError, true, None);
        expect(&answer(500, AnswerKind::Temporary, FLOOR), &[Send], &without);
    }

    #[test]
    fn no_answer_is_ambiguous_only_when_something_was_sent() {
        let repeating = &[Start, Send, Callback, Event, Tell];
        for (kind, reason) in [
            (NoAnswerKind::Connect, RetryReason::Connect),
            (NoAnswerKind::Proxy, RetryReason::Connect),
            (NoAnswerKind::Tls(TlsFault::Expired), RetryReason::Connect),
            (NoAnswerKind::NotHttp, RetryReason::Reset),
            (NoAnswerKind::Reset, RetryReason::Reset),
            (NoAnswerKind::Timeout, RetryReason::Timeout),
            (NoAnswerKind::BadBody, RetryReason::TryLater),
            (NoAnswerKind::TooLarge, RetryReason::TryLater),
            (NoAnswerKind::NoRight, RetryReason::Internal),
        ] {
            expect(&none(SentState::No, kind), ALL, &retry(reason, false, None));
            expect(&none(SentState::Maybe, kind), repeating, &retry(reason, true, None));
            expect(&none(SentState::Maybe, kind), &[Leave, State, Session], &retry(reason, false, None));
        }
    }
}
