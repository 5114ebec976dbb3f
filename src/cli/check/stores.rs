//! The checks of the broker and of the directory.
//!
//! Guarantees: no message enters a queue, and no file is made for the embedded engine. A hint names the setting or the
//! system that an operator has to change.
//! Not responsible for: printing (`check.rs`).

use std::path::Path;

use rustix::fs::Access;

use super::super::output;
use super::CheckFinding;
use crate::app;
use crate::clock;
use crate::config::{DirectoryConfig, Settings, SpooledSenders};
use crate::conversation::{DedupKey, DirectoryError};
use crate::message::MessageId;
use crate::queue::rabbit::GreetingError;
use crate::queue::{Queue, QueueDepth, QueueError};
use crate::tls::TlsFault;

/// The oldest RabbitMQ that Causeway is tested with, and the first version of the maintained generation.
const BROKER_MIN: (u32, u32) = (3, 10);
const BROKER_NOW: (u32, u32) = (4, 0);

/// Checks the broker's version, connects, declares or verifies the topology, counts the messages, and tests the
/// routing.
pub(super) async fn queue(settings: &Settings) -> Vec<CheckFinding> {
    let engine = if settings.queue.url.is_some() { "RabbitMQ" } else { "embedded engine" };
    let version = match app::broker_version(settings).await {
        Ok(version) => version,
        Err(GreetingError { reason, tls: Some(fault) }) => {
            let what = format!("queue: {engine}: {reason}");
            return vec![CheckFinding::wrong(what, tls_hint(fault, &BROKER))];
        }
        Err(_) => None,
    };
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
        Err(error) => {
            let no_majority = if version.is_some() { majority_of_existing(settings).await } else { None };
            return no_majority.into_iter().chain([queue_trouble(engine, &error)]).collect();
        }
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
            hint: "the user of queue.url may not bind a temporary queue (the rights on ^amq\\.gen, and to read the exchanges in and \
                   dlx). `causeway broker declare` with a user who may make queues restores the bindings"
                .to_owned(),
        }),
        Err(error @ QueueError::Refused(_)) => findings.push(queue_trouble(engine, &error.into())),
        Err(error) => {
            let hint = "messages would not reach their queues: does the user of queue.url have the rights to configure, write \
                        and read, and is there a policy on the exchanges of queue.prefix?";
            findings.push(CheckFinding::wrong(format!("queue: {engine} does not route: {error}"), hint));
        }
    }
    if settings.queue.url.is_some() {
        // The broker may close the connection because of this question, so it is the last one.
        findings.extend(majority(&queue).await);
    }
    queue.close().await;
    if settings.queue.url.is_some() {
        findings.extend(clock::ahead().and_then(clocks));
        findings.extend(policies(settings).await);
    }
    findings.extend(spool(settings));
    findings
}

/// Reports the difference from the broker's clock if messages are timed by the broker's clock because of it.
fn clocks(ahead: jiff::SignedDuration) -> Option<CheckFinding> {
    let seconds = ahead.as_secs();
    (seconds.saturating_mul(1_000).abs() >= clock::CORRECTED_MIN_MS).then(|| CheckFinding {
        ok: true,
        what: format!(
            "queue: this machine's clock is {} s {} the broker's",
            seconds.abs(),
            if seconds > 0 { "ahead of" } else { "behind" }
        ),
        hint: "set both clocks by NTP; until then messages are timed by the broker's clock".to_owned(),
    })
}

const NO_MAJORITY: &str = "a quorum queue needs a majority of its nodes: start the other nodes of the broker \
                           (rabbitmq-queues quorum_status QUEUE shows them)";

/// Reports a broker that answers and stores nothing.
async fn majority(queue: &Queue) -> Option<CheckFinding> {
    matches!(queue.commits().await, Ok(Some(false)))
        .then(|| CheckFinding::wrong("queue: RabbitMQ answers, but its queues store nothing", NO_MAJORITY))
}

/// A broker without a majority may not even confirm the declaration of queues that exist.
async fn majority_of_existing(settings: &Settings) -> Option<CheckFinding> {
    let queue = app::open_admin(settings).await.ok()?;
    let finding = majority(&queue).await;
    queue.close().await;
    finding
}

fn unsafe_queue(queue: &app::UnsafeQueue) -> CheckFinding {
    CheckFinding::wrong(
        format!("queue: a policy deletes messages: {queue}"),
        "take Causeway's queues out of that policy, and set both policies of deploy/rabbitmq/definitions.json; an \
         operator policy overrides them, so change it (rabbitmqctl list_operator_policies)",
    )
}

