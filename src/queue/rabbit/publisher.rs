//! One task, one channel, a window of unconfirmed publishes.
//!
//! Guarantees: an order is answered `Ok` only after the broker's confirm; of one lane at most one message is unconfirmed,
//! so that a failed publish cannot be overtaken by the next; whoever gave up waiting is not published any more; a queue that
//! confirms nothing holds up no other (`shares.rs`).
//! One task for each channel, since several tasks on one channel make lapin swap their confirms. It waits for no write: what
//! is ordered meanwhile leaves in the same one.

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

/// Orders that may wait for the publisher.
pub(super) const LINE: usize = 1024;
/// Unconfirmed publishes at once.
const WINDOW: usize = 256;
/// Orders for one queue that may wait for their share. More are refused, before they fill the line for all.
const SHARE_LINE: usize = LINE / 4 * 3;
/// With more than these unconfirmed, orders wait until half of them is through, and then leave together: the broker writes
/// and confirms what comes together at once, which costs it half of what one by one does.
const ALONE: usize = 8;
/// No longer than this: a partition that confirms nothing may not hold up the others.
const COMPANY_WITHIN: Duration = Duration::from_millis(5);

/// One message to publish.
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
        // Nobody may be waiting any more.
        let _ = self.answer.send(Err(error));
    }
}

/// What a confirm says about an order: its lane, whom to tell, and what.
struct Confirmed {
    key: String,
    lane: LaneKey,
    answer: oneshot::Sender<Result<(), QueueError>>,
    result: lapin::Result<Confirmation>,
}

/// Publishes until the stop; while there is no connection, orders are refused at once.
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

/// The unconfirmed publishes of one channel. Dropping it tells everybody who waits that the outcome is unknown.
struct Window {
    channel: Channel,
    unconfirmed: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    /// The orders behind the one of their lane that is unconfirmed, or waits in `shares`.
    behind: HashMap<LaneKey, VecDeque<Order>>,
    shares: Shares<Order>,
    /// How many orders wait in `behind` and in `shares`.
    waiting: usize,
    /// The next orders are taken when no more than these are unconfirmed, ...
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
                    // Neighbours of one partition are one piece of work to it. Those of a lane keep their order.
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
            // Whoever gave up is asking again, or somebody like him is: with those who gave up the line would fill for all.
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

    /// Publishes it, at once or when its queue has confirmed another one; `false` where too many wait for that already.
    fn enter(&mut self, order: Order) -> bool {
        for gone in self.shares.give_up(&order.key, |order| order.answer.is_closed()) {
            self.waiting -= 1;
            self.next_of(&gone.lane);
        }
        if self.shares.waiting(&order.key) >= SHARE_LINE {
            order.refuse(QueueError::Unavailable("its queue confirms nothing".into()));
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
                Err(QueueError::Unavailable("the broker has no queue for it".into()))
            }
            Ok(_) => Err(QueueError::Full),
            Err(ref error) => Err(QueueError::Unavailable(error.to_string())),
        };
        let _ = confirmed.answer.send(answer);
        self.next_at(&confirmed.key);
        self.next_of(&confirmed.lane);
    }

    /// Publishes the next order for a queue that somebody still waits for.
    fn next_at(&mut self, key: &str) {
        while let Some(order) = self.shares.confirmed(key) {
            self.waiting -= 1;
            if !order.answer.is_closed() {
                return self.publish(order);
            }
            self.next_of(&order.lane);
        }
    }

    /// Publishes the next order of a lane that somebody still waits for.
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
        // The first poll numbers the message and puts it into lapin's line, in one step: polled here, the order of the
        // orders is that of the messages.
        match publishing.as_mut().now_or_never() {
            Some(confirmed) => self.unconfirmed.push(Box::pin(std::future::ready(confirmed))),
            None => self.unconfirmed.push(publishing),
        }
    }
}
