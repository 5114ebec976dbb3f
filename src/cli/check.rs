//! `causeway check`: validates the settings, then contacts each system that they name. Each result has one line, and
//! a hint if needed.
//!
//! Guarantees: all checks run at once, each with a time limit. A failed check does not hide another one. The exit
//! code is 0 if all checks pass, else 1.
//! Not responsible for: the checks of the platforms (`platform/check.rs`), of the broker and of the database
//! (`check/stores.rs`).

mod stores;

use std::time::Duration;

use super::output::{self, AnsiPaint};
use super::{CliFailure, SettingFiles};
use crate::app::{self, KnownCertificate};
use crate::config::{DirectoryConfig, REFERENCE, RunPurpose, SettingWarning, Settings};
use crate::platform::servicenow::RowAccess;
use crate::platform::{ChatApi, HttpClient, ServiceNow, check};

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Print every setting with its default and its meaning as a settings file, then exit
    #[arg(long)]
    print_defaults: bool,
    /// Print every setting in use with the place of its value, secrets masked, then exit
    #[arg(long)]
    print: bool,
    /// Read the settings and the files that they name, and contact nothing
    #[arg(long)]
    offline: bool,
    /// Fail if the settings are incomplete for this role; without --role, one complete role is enough
    #[arg(long)]
    role: Option<CheckRole>,
}

/// A role for which the settings are validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CheckRole {
    Serve,
    Ingress,
    Worker,
}

impl CheckRole {
    const ALL: [Self; 3] = [Self::Serve, Self::Ingress, Self::Worker];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Ingress => "ingress",
            Self::Worker => "worker",
        }
    }

    const fn purpose(self) -> RunPurpose {
        match self {
            Self::Serve => RunPurpose::Serve,
            Self::Ingress => RunPurpose::Ingress,
            Self::Worker => RunPurpose::Worker,
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CheckFinding {
    ok: bool,
    what: String,
    hint: String,
}

impl CheckFinding {
    fn well(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), hint: String::new() }
    }

    fn wrong(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), hint: hint.into() }
    }
}

pub(super) async fn run(args: &CheckArgs, sources: &SettingFiles) -> Result<(), CliFailure> {
    if args.print_defaults {
        return Ok(output::line(REFERENCE.trim_end())?);
    }
    if args.print {
        return Ok(output::line(Settings::print(sources.file(), &sources.environment).trim_end())?);
    }
    // An ingress has no login for ServiceNow. `roles` reports what it lacks itself.
    let purpose = if args.role == Some(CheckRole::Ingress) { RunPurpose::Admin } else { RunPurpose::Check };
    let settings = sources.settings_for_admin(purpose)?;
    let paint = AnsiPaint::stdout(&sources.environment);
    let roles = roles(args.role, &settings, sources);
    let warnings: Vec<_> = settings.warnings.iter().map(unsafe_setting).collect();
    let listener = listener_certificate(&settings);
    let contacted = if args.offline { Vec::new() } else { Box::pin(contact(&settings)).await };
    let mut well = true;
    let certificates = if args.offline { Vec::new() } else { certificates(&settings) };
    let parts = [roles, warnings, listener.into_iter().collect(), contacted, certificates];
    for finding in parts.iter().flatten() {
        well &= finding.ok;
        tell(paint, finding)?;
    }
    if well { Ok(()) } else { Err(CliFailure::Told) }
}

/// Contacts each system, all at once.
async fn contact(settings: &Settings) -> Vec<CheckFinding> {
    let (queue, directory, platforms) = tokio::join!(
        within("queue", stores::queue(settings)),
        within("directory", stores::directory(settings)),
        within("platforms", platforms(settings)),
    );
    [queue, directory, platforms].concat()
}

fn unsafe_setting(warning: &SettingWarning) -> CheckFinding {
    let what = format!("settings: {} is not safe", warning.key);
    CheckFinding { ok: true, what, hint: warning.reason.to_owned() }
}

/// Reports for each role whether a process could start with these settings. Settings that name the broker or the database
/// and nothing else are meant to check these two: then a role that would not start is no failure.
fn roles(asked: Option<CheckRole>, settings: &Settings, sources: &SettingFiles) -> Vec<CheckFinding> {
    let stores_alone = asked.is_none() && names_stores_alone(settings);
    let all = asked.map_or_else(|| CheckRole::ALL.to_vec(), |role| vec![role]);
    let read = |role: CheckRole| (role, sources.settings(role.purpose()).err());
    let read: Vec<_> = all.into_iter().map(read).collect();
    let one_could_start = read.iter().any(|(_, refused)| refused.is_none());
    let finding = |(role, refused): (CheckRole, Option<CliFailure>)| match refused {
        None => CheckFinding::well(format!("settings: enough for {}", role.as_str())),
        Some(refused) => {
            let what = format!("settings: {} would not start", role.as_str());
            CheckFinding { ok: one_could_start || stores_alone, what, hint: why(&refused) }
        }
    };
    read.into_iter().map(finding).collect()
}