/// Reports policies of the broker that delete messages, and queues of which too few nodes run.
async fn policies(settings: &Settings) -> Vec<CheckFinding> {
    let policies = match app::BrokerPolicies::new(settings) {
        Ok(Some(policies)) => policies,
        Ok(None) => {
            return vec![CheckFinding {
                ok: true,
                what: "queue: the policies of the broker were not read".to_owned(),
                hint: "a policy for all queues (max-length, message-ttl, expires) deletes dead letters: set queue.management_url, \
                       or compare `rabbitmqctl list_policies` with deploy/rabbitmq/definitions.json"
                    .to_owned(),
            }];
        }
        Err(error) => return vec![CheckFinding::wrong(format!("queue.management_url: {error}"), "")],
    };
    match policies.findings().await {
        Ok(found) => {
            let mut findings: Vec<_> = found.unsafe_queues.iter().map(unsafe_queue).collect();
            if findings.is_empty() {
                findings.push(CheckFinding::well("queue: no policy of the broker deletes messages"));
            }
            let without = found.without_majority.iter();
            findings.extend(
                without.map(|name| {
                    CheckFinding::wrong(format!("queue: too few nodes of {name} run"), NO_MAJORITY)
                }),
            );
            findings
        }
        Err(reason) => {
            let hint = "is queue.management_url right, and has its user the tag management and a right on the vhost?";
            vec![CheckFinding::wrong(
                format!("queue: the policies of the broker cannot be read: {reason}"),
                hint,
            )]
        }
    }
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
pub(super) async fn directory(settings: &Settings) -> Vec<CheckFinding> {
    let name = match &settings.directory {
        DirectoryConfig::Sqlite(_) => "SQLite",
        DirectoryConfig::Postgres(_) => "PostgreSQL",
    };
    let wrong = |error: &anyhow::Error| {
        let hint = error.downcast_ref::<DirectoryError>().map_or("", |error| directory_hint(error, name));
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
    directory.look_at_certificate().await;
    let is_pooled = directory.is_pooled();
    directory.close().await;
    match written {
        Ok(_) => {
            let mut findings = vec![CheckFinding::well(format!("directory: {name}, can be written"))];
            findings.extend(is_pooled.then(pooler));
            findings
        }
        Err(error) => wrong(&error.into()),
    }
}

fn pooler() -> CheckFinding {
    CheckFinding {
        ok: true,
        what: "directory: a connection pooler stands before PostgreSQL, so statements have no names there".to_owned(),
        hint: "this works in session and in transaction mode. A direct address saves round trips, as does ?statement-cache-capacity=100 in \
               directory.url if PgBouncer is 1.21 or newer and has max_prepared_statements"
            .to_owned(),
    }
}

fn directory_hint(error: &DirectoryError, name: &str) -> &'static str {
    if name == "SQLite" {
        return match error {
            DirectoryError::Full(_) => "make room on the disk",
            _ => "may the folder be written? directory.url or data_dir names it",
        };
    }
    match error {
        DirectoryError::Unavailable(_) | DirectoryError::Pooled(_) => {
            "is PostgreSQL running, are host and port of directory.url right, and does it take more connections \
             (max_connections)?"
        }
        DirectoryError::Full(_) => "make room on the disk of PostgreSQL",
        DirectoryError::ReadOnly(_) => {
            "directory.url leads to a standby, or default_transaction_read_only is on: name an address that always leads \
             to the primary"
        }
        DirectoryError::Refused(_) => {
            "are user and password of directory.url right, does the database exist, does pg_hba.conf allow this machine \
             (a line with hostssl needs sslmode=require in the URL), and may the user create tables?"
        }
        DirectoryError::Tables(_) => {
            "a table of Causeway is missing or was changed: restore the database from its backup; in an empty database \
             the tables are made at the next start"
        }
        DirectoryError::Tls(fault, _) => tls_hint(*fault, &POSTGRES),
        DirectoryError::Mismatch(_) => "run the Causeway that made this database, or restore its backup",
    }
}

/// The words of a store for the hints about TLS.
struct TlsWords {
    ca_file: &'static str,
    not_tls: &'static str,
    tls_needed: &'static str,
    identity: &'static str,
    other: &'static str,
}

const BROKER: TlsWords = TlsWords {
    ca_file: "if the issuer is your company's: name its certificate with queue.ca_file",
    not_tls: "the port takes connections without TLS: name the port for TLS (5671 by default), or begin queue.url with amqp://",
    tls_needed: "begin queue.url with amqps://, or name the port for plain AMQP (5672 by default)",
    identity: "RabbitMQ wants a client certificate that it trusts: see queue.client_cert_file and queue.client_key_file",
    other: "is the port of queue.url right, and does the broker speak TLS 1.2 or later?",
};

const POSTGRES: TlsWords = TlsWords {
    ca_file: "if the issuer is your company's: name its certificate with directory.ca_file",
    not_tls: "set ssl = on in PostgreSQL, or leave sslmode and directory.ca_file away",
    tls_needed: "the address is not that of PostgreSQL: a balancer that ends TLS cannot be used, so name PostgreSQL itself",
    identity: "PostgreSQL wants a client certificate that it trusts: see directory.client_cert_file and directory.client_key_file",
    other: "does the server speak TLS 1.2 or later?",
};

const fn tls_hint(fault: TlsFault, words: &TlsWords) -> &'static str {
    match fault {
        TlsFault::UnknownIssuer => words.ca_file,
        TlsFault::Expired => {
            "renew the certificate of the server; if the date is wrong, set this machine's clock by NTP"
        }
        TlsFault::NotYetValid => "set this machine's clock by NTP",
        TlsFault::WrongName => {
            "the host of the URL must be a name in the certificate: use that name, or get a certificate with this one"
        }
        TlsFault::NotTls => words.not_tls,
        TlsFault::TlsNeeded => words.tls_needed,
        TlsFault::ClientCertificate => words.identity,
        TlsFault::Other => words.other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_reported_from_five_seconds_on() {
        let found = |seconds| clocks(jiff::SignedDuration::from_secs(seconds)).map(|found| found.what);
        assert_eq!((found(4), found(-4)), (None, None));
        assert!(found(3_600).unwrap().contains("3600 s ahead of"));
        assert!(found(-5).unwrap().contains("5 s behind"));
    }

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
    fn unroutable_messages_are_a_failure() {
        let depth = QueueDepth { unroutable: 2, ..QueueDepth::default() };
        let findings = depths("RabbitMQ 4.3.6", 8, &depth);
        assert!(findings[0].ok && !findings[1].ok && findings[1].what.contains("2 messages"), "{findings:?}");
        assert_eq!(depths("RabbitMQ 4.3.6", 8, &QueueDepth::default()).len(), 1);
    }
}
