//! Settings that work and are not safe: credentials over plain HTTP, secrets that can be guessed, a public admin listener.
//!
//! Guarantees: a warning names the key and what to do, never a value. A host is foreign unless it is loopback, has a private
//! address, or has a name that only a private network resolves: a name without a dot, or one that ends like
//! [`PRIVATE_NAMES`]. Not responsible for: settings that are wrong (`validate.rs`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::keys::{self, KeyVisibility};
use super::raw::{DEFAULTS, RawSettings, WrittenValue};
use super::settings::Settings;

/// The shortest secret that is not reported, in bytes.
const SECRET_BYTES_MIN: usize = 16;

/// The ends of names that no public name server resolves.
const PRIVATE_NAMES: [&str; 8] =
    [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test", ".intranet"];

/// The secrets that callers of Causeway send. Their length is the operator's choice.
const OWN_SECRETS: [&str; 10] = [
    "ingress.servicenow.password",
    "ingress.servicenow.password_next",
    "ingress.servicenow.token",
    "ingress.servicenow.token_next",
    "ingress.servicenow.hmac_secret",
    "ingress.servicenow.hmac_secret_next",
    "ingress.handoffs.token",
    "ingress.handoffs.token_next",
    "admin.token",
    "files.secret",
];

/// The beginning of every secret of the demo.
const DEMO: &str = "demo-only";
/// The secrets of the simulators.
const SANDBOX: [&str; 2] = ["sandbox", "sandbox-bot-secret"];

/// A setting that is not safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingWarning {
    /// The key.
    pub key: String,
    /// The danger, and what to do.
    pub reason: &'static str,
}

impl fmt::Display for SettingWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// All warnings, in the order of their keys.
pub(super) fn of(settings: &Settings, raw: &RawSettings) -> Vec<SettingWarning> {
    let mut found: Vec<SettingWarning> = Vec::new();
    let mut warn = |key: &str, reason| found.push(SettingWarning { key: key.to_owned(), reason });
    for key in plain_ways(settings, raw) {
        warn(
            &key,
            "a credential goes there over plain HTTP or AMQP, readable on the way: use https:// or amqps://",
        );
    }
    for (key, text) in secrets(raw) {
        if is_published(text) {
            warn(
                key,
                "is a secret of the demo or of an example, which everybody knows: make one of your own",
            );
        } else if OWN_SECRETS.contains(&key) && text.len() < SECRET_BYTES_MIN {
            warn(key, "has fewer than 16 bytes and can be guessed: use a long random value");
        }
    }
    if is_public(settings.admin_listen) {
        let reason = "is reachable from other machines: metrics need no credential there, and the console of dead letters is \
                      behind one token. Use 127.0.0.1, or let only your monitoring reach this port";
        warn("admin.listen", reason);
    }
    found.sort_by(|one, other| one.key.cmp(&other.key));
    found
}

/// The keys of foreign addresses to which a credential goes without TLS.
fn plain_ways(settings: &Settings, raw: &RawSettings) -> Vec<String> {
    let text = |key: &str| one(raw, key).unwrap_or_default();
    let mut keys: Vec<&str> = Vec::new();
    if settings.servicenow.is_some() && is_plain_and_foreign(text("servicenow.host_url")) {
        keys.push("servicenow.host_url");
    }
    // The address itself is the credential.
    if is_plain_and_foreign(text("xo.callback_url")) {
        keys.push("xo.callback_url");
    }
    if settings.handoffs.events_token.is_some() && is_plain_and_foreign(text("handoffs.events_url")) {
        keys.push("handoffs.events_url");
    }
    if !settings.xo.bots.is_empty() && settings.xo.allowed_hosts.iter().any(|host| is_plain_and_foreign(host))
    {
        keys.push("xo.allowed_hosts");
    }
    if is_plain_and_foreign(text("queue.management_url")) {
        keys.push("queue.management_url");
    }
    if settings.queue.url.as_ref().is_some_and(|url| url.plain_hosts().iter().any(|host| is_foreign(host))) {
        keys.push("queue.url");
    }
    keys.into_iter().map(str::to_owned).collect()
}

fn one<'a>(raw: &'a RawSettings, key: &str) -> Option<&'a str> {
    match &raw.entries.get(key)?.written {
        WrittenValue::One(text) => Some(text.trim()),
        WrittenValue::Many(_) => None,
    }
}

fn secrets(raw: &RawSettings) -> impl Iterator<Item = (&str, &str)> {
    let is_secret = |key: &&String| keys::shown(key) == Some(KeyVisibility::Secret);
    let keys = raw.entries.keys().filter(is_secret);
    keys.filter_map(|key| Some((key.as_str(), one(raw, key)?)))
}

fn is_plain_and_foreign(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    url.scheme() == "http" && url.host_str().is_some_and(is_foreign)
}

/// Whether a host is beyond this machine and its private network.
fn is_foreign(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Ipv4(ip)) => !(ip.is_loopback() || ip.is_private() || ip.is_link_local()),
        Ok(Host::Ipv6(ip)) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
        Ok(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let is_private = PRIVATE_NAMES.iter().any(|end| name.ends_with(end)) || name.contains(".svc.");
            name.contains('.') && !is_private
        }
        // An IPv6 address of a URL has brackets, one of a list has none.
        Err(_) => host.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback()),
    }
}

/// Returns true for a secret, or a password in an address, that is published with Causeway.
fn is_published(text: &str) -> bool {
    let decoded = text.strip_prefix("whsec_").and_then(|key| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(key).ok()
    });
    let decoded = decoded.unwrap_or_default();
    let password = Url::parse(text).ok().and_then(|url| url.password().map(str::to_owned));
    let secret = password.as_deref().unwrap_or(text);
    secret.contains(DEMO)
        || decoded.starts_with(DEMO.as_bytes())
        || SANDBOX.contains(&secret)
        || examples().any(|example| example == text)
        || (password.is_some() && secret == "password")
}

