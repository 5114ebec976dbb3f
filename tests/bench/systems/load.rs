//! The load: numbered messages of many conversations, in a closed loop for the maximum, in an open loop for latency.
//!
//! Each connection owns its conversations and posts one message after another, so that of a conversation n+1 is never posted
//! before n was taken: whatever arrives in another order was overtaken on the way. What is refused is posted again.
//! In the open loop every message has its time, and a post that is late because the system still had the one before counts
//! from that time: a system that stalls cannot hide it. A post that is late because of us counts from when it left.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::ledger::Ledger;
use super::sink;
use super::wire::Client;

/// Between a refusal and the next try.
const AGAIN: Duration = Duration::from_millis(20);
/// No system keeps a post so long for a good reason.
const PATIENCE: Duration = Duration::from_secs(10);

/// When the next message is posted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as the one before was taken and no more than this many are on the way.
    Closed(usize),
    /// So many a second.
    Open(f64),
}

/// Where and how to post.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// `{group}` stands for the conversation.
    pub(crate) path: String,
    pub(crate) body_length: usize,
    pub(crate) connections: u32,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) pace: Pace,
    /// In the closed loop: one permit for each message that may yet be posted.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) over: AtomicBool,
    pub(crate) began: Instant,
}

impl Load {
    /// Posts until it is told to end, or the ledger is full.
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

    /// Ends it, also for those that wait for room.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.room.close();
    }

    async fn line(self: Arc<Self>, line: u32) {
        let mut client = Client::new(self.target.address);
        let mut request = Vec::new();
        let messages = (line..).step_by(self.target.connections as usize);
        for message in messages.take_while(|message| (*message as usize) < self.ledger.room()) {
            let Some(due) = self.turn(message).await else { return };
            self.write_request(message, &mut request);
            self.ledger.sent(message, due);
            if !self.post(&mut client, message, &request).await {
                return;
            }
        }
    }

    /// Waits for the message's time and returns from when it counts; `None` when it is over.
    async fn turn(&self, message: u32) -> Option<u32> {
        match self.pace {
            Pace::Closed(_) => self.room.acquire().await.ok()?.forget(),
            Pace::Open(rate) => {
                let due = self.began + Duration::from_secs_f64(f64::from(message) / rate);
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

    /// Until it is taken; false when it is over before that.
    async fn post(&self, client: &mut Client, message: u32, request: &[u8]) -> bool {
        loop {
            match tokio::time::timeout(PATIENCE, client.exchange(request)).await {
                Ok(Ok(200..300)) => {
                    self.ledger.accepted(message);
                    return true;
                }
                Ok(_) => {}
                // The answer to this one may still come: not on the next one's connection.
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
        let body = sink::body(nonce, message, conversation, self.target.body_length);
        let path = self.target.path.replace("{group}", &format!("{nonce:x}-{conversation:x}"));
        let mut head = String::with_capacity(256);
        let _ = write!(
            head,
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.target.address,
            body.len()
        );
        request.clear();
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(&body);
    }
}
