//! Lends nothing before the broker says that nobody else holds anything of the partition.
//!
//! "Single active consumer" is a choice, not a lock: who is cancelled while he holds messages keeps them, and the next one is
//! lent the later ones at once (measured on 3.10, 4.0 and 4.3). Causeway's own workers never cancel, but no worker should
//! have to trust in what another one does, in another version of it, or in how a broker ends a connection that broke.
//! Guarantees: what a subscription lends first is lent after all that others held has come back, and behind it; and in that
//! order it goes back, should it have to.
//! Where nothing more comes of what it waits for, the subscription is to end ([`Fence::gives_up_at`]).
//! Leaves to others: that those who hold something give it back (`borrowing.rs`); as long as they do not, the partition waits.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicNackOptions, BasicQosOptions};
use lapin::types::ShortString;
use tokio::time::Instant;

use super::borrowing::Parcel;
use super::topology::{ANSWER_TIMEOUT, Counted, count};
use super::{RabbitError, wire, within};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Whoever let go of a partition gives back what he held within this.
const UNUSUAL: Duration = Duration::from_secs(1);

/// See the head of this file.
pub(super) struct Fence {
    channel: Channel,
    queue: String,
    state: State,
    /// In the order in which they may be handed out.
    kept: VecDeque<Parcel>,
}

enum State {
    /// Others may hold something. The answer: for how long some did.
    Asking(BoxFuture<'static, Result<Option<Duration>, RabbitError>>),
    /// What is new went back, to be lent once more behind what others had.
    Mending(Mending),
    Open,
}

struct Mending {
    gives_up_at: Instant,
    /// Those that went back and did not come again yet.
    returning: Vec<Option<ShortString>>,
    /// What was published meanwhile and lent before them: it goes back, too.
    behind: Vec<Parcel>,
}

impl Fence {
    /// For the only consumer of a channel; `prefetch` is what that has.
    pub(super) fn new(channel: Channel, queue: String, prefetch: u16) -> Self {
        let question = alone(channel.clone(), queue.clone(), prefetch).boxed();
        Self { channel, queue, state: State::Asking(question), kept: VecDeque::new() }
    }

    /// Takes what the broker lends.
    pub(super) fn keep(&mut self, delivery: Parcel) {
        let State::Mending(mending) = &mut self.state else { return self.kept.push_back(delivery) };
        let is_back = mending.returned(&delivery);
        if is_back || wire::earlier(&delivery) > 0 {
            self.kept.push_back(delivery);
        } else {
            mending.behind.push(delivery);
        }
        if mending.returning.is_empty() {
            let behind = std::mem::take(&mut mending.behind);
            self.send_back(behind);
        }
    }

    /// What may be handed out by now.
    pub(super) fn next(&mut self) -> Option<Parcel> {
        if matches!(self.state, State::Open) { self.kept.pop_front() } else { None }
    }

    /// Whether it has something to ask for: who is lent nothing is not the active consumer, and cannot be alone.
    pub(super) fn asks(&self) -> bool {
        matches!(self.state, State::Asking(_)) && !self.kept.is_empty()
    }

    /// When what went back should have come again. A policy of the broker's may have taken it away.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        match &self.state {
            State::Mending(mending) => Some(mending.gives_up_at),
            State::Asking(_) | State::Open => None,
        }
    }

    /// Waits until nobody else holds anything, and says for how long somebody did. What the broker lent until then has arrived:
    /// [`Self::open`] wants both. Cancel-safe.
    pub(super) async fn alone(&mut self) -> Result<Option<Duration>, RabbitError> {
        let State::Asking(question) = &mut self.state else { return Ok(None) };
        let answer = question.await;
        self.state = State::Open;
        answer
    }

    /// Hands out what is kept and what else was lent by then, in its order. What came back from others was in front of what is
    /// new, whichever came first: where they came in the wrong order, what is new goes back and comes again.
    pub(super) fn open(&mut self, others: Option<Duration>, more: impl IntoIterator<Item = Parcel>) {
        self.kept.extend(more);
        let is_new = |delivery: &Parcel| wire::earlier(delivery) == 0;
        let new_first =
            self.kept.iter().skip_while(|delivery| !is_new(delivery)).any(|delivery| !is_new(delivery));
        if others.is_none() && !new_first {
            return;
        }
        let (new, back): (Vec<_>, Vec<_>) = self.kept.drain(..).partition(is_new);
        self.kept = back.into();
        tracing::info!(
            queue = self.queue, waited = ?others.unwrap_or_default(), new = new.len(), back = self.kept.len(),
            "another consumer let go of its partition before it gave back what it held; put in order"
        );
        self.send_back(new);
    }

    /// One by one: in this order they stand in the queue then, behind what others gave back and before all that is new.
    fn send_back(&mut self, deliveries: Vec<Parcel>) {
        let gives_up_at = Instant::now() + ANSWER_TIMEOUT;
        let mut mending = Mending { gives_up_at, returning: Vec::new(), behind: Vec::new() };
        for delivery in deliveries {
            let options = BasicNackOptions { multiple: false, requeue: true };
            // One poll puts the frame into lapin's line; where that fails the subscription is over.
            let _ = self.channel.basic_nack(delivery.delivery_tag, options).now_or_never();
            mending.returning.push(name(&delivery));
        }
        self.state = if mending.returning.is_empty() { State::Open } else { State::Mending(mending) };
    }
}

impl Mending {
    fn returned(&mut self, delivery: &Delivery) -> bool {
        let name = name(delivery);
        let at = self.returning.iter().position(|returning| *returning == name);
        at.map(|at| self.returning.remove(at)).is_some()
    }
}

fn name(delivery: &Delivery) -> Option<ShortString> {
    delivery.properties.message_id().clone()
}

async fn alone(channel: Channel, queue: String, prefetch: u16) -> Result<Option<Duration>, RabbitError> {
    let asked = Instant::now();
    let (mut others, mut told) = (false, false);
    loop {
        // Counts the active consumer, and others that hold something; not those who only wait in line. The one is us. Of a
        // queue that does not answer in time the broker says 0.
        match count(&channel, &queue).await? {
            Counted { consumers: 1, .. } => break,
            Counted { consumers: 0, .. } => {}
            Counted { .. } => others = true,
        }
        if others && asked.elapsed() > UNUSUAL && !std::mem::replace(&mut told, true) {
            tracing::warn!(
                queue,
                "a partition waits: a consumer that was cancelled or broke off still holds messages of it"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // What came back had been lent to us before that answer, and is on its way on this channel: it comes before the next one.
    within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(others.then(|| asked.elapsed()))
}
