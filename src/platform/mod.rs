//! Typed clients of both platforms. Each call returns one answer or one [`CallError`].
//!
//! Guarantees: an answer counts as success only if the platform documents it as success. Each error says whether the
//! platform may have acted on the call. Credentials, cookies and chat text appear in no `Debug` and no `Display`.
//! Not responsible for: when to call and what an error means for a message (`delivery/`); delays and retries
//! (`delivery/backoff.rs`). No code here sleeps or repeats a call, except for one fresh login after a refused session
//! or token.

pub mod check;
pub mod error;
pub mod http;
pub mod servicenow;
pub mod xo;

#[cfg(test)]
mod peer;

pub use error::{AnswerKind, CallError, ErrorAnswer, NoAnswer, NoAnswerKind, NotReady, SentState};
pub use http::{
    BodyError, HostPattern, HttpClient, HttpProblem, HttpSettings, NetworkSettings, ProxyAddress, ProxyRules,
    StreamedBody,
};
pub use servicenow::{
    ChatApi, ChatState, EndedBy, QueueEntry, QueueState, RefreshTokenStore, ServiceNow, ServiceNowLogin,
    ServiceNowSettings, StartedChat, TableRow,
};
pub use xo::{BotKitText, HistoryEntry, SessionStep, TokenAlgorithm, WebhookKey, Xo, XoBot, XoSettings};
