//! The settings of a sandbox at its start: logins, queues, behaviour of the agent, callbacks. [`SandboxSwitches`] contains
//! the options that an instance's administrator can change at run time.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::botkit::{BotKitSwitches, BotScript, SigningAlgorithm};
use super::servicenow::conversation_messages::ConversationRowSwitches;

/// All settings of a sandbox at its start.
#[derive(Clone)]
pub struct SandboxSettings {
    /// The integration user of the ServiceNow instance.
    pub username: String,
    /// Its password.
    pub password: String,
    /// The application registry's entry for the integration, for logins by token.
    pub oauth: OAuthClient,
    /// The chat queues.
    pub queues: Vec<SandboxQueue>,
    /// The only agent, who works every queue.
    pub agent: AgentSettings,
    /// The way in which `live_message` rows are posted; `None`: rows are not posted.
    pub callback: Option<CallbackSettings>,
    /// Options that can also be changed while the sandbox runs.
    pub switches: SandboxSwitches,
    /// Duration of one ServiceNow transaction.
    pub transaction_time: Duration,
    /// Number of calls that may wait for one session before ServiceNow answers 202.
    pub session_queue: usize,
    /// The bearer token that `/xo/events` requires; `None`: no token is required.
    pub events_token: Option<String>,
    /// The address of the sandbox as Causeway reaches it, the prefix of XO's reply URLs. `None`: the address of the
    /// listener.
    pub public_url: Option<String>,
    /// The BotKit server for users that are simulated over HTTP. `None`: no such users.
    pub botkit_url: Option<String>,
    /// The bots of XO.
    pub bots: Vec<BotSettings>,
    /// The behaviour of XO's BotKit API for each undocumented fact.
    pub botkit: BotKitSwitches,
    /// The credential of Virtual Agent requests in addition to the login; `None`: no credential.
    pub message_auth: Option<MessageProof>,
    /// Maximum number of ledger entries, newest first; `None`: no limit. Long runs need a limit.
    pub keep: Option<usize>,
    /// Maximum number of ended chats, newest first; `None`: no limit. ServiceNow lists ended chats that can be
    /// reopened, so that they make each list longer.
    pub keep_chats: Option<usize>,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self {
            username: "chatbot_interface".to_owned(),
            password: "sandbox".to_owned(),
            oauth: OAuthClient::default(),
            queues: vec![SandboxQueue::default()],
            agent: AgentSettings::default(),
            callback: None,
            switches: SandboxSwitches::default(),
            transaction_time: Duration::ZERO,
            session_queue: 10,
            events_token: None,
            public_url: None,
            botkit_url: None,
            bots: vec![BotSettings::default()],
            botkit: BotKitSwitches::default(),
            message_auth: None,
            keep: None,
            keep_chats: None,
        }
    }
}

impl fmt::Debug for SandboxSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SandboxSettings").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// An entry of the application registry, with its first refresh token.
#[derive(Clone)]
pub struct OAuthClient {
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: String,
    /// The first refresh token.
    pub refresh_token: String,
}

impl Default for OAuthClient {
    fn default() -> Self {
        Self {
            client_id: "sandbox-client".to_owned(),
            client_secret: "sandbox-client-secret".to_owned(),
            refresh_token: "sandbox-refresh-token".to_owned(),
        }
    }
}

impl fmt::Debug for OAuthClient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("OAuthClient").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// One bot of XO, and the app whose events it posts.
#[derive(Clone)]
pub struct BotSettings {
    /// Its id, `st-…`.
    pub bot_id: String,
    /// The client id of its app.
    pub app_id: String,
    /// The client secret of its app.
    pub client_secret: String,
    /// The algorithm for signing in both directions.
    pub algorithm: SigningAlgorithm,
    /// The bot's answers. The default bot does not answer.
    pub script: BotScript,
}

impl Default for BotSettings {
    fn default() -> Self {
        Self {
            bot_id: "st-00000000-0000-5000-8000-000000000001".to_owned(),
            app_id: "cs-00000000-0000-5000-8000-000000000001".to_owned(),
            client_secret: "sandbox-bot-secret".to_owned(),
            algorithm: SigningAlgorithm::Hs256,
            script: BotScript::default(),
        }
    }
}

impl fmt::Debug for BotSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BotSettings").field("bot_id", &self.bot_id).finish_non_exhaustive()
    }
}

/// One `chat_queue`.
#[derive(Debug, Clone)]
pub struct SandboxQueue {
    /// The Queue ID (a `sys_id`).
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it takes new chats.
    pub open: bool,
    /// The average wait in ServiceNow's wording.
    pub wait: String,
    /// The text for the user if the queue is closed.
    pub not_available: String,
    /// The status of a start in a closed queue: 403, or 503, which newer clients also expect.
    pub closed_status: u16,
    /// The Queue ID to which chats escalate; `None`: an escalated chat ends.
    pub escalate_to: Option<String>,
}

