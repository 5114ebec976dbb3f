//! A consumer of a partition of the model queue, and its acks.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::Notify;

use super::Broker;
use crate::queue::waiting_body::WaitingBody;
use crate::queue::{Loan, PartitionId, QueueError};
use crate::tasks;

/// An ack arrives at most this many milliseconds after it was sent.
const ACK_MAX: u64 = 20;

/// One of the consumers of a partition.
#[derive(Debug)]
pub struct Subscription {
    pub(super) broker: Arc<Broker>,
    pub(super) number: u64,
    pub(super) partition: PartitionId,
    pub(super) news: Arc<Notify>,
}

impl Subscription {
    pub(in crate::queue) async fn next(&mut self) -> Option<Loan> {
        loop {
            match self.lend() {
                Some(loan) => return Some(loan),
                None if self.is_over() => return None,
                None => self.news.notified().await,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.broker.state().places.get(&self.number).is_none_or(|place| place.over)
    }

    fn lend(&mut self) -> Option<Loan> {
        let mut state = self.broker.state();
        if state.away || state.is_cut(self.number) || state.places.get(&self.number)?.over {
            return None;
        }
        let prefetch = usize::from(self.broker.tuning.prefetch);
        let line = state.lines.get_mut(&self.partition)?;
        if line.places.front() != Some(&self.number) || line.lent.len() >= prefetch {
            return None;
        }
        let entry = line.waiting.pop_front()?;
        let receipt = Receipt { broker: self.broker.clone(), place: self.number, number: entry.number };
        let (message, earlier) = (entry.message.clone(), entry.earlier);
        line.lent.insert(entry.number, entry);
        Some(Loan {
            message,
            earlier,
            unreadable: None,
            receipt: crate::queue::Receipt::Model(receipt),
            waiting: WaitingBody::Here(None),
            room: None,
        })
    }

    /// Closes cleanly: acks that were sent arrive before.
    pub(in crate::queue) fn close(self) {
        let mut state = self.broker.state();
        if !state.is_cut(self.number) {
            state.forget(self.number, true);
            state.places.remove(&self.number);
        } else if let Some(place) = state.places.get_mut(&self.number) {
            place.closed = true;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.broker.state();
        // The subscription is closed, or cut off from the broker, which then notices by itself.
        if state.places.contains_key(&self.number) && !state.is_cut(self.number) {
            state.forget(self.number, false);
            state.places.remove(&self.number);
        }
    }
}

/// The ack token of one message.
#[derive(Debug)]
pub(crate) struct Receipt {
    broker: Arc<Broker>,
    place: u64,
    number: u64,
}

impl Receipt {
    pub(in crate::queue) fn done(self) -> Result<(), QueueError> {
        let mut state = self.broker.state();
        let over = state.places.get(&self.place).is_none_or(|place| place.over);
        if over {
            return Err(QueueError::Unavailable("the message was returned".into()));
        }
        let partition = state.places.get(&self.place).map(|place| place.partition);
        let line = partition.and_then(|partition| state.lines.get_mut(&partition));
        let lent = line.filter(|line| line.places.front() == Some(&self.place));
        // Otherwise the broker has given up this consumer: the ack is sent but never arrives.
        if let Some(entry) = lent.and_then(|line| line.lent.get_mut(&self.number)) {
            entry.written = true;
        }
        let on_its_way = Duration::from_millis(state.random.random_range(0..=ACK_MAX));
        drop(state);
        tasks::spawn(async move {
            tokio::time::sleep(on_its_way).await;
            self.broker.hear_ack(self.place, self.number);
        });
        Ok(())
    }
}
