//! The error of a call, with the differences that a caller has to know.
//!
//! Guarantees: an error shows Causeway's own text and a status. An error also keeps one short line of the platform's
//! text, which no log shows ([`PlatformWords`]). An error never holds a body, a URL, a credential or the text that
//! was sent.
//! Not responsible for: what happens to the message (`delivery/classify.rs`).

use std::fmt;
use std::time::Duration;

use crate::message::PlatformWords;
use crate::tls::TlsFault;

/// ServiceNow's message for an API that is not installed.
const NO_SUCH_RESOURCE: &str = "requested uri does not represent any resource";

/// Causeway's own text for a login without the second factor. ServiceNow shows this case only by a header.
pub(crate) const SECOND_FACTOR: &str = "a second factor is missing";

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The platform sent an answer that is not success.
    #[error("{0}")]
    Answer(ErrorAnswer),
    /// No answer arrived, or the answer was unreadable.
    #[error("{0}")]
    NoAnswer(NoAnswer),
}

/// An answer that is not success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The delay that the platform asks for, from `Retry-After` or its rate limit headers.
    pub retry_after: Option<Duration>,
    /// The meaning of the answer.
    pub kind: AnswerKind,
    /// Causeway's own text, safe to show. May be empty.
    pub detail: String,
    /// The platform's text. It can repeat text of a user.
    pub said: PlatformWords,
}

/// The meaning of an answer.
#[derive(Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// The instance is not ready to work. Never success, even with a 2xx status.
    NotReady(NotReady),
    /// The credentials were refused, even with a fresh session.
    Credentials,
    /// 403 or 503 with a plain sentence for the user. The value is the sentence.
    Business(String),
    /// 404 or 410: the object of the call does not exist.
    Gone,
    /// The same call will be refused again.
    Permanent,
    /// The same call may succeed later.
    Temporary,
    /// Too many calls.
    Throttled,
}

/// How an instance shows that it is not ready to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// 202: the request waits behind another one of the same session, or was dropped.
    Accepted,
    /// A web page instead of JSON: the instance hibernates, wants a login or is in maintenance.
    Html,
    /// A redirect, usually to a login page. Never followed.
    Redirect,
}

/// No answer, or an unreadable one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// Whether the other side may have acted on the call.
    pub sent: SentState,
    /// The kind of failure.
    pub kind: NoAnswerKind,
    /// The failure as the operating system or the library describes it.
    pub detail: String,
}

/// Whether the other side may have acted on the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentState {
    /// Certainly not acted on: no byte of the request left, or the platform refused it unread.
    No,
    /// Unknown.
    Maybe,
}

/// The kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswerKind {
    /// No connection.
    Connect,
    /// The proxy is not reachable, or refuses the request.
    Proxy,
    /// No agreement on TLS.
    Tls(TlsFault),
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Reset,
    /// The answer is not HTTP.
    NotHttp,
    /// The answer is not JSON or does not have the documented shape.
    BadBody,
    /// The answer exceeds the limit.
    TooLarge,
    /// The call was not made: its precondition no longer held.
    NoRight,
}

impl ErrorAnswer {
    /// Whether the platform answers that it has no such API: the plugin is missing, or the address is wrong.
    pub fn is_no_such_api(&self) -> bool {
        self.status == 400 && self.said.reveal().to_ascii_lowercase().contains(NO_SUCH_RESOURCE)
    }

    /// Whether the password is right and a second factor is missing.
    pub fn lacks_second_factor(&self) -> bool {
        self.status == 401 && self.detail == SECOND_FACTOR
    }
}

