//! Maps a lane to its partition, and a partition to the worker that should own it.
//!
//! Guarantees: both results depend only on the arguments, so every process of every version computes the same.
//! The partition of a lane depends on the number of partitions. If that number changed while messages wait, later messages
//! of a conversation would go to another queue and could overtake. So the number is fixed for the life of a deployment and
//! checked at start (`rabbit/topology.rs`, `embedded/store.rs`).

use sha2::{Digest, Sha256};

use crate::message::{Destination, LaneKey};

/// One of the queues that share the lanes of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    /// The destination of its messages.
    pub destination: Destination,
    /// From 0 to the number of partitions, exclusive.
    pub index: u16,
}

impl PartitionId {
    /// The partition of a lane.
    pub fn of(destination: Destination, lane: &LaneKey, partitions: u16) -> Self {
        let index = stable_hash(&[lane.as_str()]) % u64::from(partitions.max(1));
        Self { destination, index: u16::try_from(index).unwrap_or(0) }
    }

    /// All partitions of a destination.
    pub fn all(destination: Destination, partitions: u16) -> impl Iterator<Item = Self> {
        (0..partitions).map(move |index| Self { destination, index })
    }
}

impl std::fmt::Display for PartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.destination, self.index)
    }
}

/// The weight of a worker for a partition: the worker with the highest weight is the preferred owner.
///
/// Rendezvous hashing: a worker that joins or leaves moves only the partitions that it gains or loses.
pub fn rendezvous_weight(worker: &str, partition: PartitionId) -> i32 {
    let hash = stable_hash(&[worker, partition.destination.as_str(), &partition.index.to_string()]);
    i32::try_from(hash >> 33).unwrap_or(0)
}

/// A number for a worker and its consumer position, to notice a change of either.
pub fn consumer_position(worker: &str, place: &str) -> u64 {
    stable_hash(&[worker, place])
}

fn stable_hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(text: &str) -> LaneKey {
        LaneKey::parse(text).unwrap()
    }

    /// These values are on disk in every deployment: they must never change.
    #[test]
    fn the_partition_of_a_lane_is_fixed_for_ever() {
        let index = |text: &str| PartitionId::of(Destination::Xo, &lane(text), 8).index;
        assert_eq!([index("c-1"), index("c-2"), index("c-3"), index("group-9")], [7, 3, 7, 0]);
    }

    #[test]
    fn lanes_spread_evenly() {
        let mut counts = [0_u32; 8];
        for n in 0..8_000 {
            let partition = PartitionId::of(Destination::ServiceNow, &lane(&format!("c-{n}")), 8);
            counts[usize::from(partition.index)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_leaving_worker_moves_only_its_own_partitions() {
        let owner = |workers: &[&str], partition| {
            *workers.iter().max_by_key(|w| rendezvous_weight(w, partition)).unwrap() as *const str
        };
        for partition in PartitionId::all(Destination::Xo, 64) {
            let before = owner(&["a", "b", "c"], partition);
            let after = owner(&["a", "b"], partition);
            let c: *const str = *["a", "b", "c"].last().unwrap();
            assert!(std::ptr::addr_eq(before, after) || std::ptr::addr_eq(before, c));
        }
    }
}
