//! Lends nothing before the broker says that nobody else holds anything of the partition.
//!
//! "Single active consumer" is a choice, not a lock: who is cancelled while he holds messages keeps them, and the next one is
//! lent the later ones at once (measured on 3.10, 4.0 and 4.3). Causeway's own workers never cancel, but no worker should
//! have to trust in what another one does, in another version of it, or in how a broker ends a connection that broke.
//! Guarantees: what a subscription lends first is lent after all that others held has come back, and behind it.
//! Leaves to others: that those who hold something give it back (`borrowing.rs`). What was lent to us in the wrong order, and
//! goes back before it is settled, goes back in that order.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::BasicQosOptions;
use tokio::time::Instant;

use super::topology::{ANSWER_TIMEOUT, Counted, count};
use super::{RabbitError, wire, within};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Whoever let go of a partition gives back what he held within this.
const UNUSUAL: Duration = Duration::from_secs(1);

type Question = BoxFuture<'static, Result<(), RabbitError>>;

/// See the head of this file.
pub(super) struct Fence {
    /// `None` once nobody else holds anything.
    question: Option<Question>,
    /// What came before the answer, and, after it, was not handed out yet.
    kept: VecDeque<Delivery>,
}

impl Fence {
    /// For the consumer of a channel; `prefetch` is what that has.
    pub(super) fn new(channel: Channel, queue: String, prefetch: u16) -> Self {
        Self { question: Some(alone(channel, queue, prefetch).boxed()), kept: VecDeque::new() }
    }

    /// Takes what the broker lends.
    pub(super) fn keep(&mut self, delivery: Delivery) {
        self.kept.push_back(delivery);
    }

    /// What may be handed out by now.
    pub(super) fn next(&mut self) -> Option<Delivery> {
        if self.question.is_some() { None } else { self.kept.pop_front() }
    }

    /// Whether it has something to ask for: who is lent nothing is not the active consumer, and cannot be alone.
    pub(super) fn asks(&self) -> bool {
        self.question.is_some() && !self.kept.is_empty()
    }

    /// Waits until nobody else holds anything. What the broker lent until then has arrived: [`Self::open`] wants it. Cancel-safe.
    pub(super) async fn alone(&mut self) -> Result<(), RabbitError> {
        let Some(question) = &mut self.question else { return Ok(()) };
        let alone = question.await;
        self.question = None;
        alone
    }

    /// Takes what else was lent by then. What came back from others was in front of what is new, whichever came first.
    pub(super) fn open(&mut self, more: impl IntoIterator<Item = Delivery>) {
        self.kept.extend(more);
        let (back, new): (VecDeque<_>, VecDeque<_>) =
            self.kept.drain(..).partition(|delivery| wire::earlier(delivery) > 0);
        self.kept.extend(back.into_iter().chain(new));
    }
}

async fn alone(channel: Channel, queue: String, prefetch: u16) -> Result<(), RabbitError> {
    let asked = Instant::now();
    let mut told = false;
    loop {
        // Counts the active consumer, and others that hold something; not those who only wait in line. The one is us. Of a
        // queue that does not answer in time the broker says 0.
        let Counted { consumers, .. } = count(&channel, &queue).await?;
        if consumers == 1 {
            break;
        }
        if consumers > 1 && asked.elapsed() > UNUSUAL && !std::mem::replace(&mut told, true) {
            tracing::warn!(
                queue,
                "another consumer let go of its partition and did not give back what it holds"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // What came back had been lent to us before that answer, and is on its way on this channel: it comes before the next one.
    within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await
}
