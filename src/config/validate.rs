//! Rules between several settings, and the keys that each role requires.
//!
//! Guarantees: a process that starts has all settings that its role requires. A rule reports nothing if one of its values
//! already has a problem. Not responsible for: single values (`meant`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::RunPurpose;
use super::network;
use super::reader::SettingsReader;
use super::settings::Settings;
use crate::platform::{ChatApi, ServiceNowLogin};

/// Reports settings that do not go together.
pub(super) fn check(settings: &Settings, purpose: RunPurpose, reader: &mut SettingsReader) {
    timeouts(settings, reader);
    bots(settings, reader);
    pair(reader, "ingress.servicenow.username", "ingress.servicenow.password");
    for key in ["handoffs.events_token", "handoffs.events_secret", "handoffs.events_secret_next"] {
        if reader.is_set(key) && !reader.is_set("handoffs.events_url") {
            reader.wrong("handoffs.events_url", format!("is missing: {key} has no use without it"));
            break;
        }
    }
    if (purpose.takes() || purpose.delivers()) && !settings.xo.bots.is_empty() {
        reply_hosts(settings, reader);
    }
    if purpose.takes() || purpose == RunPurpose::Files {
        network::check_ingress(reader);
    }
    if purpose.takes() {
        ingress_credentials(settings, reader);
    }
    // An ingress with a login for ServiceNow asks for the availability of queues.
    let asks = purpose == RunPurpose::Ingress && settings.servicenow.is_some();
    if purpose.delivers() || purpose == RunPurpose::Files || asks {
        network::check(reader);
    }
    if purpose != RunPurpose::Files {
        network::check_stores(reader);
    }
    if purpose == RunPurpose::Console && settings.admin_tokens.is_empty() {
        reader.wrong("admin.token", "is missing: without a token nobody can open the console");
    }
    if purpose == RunPurpose::Files {
        servicenow(settings, reader);
        if settings.servicenow.is_none() && !reader.is_set("servicenow.host_url") {
            reader.wrong("servicenow.host_url", "is missing: files are read from ServiceNow");
        }
    }
    if purpose.delivers() {
        servicenow(settings, reader);
        somewhere_to_go(settings, purpose, reader);
    }
}

/// A worker that the broker has lost sight of must have ended its last request before the next worker begins.
fn timeouts(settings: &Settings, reader: &mut SettingsReader) {
    let heartbeat = settings.queue.heartbeat;
    if settings.queue.url.is_some() && !reader.is_wrong("queue.heartbeat") {
        let limits = [
            ("delivery.servicenow.timeout", settings.delivery.servicenow.timeout),
            ("delivery.xo.timeout", settings.delivery.xo.timeout),
            ("delivery.events.timeout", settings.delivery.events.timeout),
            ("delivery.bots.timeout", settings.delivery.bots.timeout),
        ];
        for (key, timeout) in limits.into_iter().filter(|(key, _)| reader.is_set(key)).collect::<Vec<_>>() {
            if timeout >= heartbeat {
                let heartbeat = humantime::format_duration(heartbeat);
                reader.wrong(
                    key,
                    format!("must be shorter than queue.heartbeat ({heartbeat}), or order can be lost"),
                );
            }
        }
        if heartbeat < Duration::from_secs(2) || heartbeat > Duration::from_secs(600) {
            reader.wrong("queue.heartbeat", "must be from 2s to 10min: RabbitMQ counts it in whole seconds");
        }
    }
    let retry = &settings.delivery.retry;
    if retry.max < retry.initial && !reader.is_wrong("delivery.retry.max") {
        reader.wrong("delivery.retry.max", "must not be shorter than delivery.retry.initial");
    }
}

fn bots(settings: &Settings, reader: &mut SettingsReader) {
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> =
        settings.xo.bots.iter().map(|bot| bot.bot_id.as_str()).filter(|id| !seen.insert(*id)).collect();
    for id in twice {
        reader.wrong("xo.bots", format!("bot_id \"{}\" appears more than once", id.escape_debug()));
    }
    let mut names = BTreeMap::new();
    for bot in &settings.xo.bots {
        let first = names.entry(bot.name).or_insert(&bot.bot_id);
        // Two entries with one bot id are already reported.
        if *first == &bot.bot_id {
            continue;
        }
        reader.wrong("xo.bots", format!("name \"{}\" appears more than once", bot.name.as_str()));
    }
}

