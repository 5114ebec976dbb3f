//! The takeover guard: hands out no message until the broker reports that no other consumer has unacked messages of this
//! partition.
//!
//! A single active consumer is a selection, not a lock. A cancelled consumer keeps its unacked messages, and the next
//! consumer gets later messages at once (measured on 3.10, 4.0 and 4.3). Causeway's workers never cancel a consumer
//! that has unacked messages. The guard protects against other versions of the worker, and against the ways in which a
//! broker ends a broken connection.
//! Guarantees: a subscription hands out its first message only after the broker has requeued all unacked messages of other
//! consumers. The requeued messages come first. If this subscription ends, its messages go back in the same order.
//! If the broker does not redeliver a returned message in time, the subscription ends ([`TakeoverGuard::gives_up_at`]).
//! Not responsible for: other consumers that do not return their messages (`consumer.rs`). The partition waits for their
//! return.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicNackOptions, BasicQosOptions};
use lapin::types::ShortString;
use tokio::time::Instant;

use super::consumer::BrokerDelivery;
use super::topology::{ANSWER_TIMEOUT, QueueCount, count};
use super::{RabbitError, wire, within};

const RECHECK_DELAY: Duration = Duration::from_millis(20);
/// A consumer that releases a partition normally returns its messages within this time.
const SLOW_TAKEOVER: Duration = Duration::from_secs(1);

/// The takeover guard of one subscription. See the file header.
pub(super) struct TakeoverGuard {
    channel: Channel,
    queue: String,
    state: TakeoverState,
    /// The messages in hand, in the order in which they are handed out.
    held_back: VecDeque<BrokerDelivery>,
}

enum TakeoverState {
    /// Other consumers may have unacked messages. The future returns how long another consumer had some, if one had.
    Checking(BoxFuture<'static, Result<Option<Duration>, RabbitError>>),
    /// New messages went back to the queue, to be redelivered behind the messages of other consumers.
    Reordering(ReorderState),
    Open,
}

struct ReorderState {
    gives_up_at: Instant,
    /// The ids of messages that went back and were not redelivered yet.
    returning: Vec<Option<ShortString>>,
    /// Later publishes that arrived before the redeliveries. They go back, too.
    blocked: Vec<BrokerDelivery>,
}

impl TakeoverGuard {
    /// For the only consumer of `channel`, whose prefetch is `prefetch`.
    pub(super) fn new(channel: Channel, queue: String, prefetch: u16) -> Self {
        let question = sole_consumer(channel.clone(), queue.clone(), prefetch).boxed();
        Self { channel, queue, state: TakeoverState::Checking(question), held_back: VecDeque::new() }
    }

    /// Takes a delivery from the broker.
    pub(super) fn keep(&mut self, delivery: BrokerDelivery) {
        let TakeoverState::Reordering(reorder) = &mut self.state else {
            return self.held_back.push_back(delivery);
        };
        let is_back = reorder.returned(&delivery);
        if is_back || wire::redeliveries(&delivery) > 0 {
            self.held_back.push_back(delivery);
        } else {
            reorder.blocked.push(delivery);
        }
        if reorder.returning.is_empty() {
            let blocked = std::mem::take(&mut reorder.blocked);
            self.send_back(blocked);
        }
    }

    /// The next message that may be handed out.
    pub(super) fn next(&mut self) -> Option<BrokerDelivery> {
        if matches!(self.state, TakeoverState::Open) { self.held_back.pop_front() } else { None }
    }

    /// Whether [`Self::sole_consumer`] must be awaited. A consumer without any delivery is not the active consumer, so the question
    /// is useless.
    pub(super) fn is_checking(&self) -> bool {
        matches!(self.state, TakeoverState::Checking(_)) && !self.held_back.is_empty()
    }

