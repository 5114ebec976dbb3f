//! `causeway check`: validates the settings, then contacts each system that they name. Each result has one line, and
//! a hint if needed.
//!
//! Guarantees: all checks run at once, each with a time limit. A failed check does not hide another one. The exit
//! code is 0 if all checks pass, else 1.
//! Not responsible for: the checks of the platforms (`platform/check.rs`).

use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;

use super::output::{self, AnsiPaint};
use super::{CliFailure, SettingFiles};
use crate::app;
use crate::config::{DirectoryConfig, REFERENCE, RunPurpose, Settings, SpooledSenders};
use crate::conversation::DedupKey;
use crate::message::MessageId;
use crate::platform::{CertificateExpiry, HttpClient, check};
use crate::queue::{QueueDepth, QueueError};

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Print every setting with its default and its meaning as a settings file, then exit
    #[arg(long)]
    print_defaults: bool,
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
    let settings = sources.settings_for_admin(RunPurpose::Check)?;
    let paint = AnsiPaint::stdout(&sources.environment);
    let roles = roles(args.role, &settings, sources);
    let (queue, directory, platforms) = tokio::join!(
        within("queue", queue(&settings)),
        within("directory", directory(&settings)),
        within("platforms", platforms(&settings)),
    );
    let mut well = true;
    for finding in roles.iter().chain(&queue).chain(&directory).chain(&platforms) {
        well &= finding.ok;
        tell(paint, finding)?;
    }
    if well { Ok(()) } else { Err(CliFailure::Told) }
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

/// The oldest RabbitMQ that Causeway is tested with, and the first version of the maintained generation.
const BROKER_MIN: (u32, u32) = (3, 10);
const BROKER_NOW: (u32, u32) = (4, 0);

/// Checks the broker's version, connects, declares or verifies the topology, counts the messages, and tests the
/// routing.
async fn queue(settings: &Settings) -> Vec<CheckFinding> {
    let engine = if settings.queue.url.is_some() { "RabbitMQ" } else { "embedded engine" };
    let version = app::broker_version(settings).await.ok().flatten();
    let age = version.as_deref().and_then(broker_age);
    if let Some(too_old) = age.as_ref().filter(|finding| !finding.ok) {
        return vec![too_old.clone()];
    }
    // This check opens the embedded engine read-only: the check neither keeps a service from starting nor leaves
    // files of another user behind.
    let opened = if settings.queue.url.is_some() {
        app::open_queue(settings).await
    } else if settings.data_dir.join("queue.sqlite").exists() {
        app::open_admin(settings).await
    } else {
        let folder = settings.data_dir.display();
        return vec![CheckFinding::well(format!("queue: {engine}, nothing is stored yet in {folder}"))];
    };
    let queue = match opened {
        Ok(queue) => queue,
        Err(error) => return vec![queue_trouble(engine, &error)],
    };
    let name = version.map_or_else(|| engine.to_owned(), |version| format!("{engine} {version}"));
    let mut findings = match queue.depth().await {
        Ok(depth) => depths(&name, queue.partitions(), &depth),
        Err(error) => vec![queue_trouble(engine, &error.into())],
    };
    findings.extend(age);
    match queue.routes().await {
        Ok(true) => {}
        Ok(false) => findings.push(CheckFinding {
            ok: true,
            what: format!("queue: {engine}: the bindings were not tested"),
            hint: "the user of queue.url may not make a temporary queue (the right to configure ^amq\\.gen): compare the bindings \
                   with \"Rights of the broker's user\" in deploy/README.md"
                .to_owned(),
        }),
        Err(error @ QueueError::Refused(_)) => findings.push(queue_trouble(engine, &error.into())),
        Err(error) => {
            let hint = "messages would not reach their queues: does the user of queue.url have the rights to configure, write \
                        and read, and is there a policy on the exchanges in, dlx and in.unrouted?";
            findings.push(CheckFinding::wrong(format!("queue: {engine} does not route: {error}"), hint));
        }
    }
    queue.close().await;
    findings.extend(spool(settings));
    findings
}

/// Whether an ingress could keep messages while the broker is away.
fn spool(settings: &Settings) -> Option<CheckFinding> {
    if settings.ingress.spool == SpooledSenders::Off || settings.queue.url.is_none() {
        return None;
    }
    let folder = settings.data_dir.join("spool");
    // The check makes no folder: it may run as another user than the service.
    let mut existing = folder.as_path();
    while !existing.exists() {
        existing =
            existing.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    }
    let shown = folder.display();
    match rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Some(CheckFinding::well(format!(
            "queue: an ingress keeps messages in {shown} while the broker is away"
        ))),
        Err(error) => Some(CheckFinding {
            ok: true,
            what: format!("queue: this user cannot write {shown}: {error}"),
            hint: "an ingress needs a data_dir that it can write, or ingress.spool = \"off\"".to_owned(),
        }),
    }
}

fn depths(name: &str, partitions: u16, depth: &QueueDepth) -> Vec<CheckFinding> {
    let waiting = output::counted(depth.waiting.values().sum(), "message");
    let dead = output::counted(depth.dead, "dead letter");
    let found = format!("queue: {name}, {partitions} partitions, {waiting} waiting, {dead}");
    let mut findings = vec![CheckFinding::well(found)];
    if depth.unroutable > 0 {
        let astray = output::counted(depth.unroutable, "message");
        let hint = "a partition was unbound, or a client publishes with another routing key: this check restores the bindings; \
                    move the messages from the queue unrouted to the exchange in with RabbitMQ's shovel";
        findings.push(CheckFinding::wrong(format!("queue: {astray} found no partition"), hint));
    }
    findings
}

