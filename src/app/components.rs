//! Builds the settings of each stage: one function for each stage, which only passes values on. Settings that concern one stage
//! alone already have that stage's type (`config/settings.rs`).
//!
//! Guarantees: no stage needs to know `config`. Not responsible for: the meaning of a value (`config/default.toml`),
//! starting the stages (`app.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::time::Instant;
use url::Url;

use super::reload::ChangeHandlers;
use super::token_store::DirectoryTokenStore;
use super::{App, UNKNOWN_GROUP_WAIT};
use crate::bridge::{
    BotKitSettings, Deliverer, DelivererParts, DeliverySettings, FileSettings, LanguageTexts, ReadBack,
};
use crate::config::{self, Settings};
use crate::conversation::DirectorySettings;
use crate::delivery::{GateSettings, Gates};
use crate::files::{self, FileLinks, FileServer};
use crate::ingress::{BotCredential, BotKitIngress, CallbackAuth, IngressSettings};
use crate::message::routing::QueueRoutes;
use crate::message::{AllowedHosts, Destination};
use crate::platform::{
    ChatApi, HttpClient, HttpProblem, HttpSettings, NetworkSettings, ProxyAddress, RefreshTokenStore,
    ServiceNow, ServiceNowLogin, ServiceNowSettings, Xo, XoBot, XoSettings,
};
use crate::worker::{WorkerParts, WorkerSettings};

/// Our name in requests to the platforms.
const USER_AGENT: &str = concat!("causeway/", env!("CARGO_PKG_VERSION"));

/// The client of ServiceNow, if an instance is named.
pub fn servicenow(http: HttpClient, settings: &Settings) -> anyhow::Result<Option<ServiceNow>> {
    let Some(named) = &settings.servicenow else { return Ok(None) };
    let client = ServiceNowSettings {
        host_url: named.host_url.clone(),
        login: named.login.clone(),
        queue_id: named.queue_id.clone(),
    };
    let client = match named.api {
        ChatApi::ConnectSupport => ServiceNow::new(http, client),
        ChatApi::VirtualAgent => ServiceNow::with_virtual_agent(http, client, named.virtual_agent.clone()),
    };
    Ok(Some(match token_store(named, super::directory_settings(settings)) {
        Some(store) => client.keeping_tokens_in(store),
        None => client,
    }))
}

/// The store for the refresh tokens of this login, if it has any.
fn token_store(
    named: &config::ServiceNowConfig,
    directory: DirectorySettings,
) -> Option<Arc<dyn RefreshTokenStore>> {
    match &named.login {
        ServiceNowLogin::OAuth { client_id, refresh_token: Some(configured), .. } => {
            Some(Arc::new(DirectoryTokenStore::new(directory, &named.host_url, client_id, configured)))
        }
        _ => None,
    }
}

/// A client of ServiceNow with connections of its own, which follows the settings.
pub(super) fn live_servicenow(
    settings: &Settings,
    handlers: &mut ChangeHandlers,
) -> anyhow::Result<Option<ServiceNow>> {
    let clients = HttpClients::new(settings)?;
    clients.follow(handlers);
    let client = servicenow(clients.servicenow, settings)?;
    if let Some(client) = &client {
        follow_login(client, settings, handlers);
    }
    Ok(client)
}

/// Replaces the login of the client when it changes.
fn follow_login(client: &ServiceNow, settings: &Settings, handlers: &mut ChangeHandlers) {
    // The directory of the start follows its own password.
    let (client, directory) = (client.clone(), super::directory_settings(settings));
    handlers.add(move |settings| {
        let Some(named) = &settings.servicenow else { return };
        client.replace_login(named.login.clone(), || token_store(named, directory.clone()));
        client.replace_message_auth(named.virtual_agent.message_auth.clone());
    });
}

fn routes(settings: &Settings) -> QueueRoutes {
    let names = settings.xo.bots.iter().map(|bot| (bot.bot_id.clone(), bot.name.as_str().to_owned()));
    QueueRoutes::new(settings.routes.clone(), names.collect())
}

