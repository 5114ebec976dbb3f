//! The settings of the way to the platforms, the broker and the database: proxies, certificate authorities and client
//! certificates.
//!
//! Guarantees: a proxy in Causeway's own settings wins over the variables of the machine. A file that cannot be used is
//! reported before a process starts. Not responsible for: using proxies (`platform/http/`) and certificates (`tls/`).

use std::path::PathBuf;

use url::Url;

use super::reader::SettingsReader;
use crate::platform::{HostPattern, NetworkSettings, ProxyAddress, ProxyRules};
use crate::tls::{ServerTlsFiles, TlsFileProblem, TlsFiles, TlsPeer};

/// The way to each side.
#[derive(Debug, Clone, Default)]
pub struct NetworkConfig {
    pub servicenow: NetworkSettings,
    /// The Callback URL and the bots.
    pub xo: NetworkSettings,
    /// `handoffs.events_url`
    pub events: NetworkSettings,
}

/// The value of a proxy setting.
#[derive(Clone)]
enum ProxyChoice {
    /// `none`
    Direct,
    Through(ProxyAddress),
}

const CA_FILES: [&str; 4] = ["http.ca_file", "servicenow.ca_file", "xo.ca_file", "handoffs.events_ca_file"];
/// Certificate, key and authorities of client certificates of the public listener.
const INGRESS_KEYS: [&str; 3] =
    ["ingress.tls.cert_file", "ingress.tls.key_file", "ingress.tls.client_ca_file"];
/// The keys of a client certificate and its private key.
type IdentityKeys = [&'static str; 2];
const SERVICENOW_IDENTITY: IdentityKeys = ["servicenow.client_cert_file", "servicenow.client_key_file"];
const BROKER_IDENTITY: IdentityKeys = ["queue.client_cert_file", "queue.client_key_file"];
const DIRECTORY_IDENTITY: IdentityKeys = ["directory.client_cert_file", "directory.client_key_file"];

/// The variables of the machine for each scheme, in the order in which they apply.
const HTTP_VARIABLES: [&str; 2] = ["HTTP_PROXY", "ALL_PROXY"];
const HTTPS_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "ALL_PROXY"];

/// Reads the keys of this file.
pub(super) fn settings(reader: &mut SettingsReader) -> NetworkConfig {
    let except = exceptions(reader);
    let general = choice(reader, "http.proxy");
    let mut rules = |key: &str| match choice(reader, key).or_else(|| general.clone()) {
        Some(ProxyChoice::Direct) => ProxyRules::default(),
        Some(ProxyChoice::Through(proxy)) => ProxyRules::all(proxy, except.clone()),
        None => machine_rules(reader, &except),
    };
    let [servicenow, xo, events] = ["servicenow.proxy", "xo.proxy", "handoffs.events_proxy"].map(&mut rules);
    let [general, for_servicenow, for_xo, for_events] = CA_FILES.map(|key| path(reader, key));
    let client = client_files(reader, SERVICENOW_IDENTITY);
    let tls = |own: Option<PathBuf>, client| {
        let authorities = general.iter().cloned().chain(own).collect();
        TlsFiles { authorities, client }
    };
    NetworkConfig {
        servicenow: NetworkSettings {
            proxy: servicenow,
            tls: tls(for_servicenow, client),
            peer: TlsPeer::ServiceNow,
        },
        xo: NetworkSettings { proxy: xo, tls: tls(for_xo, None), peer: TlsPeer::Xo },
        events: NetworkSettings { proxy: events, tls: tls(for_events, None), peer: TlsPeer::Events },
    }
}

/// `queue.ca_file` and the client certificate for the broker.
pub(super) fn broker(reader: &mut SettingsReader) -> TlsFiles {
    store(reader, "queue.ca_file", BROKER_IDENTITY)
}

/// `directory.ca_file` and the client certificate for PostgreSQL.
pub(super) fn directory(reader: &mut SettingsReader) -> TlsFiles {
    store(reader, "directory.ca_file", DIRECTORY_IDENTITY)
}

