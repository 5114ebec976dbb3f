//! The client of ServiceNow's REST APIs.
//!
//! Guarantees: each call carries the login (`auth.rs`; tokens: `oauth.rs`), `Accept` and `Content-Type` (ServiceNow
//! answers 400 without them). At most one call is in flight for each conversation.
//! Not responsible for: the effect of an error on a message (`delivery/classify.rs`).
//!
//! ServiceNow has two chat APIs. `connect_support.rs` and `readback.rs` use the older one, `virtual_agent.rs` the
//! newer one. All calls go through [`ServiceNow::converse`].

mod attachments;
mod auth;
mod bulk;
mod connect_support;
mod controls;
mod conversation_rows;
mod history;
mod oauth;
mod readback;
mod session;
mod table;
mod virtual_agent;
mod virtual_agent_callback;
mod wire;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;

use super::error::CallError;
use super::http::{HttpCall, HttpClient, HttpReply};
use crate::live::Live;
use crate::message::{ConversationId, named};
pub use attachments::StoredFile;
pub(crate) use auth::LoginKind;
pub use auth::ServiceNowLogin;
use auth::{LoginAuth, RequestCredential};
pub use bulk::MessageRow;
pub(crate) use conversation_rows::is_sys_id;
pub use conversation_rows::{AgentRow, AgentRows, RowAccess, RowPlace, RowText};
pub use history::{AgentFile, History, RemoteMessage};
pub use oauth::RefreshTokenStore;
pub use readback::{OpeningMessage, PostedMessage, ReadSince, StartText, StartedChat, recognisable};
use session::{SessionGuard, SessionTable};
pub use table::TableRow;
pub(crate) use virtual_agent::{ChatOpening, HistoryLine, SharedFile, end_request};
pub use virtual_agent::{MessageAuth, Receipt, StartAction, VirtualAgentSettings};
pub(crate) use virtual_agent_callback::{CallbackItem, ChatSign, Choice, ItemMeaning, VirtualAgentCallback};

/// The number of cookie jars kept for idle conversations: at most about 10 MB. A conversation whose jar was dropped
/// logs in again.
const SESSIONS_MAX: usize = 10_000;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The connection settings of one instance.
#[derive(Clone)]
pub struct ServiceNowSettings {
    /// Host URL: the address of the instance.
    pub host_url: Url,
    /// User name and password, or a token.
    pub login: ServiceNowLogin,
    /// The Queue ID for starts that name none.
    pub queue_id: Option<String>,
}

/// A client of one instance. Cheap to clone; the clones share their sessions.
#[derive(Clone)]
pub struct ServiceNow {
    inner: Arc<ClientState>,
}

struct ClientState {
    http: HttpClient,
    base: Url,
    auth: Live<LoginAuth>,
    /// The user of the login, which stays the same when the login is replaced.
    username: String,
    queue_id: Option<String>,
    /// Set if chats use the Virtual Agent API.
    virtual_agent: Option<Live<VirtualAgentSettings>>,
    sessions: SessionTable,
}

named! {
    /// `servicenow.api`: the chat API of ServiceNow that is used.
    ChatApi {
        /// Connect Support: Tokyo and lower.
        ConnectSupport = "connect_support",
        /// The Virtual Agent Bot Integration API: Utah and higher.
        VirtualAgent = "virtual_agent",
    }
}

/// A `chat_queue_entry`: one user's place in a queue and, later, in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    /// sys_id of the entry. Empty if the answer did not contain it.
    pub sys_id: String,
    /// sys_id of the `live_group_profile`, which is ServiceNow's id of the conversation.
    pub group: String,
    /// The number, such as `CHAT0001234`.
    pub number: Option<String>,
    /// sys_id of the queue.
    pub queue: Option<String>,
    /// Position in the queue.
    pub position: Option<u32>,
    /// ServiceNow's text for the expected wait, such as `2 Minutes`.
    pub wait: Option<String>,
    /// sys_id of the agent, after an agent accepted.
    pub assigned_to: Option<String>,
    /// The state of the chat.
    pub state: Option<ChatState>,
}

/// `chat_queue_entry.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatState {
    /// 1: no agent has accepted yet.
    Waiting,
    /// 2: an agent is there.
    InProgress,
    /// 3: the agent ended it.
    ClosedComplete,
    /// 4: the chat continued in an entry of another queue.
    ClosedEscalated,
    /// 7: the user ended it.
    ClosedByClient,
    /// 8: the user left before an agent accepted.
    ClosedAbandoned,
    /// A state that is not documented.
    Other(i64),
}

named! {
    /// The side that ended a chat.
    EndedBy {
        /// The agent.
        Agent = "agent",
        /// The user.
        User = "user",
        /// Neither side: the chat was passed on to another queue.
        Escalation = "escalation",
    }
}

