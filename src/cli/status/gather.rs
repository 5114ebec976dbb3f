//! Asks each part of a deployment for its state: the admin listener, the queue, the directory and the dead letters. With `--admin`,
//! only that admin listener is asked.
//!
//! Guarantees: the parts are asked at the same time, each with a time limit, and the failure of one part hides no other part.
//! The verb creates no file; a file that does not exist yet is shown as empty. On RabbitMQ the dead letters are read only once and
//! only if there are few, because a reader of dead letters delays a replay.
//! Not responsible for: one destination (`destination.rs`), what a process knows and whether it needs a person (`status/`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::super::{admin_listener, output};
use super::destination;
use crate::app;
use crate::config::{DirectoryConfig, Settings};
use crate::conversation::ConversationState;
use crate::dead_letters::{self, DeadLetterFilter};
use crate::message::DeadReason;
use crate::queue::{Queue, QueueDepth};
use crate::status::{
    self, DeadLetterStatus, DeploymentStatus, DirectoryStatus, MetricSamples, ProcessState, ProcessStatus,
    QueueStatus,
};

/// The time limit of one part.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The most dead letters that are read from RabbitMQ.
const READ_MAX: u64 = 10_000;

/// The answers of the queue.
#[derive(Debug, Default)]
struct QueueAnswers {
    depth: Option<QueueDepth>,
    status: QueueStatus,
    dead_letters: DeadLetterStatus,
}

/// The state of the deployment of the settings. `is_first` is false for the later rounds of `--watch`.
pub(super) async fn local(settings: &Settings, is_first: bool) -> DeploymentStatus {
    let listener = admin_listener::local(settings.admin_listen);
    let (answers, directory, process) = tokio::join!(queue(settings, is_first), directory(settings), async {
        match &listener {
            Ok(listener) => process(listener).await,
            Err(error) => (not_reachable(format!("{error:#}")), MetricSamples::default()),
        }
    });
    let (mut process, samples) = process;
    process.address = settings.admin_listen.to_string();
    let mut queue_status = answers.status;
    let findings = findings(settings).await;
    let count = |queues: usize| u64::try_from(queues).unwrap_or(u64::MAX);
    queue_status.unsafe_policies = findings.as_ref().map(|found| count(found.unsafe_queues.len()));
    let shown = samples.sum(status::WITHOUT_MAJORITY).map(status::whole);
    queue_status.without_majority =
        shown.max(findings.as_ref().map(|found| count(found.without_majority.len())));
    let engine = if settings.queue.url.is_some() { "rabbitmq" } else { "embedded" };
    let known = status::of_process(process, &samples);
    let mut status = DeploymentStatus {
        engine: Some(engine.to_owned()),
        deployment: app::place(settings),
        destinations: destination::local(settings, &samples, answers.depth.as_ref()),
        queue: queue_status,
        directory,
        dead_letters: answers.dead_letters,
        ..known
    };
    if engine == "embedded" {
        // On the embedded engine one process is the worker.
        let owns = status.destinations.iter().any(|one| one.consumed.is_some_and(|count| count > 0));
        let runs = status.process.state != ProcessState::NotReachable;
        status.queue.workers = runs.then_some(u64::from(owns));
    }
    status.find_problems(late(settings), false);
    status
}

/// The state that the process behind this admin listener knows.
pub(super) async fn remote(settings: &Settings, listener: &Url) -> DeploymentStatus {
    let (process, samples) = process(listener).await;
    let mut status = status::of_process(process, &samples);
    for one in &mut status.destinations {
        one.destination = output::harmless(&one.destination);
    }
    if let Some(total) = status.dead_letters.total {
        status.dead_letters = reasons(settings, listener, total).await;
    }
    status.find_problems(late(settings), true);
    status
}

/// The age in seconds at which a waiting message is half-way to its deadline.
fn late(settings: &Settings) -> u64 {
    settings.delivery.deadline.message.as_secs() / 2
}

/// Asks `/readyz` and `/metrics`.
async fn process(listener: &Url) -> (ProcessStatus, MetricSamples) {
    let get = async |path| admin_listener::get(&admin_listener::path(listener, path), None).await;
    let (readiness, metrics) = tokio::join!(get("/readyz"), get("/metrics"));
    let samples = match metrics {
        Ok((200, text)) => MetricSamples::parse(&text),
        _ => MetricSamples::default(),
    };
    let (state, error) = match readiness {
        Ok((200, _)) => (ProcessState::Ready, None),
        Ok((503, reason)) => (ProcessState::NotReady, Some(reason.trim().to_owned())),
        Ok((status, _)) => {
            (ProcessState::NotReachable, Some(format!("status {status}: no admin listener of Causeway")))
        }
        Err(error) => (ProcessState::NotReachable, Some(format!("{error:#}"))),
    };
    let version = samples.label("causeway_build_info", "version").map(str::to_owned);
    let clock_ahead_seconds = samples.sum("causeway_clock_ahead_seconds");
    (ProcessStatus { address: listener.to_string(), state, version, error, clock_ahead_seconds }, samples)
}

/// What the management API of the broker shows; `None` if it is not known.
async fn findings(settings: &Settings) -> Option<app::QueueFindings> {
    app::BrokerPolicies::new(settings).ok()??.findings().await.ok()
}

fn not_reachable(error: String) -> ProcessStatus {
    ProcessStatus { error: Some(error), ..ProcessStatus::default() }
}

