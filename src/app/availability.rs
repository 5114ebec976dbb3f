//! Asks ServiceNow about a queue, for the ingress. The ingress knows no platform, so the call is passed to it. A process
//! without a login for ServiceNow asks the workers: the question and the answer are rows of the directory.
//!
//! Guarantees: a value is reported only if ServiceNow reported it. A question that no worker answers within
//! [`WORKER_TIME`] counts as unanswered.
//! Not responsible for: keeping answers (`ingress/availability.rs`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::components::live_servicenow;
use super::reload::ChangeHandlers;
use crate::clock;
use crate::config::Settings;
use crate::conversation::{Directory, DirectoryError};
use crate::ingress::{AskError, AskQueue, AvailabilitySettings, QueueAvailability, QueueFacts};
use crate::platform::{CallError, ChatApi, ServiceNow};
use crate::tasks::CancellationToken;

/// The table of queues of the Virtual Agent API.
const AGENT_QUEUES: &str = "awa_queue";
/// How long an ingress waits for the answer of a worker.
const WORKER_TIME: Duration = Duration::from_secs(8);
/// How often an ingress looks for the answer, and a worker for questions.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const LOOK_FOR_QUESTIONS: Duration = Duration::from_millis(500);
/// A queue that was not asked about for this time is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The answers about queues, if the handoff API is on and this process has a login for ServiceNow or a worker has one.
pub(super) fn availability(
    settings: &Settings,
    directory: Option<&Directory>,
    handlers: &mut ChangeHandlers,
) -> anyhow::Result<Option<Arc<QueueAvailability>>> {
    if !settings.ingress.handoffs_token.is_set() {
        return Ok(None);
    }
    let kept = AvailabilitySettings {
        kept: settings.availability_kept,
        queue_id: settings.default_queue_id.clone(),
    };
    if settings.servicenow.is_some() {
        // The lease of the worker's client does not apply: this call changes nothing.
        let Some(client) = live_servicenow(settings, handlers)? else { return Ok(None) };
        let ask: AskQueue = Arc::new(move |queue| {
            let client = client.clone();
            async move { ask(&client, &queue).await }.boxed()
        });
        return Ok(Some(QueueAvailability::new(kept, ask)));
    }
    // The embedded engine has no separate workers.
    let Some(directory) = directory.filter(|_| settings.queue.url.is_some()).cloned() else {
        return Ok(None);
    };
    let ask: AskQueue = Arc::new(move |queue| {
        let directory = directory.clone();
        async move {
            ask_workers(&directory, &queue).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "could not ask the workers whether a queue is open");
                Err(AskError::Away)
            })
        }
        .boxed()
    });
    Ok(Some(QueueAvailability::new(kept, ask)))
}

/// Asks the workers by a row of the directory.
async fn ask_workers(
    directory: &Directory,
    queue: &str,
) -> Result<Result<QueueFacts, AskError>, DirectoryError> {
    let now = clock::now();
    let number = directory.ask_about_queue(queue, now, now.checked_sub(FORGET_AFTER).unwrap_or(now)).await?;
    let began = Instant::now();
    while began.elapsed() < WORKER_TIME {
        if let Some(answer) = directory.queue_answer(queue, number).await? {
            return Ok(serde_json::from_str(&answer).unwrap_or(Err(AskError::Away)));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(Err(AskError::Away))
}

/// Answers the questions of separate ingress processes, until the cancellation.
pub(super) async fn answer_questions(
    client: ServiceNow,
    directory: Directory,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_FOR_QUESTIONS) => {}
        }
        if let Err(error) = answer_once(&client, &directory).await {
            tracing::debug!(%error, "could not answer questions about queues");
        }
    }
}

async fn answer_once(client: &ServiceNow, directory: &Directory) -> Result<(), DirectoryError> {
    for (queue, number) in directory.claim_queue_questions().await? {
        let answer = ask(client, &queue).await;
        let answer = serde_json::to_string(&answer).unwrap_or_default();
        directory.answer_queue_question(&queue, number, &answer).await?;
    }
    Ok(())
}

async fn ask(client: &ServiceNow, queue: &str) -> Result<QueueFacts, AskError> {
    let found = match client.api() {
        ChatApi::ConnectSupport => connect_support(client, queue).await,
        ChatApi::VirtualAgent => virtual_agent(client, queue).await,
    };
    found.map_err(|error| {
        if matches!(error.status(), Some(404 | 410)) {
            return AskError::UnknownQueue;
        }
        tracing::warn!(%error, "could not ask ServiceNow whether a queue is open");
        AskError::Away
    })
}

/// Connect Support names a text only while the queue is closed.
async fn connect_support(client: &ServiceNow, queue: &str) -> Result<QueueFacts, CallError> {
    let found = client.queue(queue).await?;
    Ok(QueueFacts {
        name: found.name,
        open: Some(found.not_available.is_none()),
        wait: found.wait,
        waiting: found.waiting,
        reason: found.not_available,
    })
}

/// The Virtual Agent API has no call for a queue. The row of the queue says only whether the queue is switched on: an
/// active queue may be outside of its schedule. An access rule may hide the row, so a missing row says nothing.
async fn virtual_agent(client: &ServiceNow, queue: &str) -> Result<QueueFacts, CallError> {
    let query = format!("sys_id={queue}");
    let rows = match client.rows(AGENT_QUEUES, &query, &["sys_id", "name", "active"], 1).await {
        Ok(rows) => rows,
        Err(error) if error.status() == Some(403) => Vec::new(),
        Err(error) => return Err(error),
    };
    let row = rows.into_iter().find(|row| row.get("sys_id").is_some_and(|id| id == queue));
    let value = |name: &str| row.as_ref()?.get(name).filter(|value| !value.is_empty()).cloned();
    let is_off = value("active").is_some_and(|active| active == "false");
    Ok(QueueFacts { name: value("name"), open: is_off.then_some(false), ..QueueFacts::default() })
}
