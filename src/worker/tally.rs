//! Statistics of the pumps, summed up for the metrics and for readiness.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::lane::LaneCounts;
use crate::message::Destination;
use crate::queue::PartitionId;

/// The latest statistics of one pump.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) lanes: LaneCounts,
    pub(super) held: usize,
    pub(super) oldest: Option<Timestamp>,
    pub(super) subscribed: bool,
    pub(super) wanted_elsewhere: bool,
}

/// The statistics of all pumps of a worker.
#[derive(Debug, Default)]
pub(super) struct Tally {
    views: Mutex<BTreeMap<PartitionId, View>>,
}

/// The sum over the pumps of one destination.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) lanes: LaneCounts,
    pub(super) held: usize,
    pub(super) oldest: Option<Timestamp>,
    pub(super) subscribed: usize,
    pub(super) owned: usize,
}

impl Tally {
    pub(super) fn set(&self, partition: PartitionId, view: View) {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, view);
    }

    pub(super) fn sum(&self, destination: Destination) -> Sum {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Sum::default();
        for (_, view) in views.iter().filter(|(partition, _)| partition.destination == destination) {
            sum.lanes.waiting += view.lanes.waiting;
            sum.lanes.in_flight += view.lanes.in_flight;
            sum.lanes.backing_off += view.lanes.backing_off;
            sum.held += view.held;
            sum.oldest = [sum.oldest, view.oldest].into_iter().flatten().min();
            sum.subscribed += usize::from(view.subscribed);
            sum.owned += usize::from(view.subscribed && !view.wanted_elsewhere);
        }
        sum
    }
}
