//! Stub until the engine is built.
use super::{Depth, Held, Loan, PartitionId, QueueError};
use crate::message::{DeadLetter, Destination, Message};
use tokio::sync::watch;

fn absent() -> QueueError {
    QueueError::Unavailable("not built yet".into())
}

#[derive(Debug, Clone)]
pub struct RabbitQueue;
#[derive(Debug)]
pub(crate) struct Receipt;
impl Receipt {
    pub(super) async fn done(self) -> Result<(), QueueError> {
        Err(absent())
    }
}
#[derive(Debug)]
pub struct Subscription;
impl Subscription {
    pub(super) async fn next(&mut self) -> Option<Loan> {
        None
    }
    pub(super) async fn close(self) {}
}
#[derive(Debug)]
pub struct Siding;
impl Siding {
    pub(super) async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        Ok(None)
    }
    pub(super) async fn close(self) {}
}
impl RabbitQueue {
    pub(super) const fn partitions(&self) -> u16 {
        8
    }
    pub(super) async fn publish(&self, _: &Message) -> Result<(), QueueError> {
        Err(absent())
    }
    pub(super) async fn bury(&self, _: &DeadLetter) -> Result<(), QueueError> {
        Err(absent())
    }
    pub(super) async fn subscribe(&self, _: PartitionId) -> Result<Subscription, QueueError> {
        Err(absent())
    }
    pub(super) async fn siding(&self, _: Destination) -> Result<Siding, QueueError> {
        Err(absent())
    }
    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }
    pub(super) fn wanted_elsewhere(&self) -> watch::Receiver<std::collections::BTreeMap<PartitionId, u64>> {
        watch::channel(Default::default()).1
    }
    pub(super) fn lease(&self) -> super::Lease {
        super::Lease::Always
    }
    pub(super) async fn depth(&self) -> Result<Depth, QueueError> {
        Err(absent())
    }
    pub(super) async fn close(&self) {}
}
