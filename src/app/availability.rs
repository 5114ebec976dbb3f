//! Asks ServiceNow about a queue, for the ingress. The ingress knows no platform, so the call is passed to it.
//!
//! Guarantees: a value is reported only if ServiceNow reported it. A process without a complete login for ServiceNow gets
//! no route ([`IngressState::availability`](crate::ingress::IngressState)).
//! Not responsible for: keeping answers (`ingress/availability.rs`).

use std::sync::Arc;

use futures_util::FutureExt;

use super::components::{HttpClients, servicenow};
use crate::config::Settings;
use crate::ingress::{AskError, AskQueue, AvailabilitySettings, QueueAvailability, QueueFacts};
use crate::platform::{CallError, ChatApi, ServiceNow};

/// The table of queues of the Virtual Agent API.
const AGENT_QUEUES: &str = "awa_queue";

/// The answers about queues, if the settings hold a complete login and the handoff API is on.
pub(super) fn availability(settings: &Settings) -> anyhow::Result<Option<Arc<QueueAvailability>>> {
    let Some(named) = settings.servicenow.as_ref().filter(|_| settings.ingress.handoffs_token.is_set())
    else {
        return Ok(None);
    };
    let kept = AvailabilitySettings { kept: named.availability_kept, queue_id: named.queue_id.clone() };
    // The lease of the worker's client does not apply: this call changes nothing.
    let clients = HttpClients::new(settings)?;
    let Some(client) = servicenow(clients.servicenow, settings)? else { return Ok(None) };
    let ask: AskQueue = Arc::new(move |queue| {
        let client = client.clone();
        async move { ask(&client, &queue).await }.boxed()
    });
    Ok(Some(QueueAvailability::new(kept, ask)))
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
