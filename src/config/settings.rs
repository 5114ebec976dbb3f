//! The typed settings: one plain struct for each concern. `default.toml` describes the fields. A group of settings for one stage has the
//! type of that stage.
//!
//! Guarantees: every value is valid. Secrets are [`SecretString`]s, and `Debug` shows no address that may contain one. Not
//! responsible for: converting the settings for the stages (`app.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::network::NetworkConfig;
use super::warnings::SettingWarning;
use crate::admin::AdminToken;
use crate::bridge::{
    AgentTemplate, IncidentSettings, NoticeTexts, ReadBack, UnknownGroup, VirtualAgentOptions,
};
use crate::delivery::backoff::RetrySettings;
use crate::http_server::AcceptedSecrets;
use crate::ingress::{ReplyContextMode, UserPaths};
use crate::live::Live;
use crate::message::routing::QueueRoute;
use crate::message::{BotName, BotSide, Destination, Destinations, KnownBot, named};
use crate::platform::servicenow::VirtualAgentSettings;
use crate::platform::{ChatApi, ServiceNowLogin, TokenAlgorithm, WebhookKey};
use crate::queue::rabbit::{BrokerUrl, QueueDeclare, TopologyNames};
use crate::telemetry::LogSettings;
use crate::tls::{ServerTlsFiles, TlsFiles};
use crate::worker::MessageDeadlines;

impl Settings {
    /// The rules for the destination of a conversation.
    pub fn bot_side(&self) -> BotSide {
        let bots = self.xo.bots.iter().map(|bot| KnownBot { bot_id: bot.bot_id.clone(), name: bot.name });
        let two_way =
            self.names_servicenow || self.ingress.handoffs_token.is_set() || !self.xo.bots.is_empty();
        BotSide { two_way, bots: bots.collect() }
    }

    /// Every destination that needs a queue.
    pub fn destinations(&self) -> Destinations {
        let side = self.bot_side();
        let fixed = [
            (side.two_way, Destination::ServiceNow),
            (self.xo.callback_url.is_some(), Destination::Xo),
            (self.handoffs.events_url.is_some(), Destination::Events),
            (true, side.of_chat()),
        ];
        let fixed = fixed.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, destination)| destination);
        Destinations::new(fixed.chain(side.bots.iter().map(|bot| Destination::Bot(bot.name))))
    }
}

/// All settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub drain: Duration,
    pub queue: QueueSettings,
    pub directory: DirectoryConfig,
    /// `directory.kept`: how long closed conversations stay in the directory.
    pub directory_kept: Duration,
    /// `journal.kept`: how long the rows of settled messages stay in the directory.
    pub journal_kept: Duration,
    /// `dead.kept`: how long dead letters stay; `None` keeps all.
    pub dead_kept: Option<Duration>,
    /// The way to each side.
    pub network: NetworkConfig,
    /// Present if an instance is named and its credentials are complete.
    pub servicenow: Option<ServiceNowConfig>,
    /// Whether an instance is named. The ingress has no credentials for the instance.
    pub names_servicenow: bool,
    /// `servicenow.availability_kept`: how long the ingress keeps an answer about a queue.
    pub availability_kept: Duration,
    /// `servicenow.queue_id`, which a process without a login for ServiceNow has, too.
    pub default_queue_id: Option<String>,
    /// `servicenow.routes`, in order. The ingress reads the values of their conditions, even without a login to ServiceNow.
    pub routes: Vec<QueueRoute>,
    pub xo: XoConfig,
    pub handoffs: HandoffsConfig,
    pub files: FilesConfig,
    pub ingress: IngressConfig,
    pub admin_listen: SocketAddr,
    /// `admin.token` with the name `admin` and the role `act`, then `admin.tokens`. Without a token the admin console is off.
    pub admin_tokens: Vec<AdminToken>,
    /// `admin.edit`
    pub admin_edit: bool,
    pub delivery: DeliveryConfig,
    pub log: LogSettings,
    /// Settings that work and are not safe.
    pub warnings: Vec<SettingWarning>,
}

/// `queue.*`
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// RabbitMQ; `None` for the embedded engine.
    pub url: Option<BrokerUrl>,
    /// `queue.prefix`
    pub names: TopologyNames,
    pub declare: QueueDeclare,
    pub partitions: u16,
    pub prefetch: u16,
    pub heartbeat: Duration,
    pub publish_timeout: Duration,
    /// `queue.management_url`, with user and password.
    pub management_url: Option<SecretString>,
    /// `queue.ca_file` and the client certificate.
    pub tls: TlsFiles,
}

/// `directory.url`
#[derive(Debug, Clone)]
pub enum DirectoryConfig {
    /// A file on this machine.
    Sqlite(PathBuf),
    /// The complete URL. Clones share the URL.
    Postgres(Live<SecretString>),
}

/// `servicenow.*`
#[derive(Debug, Clone)]
pub struct ServiceNowConfig {
    pub host_url: Url,
    pub login: ServiceNowLogin,
    pub queue_id: Option<String>,
    pub api: ChatApi,
    pub poll_waiting: Duration,
    pub poll_active: Duration,
    pub read_back: ReadBack,
    /// Polling requests in one second.
    pub read_rate: f64,
    /// `servicenow.bulk_read`: "auto".
    pub bulk_read: bool,
    pub wait_limit: Duration,
    pub idle_limit: Duration,
    /// The client of the Virtual Agent API.
    pub virtual_agent: VirtualAgentSettings,
    /// The chats over the Virtual Agent API.
    pub virtual_agent_chats: VirtualAgentOptions,
    /// Present if `servicenow.incident` is true.
    pub incident: Option<IncidentSettings>,
}

