//! Converts keys to [`Settings`]: every key is read here, once.
//!
//! Guarantees: reading continues after a mistake, so that all mistakes are found. Not responsible for: rules between
//! several keys (`rules`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::reader::SettingsReader;
use super::settings::{
    BotConfig, DeliveryConfig, DirectoryConfig, FilesConfig, HandoffsConfig, IngressConfig, LimitConfig,
    ServiceNowConfig, Settings, SpooledSenders, XoConfig,
};
use crate::bridge::{
    AgentTemplate, IncidentSettings, NoticeTexts, ReadBack, UnknownGroup, VirtualAgentOptions,
};
use crate::delivery::backoff::RetrySettings;
use crate::http_server::AcceptedSecrets;
use crate::ingress::{ReplyContextMode, UserPaths};
use crate::message::routing::{QueueRoute, RouteCondition};
use crate::platform::servicenow::{MessageAuth, StartAction, VirtualAgentSettings};
use crate::platform::{ChatApi, ServiceNowLogin, TokenAlgorithm};
use crate::worker::MessageDeadlines;

use super::{admin, network, queue};
use crate::message::{BotName, LaneKey};
use crate::platform::WebhookKey;
use crate::telemetry::{LogFormat, LogSettings};

/// Reads every key. If the reader found a problem, the value is a placeholder that is never used.
pub(super) fn settings(reader: &mut SettingsReader) -> Settings {
    let queue_id = reader.text("servicenow.queue_id");
    let data_dir = PathBuf::from(reader.text("data_dir").unwrap_or_default());
    Settings {
        drain: reader.duration("drain"),
        queue: queue::settings(reader),
        directory: directory(reader)
            .unwrap_or_else(|| DirectoryConfig::Sqlite(data_dir.join("directory.sqlite"))),
        directory_kept: reader.duration("directory.kept"),
        journal_kept: reader.duration("journal.kept"),
        dead_kept: reader.is_set("dead.kept").then(|| reader.duration("dead.kept")),
        data_dir,
        network: network::settings(reader),
        servicenow: servicenow(reader, queue_id.clone()),
        names_servicenow: reader.is_set("servicenow.host_url"),
        availability_kept: reader.duration("servicenow.availability_kept"),
        default_queue_id: queue_id.clone(),
        routes: reader.entries_of("servicenow.routes").iter().map(|place| route(reader, place)).collect(),
        xo: xo(reader),
        handoffs: HandoffsConfig {
            events_url: reader.http_url("handoffs.events_url"),
            events_token: reader.secret("handoffs.events_token"),
            events_keys: events_keys(reader),
        },
        files: files(reader),
        ingress: ingress(reader),
        admin_listen: reader.address("admin.listen"),
        admin_tokens: admin::tokens(reader),
        admin_edit: reader.flag("admin.edit"),
        delivery: delivery(reader),
        log: log(reader),
        warnings: Vec::new(),
    }
}

/// The keys that sign events: the current one, then the next one.
fn events_keys(reader: &mut SettingsReader) -> Vec<WebhookKey> {
    let expected = "whsec_ and the base64 of 24 to 64 random bytes";
    let mut key = |key: &str| reader.parsed(key, expected, |text| Ok(WebhookKey::parse(text)?));
    [key("handoffs.events_secret"), key("handoffs.events_secret_next")].into_iter().flatten().collect()
}

fn directory(reader: &mut SettingsReader) -> Option<DirectoryConfig> {
    let tls = network::directory(reader);
    reader.parsed("directory.url", "sqlite:<path> or postgres://user:password@host/database", |text| {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err("names no file".to_owned())
            } else {
                Ok(DirectoryConfig::Sqlite(PathBuf::from(path)))
            };
        }
        one_host(text)?;
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        match (url.scheme(), url.host_str()) {
            ("postgres" | "postgresql", Some(host)) if !host.is_empty() => {
                let url = network::with_certificates(text, &url, &tls)?;
                Ok(DirectoryConfig::Postgres(SecretString::from(url).into()))
            }
            ("postgres" | "postgresql", _) => Err("names no host".to_owned()),
            _ => Err(String::new()),
        }
    })
}

/// Refuses a list of databases. A part of the list would be taken for the name of the database, which is not secret.
fn one_host(text: &str) -> Result<(), String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.contains([',', ';', ' ']) || tail.contains([',', ';', '@', ' ']) {
        return Err("takes one host: name the address that always leads to the primary, such as that of a proxy; / , ; @ # and \
                    ? of a user, a password or a database are percent-encoded (%2F %2C %3B %40 %23 %3F)"
            .to_owned());
    }
    Ok(())
}