impl From<i64> for ChatState {
    fn from(number: i64) -> Self {
        match number {
            1 => Self::Waiting,
            2 => Self::InProgress,
            3 => Self::ClosedComplete,
            4 => Self::ClosedEscalated,
            7 => Self::ClosedByClient,
            8 => Self::ClosedAbandoned,
            other => Self::Other(other),
        }
    }
}

impl ChatState {
    /// Whether the chat can continue. An undocumented state counts as open.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::InProgress | Self::Other(_))
    }

    /// The side that ended the chat, if the chat is not open.
    pub const fn ended_by(self) -> Option<EndedBy> {
        match self {
            Self::ClosedComplete => Some(EndedBy::Agent),
            Self::ClosedByClient | Self::ClosedAbandoned => Some(EndedBy::User),
            Self::ClosedEscalated => Some(EndedBy::Escalation),
            Self::Waiting | Self::InProgress | Self::Other(_) => None,
        }
    }
}

impl QueueEntry {
    /// Whether the chat can continue.
    pub fn is_open(&self) -> bool {
        self.state.is_none_or(ChatState::is_open)
    }
}

/// A `chat_queue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// The Queue ID.
    pub sys_id: String,
    /// Its name.
    pub name: Option<String>,
    /// ServiceNow's text for the average wait.
    pub wait: Option<String>,
    /// The number of waiting users.
    pub waiting: Option<u32>,
    /// Set only while the queue is closed: the text for the user.
    pub not_available: Option<String>,
    /// The queue to which its chats are passed on.
    pub escalates_to: Option<String>,
}

/// One request, before the address and the login are added.
struct ApiRequest<'a> {
    method: Method,
    path: &'a [&'a str],
    query: &'a [(&'a str, &'a str)],
    body: Option<Bytes>,
    /// Headers in addition to the usual ones.
    headers: HeaderMap,
    /// The chat text in the body. It is redacted from errors.
    sent_text: &'a str,
}

impl<'a> ApiRequest<'a> {
    fn get(path: &'a [&'a str], query: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: Method::GET, path, query, body: None, headers: HeaderMap::new(), sent_text: "" }
    }

    fn patch(path: &'a [&'a str], body: &serde_json::Value) -> Self {
        let (body, headers) = (Some(body.to_string().into()), HeaderMap::new());
        Self { method: Method::PATCH, path, query: &[], body, headers, sent_text: "" }
    }

    fn post(path: &'a [&'a str], body: &serde_json::Value, sent_text: &'a str) -> Self {
        let (body, headers) = (Some(body.to_string().into()), HeaderMap::new());
        Self { method: Method::POST, path, query: &[], body, headers, sent_text }
    }
}

impl ServiceNow {
    /// A client of one instance that uses Connect Support for its chats.
    pub fn new(http: HttpClient, settings: ServiceNowSettings) -> Self {
        Self::of(http, settings, None)
    }

    /// A client of one instance that uses the Virtual Agent Bot Integration API for its chats.
    pub fn with_virtual_agent(
        http: HttpClient,
        settings: ServiceNowSettings,
        virtual_agent: VirtualAgentSettings,
    ) -> Self {
        Self::of(http, settings, Some(virtual_agent))
    }

    fn of(
        http: HttpClient,
        settings: ServiceNowSettings,
        virtual_agent: Option<VirtualAgentSettings>,
    ) -> Self {
        let mut base = settings.host_url;
        base.set_query(None);
        base.set_fragment(None);
        // A login in the address would be sent in addition to ours. Removing it fails only if the address cannot hold
        // one.
        let _ = base.set_username("").and_then(|()| base.set_password(None));
        let auth = LoginAuth::new(settings.login, &base);
        let sessions = SessionTable::new(SESSIONS_MAX);
        Self {
            inner: Arc::new(ClientState {
                http,
                base,
                username: auth.username().to_owned(),
                auth: auth.into(),
                queue_id: settings.queue_id,
                virtual_agent: virtual_agent.map(Live::new),
                sessions,
            }),
        }
    }

    /// Keeps OAuth's refresh tokens in this store.
    #[must_use]
    pub fn keeping_tokens_in(self, store: Arc<dyn RefreshTokenStore>) -> Self {
        self.inner.auth.get().keep_tokens_in(store);
        self
    }

    /// Uses this login from now on, and `store` for its refresh tokens. A call that has begun finishes with the old login. An
    /// equal login changes nothing.
    pub fn replace_login(
        &self,
        login: ServiceNowLogin,
        store: impl FnOnce() -> Option<Arc<dyn RefreshTokenStore>>,
    ) {
        let before = self.inner.auth.get();
        if before.is_by(&login) {
            return;
        }
        let auth = LoginAuth::new(login, &self.inner.base).continuing(&before);
        if let Some(store) = store() {
            auth.keep_tokens_in(store);
        }
        self.inner.auth.set(auth);
    }

    /// Uses this credential of Message Auth from now on.
    pub fn replace_message_auth(&self, message_auth: MessageAuth) {
        if let Some(known) = &self.inner.virtual_agent {
            known.set(VirtualAgentSettings { message_auth, ..(*known.get()).clone() });
        }
    }