fn names_stores_alone(settings: &Settings) -> bool {
    let ingress = &settings.ingress;
    let credentials = [&ingress.password, &ingress.token, &ingress.hmac_secret, &ingress.handoffs_token];
    let takes = ingress.username.is_some()
        || credentials.iter().any(|credential| credential.is_set())
        || ingress.allow_unauthenticated
        || !settings.xo.bots.is_empty();
    let delivers = settings.names_servicenow
        || settings.servicenow.is_some()
        || settings.xo.callback_url.is_some()
        || settings.handoffs.events_url.is_some();
    let has_store =
        settings.queue.url.is_some() || matches!(settings.directory, DirectoryConfig::Postgres(_));
    has_store && !takes && !delivers
}

fn why(refused: &CliFailure) -> String {
    match refused {
        CliFailure::Settings(problems) => {
            let problems = problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.reason));
            problems.collect::<Vec<_>>().join("; ")
        }
        CliFailure::Usage(reason) => reason.clone(),
        CliFailure::Failed(error) => format!("{error:#}"),
        CliFailure::Told => String::new(),
    }
}

fn tell(paint: AnsiPaint, finding: &CheckFinding) -> std::io::Result<()> {
    let verdict = match (finding.ok, finding.hint.is_empty()) {
        (true, true) => paint.green("ok  "),
        // Not an error, but the operator should know.
        (true, false) => paint.bold("note"),
        (false, _) => paint.red("FAIL"),
    };
    output::line(format_args!("{verdict} {}", output::harmless(&finding.what)))?;
    if finding.hint.is_empty() {
        return Ok(());
    }
    output::line(format_args!("     -> {}", output::harmless(&finding.hint)))
}

async fn within(name: &str, check: impl Future<Output = Vec<CheckFinding>>) -> Vec<CheckFinding> {
    let late = || {
        let what = format!("{name}: no answer within {} s", TIMEOUT.as_secs());
        vec![CheckFinding::wrong(what, "packets are lost on the way: check the firewall")]
    };
    tokio::time::timeout(TIMEOUT, check).await.unwrap_or_else(|_| late())
}

/// Checks ServiceNow and XO, if the settings name them.
async fn platforms(settings: &Settings) -> Vec<CheckFinding> {
    let clients = match app::HttpClients::new(settings) {
        Ok(clients) => clients,
        Err(error) => return vec![CheckFinding::wrong(error.to_string(), "is the machine's TLS set up?")],
    };
    let xo = app::xo(&clients, settings);
    let (servicenow, xo) = tokio::join!(servicenow(clients.servicenow, settings), check::xo(&xo));
    let mut findings = proxies(settings);
    findings.extend(servicenow);
    findings.extend(xo.into_iter().map(CheckFinding::from));
    findings
}

/// Names the proxies, because a proxy of the machine is easily overlooked.
fn proxies(settings: &Settings) -> Vec<CheckFinding> {
    let found = app::proxies(settings).into_iter().map(|(key, proxy)| {
        let (address, origin) = (proxy.host_and_port(), proxy.origin());
        CheckFinding::well(format!("{key}: calls go through the proxy {address} ({origin})"))
    });
    found.collect()
}

/// The certificates of the servers that the other checks reached, and our own ones.
fn certificates(settings: &Settings) -> Vec<CheckFinding> {
    app::certificates(settings).iter().map(certificate).collect()
}

fn certificate(known: &KnownCertificate) -> CheckFinding {
    let (peer, subject, day) = (known.peer.as_str(), &known.expiry.subject, known.expiry.day());
    let (whose, remedy) = match &known.host {
        Some(host) => (format!("of {peer} at {host}"), "tell the operator of that server to renew it"),
        None => (format!("of Causeway for {peer}"), "renew it: the server refuses it afterwards"),
    };
    let is_near = known.expiry.is_near(crate::clock::machine());
    CheckFinding {
        ok: true,
        what: format!("certificate {whose}: ({subject}) is valid until {day}"),
        hint: if is_near { remedy.to_owned() } else { String::new() },
    }
}

/// The certificate of the public listener.
fn listener_certificate(settings: &Settings) -> Option<CheckFinding> {
    let expiry = settings.ingress.tls.as_ref()?.expiry()?;
    let what = format!("ingress.tls.cert_file: ({}) is valid until {}", expiry.subject, expiry.day());
    let now = crate::clock::machine();
    Some(match (expiry.not_after < now, expiry.is_near(now)) {
        (true, _) => CheckFinding::wrong(what, "it has expired, so callers refuse it: renew it"),
        (_, near) => CheckFinding { ok: true, what, hint: if near { "renew it" } else { "" }.to_owned() },
    })
}

