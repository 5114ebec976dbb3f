//! Generates the load: numbered messages of many conversations, in a closed loop for the maximum, in an open loop for
//! latency.
//!
//! Each connection owns its conversations and posts one message after another. Message n+1 of a conversation is
//! therefore never posted before n was accepted, and a message that arrives in another order was overtaken in the
//! system. A refused message is posted again. In the open loop each message has a scheduled time. If a post is late
//! because the system has not answered the one before, its time still counts from the schedule, so that a stalling
//! system cannot hide the delay. If the load generator itself is late, the time counts from the post.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::ledger::Ledger;
use super::shape::Shape;
use super::sink::Sink;
use super::wire::Client;

/// The pause between a refusal and the next attempt.
const AGAIN: Duration = Duration::from_millis(20);
/// The longest time in which a system should answer a post.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time of the next message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as the message before was accepted and at most this many messages are in transit.
    Closed(usize),
    /// At this rate, in messages a second.
    Open(f64),
}

/// The target of the posts.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// `{group}` stands for the conversation.
    pub(crate) path: String,
    /// The header line of the credential.
    pub(crate) credential: String,
    /// The address that XO's calls go to.
    pub(crate) sink: SocketAddr,
    pub(crate) shape: Shape,
    pub(crate) body_length: usize,
    pub(crate) connections: u32,
}

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) pace: Pace,
    /// In the closed loop: one permit for each message that may still be posted.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) over: AtomicBool,
    pub(crate) began: Instant,
    /// Shows the rows of the agents' messages.
    pub(crate) sink: Arc<Sink>,
}

impl Load {
    /// Posts until the load is stopped or the ledger is full.
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark has no task book: its tasks end with its runtime"
    )]
    pub(crate) async fn run(self: Arc<Self>) {
        let lines = (0..self.target.connections).map(|line| tokio::spawn(Arc::clone(&self).line(line)));
        for line in lines.collect::<Vec<_>>() {
            let _ = line.await;
        }
    }

    /// Stops the load, including connections that wait for a permit.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.room.close();
    }

    async fn line(self: Arc<Self>, line: u32) {
        let mut client = Client::new(self.target.address);
        let mut request = Vec::new();
        let numbers = (line..).step_by(self.target.connections as usize);
        for number in numbers.take_while(|number| (*number as usize) < self.ledger.room()) {
            let message = self.ledger.first + number;
            let Some(due) = self.turn(number).await else { return };
            self.write_request(message, &mut request);
            self.ledger.sent(message, due);
            if !self.post(&mut client, message, &request).await {
                return;
            }
        }
    }

    /// Waits for the message's time and returns the start of the measurement. `None` when the load is stopped.
    async fn turn(&self, number: u32) -> Option<u32> {
        match self.pace {
            Pace::Closed(_) => self.room.acquire().await.ok()?.forget(),
            Pace::Open(rate) => {
                let due = self.began + Duration::from_secs_f64(f64::from(number) / rate);
                if due < Instant::now() {
                    return (!self.is_over()).then(|| self.ledger.at(due));
                }
                tokio::time::sleep_until(due.into()).await;
            }
        }
        (!self.is_over()).then(|| self.ledger.now())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Posts until the message is accepted. Returns false if the load is stopped before.
    async fn post(&self, client: &mut Client, message: u32, request: &[u8]) -> bool {
        loop {
            match tokio::time::timeout(PATIENCE, client.exchange(request)).await {
                Ok(Ok(200..300)) => {
                    self.ledger.accepted(message);
                    return true;
                }
                Ok(_) => {}
                // The answer to this post may still arrive, so the next post needs another connection.
                Err(_) => *client = Client::new(self.target.address),
            }
            self.ledger.refused();
            if self.is_over() {
                return false;
            }
            tokio::time::sleep_until(tokio::time::Instant::now() + AGAIN).await;
        }
    }

    fn write_request(&self, message: u32, request: &mut Vec<u8>) {
        let (conversation, nonce) = (self.ledger.conversation(message), self.ledger.nonce);
        if self.target.shape.has_row() {
            self.sink.rows.add(nonce, conversation, message);
        }
        let body = self.target.shape.body(&self.ledger, message, self.target.body_length, self.target.sink);
        let path = self.target.path.replace("{group}", &format!("{nonce:x}-{conversation:x}"));
        let mut head = String::with_capacity(256);
        let _ = write!(
            head,
            "POST {path} HTTP/1.1\r\nhost: {}\r\n{}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.target.address,
            self.target.credential,
            body.len()
        );
        request.clear();
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(&body);
    }
}