    /// The chat API that the client uses.
    pub fn api(&self) -> ChatApi {
        match self.inner.virtual_agent {
            Some(_) => ChatApi::VirtualAgent,
            None => ChatApi::ConnectSupport,
        }
    }

    /// The address of the instance.
    pub(crate) fn instance(&self) -> &Url {
        &self.inner.base
    }

    /// The configured Queue ID.
    pub fn queue_id(&self) -> Option<&str> {
        self.inner.queue_id.as_deref()
    }

    /// The user whose messages are our own. Empty if not configured.
    pub fn username(&self) -> &str {
        &self.inner.username
    }

    pub(crate) fn login_kind(&self) -> LoginKind {
        self.inner.auth.get().kind()
    }

    /// Gets a token if one is needed, so that a refusal of the token shows before any other call.
    pub(crate) async fn log_in(&self) -> Result<(), CallError> {
        self.inner.auth.get().pass(&self.inner.http, None).await.map(|_| ())
    }

    /// Returns the instance's time, if its answer contains it. Sends no login.
    pub(crate) async fn time(&self) -> Result<Option<Timestamp>, CallError> {
        let (method, url) = (Method::GET, self.inner.base.clone());
        let reply =
            self.inner.http.call(HttpCall { method, url, headers: HeaderMap::new(), body: None }).await?;
        Ok(reply.date())
    }

    /// Drops the conversation's cookies, because its chat is over.
    pub fn forget(&self, conversation: &ConversationId) {
        self.inner.sessions.forget(conversation);
    }

    /// Whether a call of the conversation is in flight. A caller that only wants to read can come back later.
    pub fn busy(&self, conversation: &ConversationId) -> bool {
        self.inner.sessions.busy(conversation)
    }

    /// Makes one call in the conversation's session and reads its `result`.
    async fn in_session<T: DeserializeOwned>(
        &self,
        conversation: &ConversationId,
        request: ApiRequest<'_>,
    ) -> Result<T, CallError> {
        let mut guard = self.inner.sessions.lock(conversation).await;
        self.exchange(Some(&mut guard), request).await
    }

    /// Makes one call and reads its `result`.
    async fn exchange<T: DeserializeOwned>(
        &self,
        guard: Option<&mut SessionGuard>,
        request: ApiRequest<'_>,
    ) -> Result<T, CallError> {
        wire::read(self.converse(guard, &request).await?, request.sent_text, self.instance())
    }

    /// Makes one call. After a 401, a call with session cookies or a token is retried once, without the cookies and
    /// with a new token. The session or the token may have expired, and ServiceNow did not act on the refused call.
    async fn converse(
        &self,
        mut guard: Option<&mut SessionGuard>,
        request: &ApiRequest<'_>,
    ) -> Result<HttpReply, CallError> {
        let url = self.address(request.path, request.query)?;
        let pass = self.inner.auth.get().pass(&self.inner.http, None).await?;
        let (mut reply, had_session) = self.try_once(guard.as_deref_mut(), &url, request, &pass).await?;
        if reply.status == StatusCode::UNAUTHORIZED && (had_session || pass.renewable()) {
            let pass = self.inner.auth.get().pass(&self.inner.http, Some(&pass)).await?;
            (reply, _) = self.try_once(guard, &url, request, &pass).await?;
        }
        Ok(reply)
    }

    async fn try_once(
        &self,
        mut guard: Option<&mut SessionGuard>,
        url: &Url,
        request: &ApiRequest<'_>,
        pass: &RequestCredential,
    ) -> Result<(HttpReply, bool), CallError> {
        let mut headers = request.headers.clone();
        headers.insert(ACCEPT, JSON);
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(AUTHORIZATION, pass.header.clone());
        let cookies = guard.as_deref_mut().and_then(|guard| guard.jar().header(url));
        let had_session = cookies.is_some();
        if let Some(cookies) = cookies {
            headers.insert(COOKIE, cookies);
        }
        let (method, body) = (request.method.clone(), request.body.clone());
        let reply = self.inner.http.call(HttpCall { method, url: url.clone(), headers, body }).await?;
        if let Some(guard) = guard {
            if matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::ACCEPTED) {
                guard.jar().clear();
            } else {
                guard.jar().keep(url, &reply.headers);
            }
        }
        Ok((reply, had_session))
    }

    fn address(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Url, CallError> {
        // The URL would lose such a segment, which would turn the call into a different one.
        if path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(CallError::refused_here("not a ServiceNow id: it is empty or only dots"));
        }
        let mut url = self.inner.base.clone();
        url.path_segments_mut()
            .map_err(|()| CallError::refused_here("Host URL must be an http or https address"))?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }
}

/// Shows the host, never the login.
impl std::fmt::Debug for ServiceNow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceNow").field("host", &self.inner.base.host_str()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ServiceNowSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceNowSettings").field("host", &self.host_url.host_str()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod virtual_agent_tests;