fn servicenow(reader: &mut SettingsReader, queue_id: Option<String>) -> Option<ServiceNowConfig> {
    let host_url = reader.host_url("servicenow.host_url");
    let api = choice_of(reader, "servicenow.api", ChatApi::ALL, ChatApi::as_str);
    let (poll_waiting, poll_active) =
        (reader.duration("servicenow.poll_waiting"), reader.duration("servicenow.poll_active"));
    let (wait_limit, idle_limit) =
        (reader.duration("servicenow.wait_limit"), reader.duration("servicenow.idle_limit"));
    let read_back = choice_of(reader, "servicenow.read_back", ReadBack::ALL, ReadBack::as_str);
    let read_rate = reader.rate("servicenow.read_rate");
    let bulk_read = reader.choice("servicenow.bulk_read", &[("auto", true), ("off", false)]);
    let (virtual_agent, virtual_agent_chats) = (virtual_agent(reader), virtual_agent_chats(reader));
    let incident = incident(reader);
    let login = login(reader);
    Some(ServiceNowConfig {
        host_url: host_url?,
        login: login?,
        queue_id,
        api: api?,
        poll_waiting,
        poll_active,
        read_back: read_back?,
        read_rate: read_rate?,
        bulk_read: bulk_read?,
        wait_limit,
        idle_limit,
        virtual_agent,
        virtual_agent_chats,
        incident,
    })
}

/// One `[[servicenow.routes]]`, with its conditions as a list of `name=value` or as a table.
fn route(reader: &mut SettingsReader, place: &str) -> QueueRoute {
    let [when, queue_id, context] =
        ["when", "queue_id", "context_variables"].map(|name| format!("{place}.{name}"));
    let mut conditions = reader.pairs(&when);
    conditions.extend(reader.table_of(&when));
    if conditions.iter().any(|(_, value)| value.is_empty()) {
        reader.wrong(&when, "a condition has no value: write name=value");
    }
    let queue = reader.text(&queue_id).filter(|id| {
        // The id becomes a part of a URL.
        let is_id = LaneKey::parse(id).is_ok() && !id.contains(['/', '?', '#', ' ']);
        if !is_id {
            reader.wrong(&queue_id, "is not a Queue ID: give the sys_id of a queue");
        }
        is_id
    });
    let context_variables: BTreeMap<String, String> = reader.pairs(&context).into_iter().collect();
    let decides_nothing = queue.is_none() && context_variables.is_empty();
    if decides_nothing && !reader.is_wrong(&queue_id) && !reader.is_wrong(&context) {
        reader.wrong(place, "has no effect: give it queue_id or context_variables");
    }
    let when = conditions.into_iter().map(|(name, value)| RouteCondition { name, value }).collect();
    QueueRoute { when, queue_id: queue, context_variables }
}

/// The record of a handoff that found no agent.
fn incident(reader: &mut SettingsReader) -> Option<IncidentSettings> {
    let is_on = reader.flag("servicenow.incident");
    let mut name = |key: &str| {
        reader.parsed(key, "the name of a table or a field, such as caller_id", |text| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !text.is_empty() && text.chars().all(plain) { Ok(text.to_owned()) } else { Err(String::new()) }
        })
    };
    let (table, caller) = (name("servicenow.incident_table"), name("servicenow.incident_caller_field"));
    let fields = reader.pairs("servicenow.incident_fields");
    let caller_field = caller.filter(|field| field != "none");
    Some(IncidentSettings { table: table?, caller_field, fields }).filter(|_| is_on)
}

fn virtual_agent(reader: &mut SettingsReader) -> VirtualAgentSettings {
    let start_action = choice_of(reader, "servicenow.start_action", StartAction::ALL, StartAction::as_str);
    let (token, hmac) = (reader.secret("servicenow.message_token"), reader.secret("servicenow.message_hmac"));
    VirtualAgentSettings {
        start_action: start_action.unwrap_or(StartAction::StartConversation),
        message_auth: MessageAuth { token, hmac },
    }
}