impl Default for SandboxQueue {
    fn default() -> Self {
        Self {
            id: "5f1c4ac4c0a8010e01d3e7a1a5b0c111".to_owned(),
            name: "IT Support".to_owned(),
            open: true,
            wait: "2 Minutes".to_owned(),
            not_available: "Support is closed right now. Our hours are Monday to Friday, 8 to 17.".to_owned(),
            closed_status: 403,
            escalate_to: None,
        }
    }
}

/// The behaviour of the simulated agent.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// The user name, as in `sys_created_by`.
    pub user: String,
    /// The display name, as in system messages.
    pub name: String,
    /// The condition under which the agent accepts a waiting chat.
    pub accept: AgentAcceptance,
    /// The queue's initial agent response, posted when the agent accepts.
    pub greeting: String,
    /// Whether each message of the user gets an answer.
    pub replies: bool,
    /// Typing time of an answer.
    pub reply_after: Duration,
    /// Number of user messages after which the agent closes the chat; `None`: never.
    pub closes_after: Option<u32>,
}

/// The condition under which the agent accepts a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentAcceptance {
    /// This long after the chat was opened.
    After(Duration),
    /// Only on request.
    Manual,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            user: "beth.anglin".to_owned(),
            name: "Beth Anglin".to_owned(),
            accept: AgentAcceptance::After(Duration::from_millis(250)),
            greeting:
                "Thank you for contacting support. I am looking into your question now and will be with you \
                       shortly."
                    .to_owned(),
            replies: false,
            reply_after: Duration::from_millis(100),
            closes_after: None,
        }
    }
}

/// The endpoint for `live_message` rows, and the form of the posts.
#[derive(Clone)]
pub struct CallbackSettings {
    /// The Endpoint of the REST message.
    pub url: String,
    /// The credential that authenticates the instance to the receiver.
    pub credential: CallbackCredential,
    /// The way in which the Business Rule writes the body.
    pub style: BodyStyle,
    /// `glide.http.timeout`.
    pub timeout: Duration,
}

impl CallbackSettings {
    /// Posts to `url` without credentials, with well-formed bodies.
    pub fn to(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credential: CallbackCredential::None,
            style: BodyStyle::Stringify,
            timeout: Duration::from_secs(175),
        }
    }
}

impl fmt::Debug for CallbackSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CallbackSettings").field("style", &self.style).finish_non_exhaustive()
    }
}

/// The credential of a callback.
#[derive(Clone)]
pub enum CallbackCredential {
    /// No credential, as in the vendor's own instructions.
    None,
    /// A header set on the HTTP method of the REST message.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A Basic auth profile.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A scripted signature: `x-causeway-signature: t=<unix>,v1=<base64 of HMAC-SHA256 over "<t>.<body>">`.
    Hmac {
        /// The shared secret.
        secret: String,
    },
}

impl fmt::Debug for CallbackCredential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::None => "None",
            Self::Header { .. } => "Header",
            Self::Basic { .. } => "Basic",
            Self::Hmac { .. } => "Hmac",
        })
    }
}

/// The way in which the Business Rule writes the body of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyStyle {
    /// With `JSON.stringify`: always valid JSON.
    Stringify,
    /// The vendor's rule: concatenated strings, the text escaped by `escapeForHomePage`. A quote breaks the JSON.
    StockScript,
    /// A hand-edited variant without the escaping: newlines break the JSON, too.
    StockScriptUnescaped,
    /// Causeway's own rule: always valid JSON, with the id of the preceding message.
    OwnRule,
}

/// Options that an administrator may change while the instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSwitches {
    /// The treatment of a correct password.
    pub basic: BasicLogin,
    /// The tokens that `/oauth_token.do` issues.
    pub oauth: OAuthSwitches,
    /// The user's rights in the Table API.
    pub tables: TableAccess,
    /// The user's rights to the rows of `chat_queue_entry` and `live_message`.
    pub chat_tables: ChatTableAccess,
    /// Connect Support is not installed: all of its paths answer 400.
    pub plugin_missing: bool,
    /// The Business Rule does not filter our user's messages, so that they come back as callbacks.
    pub echo: bool,
    /// An escalated chat continues under another `group`. It is not documented whether an instance changes the group.
    pub escalation_renames: bool,
    /// Options of Connect Support.
    pub connect: ConnectSwitches,
    /// Options of the rows of `live_message`.
    pub rows: RowSwitches,
    /// Options of the Virtual Agent API.
    pub virtual_agent: VirtualAgentSwitches,
    /// Options of the rows of `sys_cs_message`.
    pub conversation_rows: ConversationRowSwitches,
}

/// Undocumented behaviour of Connect Support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSwitches {
    /// Queue entries contain only names and state: no number, position, wait or texts.
    pub sparse_entries: bool,
    /// The value of `last_message`. No known instance has this column.
    pub last_message: LastMessage,
    /// Each callback is posted twice.
    pub twice: bool,
    /// A chat ends by itself (state 7 or 8) after this many milliseconds without a message; 0: never.
    pub idle_end_ms: u64,
    /// `RESTMessageV2` removes each `${…}` from the body of a callback, after the Business Rule has signed the body.
    pub substitutes_variables: bool,
}

