//! What a caller must tell apart when a call did not succeed.
//!
//! Guarantees: an error shows our own words and a status; it keeps a short line of the platform's words, which it shows to
//! nobody ([`PlatformWords`]). It never holds a body, a URL, a credential or the text that was sent.
//! Leaves to others: what becomes of the message (`delivery/classify.rs`).

use std::fmt;
use std::time::Duration;

use crate::message::PlatformWords;

/// ServiceNow's words for an API that is not installed.
const NO_SUCH_RESOURCE: &str = "requested uri does not represent any resource";

/// Our words for a login that lacks a second factor, which ServiceNow says by a header alone.
pub(crate) const SECOND_FACTOR: &str = "a second factor is missing";

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The platform answered, and it was not success.
    #[error("{0}")]
    Answer(Answer),
    /// There was no answer, or none that can be read.
    #[error("{0}")]
    NoAnswer(NoAnswer),
}

/// An answer that is not success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The platform's wish, from `Retry-After` or its rate limit headers.
    pub retry_after: Option<Duration>,
    /// What it means.
    pub kind: AnswerKind,
    /// Our own words, for anybody; may be empty.
    pub detail: String,
    /// The platform's words. They can repeat what a user wrote.
    pub said: PlatformWords,
}

/// What an answer means.
#[derive(Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// Nobody is at home: never success, whatever the status says.
    NotReady(NotReady),
    /// The credentials were refused, also by a fresh session.
    Credentials,
    /// 403 or 503 with a plain sentence for the user, which this is.
    Business(String),
    /// 404 or 410: what the call was about is not there.
    Gone,
    /// The same call will be refused again.
    Permanent,
    /// The same call may succeed later.
    Temporary,
    /// Too many calls.
    Throttled,
}

/// How an instance shows that nobody is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// 202: queued behind the same session, or dropped.
    Accepted,
    /// A web page where JSON should be: hibernating, login, maintenance.
    Html,
    /// A redirect, usually to a login page. Never followed.
    Redirect,
}

/// No answer, or none that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// Whether the other side may have acted on the call.
    pub sent: Sent,
    /// What failed.
    pub kind: NoAnswerKind,
    /// The failure in the system's words.
    pub detail: String,
}

/// Whether the other side may have acted on the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Certainly not: no byte of the request left.
    No,
    /// Nobody knows.
    Maybe,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswerKind {
    /// No connection.
    Connect,
    /// No agreement on TLS.
    Tls,
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Reset,
    /// An answer that is none: not JSON, not the documented shape.
    BadBody,
    /// An answer that is longer than we read.
    TooLarge,
    /// Not asked: the right to call was lost on the way.
    NoRight,
}

impl Answer {
    /// Whether the platform says that it has no such API at all: the plugin is missing, or the address is wrong.
    pub fn is_no_such_api(&self) -> bool {
        self.status == 400 && self.said.reveal().to_ascii_lowercase().contains(NO_SUCH_RESOURCE)
    }

    /// Whether the password is right and a second factor is missing.
    pub fn lacks_second_factor(&self) -> bool {
        self.status == 401 && self.detail == SECOND_FACTOR
    }
}

impl CallError {
    /// The HTTP status, where there was an answer.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(answer) => Some(answer.status),
            Self::NoAnswer(_) => None,
        }
    }

    /// The platform's words, if it answered.
    pub fn said(&self) -> PlatformWords {
        match self {
            Self::Answer(answer) => answer.said.clone(),
            Self::NoAnswer(_) => PlatformWords::default(),
        }
    }

    /// The error with the platform's words, for an operator who runs a command whose calls carry nothing of a user.
    pub(crate) fn with_words(&self) -> String {
        let said = self.said();
        if said.is_empty() { self.to_string() } else { format!("{self}: {}", said.reveal()) }
    }

    /// The sentence of a business answer, for the user.
    pub fn business(&self) -> Option<&str> {
        match self {
            Self::Answer(Answer { kind: AnswerKind::Business(words), .. }) => Some(words),
            _ => None,
        }
    }

    /// Whether the answer says that what the call was about is not there, or not for us: for `leave` that is as good
    /// as done.
    pub(crate) const fn is_absent(&self) -> bool {
        matches!(self, Self::Answer(answer) if matches!(answer.status, 403 | 404 | 410))
    }

    /// Whether there is an answer, and more of it than we read.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self, Self::NoAnswer(NoAnswer { kind: NoAnswerKind::TooLarge, .. }))
    }

    /// An answer that has success's status but not its shape.
    pub(crate) fn bad_body(detail: impl Into<String>) -> Self {
        Self::NoAnswer(NoAnswer { sent: Sent::Maybe, kind: NoAnswerKind::BadBody, detail: detail.into() })
    }

    /// An answer of which only its status is of interest.
    pub(crate) fn answered(status: u16, retry_after: Option<Duration>, kind: AnswerKind) -> Self {
        let (detail, said) = (String::new(), PlatformWords::default());
        Self::Answer(Answer { status, retry_after, kind, detail, said })
    }

    /// A call that we did not make, since it cannot succeed.
    pub(crate) fn refused_here(detail: impl Into<String>) -> Self {
        let (kind, detail) = (AnswerKind::Permanent, detail.into());
        Self::Answer(Answer { status: 400, retry_after: None, kind, detail, said: PlatformWords::default() })
    }

    /// A call that we could not make.
    pub(crate) fn not_made(detail: impl Into<String>) -> Self {
        Self::NoAnswer(NoAnswer { sent: Sent::No, kind: NoAnswerKind::Connect, detail: detail.into() })
    }
}

impl From<NoAnswer> for CallError {
    fn from(no_answer: NoAnswer) -> Self {
        Self::NoAnswer(no_answer)
    }
}

impl AnswerKind {
    /// What a status other than success means, where the body has nothing to add.
    pub(crate) const fn of_status(status: u16) -> Self {
        match status {
            300..=399 => Self::NotReady(NotReady::Redirect),
            401 => Self::Credentials,
            404 | 410 => Self::Gone,
            429 => Self::Throttled,
            // 499 is what a load balancer notes when somebody hung up in the middle.
            408 | 425 | 499 | 500.. => Self::Temporary,
            _ => Self::Permanent,
        }
    }

    const fn words(&self) -> &'static str {
        match self {
            Self::NotReady(NotReady::Accepted) => "not ready: accepted but not done",
            Self::NotReady(NotReady::Html) => "not ready: answered with a web page",
            Self::NotReady(NotReady::Redirect) => "not ready: redirected",
            Self::Credentials => "credentials refused",
            Self::Business(_) => "declined",
            Self::Gone => "not found",
            Self::Permanent => "refused",
            Self::Temporary => "failed for now",
            Self::Throttled => "too many calls",
        }
    }
}

/// The sentence of a business answer is the user's; logs have the cleaned detail.
impl fmt::Debug for AnswerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {})", self.kind.words(), self.status)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            NoAnswerKind::Connect => "no connection",
            NoAnswerKind::Tls => "TLS failed",
            NoAnswerKind::Timeout => "no answer in time",
            NoAnswerKind::Reset => "the connection broke",
            NoAnswerKind::BadBody => "an answer that cannot be read",
            NoAnswerKind::TooLarge => "an answer that is too large",
            NoAnswerKind::NoRight => {
                "not asked, since the broker may have given the message to another worker"
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
        let error = CallError::Answer(Answer { status: 403, retry_after: None, kind, detail, said });
        assert_eq!(error.to_string(), "declined (status 403)");
        assert!(!format!("{error:?}").contains("555"));
        assert_eq!(error.with_words(), "declined (status 403): bad value: call 555");
    }
}
