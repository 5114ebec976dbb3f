//! Publishes through one task and one channel with a window of unconfirmed messages.
//!
//! Guarantees: a publish request is answered `Ok` only after the broker's confirm. At most one message of a lane is
//! unconfirmed, so that no later message overtakes a failed publish. A request whose caller has given up is not published.
//! A queue that confirms nothing does not hold up other queues (`shares.rs`).
//! Each channel has one task, because lapin swaps the confirms of several tasks on one channel. The task does not wait for
//! a write: requests that arrive meanwhile go into the same write.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::links::Links;
use super::shares::Shares;
use super::topology::ANSWER_TIMEOUT;
use super::{RabbitError, within};
use crate::message::{LaneKey, Message};
use crate::queue::QueueError;

/// Publish requests that may wait for the publisher.
pub(super) const LINE: usize = 1024;
/// The largest number of unconfirmed publishes.
const WINDOW: usize = 256;
/// Requests for one queue that may wait for its in-flight limit. More are refused, before they fill the line for all
/// queues.
const SHARE_LINE: usize = LINE / 4 * 3;
/// Above this number of unconfirmed publishes, new requests wait until half of them are confirmed, and then leave as one
/// batch. The broker writes and confirms a batch at once, which costs it half as much as single messages.
const ALONE: usize = 8;
/// The longest wait for a batch: a partition that confirms nothing must not hold up the others.
const COMPANY_WITHIN: Duration = Duration::from_millis(5);

/// A request to publish one message.
#[derive(Debug)]
pub(super) struct Order {
    exchange: &'static str,
    key: String,
    lane: LaneKey,
    properties: BasicProperties,
    body: Bytes,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

pub(super) type Answer = oneshot::Receiver<Result<(), QueueError>>;

impl Order {
    pub(super) fn new(
        exchange: &'static str,
        key: String,
        message: &Message,
        properties: BasicProperties,
    ) -> (Self, Answer) {
        let (answer, answered) = oneshot::channel();
        let (lane, body) = (message.lane.clone(), message.body.clone());
        (Self { exchange, key, lane, properties, body, answer }, answered)
    }