fn virtual_agent_chats(reader: &mut SettingsReader) -> VirtualAgentOptions {
    VirtualAgentOptions {
        // A list, not a table: names in the environment lose their case, and the case matters here.
        context_variables: reader.pairs("servicenow.context_variables").into_iter().collect(),
        queue_variable: reader.text("servicenow.queue_variable").unwrap_or_default(),
        watchdog: reader.duration("servicenow.watchdog"),
        receipts: reader.flag("servicenow.receipts"),
        tell_topics: reader.flag("servicenow.tell_topics"),
        end_without_flag: reader.flag("servicenow.end_without_flag"),
        end_sentences: reader.list("servicenow.end_sentences").unwrap_or_default(),
    }
}

fn login(reader: &mut SettingsReader) -> Option<ServiceNowLogin> {
    let oauth = reader.choice("servicenow.auth", &[("basic", false), ("oauth", true)]);
    let (username, password) = (reader.text("servicenow.username"), reader.secret("servicenow.password"));
    let (client_id, client_secret) =
        (reader.text("servicenow.client_id"), reader.secret("servicenow.client_secret"));
    let refresh_token = reader.secret("servicenow.refresh_token");
    if oauth? {
        Some(ServiceNowLogin::OAuth {
            username,
            client_id: client_id?,
            client_secret: client_secret?,
            refresh_token,
        })
    } else {
        Some(ServiceNowLogin::Basic { username: username?, password: password? })
    }
}

fn xo(reader: &mut SettingsReader) -> XoConfig {
    let callback_url = reader.http_url("xo.callback_url");
    let mut places = vec!["xo".to_owned()];
    places.extend(reader.entries_of("xo.bots"));
    let bots = places.iter().filter_map(|place| bot(reader, place)).collect();
    let allowed_hosts = match reader.list("xo.allowed_hosts") {
        Some(hosts) => hosts.iter().filter_map(|host| allowed_host(reader, host)).collect(),
        None => callback_url.as_ref().and_then(host_of).into_iter().collect(),
    };
    let end_words = reader.list("xo.end_words").unwrap_or_default();
    let reply_context =
        choice_of(reader, "xo.reply_context", ReplyContextMode::ALL, ReplyContextMode::as_str);
    let agent_template = choice_of(reader, "xo.agent_template", AgentTemplate::ALL, AgentTemplate::as_str);
    XoConfig {
        callback_url,
        bots,
        allowed_hosts,
        end_words,
        first_words: reader.text("xo.first_words").unwrap_or_default(),
        drops_bot_messages: reader
            .choice("xo.bot_messages_in_agent_mode", &[("pass", false), ("drop", true)])
            .unwrap_or(false),
        user: user_paths(reader),
        end_on_session_closure: reader.flag("xo.end_on_session_closure"),
        allow_apikey: reader.flag("xo.allow_apikey"),
        reply_context: reply_context.unwrap_or(ReplyContextMode::Trimmed),
        agent_template: agent_template.unwrap_or(AgentTemplate::Auto),
        start_agent_session: reader.flag("xo.start_agent_session"),
        extend_every: reader.duration("xo.extend_every"),
        transcript: reader.whole("xo.transcript", 0, 100),
        wait_updates: reader.duration("xo.wait_updates"),
        texts: texts(reader, "xo.texts", None),
        texts_by_language: texts_by_language(reader),
    }
}

/// The fields of an event that identify the user.
fn user_paths(reader: &mut SettingsReader) -> UserPaths {
    let mut paths = |name: &str| {
        let key = format!("xo.user.{name}");
        let entries = reader.list(&key).unwrap_or_default();
        let pointers = |entry: &String| entry.split_whitespace().map(pointer).collect::<Option<Vec<_>>>();
        let read = entries.iter().map(pointers).collect::<Option<Vec<_>>>();
        if read.is_none() {
            reader.wrong(&key, "must be paths such as context.session.UserContext.emailId");
        }
        read.unwrap_or_default()
    };
    UserPaths { id: paths("id"), name: paths("name"), email: paths("email"), language: paths("language") }
}

/// `context.session` as the JSON pointer `/context/session`.
fn pointer(path: &str) -> Option<String> {
    let is_path = path.split('.').all(|step| !step.is_empty() && !step.contains('/'));
    is_path.then(|| format!("/{}", path.replace('.', "/")))
}

/// The texts in each language. A text that a language lacks is taken from the texts without a language.
fn texts_by_language(reader: &mut SettingsReader) -> BTreeMap<String, NoticeTexts> {
    let fallback = texts(reader, "xo.texts", None);
    let tags = reader.languages_of("xo.texts");
    let tag_of = |tag: &str| tag.to_lowercase().replace('_', "-");
    tags.iter().map(|tag| (tag_of(tag), texts(reader, &format!("xo.texts.{tag}"), Some(&fallback)))).collect()
}

