//! Statistics of the pumps, summed up for the metrics and for readiness.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::lane::LaneCounts;
use crate::message::Destination;
use crate::queue::PartitionId;

/// The latest statistics of one pump.
#[derive(Debug, Clone, Default)]
pub(super) struct PartitionStats {
    pub(super) lanes: LaneCounts,
    pub(super) held: usize,
    pub(super) oldest: Option<Timestamp>,
    pub(super) subscribed: bool,
    pub(super) preferred_elsewhere: bool,
}

/// The statistics of all pumps of a worker.
#[derive(Debug, Default)]
pub(super) struct WorkerStats {
    partitions: Mutex<BTreeMap<PartitionId, PartitionStats>>,
}

/// The sum over the pumps of one destination.
#[derive(Debug, Default)]
pub(super) struct DestinationStats {
    pub(super) lanes: LaneCounts,
    pub(super) held: usize,
    pub(super) oldest: Option<Timestamp>,
    pub(super) subscribed: usize,
    pub(super) owned: usize,
}

impl WorkerStats {
    pub(super) fn set(&self, partition: PartitionId, view: PartitionStats) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, view);
    }

    pub(super) fn sum(&self, destination: Destination) -> DestinationStats {
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = DestinationStats::default();
        for (_, view) in partitions.iter().filter(|(partition, _)| partition.destination == destination) {
            sum.lanes.waiting += view.lanes.waiting;
            sum.lanes.in_flight += view.lanes.in_flight;
            sum.lanes.backing_off += view.lanes.backing_off;
            sum.held += view.held;
            sum.oldest = [sum.oldest, view.oldest].into_iter().flatten().min();
            sum.subscribed += usize::from(view.subscribed);
            sum.owned += usize::from(view.subscribed && !view.preferred_elsewhere);
        }
        sum
    }
}
