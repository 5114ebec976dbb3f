//! Gap repair: publishes messages whose callbacks were lost. ServiceNow never repeats a failed callback
//! (`src/platform/servicenow/FACTS.md`). Each chat is therefore read back at each poll and before an end; before an agent's
//! message is relayed, `to_bot/callback_relay.rs` reads the chat back.
//!
//! Guarantees: each message is relayed once, because it has the same id in a callback and in a reading. A message that
//! became a dead letter is not published here, but by its replay. The readings of a worker count for
//! `servicenow.read_rate`.
//! Not responsible for: reading (`platform/servicenow/history.rs`), relaying (`to_bot/callback_relay.rs`), when a chat is read
//! (`poll.rs`, `to_agent/handoff.rs`), the Virtual Agent API (`virtual_agent_gaps.rs`).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::context::BridgeContext;
use crate::bridge::missing_message::{second_id, unrelayed};
use crate::conversation::{Conversation, DedupKey, Directory, DirectoryError};
use crate::delivery::{GatePermit, InternalError, RateLimiter, RecentKeys};
use crate::message::{Destination, LaneKey, Message, MessageId};
use crate::platform::servicenow::MessageRow;
use crate::platform::{CallError, ChatApi, ServiceNow};

/// Reads chats back, and publishes what was not relayed.
#[derive(Debug)]
pub(in crate::bridge) struct GapRepair {
    pub(super) context: Arc<BridgeContext>,
    /// Limits the polls of all chats together.
    pub(super) reads: RateLimiter,
    /// The messages that were published recently.
    published: Mutex<RecentKeys<MessageId, ()>>,
}

impl GapRepair {
    pub(in crate::bridge) fn new(context: Arc<BridgeContext>) -> Arc<Self> {
        let reads = RateLimiter::new(context.settings.read_rate);
        Arc::new(Self { context, reads, published: Mutex::default() })
    }

    /// Publishes the messages that were not relayed yet. They follow the messages that are already on the queue.
    pub(in crate::bridge) async fn repair(
        &self,
        directory: &Directory,
        servicenow: &ServiceNow,
        conversation: &Conversation,
        group: &str,
    ) -> Result<Result<(), CallError>, InternalError> {
        if servicenow.api() != ChatApi::ConnectSupport {
            return Ok(Ok(()));
        }
        let since = directory.last_relayed(group).await?;
        let reads = self.context.metrics.servicenow_reads.with_label_values(&["messages"]);
        let remote = match servicenow.messages_since(&conversation.id, group, since.as_deref()).await {
            Ok(history) => {
                reads.inc_by(history.requests);
                // The caller waited for one request. Further pages delay the next polls.
                self.reads.spend(history.requests.saturating_sub(1));
                history.messages
            }
            Err(error) => {
                reads.inc();
                return Ok(Err(error));
            }
        };
        for remote in remote.iter().filter(|remote| !remote.internal) {
            let lane = LaneKey::parse(group).map_err(InternalError::temporary)?;
            let place = (self.context.settings.bot_side.of_chat(), lane);
            let Some(lost) = unrelayed(directory, group, remote, place).await? else { continue };
            // A message that is already on the queue is not published again at each poll.
            if !self.is_published(lost.id) {
                self.publish(&lost).await?;
            }
        }
        Ok(Ok(()))
    }

    /// Whether the message was published recently.
    pub(super) fn is_published(&self, id: MessageId) -> bool {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Publishes a message whose callback was lost.
    pub(super) async fn publish(&self, lost: &Message) -> Result<(), InternalError> {
        self.context.queue.publish(lost).await?;
        self.published.lock().unwrap_or_else(PoisonError::into_inner).add(lost.id, ());
        Ok(())
    }

    /// Waits for the turn of this number of requests. `None` if ServiceNow may not be called now.
    pub(in crate::bridge) async fn enter_for_reading(&self, requests: u64) -> Option<GatePermit<'_>> {
        let turn = self.reads.next_slot();
        self.reads.spend(requests.saturating_sub(1));
        tokio::time::sleep_until(turn).await;
        self.context.gate(Destination::ServiceNow).enter(false).await
    }

    /// The groups with a message that has to be relayed still.
    pub(in crate::bridge) async fn with_unrelayed(
        &self,
        directory: &Directory,
        rows: Vec<MessageRow>,
    ) -> Result<HashSet<String>, DirectoryError> {
        let rows: Vec<(MessageId, String)> =
            rows.into_iter().map(|row| (MessageId::derived("servicenow", &row.sys_id), row.group)).collect();
        let keys: Vec<DedupKey> = rows.iter().flat_map(|(id, _)| settling(*id)).collect();
        let done: HashSet<DedupKey> = directory.find_done(&keys).await?.iter().map(|done| done.key).collect();
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new =
            |id: MessageId| !settling(id).iter().any(|key| done.contains(key)) && !published.contains(&id);
        Ok(rows.into_iter().filter(|(id, _)| is_new(*id)).map(|(_, group)| group).collect())
    }
}

/// The facts after which a message of a chat is not relayed again (`missing_message.rs`).
fn settling(message: MessageId) -> [DedupKey; 5] {
    let second = second_id(message);
    [
        DedupKey::Delivered(message),
        DedupKey::Internal(message),
        DedupKey::DeadLettered { message, replays: 0 },
        DedupKey::Delivered(second),
        DedupKey::DeadLettered { message: second, replays: 0 },
    ]
}