    fn refuse(self, error: QueueError) {
        // The caller may have given up.
        let _ = self.answer.send(Err(error));
    }
}

/// The end of a request: its queue and lane, the channel to its caller, and the result.
struct Confirmed {
    key: String,
    lane: LaneKey,
    answer: oneshot::Sender<Result<(), QueueError>>,
    result: lapin::Result<Confirmation>,
}

/// Publishes until cancellation. Without a connection every request is refused at once.
pub(super) async fn run(links: Arc<Links>, mut orders: mpsc::Receiver<Order>) {
    loop {
        let connection = tokio::select! {
            biased;
            () = links.stop.wait() => return,
            connection = links.until_publishing() => connection,
            order = orders.recv() => match order {
                Some(order) => {
                    order.refuse(QueueError::Unavailable("no connection to the broker".into()));
                    continue;
                }
                None => return,
            },
        };
        match open(&connection).await {
            Ok(channel) => {
                let mut window = Window::new(channel);
                tokio::select! {
                    () = links.stop.wait() => return,
                    error = window.publish_all(&mut orders) => tracing::debug!(%error, "publishing channel lost"),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no publishing channel");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn open(connection: &lapin::Connection) -> Result<Channel, RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    within(ANSWER_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// The unconfirmed publishes of one channel. Dropping it tells all waiting callers that the outcome is unknown.
struct Window {
    channel: Channel,
    unconfirmed: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    /// Requests behind an earlier request of their lane, which is unconfirmed or waits in `shares`.
    behind: HashMap<LaneKey, VecDeque<Order>>,
    shares: Shares<Order>,
    /// The number of requests in `behind` and in `shares`.
    waiting: usize,
    /// The next batch starts when at most this number is unconfirmed, ...
    begin_at: usize,
    /// ... or at this time.
    begin_by: Instant,
}

impl Window {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            unconfirmed: FuturesUnordered::new(),
            behind: HashMap::new(),
            shares: Shares::new(),
            waiting: 0,
            begin_at: ALONE,
            begin_by: Instant::now(),
        }
    }

    async fn publish_all(&mut self, orders: &mut mpsc::Receiver<Order>) -> RabbitError {
        loop {
            let room = self.unconfirmed.len() < WINDOW && self.waiting < LINE;
            let ready = self.unconfirmed.len() <= self.begin_at;
            tokio::select! {
                Some(confirmed) = self.unconfirmed.next() => {
                    let broken = confirmed.result.is_err() && !self.channel.status().connected();
                    self.confirmed(confirmed);
                    if broken {
                        return RabbitError::Fatal(QueueError::Unavailable("the channel is closed".into()));
                    }
                }
                () = tokio::time::sleep_until(self.begin_by), if room && !ready => self.begin_at = WINDOW,
                Some(order) = orders.recv(), if room && ready => {
                    let mut company = vec![order];
                    while self.unconfirmed.len() + company.len() < WINDOW
                        && let Ok(order) = orders.try_recv()
                    {
                        company.push(order);
                    }
                    // A partition handles neighbours in a batch as one piece of work. The sort is stable, so lanes keep
                    // their order.
                    company.sort_by(|one, other| one.key.cmp(&other.key));
                    company.into_iter().for_each(|order| self.take(order));
                    self.begin_at = ALONE.max(self.unconfirmed.len() / 2);
                    self.begin_by = Instant::now() + COMPANY_WITHIN;
                }
                else => return RabbitError::Fatal(QueueError::Unavailable("the queue is closed".into())),
            }
        }
    }

    fn take(&mut self, order: Order) {
        if order.answer.is_closed() {
            return;
        }
        if let Some(line) = self.behind.get_mut(&order.lane) {
            // Requests without a caller must not fill the line for all: their callers send new requests.
            while line.front().is_some_and(|order| order.answer.is_closed()) {
                line.pop_front();
                self.waiting -= 1;
            }
            line.push_back(order);
            self.waiting += 1;
            return;
        }
        let lane = order.lane.clone();
        self.behind.insert(lane.clone(), VecDeque::new());
        if !self.enter(order) {
            self.behind.remove(&lane);
        }
    }

    /// Publishes the request at once, or after its queue has confirmed another one. Returns `false` if too many requests
    /// wait for this queue.
    fn enter(&mut self, order: Order) -> bool {
        for gone in self.shares.give_up(&order.key, |order| order.answer.is_closed()) {
            self.waiting -= 1;
            self.next_of(&gone.lane);
        }
        if self.shares.waiting(&order.key) >= SHARE_LINE {
            order
                .refuse(QueueError::Unavailable("too many publishes to its queue wait for a confirm".into()));
            return false;
        }
        let key = order.key.clone();
        match self.shares.enter(&key, order) {
            Some(order) => self.publish(order),
            None => self.waiting += 1,
        }
        true
    }

    fn confirmed(&mut self, confirmed: Confirmed) {
        let answer = match confirmed.result {
            Ok(Confirmation::Ack(None)) => Ok(()),
            Ok(Confirmation::Ack(Some(_))) => {
                Err(QueueError::Unavailable("the broker has no queue for this message".into()))
            }
            Ok(_) => Err(QueueError::Full),
            Err(ref error) => Err(QueueError::Unavailable(error.to_string())),
        };
        let _ = confirmed.answer.send(answer);
        self.next_at(&confirmed.key);
        self.next_of(&confirmed.lane);
    }

    /// Publishes the next request for this queue whose caller still waits.
    fn next_at(&mut self, key: &str) {
        while let Some(order) = self.shares.confirmed(key) {
            self.waiting -= 1;
            if !order.answer.is_closed() {
                return self.publish(order);
            }
            self.next_of(&order.lane);
        }
    }

    /// Publishes the next request of this lane whose caller still waits.
    fn next_of(&mut self, lane: &LaneKey) {
        while let Some(line) = self.behind.get_mut(lane) {
            let Some(order) = line.pop_front() else {
                self.behind.remove(lane);
                return;
            };
            self.waiting -= 1;
            if !order.answer.is_closed() && self.enter(order) {
                return;
            }
        }
    }

    fn publish(&mut self, order: Order) {
        let Order { exchange, key, lane, properties, body, answer } = order;
        let channel = self.channel.clone();
        let mut publishing = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let to = key.as_str().into();
            let result = match channel.basic_publish(exchange.into(), to, options, &body, properties).await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            Confirmed { key, lane, answer, result }
        });
        // The first poll numbers the message and queues it in lapin, in one step. So polling here keeps the order of the
        // requests.
        match publishing.as_mut().now_or_never() {
            Some(confirmed) => self.unconfirmed.push(Box::pin(std::future::ready(confirmed))),
            None => self.unconfirmed.push(publishing),
        }
    }
}