impl CallError {
    /// The HTTP status, if there was an answer.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(answer) => Some(answer.status),
            Self::NoAnswer(_) => None,
        }
    }

    /// The platform's text, if it answered.
    pub fn said(&self) -> PlatformWords {
        match self {
            Self::Answer(answer) => answer.said.clone(),
            Self::NoAnswer(_) => PlatformWords::default(),
        }
    }

    /// The error with the platform's text. Only for commands of an operator whose calls carry no text of a user.
    pub(crate) fn with_words(&self) -> String {
        let said = self.said();
        if said.is_empty() { self.to_string() } else { format!("{self}: {}", said.reveal()) }
    }

    /// The sentence of a business answer, for the user.
    pub fn business(&self) -> Option<&str> {
        match self {
            Self::Answer(ErrorAnswer { kind: AnswerKind::Business(words), .. }) => Some(words),
            _ => None,
        }
    }

    /// Whether the object of the call does not exist or is not accessible. For `leave` this counts as success.
    pub(crate) const fn is_absent(&self) -> bool {
        matches!(self, Self::Answer(answer) if matches!(answer.status, 403 | 404 | 410))
    }

    /// Whether there is an answer that exceeds the size limit.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self, Self::NoAnswer(NoAnswer { kind: NoAnswerKind::TooLarge, .. }))
    }

    /// An answer with a success status and an unexpected body.
    pub(crate) fn bad_body(detail: impl Into<String>) -> Self {
        Self::NoAnswer(NoAnswer {
            sent: SentState::Maybe,
            kind: NoAnswerKind::BadBody,
            detail: detail.into(),
        })
    }

    /// An answer of which only the status matters.
    pub(crate) fn answered(status: u16, retry_after: Option<Duration>, kind: AnswerKind) -> Self {
        let (detail, said) = (String::new(), PlatformWords::default());
        Self::Answer(ErrorAnswer { status, retry_after, kind, detail, said })
    }

    /// A call that was not made because it cannot succeed.
    pub(crate) fn refused_here(detail: impl Into<String>) -> Self {
        let (kind, detail) = (AnswerKind::Permanent, detail.into());
        Self::Answer(ErrorAnswer {
            status: 400,
            retry_after: None,
            kind,
            detail,
            said: PlatformWords::default(),
        })
    }

    /// A call that could not be made.
    pub(crate) fn not_made(detail: impl Into<String>) -> Self {
        Self::NoAnswer(NoAnswer { sent: SentState::No, kind: NoAnswerKind::Connect, detail: detail.into() })
    }
}

impl From<NoAnswer> for CallError {
    fn from(no_answer: NoAnswer) -> Self {
        Self::NoAnswer(no_answer)
    }
}

impl AnswerKind {
    /// The meaning of a status that is not success, if the body adds nothing.
    pub(crate) const fn of_status(status: u16) -> Self {
        match status {
            300..=399 => Self::NotReady(NotReady::Redirect),
            401 => Self::Credentials,
            404 | 410 => Self::Gone,
            429 => Self::Throttled,
            // A load balancer logs 499 if the client closed the connection early.
            408 | 425 | 499 | 500.. => Self::Temporary,
            _ => Self::Permanent,
        }
    }

    const fn words(&self) -> &'static str {
        match self {
            Self::NotReady(NotReady::Accepted) => "not ready: accepted but not processed",
            Self::NotReady(NotReady::Html) => "not ready: answered with a web page",
            Self::NotReady(NotReady::Redirect) => "not ready: redirected",
            Self::Credentials => "credentials refused",
            Self::Business(_) => "declined",
            Self::Gone => "not found",
            Self::Permanent => "refused",
            Self::Temporary => "temporary failure",
            Self::Throttled => "too many calls",
        }
    }
}

/// Hides the sentence of a business answer, which is meant for the user. Logs contain the cleaned detail.
impl fmt::Debug for AnswerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl fmt::Display for ErrorAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {})", self.kind.words(), self.status)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            NoAnswerKind::Connect => "no connection",
            NoAnswerKind::Proxy => "no way through the proxy",
            NoAnswerKind::Tls(_) => "TLS failed",
            NoAnswerKind::Timeout => "no answer in time",
            NoAnswerKind::Reset => "the connection broke",
            NoAnswerKind::NotHttp => "the answer is not HTTP",
            NoAnswerKind::BadBody => "unreadable answer",
            NoAnswerKind::TooLarge => "answer too large",
            NoAnswerKind::NoRight => {
                "call not made, because the broker may have given the message to another worker"
            }
        };
        if self.detail.is_empty() { f.write_str(words) } else { write!(f, "{words}: {}", self.detail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_platform_are_not_shown() {
        let kind = AnswerKind::Business("call 555".into());
        let (detail, said) = (String::new(), PlatformWords::new("bad value: call 555", ""));
        let error = CallError::Answer(ErrorAnswer { status: 403, retry_after: None, kind, detail, said });
        assert_eq!(error.to_string(), "declined (status 403)");
        assert!(!format!("{error:?}").contains("555"));
        assert_eq!(error.with_words(), "declined (status 403): bad value: call 555");
    }
}