    /// When to give up waiting for the redeliveries. A policy of the broker may have removed the messages.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        match &self.state {
            TakeoverState::Reordering(reorder) => Some(reorder.gives_up_at),
            TakeoverState::Checking(_) | TakeoverState::Open => None,
        }
    }

    /// Waits until no other consumer has unacked messages, and returns how long another one had. All deliveries that the
    /// broker sent before have arrived then; [`Self::open`] needs both. Cancel-safe.
    pub(super) async fn sole_consumer(&mut self) -> Result<Option<Duration>, RabbitError> {
        let TakeoverState::Checking(question) = &mut self.state else { return Ok(None) };
        let answer = question.await;
        self.state = TakeoverState::Open;
        answer
    }

    /// Starts to hand out the messages in hand and `more`, the deliveries that arrived meanwhile. Messages that others
    /// returned were in front of new ones. If they arrived in another order, the new ones go back and are redelivered.
    pub(super) fn open(&mut self, others: Option<Duration>, more: impl IntoIterator<Item = BrokerDelivery>) {
        self.held_back.extend(more);
        let is_new = |delivery: &BrokerDelivery| wire::redeliveries(delivery) == 0;
        let new_first =
            self.held_back.iter().skip_while(|delivery| !is_new(delivery)).any(|delivery| !is_new(delivery));
        if others.is_none() && !new_first {
            return;
        }
        let (new, back): (Vec<_>, Vec<_>) = self.held_back.drain(..).partition(is_new);
        self.held_back = back.into();
        tracing::info!(
            queue = self.queue, waited = ?others.unwrap_or_default(), new = new.len(), back = self.held_back.len(),
            "previous consumer released the partition while it still had unacked messages; order restored"
        );
        self.send_back(new);
    }

    /// Returns the messages one by one. In the queue they keep this order, behind the messages that others returned and
    /// before later publishes.
    fn send_back(&mut self, deliveries: Vec<BrokerDelivery>) {
        let gives_up_at = Instant::now() + ANSWER_TIMEOUT;
        let mut reorder = ReorderState { gives_up_at, returning: Vec::new(), blocked: Vec::new() };
        for delivery in deliveries {
            let options = BasicNackOptions { multiple: false, requeue: true };
            // One poll queues the frame in lapin. If that fails, the subscription has ended.
            let _ = self.channel.basic_nack(delivery.delivery_tag, options).now_or_never();
            reorder.returning.push(name(&delivery));
        }
        self.state = if reorder.returning.is_empty() {
            TakeoverState::Open
        } else {
            TakeoverState::Reordering(reorder)
        };
    }
}

impl ReorderState {
    fn returned(&mut self, delivery: &Delivery) -> bool {
        let name = name(delivery);
        let at = self.returning.iter().position(|returning| *returning == name);
        at.map(|at| self.returning.remove(at)).is_some()
    }
}

fn name(delivery: &Delivery) -> Option<ShortString> {
    delivery.properties.message_id().clone()
}

async fn sole_consumer(
    channel: Channel,
    queue: String,
    prefetch: u16,
) -> Result<Option<Duration>, RabbitError> {
    let asked = Instant::now();
    let (mut others, mut told) = (false, false);
    loop {
        // The count contains the active consumer (this one) and other consumers with unacked messages, but no waiting
        // consumer. The broker reports 0 if the queue does not answer in time.
        match count(&channel, &queue).await? {
            QueueCount { consumers: 1, .. } => break,
            QueueCount { consumers: 0, .. } => {}
            QueueCount { .. } => others = true,
        }
        if others && asked.elapsed() > SLOW_TAKEOVER && !std::mem::replace(&mut told, true) {
            tracing::warn!(
                queue,
                "the partition waits: a cancelled or disconnected consumer still has unacked messages"
            );
        }
        tokio::time::sleep(RECHECK_DELAY).await;
    }
    // The broker sent the returned messages on this channel before the count. So they arrive before the answer to the next
    // command.
    within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(others.then(|| asked.elapsed()))
}