/// The text of a key.
fn text_of<'a>(texts: &'a NoticeTexts, name: &str) -> &'a str {
    match name {
        "waiting" => &texts.waiting,
        "joined" => &texts.joined,
        "left" => &texts.left,
        "ended" => &texts.ended,
        "no_agent" => &texts.no_agent,
        "expired" => &texts.expired,
        _ => &texts.failed,
    }
}

/// The texts of one language. An empty text is valid.
fn texts(reader: &mut SettingsReader, place: &str, fallback: Option<&NoticeTexts>) -> NoticeTexts {
    let mut text = |name: &str| {
        let words = reader.parsed(&format!("{place}.{name}"), "a text", |text| Ok(text.to_owned()));
        let spare = || fallback.map(|texts| text_of(texts, name).to_owned()).unwrap_or_default();
        words.unwrap_or_else(spare)
    };
    NoticeTexts {
        waiting: text("waiting"),
        joined: text("joined"),
        left: text("left"),
        ended: text("ended"),
        no_agent: text("no_agent"),
        expired: text("expired"),
        failed: text("failed"),
    }
}

/// A bot has all three keys or no key.
fn bot(reader: &mut SettingsReader, place: &str) -> Option<BotConfig> {
    let keys = ["bot_id", "app_id", "client_secret"].map(|name| format!("{place}.{name}"));
    let [bot_id, app_id, client_secret] = [0, 1, 2].map(|which| reader.text(&keys[which]));
    let missing: Vec<&String> = keys.iter().filter(|key| !reader.is_set(key)).collect();
    if (1..keys.len()).contains(&missing.len()) {
        for key in missing {
            reader.wrong(key, "is missing: bot_id, app_id and client_secret belong together");
        }
    }
    let name_key = format!("{place}.name");
    let name = reader.text(&name_key).or_else(|| bot_id.clone()).and_then(|name| {
        let named = BotName::parse(&name);
        // A bot without a name has its id as its name.
        let key = if reader.is_set(&name_key) { &name_key } else { &keys[0] };
        named.map_err(|why| reader.wrong(key, why.to_owned())).ok()
    });
    let mut algorithm = |key: &str| choice_of(reader, key, TokenAlgorithm::ALL, TokenAlgorithm::as_str);
    let jwt_algorithm =
        algorithm(&format!("{place}.jwt_algorithm")).or_else(|| algorithm("xo.jwt_algorithm"));
    Some(BotConfig {
        name: name?,
        bot_id: bot_id?,
        app_id: app_id?,
        client_secret: client_secret?.into(),
        jwt_algorithm: jwt_algorithm.unwrap_or(TokenAlgorithm::Hs256),
    })
}

/// `host` or `host:port`, in the form of a parsed URL, with `http://` before it if the entry has that.
fn allowed_host(reader: &mut SettingsReader, entry: &str) -> Option<String> {
    let host = entry.strip_prefix("http://").unwrap_or(entry);
    let parsed =
        Url::parse(&format!("https://{host}/")).ok().filter(|url| url.path() == "/" && !host.contains('/'));
    let named = parsed.as_ref().and_then(host_of);
    if named.is_none() || host.contains(['@', '?', '#']) {
        let why = format!("\"{}\" is not host, host:port or http://host:port", entry.escape_debug());
        reader.wrong("xo.allowed_hosts", why);
        return None;
    }
    named.map(|named| if host == entry { named } else { format!("http://{named}") })
}

/// The host in lower case, with the port if it is not the default one.
fn host_of(url: &Url) -> Option<String> {
    let host = match url.host()? {
        Host::Domain(name) => name.to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => format!("[{address}]"),
    };
    Some(url.port().map_or(host.clone(), |port| format!("{host}:{port}")))
}

fn files(reader: &mut SettingsReader) -> FilesConfig {
    FilesConfig {
        public_url: reader.http_url("files.public_url"),
        listen: reader.parsed("files.listen", "an IP address and a port, such as 0.0.0.0:8081", |text| {
            text.parse().map_err(|_| String::new())
        }),
        expires: reader.duration("files.expires"),
        secret: reader.secret("files.secret").filter(|secret| !secret.expose_secret().is_empty()),
        max_size: reader.bytes("files.max_size"),
    }
}

