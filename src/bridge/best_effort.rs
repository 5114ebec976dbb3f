//! Makes calls to the Virtual Agent API that are useful but not necessary: receipts for an agent, and the end of a chat that
//! our side has left.
//!
//! Guarantees: no attempt waits for such a call, and a failure has no consequence. A worker makes at most
//! [`BEST_EFFORT_MAX`] of the calls at the same time, and none while ServiceNow's breaker is not passing.
//! Not responsible for: HTTP (`platform/servicenow/virtual_agent.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::bridge::context::BridgeContext;
use crate::conversation::Conversation;
use crate::message::{ConversationId, Destination, current_trace};
use crate::platform::servicenow::Receipt;
use crate::platform::{CallError, ChatApi, ServiceNow};

/// The maximum number of concurrent best-effort calls.
const BEST_EFFORT_MAX: usize = 8;
/// The time limit of a best-effort call. A longer call would delay the other calls of the same chat.
const BEST_EFFORT_TIMEOUT: Duration = Duration::from_secs(3);

/// The best-effort calls of a worker.
#[derive(Debug)]
pub(in crate::bridge) struct BestEffortCalls {
    context: Arc<BridgeContext>,
    slots: Arc<Semaphore>,
}

impl BestEffortCalls {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Arc<Self> {
        Arc::new(Self { context, slots: Arc::new(Semaphore::new(BEST_EFFORT_MAX)) })
    }

    /// Sends a receipt to the agent for the messages, if a permit for a best-effort call is free.
    pub(in crate::bridge) fn receipt(
        &self,
        conversation: &Conversation,
        group: &str,
        messages: Vec<String>,
        receipt: Receipt,
    ) {
        if messages.is_empty() || !self.context.settings.virtual_agent.receipts {
            return;
        }
        let (id, group) = (conversation.id.clone(), group.to_owned());
        self.start("receipt", async move |servicenow: ServiceNow| {
            servicenow.note_receipts(&id, &group, &messages, receipt).await
        });
    }

    /// Faults a chat that our side has left, so that no agent waits there.
    pub(in crate::bridge) fn give_up_chat(&self, id: &ConversationId, known: Option<&Conversation>) {
        let Some(group) = known.and_then(|known| known.group.clone()) else { return };
        let id = id.clone();
        self.start("fault", async move |servicenow: ServiceNow| servicenow.fault(&id, &group).await);
    }

    /// Starts a best-effort call: the caller does not wait for the call, and a failure has no consequence.
    fn start<F>(&self, what: &'static str, call: impl FnOnce(ServiceNow) -> F)
    where
        F: Future<Output = Result<(), CallError>> + Send + 'static,
    {
        let Some(servicenow) =
            self.context.servicenow.as_ref().filter(|known| known.api() == ChatApi::VirtualAgent)
        else {
            return;
        };
        if !self.context.gate(Destination::ServiceNow).breaker().passes() {
            return;
        }
        let Ok(seat) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        let call = current_trace::within(current_trace::current(), call(servicenow.clone()));
        crate::tasks::spawn(async move {
            match tokio::time::timeout(BEST_EFFORT_TIMEOUT, call).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(what, %error, "a best-effort call to ServiceNow failed")
                }
                Err(_) => tracing::debug!(what, "a best-effort call to ServiceNow timed out"),
            }
            drop(seat);
        });
    }
}