/// `ingress.tls.*`
pub(super) fn ingress(reader: &mut SettingsReader) -> Option<ServerTlsFiles> {
    let [certificate, key, client_authorities] = INGRESS_KEYS.map(|key| path(reader, key));
    Some(ServerTlsFiles { certificate: certificate?, key: key?, client_authorities })
}

/// Reports files of the public listener that cannot be used. Each file that is missing is named, because plain HTTP would be
/// served without it.
pub(super) fn check_ingress(reader: &mut SettingsReader) {
    let [certificate, key, authorities] = INGRESS_KEYS;
    if let Some(set) = INGRESS_KEYS.into_iter().find(|key| reader.is_set(key)) {
        for needed in [certificate, key] {
            if !reader.is_set(needed) {
                reader.wrong(needed, format!("is missing: {set} is set, and TLS needs certificate and key"));
            }
        }
    }
    let problem = ingress(reader).and_then(|files| files.check().err());
    match problem {
        Some(TlsFileProblem::Authorities(reason)) => reader.wrong(authorities, reason),
        Some(TlsFileProblem::ClientCertificate(reason)) => reader.wrong(certificate, reason),
        Some(TlsFileProblem::ClientKey(reason)) => reader.wrong(key, reason),
        None => {}
    }
}

fn store(reader: &mut SettingsReader, ca_file: &str, identity: IdentityKeys) -> TlsFiles {
    let authorities = path(reader, ca_file).into_iter().collect();
    TlsFiles { authorities, client: client_files(reader, identity) }
}

/// Without a file of its own, the key is in the file of the certificate.
fn client_files(reader: &mut SettingsReader, [certificate, key]: IdentityKeys) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (path(reader, certificate)?, path(reader, key));
    Some((certificate.clone(), key.unwrap_or(certificate)))
}

/// Adds the files of the settings as parameters of PostgreSQL. With an authority the server is verified:
/// `sslmode` becomes `verify-full` unless it is `verify-ca`.
pub(super) fn with_certificates(text: &str, url: &Url, files: &TlsFiles) -> Result<String, String> {
    if *files == TlsFiles::default() {
        return Ok(text.to_owned());
    }
    let is_mode = |name: &str| matches!(name, "sslmode" | "ssl-mode");
    let mode = url.query_pairs().find(|(name, _)| is_mode(name)).map(|(_, mode)| mode.into_owned());
    let mode = mode.unwrap_or_default();
    if mode == "disable" {
        return Err(
            "has sslmode=disable, but directory.ca_file or directory.client_cert_file is set".to_owned()
        );
    }
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !is_mode(name))
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let mut url = url.clone();
    let mut query = url.query_pairs_mut();
    query.clear().extend_pairs(others);
    if let Some(authority) = files.authorities.first() {
        query.append_pair("sslrootcert", &authority.display().to_string());
        query.append_pair("sslmode", if mode == "verify-ca" { &mode } else { "verify-full" });
    } else {
        query.append_pair("sslmode", if mode.starts_with("verify-") { &mode } else { "require" });
    }
    if let Some((certificate, key)) = &files.client {
        query.append_pair("sslcert", &certificate.display().to_string());
        query.append_pair("sslkey", &key.display().to_string());
    }
    drop(query);
    Ok(url.into())
}

fn path(reader: &mut SettingsReader, key: &str) -> Option<PathBuf> {
    reader.text(key).map(PathBuf::from)
}

fn choice(reader: &mut SettingsReader, key: &str) -> Option<ProxyChoice> {
    let expected = "none, or a proxy such as http://proxy.example.com:3128 or http://user:password@host:port";
    reader.parsed(key, expected, |text| {
        if text.eq_ignore_ascii_case("none") {
            return Ok(ProxyChoice::Direct);
        }
        ProxyAddress::parse(text, key).map(ProxyChoice::Through)
    })
}

/// `http.no_proxy`
fn exceptions(reader: &mut SettingsReader) -> Vec<HostPattern> {
    let mut patterns = Vec::new();
    for entry in reader.list("http.no_proxy").unwrap_or_default() {
        match HostPattern::parse(&entry) {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => reader.wrong("http.no_proxy", format!("\"{}\" {why}", entry.escape_debug())),
        }
    }
    patterns
}