async fn servicenow(http: HttpClient, settings: &Settings) -> Vec<CheckFinding> {
    match app::servicenow(http, settings) {
        Ok(Some(servicenow)) => {
            let found = check::servicenow(&servicenow, &settings.queues()).await;
            let mut findings: Vec<CheckFinding> = found.into_iter().map(CheckFinding::from).collect();
            let reads_tables = settings.servicenow.as_ref().is_some_and(|servicenow| servicenow.bulk_read);
            if findings.iter().all(|finding| finding.ok) {
                match servicenow.api() {
                    ChatApi::ConnectSupport if reads_tables => findings.push(reading_back(&servicenow).await),
                    ChatApi::ConnectSupport => {}
                    ChatApi::VirtualAgent => findings.push(reading_rows(&servicenow, reads_tables).await),
                }
            }
            findings
        }
        Ok(None) => vec![CheckFinding::well("ServiceNow: not configured")],
        Err(error) => vec![CheckFinding::wrong(format!("ServiceNow: {error:#}"), "")],
    }
}

/// How open chats are read back: many with one request, or one by one.
async fn reading_back(servicenow: &ServiceNow) -> CheckFinding {
    match servicenow.shows_chat_tables().await {
        Ok(true) => CheckFinding::well("ServiceNow shows which of many chats changed (bulk_read)"),
        Ok(false) | Err(_) => CheckFinding {
            ok: true,
            what: "ServiceNow: chats are read back one by one, within servicenow.read_rate".to_owned(),
            hint: "with thousands of chats, let the user read the rows of live_message and chat_queue_entry (role live_feed_admin, or \
                   read rules of your own)"
                .to_owned(),
        },
    }
}

/// How agents' messages over the Virtual Agent API are found whose callbacks were lost.
async fn reading_rows(servicenow: &ServiceNow, reads_tables: bool) -> CheckFinding {
    let access = match reads_tables {
        true => Some(servicenow.agent_row_access().await.unwrap_or(RowAccess::None)),
        false => None,
    };
    rows_finding(access)
}

/// `access`: what the user may read of the rows; `None` if `servicenow.bulk_read` is off.
fn rows_finding(access: Option<RowAccess>) -> CheckFinding {
    let hint = match access {
        Some(RowAccess::Full) => {
            return CheckFinding::well(
                "ServiceNow shows agents' messages whose callbacks are lost (bulk_read, sys_cs_message); they are relayed after a worker \
                 has seen the row of a message with a callback",
            );
        }
        None => "servicenow.bulk_read is off",
        Some(RowAccess::WithoutText) => "let the user read the field payload of sys_cs_message",
        Some(RowAccess::None) => {
            "no row of an agent can be read: let the user read the rows of sys_cs_message with the fields conversation, direction, is_agent, \
             q_data_message_type, message_type, visibility_type, payload, send_time and sequence (a read rule of your own)"
        }
    };
    let what = "ServiceNow: an agent's message whose callback is lost is not read back".to_owned();
    CheckFinding { ok: true, what, hint: hint.to_owned() }
}

impl From<check::PlatformFinding> for CheckFinding {
    fn from(found: check::PlatformFinding) -> Self {
        Self { ok: found.ok, what: found.what, hint: found.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{CertificateExpiry, TlsPeer};

    #[test]
    fn a_hint_says_what_is_missing_to_read_lost_messages() {
        let full = rows_finding(Some(RowAccess::Full));
        assert!(full.ok && full.hint.is_empty(), "{full:?}");
        let missing = [
            (None, "bulk_read"),
            (Some(RowAccess::WithoutText), "field payload"),
            (Some(RowAccess::None), "no row of an agent"),
        ];
        for (access, named) in missing {
            let found = rows_finding(access);
            assert!(found.ok && found.hint.contains(named), "a right that is missing is no error: {found:?}");
        }
    }

    #[test]
    fn a_certificate_is_reported_a_month_before_its_end() {
        for (days, hinted) in [(29, true), (31, false)] {
            let not_after = crate::clock::machine() + jiff::SignedDuration::from_hours(days * 24);
            let expiry = CertificateExpiry { subject: "CN=causeway".to_owned(), not_after };
            for host in [None, Some("a.example".to_owned())] {
                let found =
                    certificate(&KnownCertificate { peer: TlsPeer::Xo, host, expiry: expiry.clone() });
                assert_eq!((found.ok, !found.hint.is_empty()), (true, hinted), "{found:?}");
                assert!(found.what.contains("CN=causeway"), "{found:?}");
            }
        }
    }
}