impl Settings {
    /// Every Queue ID that a start can get, with its key.
    pub fn queues(&self) -> Vec<(String, String)> {
        let default = self.servicenow.as_ref().and_then(|servicenow| servicenow.queue_id.clone());
        let default = default.map(|id| ("servicenow.queue_id".to_owned(), id)).into_iter();
        let routes = self.routes.iter().enumerate().filter_map(|(number, route)| {
            Some((format!("servicenow.routes.{number}.queue_id"), route.queue_id.clone()?))
        });
        default.chain(routes).collect()
    }
}

/// `xo.*`
#[derive(Clone)]
pub struct XoConfig {
    pub callback_url: Option<Url>,
    /// The single bot of `xo.bot_id` and those of `xo.bots`.
    pub bots: Vec<BotConfig>,
    /// `host` or `host:port`, lower case.
    pub allowed_hosts: Vec<String>,
    pub end_words: Vec<String>,
    pub first_words: String,
    pub end_on_session_closure: bool,
    /// `xo.bot_messages_in_agent_mode = "drop"`
    pub drops_bot_messages: bool,
    pub user: UserPaths,
    pub allow_apikey: bool,
    pub reply_context: ReplyContextMode,
    pub agent_template: AgentTemplate,
    pub start_agent_session: bool,
    pub extend_every: Duration,
    pub wait_updates: Duration,
    /// The number of messages between user and bot; 0 for none.
    pub transcript: u16,
    pub texts: NoticeTexts,
    /// By language tag in lower case.
    pub texts_by_language: BTreeMap<String, NoticeTexts>,
}

impl std::fmt::Debug for XoConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xo")
            .field("callback_url", &self.callback_url.as_ref().map(|_| "set"))
            .field("bots", &self.bots)
            .field("allowed_hosts", &self.allowed_hosts)
            .field("end_words", &self.end_words)
            .finish_non_exhaustive()
    }
}

/// One bot's BotKit credentials.
#[derive(Debug, Clone)]
pub struct BotConfig {
    /// The destination is `bot:<name>`.
    pub name: BotName,
    pub bot_id: String,
    pub app_id: String,
    pub client_secret: SecretString,
    pub jwt_algorithm: TokenAlgorithm,
}

/// `files.*`
#[derive(Debug, Clone)]
pub struct FilesConfig {
    /// The URL at which users and ServiceNow reach the links; without it no link is made.
    pub public_url: Option<Url>,
    /// The separate listener, if there is one.
    pub listen: Option<SocketAddr>,
    pub expires: Duration,
    pub secret: Option<SecretString>,
    pub max_size: usize,
}

/// `handoffs.*`
#[derive(Clone)]
pub struct HandoffsConfig {
    pub events_url: Option<Url>,
    pub events_token: Option<SecretString>,
    /// The keys that sign events: the current one, then the next one.
    pub events_keys: Vec<WebhookKey>,
}

impl std::fmt::Debug for HandoffsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handoffs")
            .field("events_url", &self.events_url.as_ref().map(|_| "set"))
            .finish_non_exhaustive()
    }
}

/// `ingress.*`
#[derive(Debug, Clone)]
pub struct IngressConfig {
    pub listen: SocketAddr,
    pub body_limit: usize,
    pub spool: SpooledSenders,
    pub spool_max: usize,
    pub read_timeout: Duration,
    /// `ingress.tls.*`: the public listener speaks TLS.
    pub tls: Option<ServerTlsFiles>,
    pub allow_unauthenticated: bool,
    pub username: Option<String>,
    pub password: AcceptedSecrets,
    pub token: AcceptedSecrets,
    pub hmac_secret: AcceptedSecrets,
    pub handoffs_token: AcceptedSecrets,
    /// `servicenow.username`: messages of this author are our own.
    pub own_user: Option<String>,
    /// `servicenow.instance`: callbacks of another instance are refused.
    pub instance: Option<String>,
}

named! {
    /// `ingress.spool`: the senders whose messages are spooled while the broker does not confirm.
    SpooledSenders {
        /// ServiceNow and XO, which never repeat a refused request.
        Callbacks = "callbacks",
        /// ServiceNow, XO and the callers of the handoff API.
        All = "all",
        /// None.
        Off = "off",
    }
}

/// `delivery.*`
#[derive(Debug, Clone)]
pub struct DeliveryConfig {
    pub servicenow: LimitConfig,
    pub xo: LimitConfig,
    pub events: LimitConfig,
    /// For each bot.
    pub bots: LimitConfig,
    pub retry: RetrySettings,
    pub deadline: MessageDeadlines,
    pub hold: Duration,
    pub unknown_group: UnknownGroup,
}

/// `delivery.<destination>.*`
#[derive(Debug, Clone)]
pub struct LimitConfig {
    pub timeout: Duration,
    pub concurrency: u16,
    /// Calls in one second.
    pub rate: Option<f64>,
}