/// The finding for a broker of this version. `None` for a maintained version and for an unreadable version.
fn broker_age(version: &str) -> Option<CheckFinding> {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next()?, numbers.next().unwrap_or(0));
    let found = format!("queue: RabbitMQ {version}");
    if (major, minor) < BROKER_MIN {
        let hint = "Causeway needs 3.10 or later, because older quorum queues can lose or dead-letter messages: upgrade the broker";
        return Some(CheckFinding::wrong(format!("{found} is too old"), hint));
    }
    let hint = "it works, but RabbitMQ maintains only 4.x: plan the upgrade";
    ((major, minor) < BROKER_NOW).then(|| CheckFinding {
        ok: true,
        what: format!("{found} is outdated"),
        hint: hint.to_owned(),
    })
}

fn queue_trouble(engine: &str, error: &anyhow::Error) -> CheckFinding {
    let hint = match error.downcast_ref::<QueueError>() {
        Some(QueueError::Busy(_)) => "another process has opened it: find out which one, and why",
        Some(QueueError::Mismatch(_)) => {
            "the queue was created with other settings or by another version: see queue.partitions"
        }
        Some(QueueError::Refused(_)) => {
            "give the user of queue.url the rights to configure, write and read (rabbitmqctl set_permissions); if an \
             administrator makes exchanges, queues and bindings, write and read are enough: see \"Rights of the broker's user\" \
             in deploy/README.md"
        }
        Some(QueueError::TooLarge(_)) => "raise max_message_size of RabbitMQ",
        Some(QueueError::Full) => "make room on the disk, or let a worker take messages out",
        Some(QueueError::Unavailable(_)) | None => {
            "is queue.url right, and may its user connect? Without queue.url: may data_dir be written?"
        }
    };
    CheckFinding::wrong(format!("queue: {engine}: {error:#}"), hint)
}

/// Opens the directory (which creates or migrates its schema) and writes into it.
async fn directory(settings: &Settings) -> Vec<CheckFinding> {
    let (name, hint) = match &settings.directory {
        DirectoryConfig::Sqlite(_) => {
            ("SQLite", "may the folder be written? directory.url or data_dir names it")
        }
        DirectoryConfig::Postgres(_) => {
            ("PostgreSQL", "is directory.url right, does the database exist, and may its user create tables?")
        }
    };
    let wrong = |error: &dyn std::fmt::Display| {
        vec![CheckFinding::wrong(format!("directory: {name}: {error:#}"), hint)]
    };
    if let DirectoryConfig::Sqlite(path) = &settings.directory
        && !path.exists()
    {
        return vec![CheckFinding::well(format!(
            "directory: SQLite, nothing is stored yet in {}",
            path.display()
        ))];
    }
    let directory = match app::open_directory(settings).await {
        Ok(directory) => directory,
        Err(error) => return wrong(&error),
    };
    // A key of a message that never existed. It expires like any other.
    let written =
        directory.mark_done(DedupKey::SelfTest(MessageId::fresh()), None, crate::clock::now()).await;
    directory.close().await;
    match written {
        Ok(_) => vec![CheckFinding::well(format!("directory: {name}, can be written"))],
        Err(error) => wrong(&error),
    }
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
    findings
        .extend(settings.network.servicenow.tls.client_expiry().map(|expiry| client_certificate(&expiry)));
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

fn client_certificate(expiry: &CertificateExpiry) -> CheckFinding {
    let what = format!("servicenow.client_cert_file: ({}) is valid until {}", expiry.subject, expiry.day());
    let hint =
        if expiry.is_near(crate::clock::now()) { "renew it: ServiceNow refuses it afterwards" } else { "" };
    CheckFinding { ok: true, what, hint: hint.to_owned() }
}

async fn servicenow(http: HttpClient, settings: &Settings) -> Vec<CheckFinding> {
    match app::servicenow(http, settings) {
        Ok(Some(servicenow)) => check::servicenow(&servicenow, &settings.queues())
            .await
            .into_iter()
            .map(CheckFinding::from)
            .collect(),
        Ok(None) => vec![CheckFinding::well("ServiceNow: not configured")],
        Err(error) => vec![CheckFinding::wrong(format!("ServiceNow: {error:#}"), "")],
    }
}

impl From<check::PlatformFinding> for CheckFinding {
    fn from(found: check::PlatformFinding) -> Self {
        Self { ok: found.ok, what: found.what, hint: found.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_broker_is_judged_by_numbers() {
        for (version, ok) in
            [("3.9.29", Some(false)), ("3.10.0", Some(true)), ("3.13.7", Some(true)), ("2", Some(false))]
        {
            assert_eq!(broker_age(version).map(|finding| finding.ok), ok, "{version}");
        }
        for version in ["4.0.0", "4.3.6", "4.10.0-rc.1", "10.1", "master", ""] {
            assert_eq!(broker_age(version), None, "{version}");
        }
    }

    #[test]
    fn a_client_certificate_is_reported_a_month_before_its_end() {
        for (days, hinted) in [(29, true), (31, false)] {
            let not_after = crate::clock::now() + jiff::SignedDuration::from_hours(days * 24);
            let found =
                client_certificate(&CertificateExpiry { subject: "CN=causeway".to_owned(), not_after });
            assert_eq!((found.ok, !found.hint.is_empty()), (true, hinted), "{found:?}");
        }
    }

    #[test]
    fn messages_that_went_astray_are_a_failure() {
        let depth = QueueDepth { unroutable: 2, ..QueueDepth::default() };
        let findings = depths("RabbitMQ 4.3.6", 8, &depth);
        assert!(findings[0].ok && !findings[1].ok && findings[1].what.contains("2 messages"), "{findings:?}");
        assert_eq!(depths("RabbitMQ 4.3.6", 8, &QueueDepth::default()).len(), 1);
    }
}