/// The rules of the variables that all programs of the machine share. As in other programs, loopback needs no proxy, and an
/// unreadable entry of `NO_PROXY` has no effect.
fn machine_rules(reader: &SettingsReader, except: &[HostPattern]) -> ProxyRules {
    let proxy = |names: [&'static str; 2]| {
        let (name, value) = first(reader, names)?;
        machine_proxy(value, name).ok()
    };
    let (http, https) = (proxy(HTTP_VARIABLES), proxy(HTTPS_VARIABLES));
    let named = reader.machine_proxy("NO_PROXY").unwrap_or_default().split([',', ' ']);
    let named = named.filter_map(|entry| HostPattern::parse(entry.trim()).ok());
    let except = except.iter().cloned().chain(HostPattern::loopback()).chain(named).collect();
    if http.is_none() && https.is_none() { ProxyRules::default() } else { ProxyRules { http, https, except } }
}

fn first<'a>(reader: &'a SettingsReader, names: [&'static str; 2]) -> Option<(&'static str, &'a str)> {
    names.into_iter().find_map(|name| Some((name, reader.machine_proxy(name)?)))
}

/// In these variables `host:port` means `http://host:port`.
fn machine_proxy(value: &str, name: &str) -> Result<ProxyAddress, String> {
    if value.contains("://") {
        return ProxyAddress::parse(value, name);
    }
    ProxyAddress::parse(&format!("http://{value}"), name)
}

/// Reports files and variables that cannot be used. Only for a role that calls the platforms.
pub(super) fn check(reader: &mut SettingsReader) {
    for key in CA_FILES {
        ca_file(reader, key);
    }
    client_certificate(reader, SERVICENOW_IDENTITY);
    // A destination without a proxy of its own takes the variables only if http.proxy is not set.
    if !reader.is_set("http.proxy") {
        machine_variables(reader);
    }
}

/// Reports files for the broker and the database that cannot be used.
pub(super) fn check_stores(reader: &mut SettingsReader) {
    for (url, ca_key, identity) in [
        ("queue.url", "queue.ca_file", BROKER_IDENTITY),
        ("directory.url", "directory.ca_file", DIRECTORY_IDENTITY),
    ] {
        if reader.is_set(url) {
            ca_file(reader, ca_key);
            client_certificate(reader, identity);
        }
    }
}

fn ca_file(reader: &mut SettingsReader, key: &'static str) {
    let Some(path) = path(reader, key) else { return };
    let files = TlsFiles { authorities: vec![path], client: None };
    for problem in files.check() {
        reader.wrong(key, problem.to_string());
    }
}

fn client_certificate(reader: &mut SettingsReader, keys: IdentityKeys) {
    let [certificate, key] = keys;
    let has_own_key = reader.is_set(key);
    let Some(client) = client_files(reader, keys) else {
        if has_own_key {
            let why = format!("is missing: {key} is set, and the two belong together");
            reader.wrong(certificate, why);
        }
        return;
    };
    for problem in (TlsFiles { authorities: Vec::new(), client: Some(client) }).check() {
        match problem {
            TlsFileProblem::ClientKey(reason) if has_own_key => reader.wrong(key, reason),
            TlsFileProblem::ClientKey(reason) => {
                reader.wrong(certificate, format!("{reason}; or name the file of the key with {key}"));
            }
            other => reader.wrong(certificate, other.to_string()),
        }
    }
}

