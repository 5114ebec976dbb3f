//! Chooses the queue of a start, and checks that ServiceNow has every queue of the settings.
//!
//! Guarantees: the start's own Queue ID wins, then the first route that matches, then the default. If ServiceNow does
//! not have a Queue ID, the worker logs an error at its start, before a user is affected.
//!
//! Not responsible for: the definition of a route (`message/routing.rs`), `causeway check` (`platform/check.rs`).

use std::time::Duration;

use crate::bridge::context::BridgeContext;
use crate::bridge::settings::DeliverySettings;
use crate::message::Destination;
use crate::message::handoff::HandoffStart;
use crate::platform::ChatApi;
use crate::tasks::CancellationToken;

/// The delay before ServiceNow is asked again after a missing answer.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// The queue that the start waits in.
pub(super) fn queue_of<'a>(settings: &'a DeliverySettings, start: &'a HandoffStart) -> Option<&'a str> {
    let routed = || settings.routes.choose(start).and_then(|route| route.queue_id.as_deref());
    start.queue_id.as_deref().or_else(routed).or(settings.queue_id.as_deref())
}

/// Asks ServiceNow once about each queue, and repeats the questions that got no answer. `queues`: the settings key
/// and the Queue ID.
pub(in crate::bridge) async fn check_queues(
    context: &BridgeContext,
    mut queues: Vec<(String, String)>,
    stop: CancellationToken,
) -> Result<(), String> {
    let Some(servicenow) = context.servicenow.as_ref().filter(|known| known.api() == ChatApi::ConnectSupport)
    else {
        stop.cancelled().await;
        return Ok(());
    };
    while !queues.is_empty() {
        let mut unanswered = Vec::new();
        for (key, id) in queues {
            let Some(_pass) = context.gate(Destination::ServiceNow).enter(false).await else {
                unanswered.push((key, id));
                continue;
            };
            match servicenow.queue(&id).await {
                Ok(queue) => {
                    tracing::debug!(key, open = queue.not_available.is_none(), "ServiceNow has the queue")
                }
                Err(error) if matches!(error.status(), Some(404 | 410)) => {
                    tracing::error!(
                        key,
                        queue_id = id,
                        "ServiceNow has no queue of this id, or does not show it to the user: every start that goes there \
                         will fail. Correct the setting; `causeway servicenow queues` lists the ids"
                    );
                }
                Err(error) => {
                    tracing::debug!(key, %error, "could not ask ServiceNow for the queue; asking again later");
                    unanswered.push((key, id));
                }
            }
        }
        queues = unanswered;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY_DELAY), if !queues.is_empty() => {}
            else => {}
        }
    }
    stop.cancelled().await;
    Ok(())
}
