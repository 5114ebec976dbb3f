//! What a sandbox is made of before it starts: who may log in, which queues there are, how the agent behaves
//! and where callbacks go. What an instance's administrator would change while it runs is in [`Switches`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::botkit::{Algorithm, BotKitSwitches, BotScript};

/// Everything a sandbox needs to know at its start.
#[derive(Clone)]
pub struct SandboxSettings {
    /// The integration user of the ServiceNow instance.
    pub username: String,
    /// Its password.
    pub password: String,
    /// What the application registry gave to the integration, for logins by token.
    pub oauth: OAuthClient,
    /// The chat queues.
    pub queues: Vec<QueueSettings>,
    /// The one agent, who works every queue.
    pub agent: AgentSettings,
    /// Where `live_message` rows are posted; none: nowhere.
    pub callback: Option<CallbackSettings>,
    /// What can also be changed while the sandbox runs.
    pub switches: Switches,
    /// How long one ServiceNow transaction takes.
    pub transaction_time: Duration,
    /// How many calls may wait for one session before ServiceNow answers 202.
    pub session_queue: usize,
    /// The bearer token that `/xo/events` wants; none: anybody may post.
    pub events_token: Option<String>,
    /// Where the BotKit server of users stands that are played over HTTP; none: they cannot be.
    pub botkit_url: Option<String>,
    /// The bots of XO.
    pub bots: Vec<BotSettings>,
    /// How XO's BotKit API behaves where nobody knows how it does.
    pub botkit: BotKitSwitches,
    /// What a Virtual Agent request must prove beside its login; none: nothing.
    pub message_auth: Option<MessageProof>,
    /// The newest ledger entries to keep; none: all of them. Long runs need a bound.
    pub keep: Option<usize>,
    /// The newest ended chats to keep; none: all of them. ServiceNow lists those that could be opened again, so that they
    /// make each list longer.
    pub keep_chats: Option<usize>,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self {
            username: "chatbot_interface".to_owned(),
            password: "sandbox".to_owned(),
            oauth: OAuthClient::default(),
            queues: vec![QueueSettings::default()],
            agent: AgentSettings::default(),
            callback: None,
            switches: Switches::default(),
            transaction_time: Duration::ZERO,
            session_queue: 10,
            events_token: None,
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

/// An entry of the application registry, and the refresh token that was given out with it.
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

/// One bot of XO and the app whose events it posts.
#[derive(Clone)]
pub struct BotSettings {
    /// Its id, `st-…`.
    pub bot_id: String,
    /// The client id of its app.
    pub app_id: String,
    /// The client secret of its app.
    pub client_secret: String,
    /// How its app signs, and wants to be signed to.
    pub algorithm: Algorithm,
    /// What the bot answers. The default bot reads and stays silent.
    pub script: BotScript,
}

impl Default for BotSettings {
    fn default() -> Self {
        Self {
            bot_id: "st-00000000-0000-5000-8000-000000000001".to_owned(),
            app_id: "cs-00000000-0000-5000-8000-000000000001".to_owned(),
            client_secret: "sandbox-bot-secret".to_owned(),
            algorithm: Algorithm::Hs256,
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
pub struct QueueSettings {
    /// The Queue ID (a `sys_id`).
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it takes new chats.
    pub open: bool,
    /// The average wait as ServiceNow words it.
    pub wait: String,
    /// What a closed queue tells the user.
    pub not_available: String,
    /// The status of a start that a closed queue refuses: 403, or 503 as newer clients also expect.
    pub closed_status: u16,
    /// The Queue ID that an escalated chat goes on in; none: an escalated chat is over.
    pub escalate_to: Option<String>,
}

impl Default for QueueSettings {
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

/// How the simulated agent behaves.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// The user name, as in `sys_created_by`.
    pub user: String,
    /// The display name, as in system messages.
    pub name: String,
    /// When a waiting chat is accepted.
    pub accept: Accept,
    /// The queue's initial agent response, posted at the acceptance.
    pub greeting: String,
    /// Whether each message of the user gets an answer.
    pub replies: bool,
    /// How long the agent types an answer.
    pub reply_after: Duration,
    /// Close the chat after this many messages of the user; none: never.
    pub closes_after: Option<u32>,
}

/// When the agent accepts a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// This long after it was opened.
    After(Duration),
    /// When told to.
    Manual,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            user: "beth.anglin".to_owned(),
            name: "Beth Anglin".to_owned(),
            accept: Accept::After(Duration::from_millis(250)),
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

/// Where and how the instance posts `live_message` rows.
#[derive(Clone)]
pub struct CallbackSettings {
    /// The Endpoint of the REST message.
    pub url: String,
    /// What proves to the receiver that the instance sent it.
    pub credential: CallbackCredential,
    /// How the Business Rule writes the body.
    pub style: BodyStyle,
    /// `glide.http.timeout`.
    pub timeout: Duration,
}

impl CallbackSettings {
    /// Posts to `url` without credentials, bodies well formed.
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

/// What a callback carries as proof of its sender.
#[derive(Clone)]
pub enum CallbackCredential {
    /// Nothing, as in the vendor's own instructions.
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

/// How the Business Rule writes the body of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyStyle {
    /// With `JSON.stringify`: always JSON.
    Stringify,
    /// The vendor's rule: strings put end to end, the text through `escapeForHomePage`. A quote breaks it.
    StockScript,
    /// A hand-repaired variant that lost the escaping: newlines break it too.
    StockScriptUnescaped,
    /// Causeway's own rule: always JSON, and it says which message came before.
    OwnRule,
}

/// What an administrator may change while the instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// How the instance treats a correct password.
    pub basic: BasicLogin,
    /// What `/oauth_token.do` gives out.
    pub oauth: OAuthSwitches,
    /// What the user may do over the Table API.
    pub tables: TableAccess,
    /// Connect Support is not installed: 400 on every one of its paths.
    pub plugin_missing: bool,
    /// The Business Rule's filter on its own user is off (or names another): our messages come back.
    pub echo: bool,
    /// A chat that is escalated goes on under another `group`. Which of both an instance does is not documented.
    pub escalation_renames: bool,
    /// Of Connect Support.
    pub connect: ConnectSwitches,
    /// Of the Virtual Agent API.
    pub virtual_agent: VirtualAgentSwitches,
}

/// What is not known of Connect Support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSwitches {
    /// Queue entries show no more than names and state: no number, no place, no wait, no words.
    pub sparse_entries: bool,
    /// What `last_message` is, which is no column that anybody has seen.
    pub last_message: LastMessage,
    /// Each callback is posted twice.
    pub twice: bool,
    /// A chat ends by itself (state 7 or 8) when nobody has said anything for so many milliseconds; 0: never.
    pub idle_end_ms: u64,
}

/// What `current.last_message` is in the Business Rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastMessage {
    /// No column.
    #[default]
    Undefined,
    /// A column without a value.
    Empty,
    /// The `sys_id` of another message.
    SysId,
}

/// How the instance gives out tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OAuthSwitches {
    /// Seconds that an access token lives.
    pub token_life: u64,
    /// The refresh token is not taken any more: revoked, or too old.
    pub refuse_refresh: bool,
    /// Whether the client credentials grant is enabled (a system property that is off by default on many instances).
    pub client_credentials: bool,
    /// Each use of the refresh token replaces it.
    pub rotate: bool,
    /// A refusal is a 400 `invalid_grant`, as the standard has it, instead of a 401 `server_error`.
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

/// What access rules leave of the Table API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableAccess {
    /// Everything.
    #[default]
    Allowed,
    /// Reading, but 403 on every write.
    ReadOnly,
    /// 403 on everything.
    Refused,
    /// Rows are not shown: empty lists, 404 on a row.
    Hidden,
    /// Writes succeed, but a script is left out of them without a word, as rules on a single field do.
    NoScripts,
}

/// What is not known of the Virtual Agent API, or differs between instances and versions of its app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VirtualAgentSwitches {
    /// The app is not installed: 400 on its path.
    pub missing: bool,
    /// No callback is posted at all: a dead endpoint, or a check that failed in ServiceNow's worker.
    pub silent: bool,
    /// The bot answers a start with a text and a picker; no agent hears of it.
    pub falls_back: bool,
    /// Nobody works the queue: a start is answered with a text.
    pub no_agents: bool,
    /// That text comes with `takeControl`; otherwise with `completed`.
    pub takes_control: bool,
    /// A second start of one user opens a second conversation instead of entering the first.
    pub opens_anew: bool,
    /// Apps before 4.0: items have no `messageId`.
    pub nameless: bool,
    /// Texts stand in `label` instead of `value`.
    pub labels: bool,
    /// Flags that are false are written out instead of left away.
    pub writes_false: bool,
    /// Typing indicators are named with the suffix `ActionMsg`.
    pub suffixed: bool,
    /// `clientVariables` do not come back.
    pub forgets_variables: bool,
    /// The REST step of newer apps posts everything twice, as if the first answer had been lost.
    pub twice: bool,
    /// The agent's end comes as `completed` alone, without `SwitchToVirtualAgent`.
    pub ends_by_flag: bool,
    /// Agents' names and avatars are not shown.
    pub hides_names: bool,
}

/// What a Virtual Agent request must prove.
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

/// How the instance treats Basic credentials that are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasicLogin {
    /// It lets them in.
    #[default]
    Allowed,
    /// The Basic authentication restriction of 2026: the ordinary 401.
    Restricted,
    /// A second factor is missing: 401 with `X-MFA_TOKEN: invalid`.
    MfaMissing,
}
