//! OUT: the typed clients of both platforms. One call in, one answer or one [`CallError`] out.
//!
//! Guarantees: an answer is success only where the platform documents it as success; every error says whether the
//! other side may have acted on the call; credentials, cookies and chat text are in no `Debug` and no `Display`.
//! Leaves to others: when to call and what an error means for a message (`delivery/`), waiting and trying again
//! (`delivery/backoff.rs`): nothing in here sleeps or repeats, but for one fresh login after a refused session
//! or token.

pub mod check;
pub mod error;
pub mod http;
pub mod servicenow;
pub mod xo;

#[cfg(test)]
mod peer;

pub use error::{Answer, AnswerKind, CallError, NoAnswer, NoAnswerKind, NotReady, Sent};
pub use http::{Broken, Content, Http, HttpProblem, HttpSettings};
pub use servicenow::{
    ChatApi, ChatState, EndedBy, QueueEntry, QueueState, Row, ServiceNow, ServiceNowLogin,
    ServiceNowSettings, Started,
};
pub use xo::{SessionStep, Spoken, TokenAlgorithm, Words, Xo, XoBot, XoSettings};