async fn queue(settings: &Settings, is_first: bool) -> QueueAnswers {
    let failed = |error: String| QueueAnswers {
        status: QueueStatus { error: Some(error), ..QueueStatus::default() },
        ..QueueAnswers::default()
    };
    let is_rabbit = settings.queue.url.is_some();
    if !is_rabbit && !settings.data_dir.join("queue.sqlite").exists() {
        let dead_letters = DeadLetterStatus { total: Some(0), ..DeadLetterStatus::default() };
        return QueueAnswers { dead_letters, ..QueueAnswers::default() };
    }
    let answers = async {
        let queue = app::open_admin(settings).await?;
        let answers = ask(&queue, is_rabbit, is_first).await;
        queue.close().await;
        answers
    };
    match tokio::time::timeout(TIMEOUT, answers).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => failed(format!("{error:#}")),
        Err(_) => failed(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn ask(queue: &Queue, is_rabbit: bool, is_first: bool) -> anyhow::Result<QueueAnswers> {
    let (depth, workers) = tokio::join!(queue.depth(), queue.count_workers());
    let depth = depth?;
    let mut dead = DeadLetterStatus { total: Some(depth.dead), ..DeadLetterStatus::default() };
    if depth.dead == 0 {
        dead.by_reason = Some(BTreeMap::new());
    } else if !is_rabbit {
        match queue.dead_reasons().await {
            Ok(reasons) => dead.by_reason = reasons.map(named),
            Err(error) => dead.error = Some(error.to_string()),
        }
    } else if !is_first {
        dead.error = Some("read only once with --watch".to_owned());
    } else if depth.dead > READ_MAX {
        dead.error = Some(format!("more than {READ_MAX}: use `causeway dead count`"));
    } else {
        match dead_letters::list(queue, &DeadLetterFilter::default()).await {
            Ok(entries) => {
                let reasons = dead_letters::summary_by(&entries, |entry| entry.reason);
                dead.by_reason =
                    Some(named(reasons.into_iter().map(|(it, group)| (it, group.count)).collect()));
            }
            Err(error) => dead.error = Some(error.to_string()),
        }
    }
    let status =
        QueueStatus { workers: workers?, unroutable: Some(depth.unroutable), ..QueueStatus::default() };
    Ok(QueueAnswers { depth: Some(depth), status, dead_letters: dead })
}

fn named(reasons: BTreeMap<DeadReason, u64>) -> BTreeMap<String, u64> {
    reasons.into_iter().map(|(reason, count)| (reason.to_string(), count)).collect()
}

/// The reasons of the dead letters, from the admin API. The metrics contain only the total.
async fn reasons(settings: &Settings, listener: &Url, total: u64) -> DeadLetterStatus {
    let known = |by_reason| DeadLetterStatus { total: Some(total), by_reason: Some(by_reason), error: None };
    let unknown =
        |error: String| DeadLetterStatus { total: Some(total), by_reason: None, error: Some(error) };
    if total == 0 {
        return known(BTreeMap::new());
    }
    let Some(token) = settings.admin_tokens.first().map(|one| &one.token) else {
        return unknown("set admin.token, the token of that process".to_owned());
    };
    let mut url = admin_listener::path(listener, "/dead-letters");
    url.set_query(Some("limit=1"));
    match admin_listener::get(&url, Some(token)).await {
        Ok((200, body)) => match counts(&body) {
            Some(counts) => known(counts),
            None => unknown("the answer of the admin API is not readable".to_owned()),
        },
        Ok((401, _)) => unknown("that process has another admin.token".to_owned()),
        Ok((status, _)) => unknown(format!("the admin API answered {status}")),
        Err(error) => unknown(format!("{error:#}")),
    }
}

fn counts(body: &str) -> Option<BTreeMap<String, u64>> {
    let document: Value = serde_json::from_str(body).ok()?;
    let mut counts = BTreeMap::new();
    for group in document["groups"].as_array()? {
        let reason = DeadReason::parse(group["reason"].as_str()?)?;
        *counts.entry(reason.to_string()).or_default() += group["count"].as_u64()?;
    }
    Some(counts)
}

async fn directory(settings: &Settings) -> DirectoryStatus {
    let kind = match &settings.directory {
        DirectoryConfig::Sqlite(_) => "SQLite",
        DirectoryConfig::Postgres(_) => "PostgreSQL",
    };
    let kind = Some(kind.to_owned());
    if matches!(&settings.directory, DirectoryConfig::Sqlite(path) if !path.exists()) {
        return DirectoryStatus { kind, ..DirectoryStatus::default() };
    }
    let counts = async {
        let directory = app::open_directory(settings).await?;
        let counts = directory.counts().await;
        directory.close().await;
        Ok::<_, anyhow::Error>(counts?)
    };
    let counts = match tokio::time::timeout(TIMEOUT, counts).await {
        Ok(Ok(counts)) => Ok(counts),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    };
    let error = counts.as_ref().err().cloned();
    let named = |(state, count)| (ConversationState::as_str(state).to_owned(), count);
    DirectoryStatus {
        kind,
        error,
        conversations: counts.ok().map(|counts| counts.into_iter().map(named).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_all_destinations_are_added() {
        let body = r#"{"matching": 3, "groups": [{"destination": "xo", "reason": "expired", "count": 1},
            {"destination": "events", "reason": "expired", "count": 2}], "dead_letters": []}"#;
        assert_eq!(counts(body), Some([("expired".to_owned(), 3)].into()));
        for wrong in ["", "{}", r#"{"groups": [{"reason": "boredom", "count": 1}]}"#] {
            assert_eq!(counts(wrong), None, "{wrong}");
        }
    }
}