/// Reports bots if the settings allow no host for replies to their users.
fn reply_hosts(settings: &Settings, reader: &mut SettingsReader) {
    if settings.xo.allowed_hosts.is_empty() && !reader.is_wrong("xo.allowed_hosts") {
        reader.wrong(
            "xo.allowed_hosts",
            "is missing: name the host of XO, such as platform.kore.ai, for replies to the bots' users",
        );
    }
}

fn pair(reader: &mut SettingsReader, one: &str, other: &str) {
    for (set, missing) in [(one, other), (other, one)] {
        if reader.is_set(set) && !reader.is_set(missing) && !reader.is_wrong(missing) {
            reader.wrong(missing, format!("is missing: {set} is set, and the two belong together"));
        }
    }
}

/// Reports an ingress without credentials, unless the settings allow it.
fn ingress_credentials(settings: &Settings, reader: &mut SettingsReader) {
    let ingress = &settings.ingress;
    let locked = ["username", "password", "token", "token_next", "hmac_secret", "hmac_secret_next"]
        .iter()
        .any(|name| reader.is_set(&format!("ingress.servicenow.{name}")));
    if !locked && !ingress.allow_unauthenticated && !reader.is_wrong("ingress.allow_unauthenticated") {
        reader.wrong(
            "ingress.servicenow",
            "callbacks need a credential: set username and password, token or hmac_secret, \
             or ingress.allow_unauthenticated = true if a proxy in front of Causeway authenticates the caller",
        );
    }
    if ingress.listen == settings.admin_listen && ingress.listen.port() != 0 {
        reader.wrong("admin.listen", "is also ingress.listen: metrics and health have a port of their own");
    }
}

/// Reports a route that has no effect with the chosen API.
fn routes(settings: &Settings, reader: &mut SettingsReader) {
    let connect = settings.servicenow.as_ref().is_some_and(|named| named.api == ChatApi::ConnectSupport);
    for (number, route) in settings.routes.iter().enumerate() {
        if connect && route.queue_id.is_none() && !route.context_variables.is_empty() {
            reader.wrong(
                &format!("servicenow.routes.{number}.queue_id"),
                "is missing: context variables have a meaning for servicenow.api = \"virtual_agent\" only",
            );
        }
    }
}

fn servicenow(settings: &Settings, reader: &mut SettingsReader) {
    own_user(settings, reader);
    routes(settings, reader);
    let asked_for =
        ["host_url", "username", "password", "client_id", "client_secret", "refresh_token", "queue_id"]
            .iter()
            .any(|name| reader.is_set(&format!("servicenow.{name}")));
    if settings.servicenow.is_some() || !asked_for || reader.is_wrong("servicenow.auth") {
        return;
    }
    let oauth = reader.choice("servicenow.auth", &[("basic", false), ("oauth", true)]) == Some(true);
    let needed: &[&str] = if oauth {
        &["host_url", "client_id", "client_secret"]
    } else {
        &["host_url", "username", "password"]
    };
    for name in needed {
        let key = format!("servicenow.{name}");
        if !reader.is_set(&key) && !reader.is_wrong(&key) && !reader.is_wrong(&format!("{key}_file")) {
            let auth = if oauth { "oauth" } else { "basic" };
            reader.wrong(
                &key,
                format!("is missing: ServiceNow with auth = \"{auth}\" needs {}", needed.join(", ")),
            );
        }
    }
}

/// In Connect Support only the author's name separates our own messages from an agent's, in callbacks and in a read-back. A
/// token does not show its user.
fn own_user(settings: &Settings, reader: &mut SettingsReader) {
    let Some(servicenow) = &settings.servicenow else { return };
    let nameless = matches!(servicenow.login, ServiceNowLogin::OAuth { username: None, .. });
    if nameless && servicenow.api == ChatApi::ConnectSupport && !reader.is_wrong("servicenow.username") {
        reader.wrong(
            "servicenow.username",
            "is missing: with auth = \"oauth\" it names the user that the token belongs to, or our own messages \
             would be taken for an agent's",
        );
    }
}

/// Reports a worker without any destination, which would only make dead letters.
fn somewhere_to_go(settings: &Settings, purpose: RunPurpose, reader: &mut SettingsReader) {
    let any = ["servicenow.host_url", "xo.callback_url", "xo.bot_id", "handoffs.events_url"];
    let somewhere = any.iter().any(|key| reader.is_set(key)) || !settings.xo.bots.is_empty();
    if !somewhere && purpose != RunPurpose::Check {
        reader.wrong(
            "servicenow.host_url",
            "there is nowhere to deliver to: set servicenow.host_url with its credentials, xo.callback_url, \
             the keys of a bot or handoffs.events_url",
        );
    }
}
