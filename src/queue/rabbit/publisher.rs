//! Publishes through one task and one channel with a window of unconfirmed messages.
//!
//! Guarantees: a publish request is answered `Ok` only after the broker's confirm. At most one message of a lane is
//! unconfirmed, so that no later message overtakes a failed publish. A request whose caller has given up is not published.
//! A queue that confirms nothing does not hold up other queues (`publish_limit.rs`).
//! If the broker refuses a message, because it is too large or a right is missing, only this message is refused. The
//! broker closes the channel, and all other messages of the channel are published again on a new channel, under their
//! ids. Each channel has one task, because lapin swaps the confirms of several tasks on one channel. The task does not
//! wait for a write: requests that arrive meanwhile go into the same write.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connections::BrokerConnections;
use super::majority::SilentQueues;
use super::names::{Exchange, TopologyNames};
use super::publish_end::ChannelEnd;
use super::publish_limit::PerQueueLimit;
use super::topology::ANSWER_TIMEOUT;
use super::{RabbitError, wire, within};
use crate::message::{DeadLetter, LaneKey, Message};
use crate::queue::QueueError;

/// The number of publish requests that may wait for the publisher.
pub(super) const CAPACITY: usize = 1024;
/// The largest number of unconfirmed publishes.
const MAX_UNCONFIRMED: usize = 256;
/// The number of requests for one queue that may wait for its in-flight limit. Further requests are refused, so that
/// they do not fill the channel of requests for all queues.
const QUEUE_CAPACITY: usize = CAPACITY / 4 * 3;
/// The limit of unconfirmed publishes for immediate publishing. Above it, new requests wait until half of the publishes
/// are confirmed, and then leave as one batch. The broker writes and confirms a batch at once, at half the cost of
/// single messages.
const MIN_BATCH: usize = 8;
/// The longest wait for a batch: a partition that confirms nothing must not hold up other partitions.
const MAX_BATCH_DELAY: Duration = Duration::from_millis(5);
/// The time limit for the results of a closed channel. They are available at once.
const RESULTS_TIMEOUT: Duration = Duration::from_secs(1);

/// A request to publish one message.
#[derive(Debug)]
pub(super) struct PublishRequest {
    exchange: Exchange,
    key: Arc<str>,
    message: Message,
    /// The properties of a dead letter. Those of a message are encoded when the message is published.
    dead_letter: Option<Box<BasicProperties>>,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

pub(super) type ConfirmReceiver = oneshot::Receiver<Result<(), QueueError>>;

impl PublishRequest {
    /// A request for a partition.
    pub(super) fn of_message(key: String, message: &Message) -> (Self, ConfirmReceiver) {
        let (answer, answered) = oneshot::channel();
        let (key, message) = (key.into(), message.clone());
        (Self { exchange: Exchange::Messages, key, message, dead_letter: None, answer }, answered)
    }

    /// A request for the dead letters of a destination.
    pub(super) fn of_dead_letter(dead: &DeadLetter, frame: usize) -> (Self, ConfirmReceiver) {
        let (answer, answered) = oneshot::channel();
        let (key, message) = (dead.message.destination.as_str().into(), dead.message.clone());
        let dead_letter = Some(Box::new(wire::encode_dead(dead, frame)));
        (Self { exchange: Exchange::DeadLetters, key, message, dead_letter, answer }, answered)
    }

    fn lane(&self) -> &LaneKey {
        &self.message.lane
    }

    /// The properties. The request keeps what they are made of, because it may have to be published again.
    fn properties(&self) -> BasicProperties {
        match &self.dead_letter {
            Some(properties) => (**properties).clone(),
            None => wire::encode(&self.message),
        }
    }

    pub(super) const fn exchange(&self) -> Exchange {
        self.exchange
    }

    pub(super) fn key(&self) -> Arc<str> {
        self.key.clone()
    }

    pub(super) const fn body_bytes(&self) -> usize {
        self.message.body.len()
    }

