//! A consumer of a partition of the model queue, and its acks.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::Notify;

use super::ModelBroker;
use crate::queue::waiting_body::WaitingBody;
use crate::queue::{PartitionId, QueueError, ReceivedMessage};
use crate::tasks;

/// An ack arrives at most this many milliseconds after it was sent.
const ACK_MAX: u64 = 20;

/// One of the consumers of a partition.
#[derive(Debug)]
pub struct ModelSubscription {
    pub(super) broker: Arc<ModelBroker>,
    pub(super) number: u64,
    pub(super) partition: PartitionId,
    pub(super) news: Arc<Notify>,
}

impl ModelSubscription {
    pub(in crate::queue) async fn next(&mut self) -> Option<ReceivedMessage> {
        loop {
            match self.dispatch() {
                Some(received) => return Some(received),
                None if self.is_over() => return None,
                None => self.news.notified().await,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.broker.state().places.get(&self.number).is_none_or(|place| place.over)
    }

    fn dispatch(&mut self) -> Option<ReceivedMessage> {
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
        let ack_token = ModelAck { broker: self.broker.clone(), place: self.number, number: entry.number };
        let (message, redeliveries) = (entry.message.clone(), entry.redeliveries);
        line.lent.insert(entry.number, entry);
        Some(ReceivedMessage {
            message,
            redeliveries,
            unreadable: None,
            ack_token: crate::queue::AckToken::Model(ack_token),
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

impl Drop for ModelSubscription {
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
pub(crate) struct ModelAck {
    broker: Arc<ModelBroker>,
    place: u64,
    number: u64,
}

impl ModelAck {
    pub(in crate::queue) fn ack(self) -> Result<(), QueueError> {
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