fn machine_variables(reader: &mut SettingsReader) {
    let mut wrong: Vec<(&str, String)> = Vec::new();
    for names in [HTTP_VARIABLES, HTTPS_VARIABLES] {
        let Some((name, value)) = first(reader, names) else { continue };
        if let Err(why) = machine_proxy(value, name)
            && !wrong.iter().any(|(known, _)| *known == name)
        {
            wrong.push((name, why));
        }
    }
    for (name, why) in wrong {
        let todo =
            "Causeway uses this variable because http.proxy is not set: http.proxy = \"none\" ignores it";
        reader.wrong_variable(
            name,
            format!("is not a proxy such as http://proxy.example.com:3128 ({why}). {todo}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, RunPurpose, SettingProblems, Settings};
    use super::*;

    const RELAY: [(&str, &str); 3] = [
        ("CAUSEWAY_XO__CALLBACK_URL", "https://xo.example/cb"),
        ("CAUSEWAY_HANDOFFS__EVENTS_URL", "https://bot.example/events"),
        ("CAUSEWAY_INGRESS__SERVICENOW__TOKEN", "t"),
    ];

    fn load(more: &[(&str, &str)]) -> Result<NetworkConfig, SettingProblems> {
        let environment: Environment = RELAY.iter().chain(more).copied().collect();
        Settings::load(None, &environment, RunPurpose::Serve).map(|settings| settings.network)
    }

    /// The proxy of each URL as host:port, with its origin.
    fn way(network: &NetworkSettings, url: &str) -> Option<(String, String)> {
        let proxy = network.proxy.proxy_of(&Url::parse(url).unwrap())?.clone();
        Some((proxy.host_and_port(), proxy.origin().to_owned()))
    }

    fn named(host: &str, origin: &str) -> Option<(String, String)> {
        Some((host.to_owned(), origin.to_owned()))
    }

    #[test]
    fn a_destination_has_its_proxy_or_the_general_one_or_none() {
        let network = load(&[
            ("CAUSEWAY_HTTP__PROXY", "http://u:p@general:3128"),
            ("CAUSEWAY_HTTP__NO_PROXY", "inside.example, 10.0.0.0/8"),
            ("CAUSEWAY_XO__PROXY", "https://special"),
            ("CAUSEWAY_HANDOFFS__EVENTS_PROXY", "none"),
            ("HTTPS_PROXY", "http://machine:1"),
        ])
        .unwrap();
        let url = "https://a.example/";
        assert_eq!(way(&network.servicenow, url), named("general:3128", "http.proxy"));
        assert_eq!(way(&network.xo, url), named("special:443", "xo.proxy"));
        assert_eq!(way(&network.events, url), None);
        assert_eq!(way(&network.servicenow, "http://127.0.0.1:1"), named("general:3128", "http.proxy"));
        for direct in ["https://x.inside.example", "http://10.1.1.1"] {
            assert_eq!(way(&network.servicenow, direct), None, "{direct}");
            assert_eq!(way(&network.xo, direct), None, "{direct}");
        }
    }

    #[test]
    fn without_a_setting_the_variables_of_the_machine_apply() {
        let variables = [
            ("https_proxy", "machine:1"),
            ("ALL_PROXY", "http://all:2"),
            ("NO_PROXY", "inside.example,169.254/16"),
        ];
        let network = load(&variables).unwrap();
        assert_eq!(way(&network.xo, "https://a.example"), named("machine:1", "HTTPS_PROXY"));
        assert_eq!(way(&network.xo, "http://a.example"), named("all:2", "ALL_PROXY"));
        for direct in ["https://inside.example", "http://localhost:1", "https://127.0.0.1"] {
            assert_eq!(way(&network.xo, direct), None, "{direct}");
        }
        let off: Vec<_> = variables.into_iter().chain([("CAUSEWAY_HTTP__PROXY", "none")]).collect();
        assert_eq!(way(&load(&off).unwrap().xo, "https://a.example"), None);
    }

    #[test]
    fn wrong_values_are_named_without_their_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (empty, missing) = (path("empty.pem"), path("missing.pem"));
        std::fs::write(&empty, "no certificate").unwrap();
        for (name, value, key, says) in [
            ("CAUSEWAY_HTTP__PROXY", "socks5://u:hidden@p:1", "http.proxy", "not supported"),
            ("CAUSEWAY_XO__PROXY", "u:hidden@p:1", "xo.proxy", "http://"),
            (
                "CAUSEWAY_SERVICENOW__PROXY",
                "http://u:hidden@p:1/path",
                "servicenow.proxy",
                "more than a host",
            ),
            ("CAUSEWAY_HTTP__NO_PROXY", "a.example, http://b", "http.no_proxy", "\"http://b\" is not"),
            ("HTTPS_PROXY", "socks5://u:hidden@p", "HTTPS_PROXY", "http.proxy = \"none\""),
            ("CAUSEWAY_HTTP__CA_FILE", missing.as_str(), "http.ca_file", "No such file"),
            ("CAUSEWAY_XO__CA_FILE", empty.as_str(), "xo.ca_file", "no certificate"),
            (
                "CAUSEWAY_HANDOFFS__EVENTS_CA_FILE",
                empty.as_str(),
                "handoffs.events_ca_file",
                "no certificate",
            ),
            (
                "CAUSEWAY_SERVICENOW__CLIENT_CERT_FILE",
                missing.as_str(),
                "servicenow.client_cert_file",
                "missing.pem",
            ),
            (
                "CAUSEWAY_SERVICENOW__CLIENT_KEY_FILE",
                empty.as_str(),
                "servicenow.client_cert_file",
                "is missing",
            ),
        ] {
            let problems = load(&[(name, value)]).unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems}");
            let found = &problems.0[0];
            assert!(found.key == key && found.reason.contains(says), "{found}");
            assert!(!problems.to_string().contains("hidden"), "{problems}");
        }
    }

    #[test]
    fn the_files_for_postgresql_become_parameters_of_its_url() {
        let files = TlsFiles {
            authorities: vec!["/etc/c a.pem".into()],
            client: Some(("/etc/c.pem".into(), "/etc/c.key".into())),
        };
        let own = TlsFiles { authorities: Vec::new(), ..files.clone() };
        let with = |text: &str, files: &TlsFiles| with_certificates(text, &Url::parse(text).unwrap(), files);
        let url = "postgres://u:p%40q@db/causeway";
        assert_eq!(with(url, &TlsFiles::default()).unwrap(), url);
        let both = format!(
            "{url}?application_name=x&sslrootcert=%2Fetc%2Fc+a.pem&sslmode=verify-full&sslcert=%2Fetc%2Fc.pem&sslkey=%2Fetc%2Fc.key"
        );
        assert_eq!(with(&format!("{url}?sslmode=require&application_name=x"), &files).unwrap(), both);
        for (mode, files, expected) in [
            ("verify-ca", &files, "sslmode=verify-ca"),
            ("prefer", &files, "sslmode=verify-full"),
            ("prefer", &own, "sslmode=require"),
            ("verify-full", &own, "sslmode=verify-full"),
        ] {
            let found = with(&format!("{url}?sslmode={mode}"), files).unwrap();
            assert!(found.contains(expected), "{found}");
        }
        assert!(with(&format!("{url}?sslmode=disable"), &files).unwrap_err().contains("directory.ca_file"));
    }

    #[test]
    fn files_for_the_broker_and_the_database_are_checked_for_every_role() {
        for (name, url, key) in [
            ("QUEUE__CA_FILE", ("QUEUE__URL", "amqps://u:p@host"), "queue.ca_file"),
            ("DIRECTORY__CA_FILE", ("DIRECTORY__URL", "postgres://u:p@host/d"), "directory.ca_file"),
            ("QUEUE__CLIENT_CERT_FILE", ("QUEUE__URL", "amqps://u:p@host"), "queue.client_cert_file"),
        ] {
            let (name, url_name) = (format!("CAUSEWAY_{name}"), format!("CAUSEWAY_{}", url.0));
            let more = [(name.as_str(), "/nowhere/ca.pem"), (url_name.as_str(), url.1)];
            let environment: Environment = RELAY.iter().chain(&more).copied().collect();
            for purpose in [RunPurpose::Ingress, RunPurpose::Worker] {
                let problems = Settings::load(None, &environment, purpose).unwrap_err();
                assert!(problems.0.iter().any(|found| found.key == key), "{problems}");
            }
        }
    }

    #[test]
    fn an_ingress_needs_no_file_of_a_worker() {
        let environment: Environment =
            RELAY.iter().chain(&[("CAUSEWAY_HTTP__CA_FILE", "/nowhere/ca.pem")]).copied().collect();
        Settings::load(None, &environment, RunPurpose::Ingress).unwrap();
    }
}