fn ingress(reader: &mut SettingsReader) -> IngressConfig {
    IngressConfig {
        listen: reader.address("ingress.listen"),
        body_limit: reader.bytes("ingress.body_limit"),
        spool: choice_of(reader, "ingress.spool", SpooledSenders::ALL, SpooledSenders::as_str)
            .unwrap_or(SpooledSenders::Off),
        spool_max: reader.bytes("ingress.spool_max"),
        read_timeout: reader.duration("ingress.read_timeout"),
        tls: network::ingress(reader),
        allow_unauthenticated: reader.flag("ingress.allow_unauthenticated"),
        username: reader.text("ingress.servicenow.username"),
        password: now_and_next(reader, "ingress.servicenow.password"),
        token: now_and_next(reader, "ingress.servicenow.token"),
        hmac_secret: now_and_next(reader, "ingress.servicenow.hmac_secret"),
        handoffs_token: now_and_next(reader, "ingress.handoffs.token"),
        instance: instance(reader),
        // `login` has already reported the problems of this key.
        own_user: if reader.is_wrong("servicenow.username") {
            None
        } else {
            reader.text("servicenow.username")
        },
    }
}

/// A secret and its successor. An empty value counts as absent.
fn now_and_next(reader: &mut SettingsReader, key: &str) -> AcceptedSecrets {
    let mut secret =
        |key: &str| reader.secret(key).filter(|secret: &SecretString| !secret.expose_secret().is_empty());
    AcceptedSecrets { current: secret(key), next: secret(&format!("{key}_next")) }
}

/// The name of the instance, as in the system property `instance_name`; not an address.
fn instance(reader: &mut SettingsReader) -> Option<String> {
    let expected = "the name of the instance, such as example for example.service-now.com";
    reader.parsed("servicenow.instance", expected, |text| {
        let is_name = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if is_name { Ok(text.to_owned()) } else { Err(String::new()) }
    })
}

fn delivery(reader: &mut SettingsReader) -> DeliveryConfig {
    let mut limits = |destination: &str| LimitConfig {
        timeout: reader.duration(&format!("delivery.{destination}.timeout")),
        concurrency: reader.whole(&format!("delivery.{destination}.concurrency"), 1, 4096),
        rate: reader.rate(&format!("delivery.{destination}.rate")),
    };
    let [servicenow, xo, mut events, mut bots] = ["servicenow", "xo", "events", "bots"].map(&mut limits);
    for (key, limits) in [("delivery.events.timeout", &mut events), ("delivery.bots.timeout", &mut bots)] {
        if !reader.is_set(key) {
            limits.timeout = xo.timeout;
        }
    }
    DeliveryConfig {
        servicenow,
        xo,
        events,
        bots,
        retry: RetrySettings {
            initial: reader.duration("delivery.retry.initial"),
            factor: reader.factor("delivery.retry.factor"),
            max: reader.duration("delivery.retry.max"),
        },
        deadline: MessageDeadlines {
            start: reader.duration("delivery.deadline.start"),
            message: reader.duration("delivery.deadline.message"),
            typing: reader.duration("delivery.deadline.typing"),
            end: reader.duration("delivery.deadline.end"),
            bot: reader.duration("delivery.deadline.bot"),
        },
        hold: reader.duration("delivery.hold"),
        unknown_group: choice_of(reader, "delivery.unknown_group", UnknownGroup::ALL, UnknownGroup::as_str)
            .unwrap_or(UnknownGroup::DeadLetter),
    }
}

fn log(reader: &mut SettingsReader) -> LogSettings {
    let format = reader.choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let expected = "error, warn, info, debug, trace, or a filter such as causeway=debug,lapin=warn";
    let level = reader.parsed("log.level", expected, |text| {
        // The filter would take a bare word that is not a level for the name of a module.
        let words = text.split(',').filter(|word| !word.contains(['=', '[']));
        let levels = ["error", "warn", "info", "debug", "trace", "off"];
        let known = words.map(str::trim).all(|word| levels.contains(&word.to_ascii_lowercase().as_str()));
        if !known || tracing_subscriber::EnvFilter::try_new(text).is_err() {
            return Err(String::new());
        }
        Ok(text.to_owned())
    });
    LogSettings {
        format,
        level: level.unwrap_or_default(),
        conversation_ids: reader.flag("log.conversation_ids"),
    }
}

/// One value of a `named!` set.
pub(super) fn choice_of<T: Copy>(
    reader: &mut SettingsReader,
    key: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Option<T> {
    let choices: Vec<(&str, T)> = all.iter().map(|value| (name(*value), *value)).collect();
    reader.choice(key, &choices)
}