/// The secret of the file links: `files.secret`, or derived from the login of ServiceNow, which worker and file route both
/// have.
fn links_secret(settings: &Settings) -> Option<SecretString> {
    let derived = || {
        let from = match &settings.servicenow.as_ref()?.login {
            ServiceNowLogin::Basic { password, .. } => password,
            ServiceNowLogin::OAuth { client_secret, .. } => client_secret,
        };
        Some(FileLinks::derived_secret(from))
    };
    settings.files.secret.clone().or_else(derived)
}

fn file_links(settings: &Settings, handlers: &mut ChangeHandlers) -> Option<FileLinks> {
    let files = &settings.files;
    let links = FileLinks::new(files.public_url.clone(), links_secret(settings)?, files.expires);
    let followed = links.clone();
    handlers.add(move |settings| {
        if let Some(secret) = links_secret(settings) {
            followed.replace_secret(secret);
        }
    });
    Some(links)
}

/// The route for files, if links are made and the settings name a source of files.
pub(super) fn file_server(
    settings: &Settings,
    handlers: &mut ChangeHandlers,
) -> anyhow::Result<Option<axum::Router>> {
    let Some(links) = file_links(settings, handlers).filter(FileLinks::are_made) else { return Ok(None) };
    let (servicenow, xo) = live_clients(HttpClients::new(settings)?, settings, handlers)?;
    let door = FileServer { links, servicenow, xo, max_size: settings.files.max_size as u64 };
    Ok(Some(files::router(door)))
}

/// The clients of both sides, which follow the settings.
fn live_clients(
    clients: HttpClients,
    settings: &Settings,
    handlers: &mut ChangeHandlers,
) -> anyhow::Result<(Option<ServiceNow>, Xo)> {
    clients.follow(handlers);
    let servicenow = servicenow(clients.servicenow.clone(), settings)?;
    if let Some(client) = &servicenow {
        follow_login(client, settings, handlers);
    }
    let xo = xo(&clients, settings);
    let followed = xo.clone();
    handlers.add(move |settings| followed.replace(xo_settings(settings)));
    Ok((servicenow, xo))
}

/// One connection pool for each way to the outside.
#[derive(Debug)]
pub struct HttpClients {
    pub servicenow: HttpClient,
    /// The Callback URL and the bots.
    pub xo: HttpClient,
    pub events: HttpClient,
}

impl HttpClients {
    /// Reads the files of certificates.
    pub fn new(settings: &Settings) -> Result<Self, HttpProblem> {
        let client = |timeout, network: &NetworkSettings| {
            let (user_agent, network) = (USER_AGENT.to_owned(), network.clone());
            HttpClient::new(&HttpSettings { timeout, user_agent, network })
        };
        let (network, delivery) = (&settings.network, &settings.delivery);
        Ok(Self {
            servicenow: client(delivery.servicenow.timeout, &network.servicenow)?,
            xo: client(delivery.xo.timeout, &network.xo)?,
            events: client(delivery.events.timeout, &network.events)?,
        })
    }

    /// Uses the proxies of changed settings.
    fn follow(&self, handlers: &mut ChangeHandlers) {
        let clients = [self.servicenow.clone(), self.xo.clone(), self.events.clone()];
        handlers.add(move |settings| {
            let network = &settings.network;
            let rules = [&network.servicenow, &network.xo, &network.events];
            for (client, network) in clients.iter().zip(rules) {
                client.replace_proxy(&network.proxy);
            }
        });
    }