/// The example values of the reference.
fn examples() -> impl Iterator<Item = &'static str> {
    let lines = DEFAULTS.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = \""));
    let secrets = lines.filter(|(key, _)| {
        ["password", "token", "secret", "hmac", "_next"].iter().any(|word| key.contains(word))
    });
    secrets.map(|(_, value)| value.trim_end_matches('"'))
}

/// Whether other networks may reach the address.
fn is_public(listen: SocketAddr) -> bool {
    match listen.ip().to_canonical() {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_private() || ip.is_link_local()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, RunPurpose};
    use super::*;

    fn warned(pairs: &[(&str, &str)]) -> Vec<String> {
        let base = [("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", "a-long-and-random-value")];
        let environment: Environment = base.iter().chain(pairs).copied().collect();
        let settings = Settings::load(None, &environment, RunPurpose::Admin).unwrap();
        for (_, value) in pairs.iter().filter(|(_, value)| value.len() > 5) {
            assert!(settings.warnings.iter().all(|warning| !warning.reason.contains(value)), "{value}");
        }
        settings.warnings.into_iter().map(|warning| warning.key).collect()
    }

    #[test]
    fn a_credential_over_plain_http_to_a_foreign_host_is_reported() {
        let to = |host: &str| {
            let url = format!("http://{host}/x");
            warned(&[("CAUSEWAY_XO__CALLBACK_URL", &url)]).len()
        };
        for foreign in ["platform.kore.ai", "8.8.8.8", "[2001:db8::1]", "10.0.0.1.example.com"] {
            assert_eq!(to(foreign), 1, "{foreign}");
        }
        for near in [
            "localhost",
            "127.0.0.1:9470",
            "[::1]",
            "10.1.2.3",
            "192.168.0.9",
            "172.16.0.1",
            "[fd00::1]",
            "sandbox:9470",
            "xo.causeway.svc",
            "xo.causeway.svc.cluster.local",
            "printer.local",
            "a.internal",
        ] {
            assert_eq!(to(near), 0, "{near}");
        }
        assert_eq!(warned(&[("CAUSEWAY_XO__CALLBACK_URL", "https://platform.kore.ai/x")]), [""; 0]);
        let events = ("CAUSEWAY_HANDOFFS__EVENTS_URL", "http://bot.example.com/events");
        assert_eq!(warned(&[events]), [""; 0], "without a credential");
        assert_eq!(
            warned(&[events, ("CAUSEWAY_HANDOFFS__EVENTS_TOKEN", "some-token-of-a-receiver")]),
            ["handoffs.events_url"]
        );
        assert_eq!(
            warned(&[("CAUSEWAY_QUEUE__URL", "amqp://u:a-good-password@mq.example.com")]),
            ["queue.url"]
        );
        assert_eq!(warned(&[("CAUSEWAY_QUEUE__URL", "amqps://u:a-good-password@mq.example.com")]), [""; 0]);
    }

    #[test]
    fn a_secret_that_is_short_or_known_is_reported() {
        for (key, value) in [
            ("INGRESS__HANDOFFS__TOKEN", "fifteen-bytes-x"),
            ("INGRESS__HANDOFFS__TOKEN", "demo-only-handoffs-token"),
            ("INGRESS__SERVICENOW__TOKEN_NEXT", "token"),
            ("ADMIN__TOKEN", "token"),
            ("SERVICENOW__PASSWORD", "password"),
            ("QUEUE__URL", "amqp://causeway:demo-only-broker@rabbitmq:5672/causeway"),
            ("QUEUE__URL", "amqp://causeway:password@rabbitmq:5672/%2f"),
        ] {
            let name = format!("CAUSEWAY_{key}");
            let found = warned(&[(&name, value)]);
            assert_eq!(found, [key.replace("__", ".").to_lowercase()], "{value}");
        }
        let bot = [("CAUSEWAY_XO__BOT_ID", "st-1"), ("CAUSEWAY_XO__APP_ID", "cs-1")];
        let secret = ("CAUSEWAY_XO__CLIENT_SECRET", "sandbox-bot-secret");
        assert_eq!(warned(&[bot[0], bot[1], secret]), ["xo.client_secret"]);
        let events = ("CAUSEWAY_HANDOFFS__EVENTS_URL", "https://bot.example.com/");
        for key in
            ["whsec_ZGVtby1vbmx5LWtleS10aGF0LXNpZ25zLWV2ZW50cw==", "whsec_cmVwbGFjZSB0aGlzIGV4YW1wbGUga2V5"]
        {
            assert_eq!(
                warned(&[events, ("CAUSEWAY_HANDOFFS__EVENTS_SECRET", key)]),
                ["handoffs.events_secret"]
            );
        }
        assert_eq!(warned(&[("CAUSEWAY_INGRESS__HANDOFFS__TOKEN", "sixteen-bytes-xy")]), [""; 0]);
        assert_eq!(
            warned(&[("CAUSEWAY_SERVICENOW__PASSWORD", "short")]),
            [""; 0],
            "ServiceNow sets its length"
        );
    }

    #[test]
    fn a_public_admin_listener_is_reported() {
        for (listen, is_reported) in [
            ("0.0.0.0:9464", true),
            ("[::]:9464", true),
            ("203.0.113.5:9464", true),
            ("127.0.0.1:9464", false),
            ("[::1]:9464", false),
            ("10.0.0.5:9464", false),
        ] {
            assert_eq!(
                warned(&[("CAUSEWAY_ADMIN__LISTEN", listen)]).len(),
                usize::from(is_reported),
                "{listen}"
            );
        }
    }
}