/// Undocumented behaviour of the rows of `live_message`, and of reading them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowSwitches {
    /// The query `before` is ignored: each page is the newest one.
    pub ignores_before: bool,
    /// The flag `internal` is absent when a message is read back.
    pub hides_internal: bool,
    /// A row is shown only this many milliseconds after its callback: the rule runs inside the agent's transaction.
    pub shown_after_ms: u64,
    /// Texts of agents are stored as an HTML sanitizer writes them: `@ = + ' " &` and the backtick become decimal
    /// character references.
    pub sanitizes: bool,
}

/// The value of `current.last_message` in the Business Rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastMessage {
    /// There is no such column.
    #[default]
    Undefined,
    /// The column has no value.
    Empty,
    /// The `sys_id` of another message.
    SysId,
}

/// How the instance issues tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OAuthSwitches {
    /// Lifetime of an access token in seconds.
    pub token_life: u64,
    /// The refresh token is rejected, because it was revoked or is too old.
    pub refuse_refresh: bool,
    /// Whether the client credentials grant is enabled (a system property that is off by default on many instances).
    pub client_credentials: bool,
    /// Each use of the refresh token replaces it.
    pub rotate: bool,
    /// A rejection is a 400 `invalid_grant`, as in the standard, instead of a 401 `server_error`.
    pub standard_refusal: bool,
}

impl Default for OAuthSwitches {
    fn default() -> Self {
        Self {
            token_life: 1800,
            refuse_refresh: false,
            client_credentials: true,
            rotate: false,
            standard_refusal: false,
        }
    }
}

/// The rights in the Table API that access rules allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableAccess {
    /// Everything.
    #[default]
    Allowed,
    /// Reads succeed, writes answer 403.
    ReadOnly,
    /// All requests answer 403.
    Refused,
    /// Rows are hidden: lists are empty, and a row answers 404.
    Hidden,
    /// Writes succeed, but the script is silently left out, as by an access rule on a single field.
    NoScripts,
}

/// The rights to the tables of chats. It is not documented which of these answers a user without the role
/// `live_feed_admin` gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTableAccess {
    /// All requests answer 403.
    #[default]
    Refused,
    /// Only the rows that the user wrote are shown.
    Own,
    /// All rows are shown.
    All,
}

/// Behaviour of the Virtual Agent API that is undocumented, or that differs between instances and versions of its
/// app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VirtualAgentSwitches {
    /// The app is not installed: its path answers 400.
    pub missing: bool,
    /// No callback is posted, as with a dead endpoint or a failed check in ServiceNow's worker.
    pub silent: bool,
    /// The bot answers a start with a text and a picker, and informs no agent.
    pub falls_back: bool,
    /// No agent works the queue: a start is answered with a text.
    pub no_agents: bool,
    /// This text has the flag `takeControl`; otherwise it has `completed`.
    pub takes_control: bool,
    /// A second start of one user opens a second conversation instead of joining the first.
    pub opens_anew: bool,
    /// Apps before 4.0: items have no `messageId`.
    pub nameless: bool,
    /// Texts are in `label` instead of `value`.
    pub labels: bool,
    /// False flags are written instead of omitted.
    pub writes_false: bool,
    /// Names of typing indicators have the suffix `ActionMsg`.
    pub suffixed: bool,
    /// Callbacks do not contain `clientVariables`.
    pub forgets_variables: bool,
    /// The REST step of newer apps posts every callback twice, as if the first answer had been lost.
    pub twice: bool,
    /// The agent's end is only the flag `completed`, without `SwitchToVirtualAgent`.
    pub ends_by_flag: bool,
    /// The agent's end is only a sentence, without a flag and without `SwitchToVirtualAgent`.
    pub ends_by_sentence: bool,
    /// Agents' names and avatars are not shown.
    pub hides_names: bool,
    /// Items that no agent wrote have no `agentChat` in an agent's chat. The real flags of these items are not
    /// documented.
    pub unflagged: bool,
}

/// The credential that a Virtual Agent request must have.
#[derive(Clone)]
pub enum MessageProof {
    /// The header `token`.
    Token(String),
    /// The header `x-b2b-signature`: hexadecimal HMAC-SHA1 of the body.
    Hmac(String),
}

impl fmt::Debug for MessageProof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if matches!(self, Self::Token(_)) { "Token" } else { "Hmac" })
    }
}

/// The treatment of correct Basic credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasicLogin {
    /// The login succeeds.
    #[default]
    Allowed,
    /// The Basic authentication restriction of 2026: the ordinary 401.
    Restricted,
    /// A second factor is missing: 401 with `X-MFA_TOKEN: invalid`.
    MfaMissing,
}