    fn allowed_while(self, right: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Self {
        Self {
            servicenow: self.servicenow.allowed_while(right.clone()),
            xo: self.xo.allowed_while(right.clone()),
            events: self.events.allowed_while(right),
        }
    }
}

/// Each destination address whose calls go through a proxy, with the proxy.
pub fn proxies(settings: &Settings) -> Vec<(&'static str, ProxyAddress)> {
    let host = |host: &String| {
        Url::parse(&if host.starts_with("http://") { host.clone() } else { format!("https://{host}/") }).ok()
    };
    let servicenow = settings.servicenow.as_ref().map(|named| named.host_url.clone());
    let xo = settings.xo.callback_url.clone();
    let bots = settings.xo.allowed_hosts.first().filter(|_| !settings.xo.bots.is_empty());
    let ways = [
        ("servicenow.host_url", servicenow, &settings.network.servicenow),
        ("xo.callback_url", xo, &settings.network.xo),
        ("xo.allowed_hosts", bots.and_then(host), &settings.network.xo),
        ("handoffs.events_url", settings.handoffs.events_url.clone(), &settings.network.events),
    ];
    let found = ways
        .into_iter()
        .filter_map(|(key, url, network)| Some((key, network.proxy.proxy_of(&url?)?.clone())));
    found.collect()
}

fn log_network(settings: &Settings) {
    for (destination, proxy) in proxies(settings) {
        let (address, origin) = (proxy.host_and_port(), proxy.origin());
        tracing::info!(destination, proxy = %address, setting = origin, "calls go through a proxy");
    }
}

/// The client of XO.
pub fn xo(clients: &HttpClients, settings: &Settings) -> Xo {
    Xo::new(clients.xo.clone(), xo_settings(settings)).with_events_client(clients.events.clone())
}

fn xo_settings(settings: &Settings) -> XoSettings {
    XoSettings {
        callback_url: settings.xo.callback_url.clone(),
        events_url: settings.handoffs.events_url.clone(),
        events_token: settings.handoffs.events_token.clone(),
        events_keys: settings.handoffs.events_keys.clone(),
        bots: settings.xo.bots.iter().map(bot).collect(),
        allowed_hosts: AllowedHosts::new(settings.xo.allowed_hosts.clone()),
        bots_timeout: Some(settings.delivery.bots.timeout),
    }
}

/// The parts of the worker. A changed credential reaches its clients, and then the gates.
pub(super) fn worker_parts(settings: &Settings, app: &mut App) -> anyhow::Result<WorkerParts> {
    let lease = app.queue.lease();
    let clients = HttpClients::new(settings)?.allowed_while(move || lease.holds(Instant::now()));
    log_network(settings);
    let (servicenow, xo) = live_clients(clients, settings, &mut app.handlers)?;
    // Without a ServiceNow instance this is the callback relay, which stores only the results of replays.
    let directory = app.directory.clone().filter(|_| servicenow.is_some());
    let gates = Gates::new(&app.queue, &gate_settings(settings), app.metrics.clone());
    let parts = DelivererParts {
        servicenow,
        xo,
        directory: directory.clone(),
        queue: app.queue.clone(),
        gates: gates.clone(),
        metrics: app.metrics.clone(),
    };
    let deliverer = Deliverer::new(parts, delivery_settings(settings, &mut app.handlers));
    let followed = gates.clone();
    // After the clients have the new credentials.
    app.handlers
        .add_for_keys(move |keys| followed.credentials_replaced(|destination| keys.concern(destination)));
    Ok(WorkerParts {
        queue: app.queue.clone(),
        deliverer,
        gates,
        replay_notes: directory.is_none().then(|| super::directory_settings(settings)),
        directory,
        metrics: app.metrics.clone(),
    })
}

fn delivery_settings(settings: &Settings, handlers: &mut ChangeHandlers) -> DeliverySettings {
    DeliverySettings {
        queue_id: settings.servicenow.as_ref().and_then(|servicenow| servicenow.queue_id.clone()),
        routes: routes(settings),
        unknown_group: settings.delivery.unknown_group,
        unknown_group_wait: UNKNOWN_GROUP_WAIT,
        bot_side: settings.bot_side(),
        relays_callbacks: settings.xo.callback_url.is_some(),
        tells_events: settings.handoffs.events_url.is_some(),
        serves_bots: !settings.xo.bots.is_empty(),
        read_back: settings.servicenow.as_ref().map_or(ReadBack::Always, |servicenow| servicenow.read_back),
        bulk_read: settings.servicenow.as_ref().is_some_and(|servicenow| servicenow.bulk_read),
        read_rate: settings.servicenow.as_ref().map_or(1.0, |servicenow| servicenow.read_rate),
        botkit: botkit(&settings.xo, settings.ingress.own_user.clone()),
        files: FileSettings {
            links: file_links(settings, handlers),
            max_size: settings.files.max_size as u64,
        },
        virtual_agent: settings
            .servicenow
            .as_ref()
            .map(|servicenow| servicenow.virtual_agent_chats.clone())
            .unwrap_or_default(),
        incident: settings.servicenow.as_ref().and_then(|servicenow| servicenow.incident.clone()),
    }
}

/// The limits of each destination.
fn gate_settings(settings: &Settings) -> BTreeMap<Destination, GateSettings> {
    let gate = |limits: &config::LimitConfig| GateSettings {
        concurrency: usize::from(limits.concurrency),
        rate: limits.rate,
    };
    let limits = |destination: Destination| match destination {
        Destination::ServiceNow => gate(&settings.delivery.servicenow),
        Destination::Xo => gate(&settings.delivery.xo),
        Destination::Events => gate(&settings.delivery.events),
        Destination::Bot(_) => gate(&settings.delivery.bots),
        Destination::Callbacks => GateSettings::default(),
    };
    settings.destinations().iter().map(|destination| (destination, limits(destination))).collect()
}

fn bot(bot: &config::BotConfig) -> XoBot {
    XoBot {
        bot_id: bot.bot_id.clone(),
        app_id: bot.app_id.clone(),
        client_secret: bot.client_secret.clone(),
        algorithm: bot.jwt_algorithm,
    }
}

fn botkit(xo: &config::XoConfig, own_user: Option<String>) -> BotKitSettings {
    BotKitSettings {
        texts: LanguageTexts { default: xo.texts.clone(), languages: xo.texts_by_language.clone(), own_user },
        wait_updates: xo.wait_updates,
        agent_template: xo.agent_template,
        start_agent_session: xo.start_agent_session,
        extend_every: xo.extend_every,
        transcript: usize::from(xo.transcript),
    }
}

fn botkit_ingress(settings: &Settings) -> BotKitIngress {
    let xo = &settings.xo;
    let bots = xo.bots.iter().map(|bot| BotCredential {
        bot_id: bot.bot_id.clone(),
        app_id: bot.app_id.clone(),
        client_secret: bot.client_secret.clone(),
    });
    BotKitIngress {
        bots: bots.collect(),
        allow_apikey: xo.allow_apikey,
        allowed_hosts: AllowedHosts::new(xo.allowed_hosts.clone()),
        context: xo.reply_context,
        end_words: xo.end_words.clone(),
        first_words: xo.first_words.clone(),
        drops_bot_messages: xo.drops_bot_messages,
        user: xo.user.clone(),
        routing_paths: routes(settings).paths(),
        end_on_session_closure: xo.end_on_session_closure,
    }
}

pub(super) fn worker_settings(settings: &Settings) -> WorkerSettings {
    let delivery = &settings.delivery;
    WorkerSettings {
        retry: delivery.retry.clone(),
        deadlines: delivery.deadline.clone(),
        hold: delivery.hold,
        prefetch: settings.queue.prefetch,
    }
}

pub(super) fn ingress_settings(settings: &Settings) -> IngressSettings {
    let ingress = &settings.ingress;
    IngressSettings {
        body_limit: ingress.body_limit,
        read_timeout: ingress.read_timeout,
        servicenow: CallbackAuth {
            username: ingress.username.clone(),
            password: ingress.password.clone(),
            token: ingress.token.clone(),
            hmac_secret: ingress.hmac_secret.clone(),
            demands_certificate: ingress.tls.as_ref().is_some_and(|tls| tls.client_authorities.is_some()),
            allow_unauthenticated: ingress.allow_unauthenticated,
            own_user: ingress.own_user.clone(),
            instance: ingress.instance.clone(),
        },
        handoffs_token: ingress.handoffs_token.clone(),
        botkit: botkit_ingress(settings),
        bot_side: settings.bot_side(),
    }
}