    pub(super) fn refuse(self, error: QueueError) {
        // The caller may have given up.
        let _ = self.answer.send(Err(error));
    }
}

/// A request and its result.
struct ConfirmedPublish {
    request: PublishRequest,
    result: lapin::Result<Confirmation>,
}

/// Publishes until cancellation. Without a connection every request is refused at once.
pub(super) async fn run(connections: Arc<BrokerConnections>, mut requests: mpsc::Receiver<PublishRequest>) {
    // The requests that the next channel publishes first.
    let mut again: Vec<PublishRequest> = Vec::new();
    loop {
        let connection = tokio::select! {
            biased;
            () = connections.stop.cancelled() => return,
            connection = connections.until_publishing() => connection,
            request = requests.recv() => match request {
                Some(request) => {
                    request.refuse(QueueError::Unavailable("no connection to the broker".into()));
                    continue;
                }
                None => return,
            },
        };
        match open(&connection).await {
            Ok(channel) => {
                connections.silent_queues.forget_unconfirmed();
                let mut window = PublishWindow::new(channel, &connections);
                again.drain(..).for_each(|request| window.take(request));
                let (end, failed) = tokio::select! {
                    () = connections.stop.cancelled() => return,
                    end = window.publish_all(&mut requests) => end,
                };
                tracing::debug!(?end, "publishing channel lost");
                let left = tokio::select! {
                    () = connections.stop.cancelled() => return,
                    left = window.left(failed) => left,
                };
                again = end.sort_out(left, &connections);
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

/// The unconfirmed publishes of one channel. When it is dropped, all waiting callers learn that the outcome is unknown.
struct PublishWindow {
    channel: Channel,
    names: TopologyNames,
    silent_queues: Arc<SilentQueues>,
    unconfirmed: FuturesUnordered<BoxFuture<'static, ConfirmedPublish>>,
    /// Requests that wait for an earlier request of their lane. The earlier request is unconfirmed or waits in
    /// `limits`.
    blocked: HashMap<LaneKey, VecDeque<PublishRequest>>,
    limits: PerQueueLimit<PublishRequest>,
    /// The number of requests in `blocked` and in `limits`.
    waiting: usize,
    /// The next batch starts when at most this number is unconfirmed, ...
    begin_at: usize,
    /// ... or at this time.
    begin_by: Instant,
}

impl PublishWindow {
    fn new(channel: Channel, connections: &BrokerConnections) -> Self {
        Self {
            channel,
            names: connections.settings.names.clone(),
            silent_queues: connections.silent_queues.clone(),
            unconfirmed: FuturesUnordered::new(),
            blocked: HashMap::new(),
            limits: PerQueueLimit::new(),
            waiting: 0,
            begin_at: MIN_BATCH,
            begin_by: Instant::now(),
        }
    }

    /// Publishes until the channel has ended. Returns the reason, and the request that failed with it.
    async fn publish_all(
        &mut self,
        requests: &mut mpsc::Receiver<PublishRequest>,
    ) -> (ChannelEnd, Option<PublishRequest>) {
        loop {
            let room = self.unconfirmed.len() < MAX_UNCONFIRMED && self.waiting < CAPACITY;
            let ready = self.unconfirmed.len() <= self.begin_at;
            tokio::select! {
                Some(confirmed) = self.unconfirmed.next() => {
                    match confirmed.result {
                        Err(error) if !self.channel.status().connected() => {
                            return (ChannelEnd::of(&error, &self.names), Some(confirmed.request));
                        }
                        _ => self.confirmed(confirmed),
                    }
                }
                () = tokio::time::sleep_until(self.begin_by), if room && !ready => self.begin_at = MAX_UNCONFIRMED,
                Some(request) = requests.recv(), if room && ready => {
                    let mut company = vec![request];
                    while self.unconfirmed.len() + company.len() < MAX_UNCONFIRMED
                        && let Ok(request) = requests.try_recv()
                    {
                        company.push(request);
                    }
                    // A partition handles neighbours in a batch as one piece of work. The sort is stable, so lanes keep
                    // their order.
                    company.sort_by(|one, other| one.key.cmp(&other.key));
                    company.into_iter().for_each(|request| self.take(request));
                    self.begin_at = MIN_BATCH.max(self.unconfirmed.len() / 2);
                    self.begin_by = Instant::now() + MAX_BATCH_DELAY;
                }
                else => return (ChannelEnd::Lost("the queue is closed".into()), None),
            }
        }
    }

    /// Answers the requests that were confirmed before the channel closed, and returns all others.
    async fn left(mut self, failed: Option<PublishRequest>) -> LeftRequests {
        let mut in_doubt: Vec<_> = failed.into_iter().collect();
        while let Ok(Some(ended)) = tokio::time::timeout(RESULTS_TIMEOUT, self.unconfirmed.next()).await {
            match ended.result {
                Ok(confirmation) => answer(ended.request, Ok(confirmation)),
                Err(_) => in_doubt.push(ended.request),
            }
        }
        let mut unsent = self.limits.drain();
        unsent.extend(self.blocked.into_values().flatten());
        LeftRequests { in_doubt, unsent }
    }

    fn take(&mut self, request: PublishRequest) {
        if request.answer.is_closed() {
            return;
        }
        if let Some(line) = self.blocked.get_mut(request.lane()) {
            // Requests without a caller must not take the places of others: their callers send new requests.
            while line.front().is_some_and(|request| request.answer.is_closed()) {
                line.pop_front();
                self.waiting -= 1;
            }
            line.push_back(request);
            self.waiting += 1;
            return;
        }
        let lane = request.lane().clone();
        self.blocked.insert(lane.clone(), VecDeque::new());
        if !self.enter(request) {
            self.blocked.remove(&lane);
        }
    }

    /// Publishes the request at once, or after its queue has confirmed another one. Returns `false` if too many requests
    /// wait for this queue.
    fn enter(&mut self, request: PublishRequest) -> bool {
        for gone in self.limits.give_up(&request.key, |request| request.answer.is_closed()) {
            self.waiting -= 1;
            self.next_of(gone.lane());
        }
        if self.limits.waiting(&request.key) >= QUEUE_CAPACITY {
            request
                .refuse(QueueError::Unavailable("too many publishes to its queue wait for a confirm".into()));
            return false;
        }
        let key = request.key.clone();
        match self.limits.enter(&key, request) {
            Some(request) => self.publish(request),
            None => self.waiting += 1,
        }
        true
    }

    fn confirmed(&mut self, confirmed: ConfirmedPublish) {
        let ConfirmedPublish { request, result } = confirmed;
        let (key, lane) = (request.key.clone(), request.lane().clone());
        if result.is_ok() {
            self.silent_queues.confirmed(request.exchange, &key);
        }
        answer(request, result);
        self.next_at(&key);
        self.next_of(&lane);
    }

    /// Publishes the next request for this queue whose caller still waits.
    fn next_at(&mut self, key: &str) {
        while let Some(request) = self.limits.confirmed(key) {
            self.waiting -= 1;
            if !request.answer.is_closed() {
                return self.publish(request);
            }
            self.next_of(request.lane());
        }
    }

    /// Publishes the next request of this lane whose caller still waits.
    fn next_of(&mut self, lane: &LaneKey) {
        while let Some(line) = self.blocked.get_mut(lane) {
            let Some(request) = line.pop_front() else {
                self.blocked.remove(lane);
                return;
            };
            self.waiting -= 1;
            if !request.answer.is_closed() && self.enter(request) {
                return;
            }
        }
    }

    fn publish(&mut self, request: PublishRequest) {
        let channel = self.channel.clone();
        let exchange = self.names.exchange(request.exchange).into();
        let mut publishing = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let key = (&*request.key).into();
            let (body, properties) = (&request.message.body, request.properties());
            let result = match channel.basic_publish(exchange, key, options, body, properties).await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            ConfirmedPublish { request, result }
        });
        // The first poll numbers the message and queues it in lapin, in one step. So polling here keeps the order of the
        // requests.
        match publishing.as_mut().now_or_never() {
            Some(confirmed) => self.unconfirmed.push(Box::pin(std::future::ready(confirmed))),
            None => self.unconfirmed.push(publishing),
        }
    }
}

fn answer(request: PublishRequest, result: lapin::Result<Confirmation>) {
    let answer = match result {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(_))) => {
            Err(QueueError::Unavailable("the broker has no queue for this message".into()))
        }
        Ok(_) => Err(QueueError::Full),
        Err(error) => Err(QueueError::Unavailable(error.to_string())),
    };
    // The caller may have given up.
    let _ = request.answer.send(answer);
}

/// The requests of a closed channel that have no answer yet.
pub(super) struct LeftRequests {
    /// Published without a confirm. The broker may have stored them.
    pub(super) in_doubt: Vec<PublishRequest>,
    /// Not published. Requests of one lane are in their order, behind the one in doubt.
    pub(super) unsent: Vec<PublishRequest>,
}
