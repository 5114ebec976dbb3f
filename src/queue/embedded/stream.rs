//! The position of an entry in the file, the primary key. One integer holds the number of the entry's line (a partition
//! or a dead-letter queue) and the number of the entry within the line.
//!
//! Guarantees: a later entry of a line has a greater [`SequenceNumber`]. The entries of a line form one range of the key. The file
//! itself assigns the numbers of the destinations (`destination` in `schema.sql`): [`StreamNumbers`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::PartitionId;
use crate::message::Destination;

/// Bits of a [`SequenceNumber`] for the number within its line, enough for 10^12 entries.
const COUNTER_BITS: u32 = 40;
/// Bits for the lines of one destination: partitions are below [`DEAD_LETTER_STREAM`], which is the dead-letter queue.
const STREAM_BITS: u32 = 17;
const DEAD_LETTER_STREAM: i64 = 1 << 16;

/// A partition or a dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamId(pub(super) i64);

/// The position of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SequenceNumber(pub(super) i64);

/// The numbers of the destinations in one file, 1 to 63. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamNumbers {
    numbers: Arc<BTreeMap<Destination, i64>>,
}

impl StreamNumbers {
    /// The maximum number of destinations in one file.
    pub(super) const MAX: i64 = 63;

    pub(super) fn new(numbers: BTreeMap<Destination, i64>) -> Self {
        Self { numbers: Arc::new(numbers) }
    }

    /// `None` if the file knows no such destination.
    pub(super) fn partition(&self, partition: PartitionId) -> Option<StreamId> {
        let number = self.numbers.get(&partition.destination)?;
        Some(StreamId(number << STREAM_BITS | i64::from(partition.index)))
    }

    /// `None` if the file knows no such destination.
    pub(super) fn dead_letter_stream(&self, destination: Destination) -> Option<StreamId> {
        Some(StreamId(self.numbers.get(&destination)? << STREAM_BITS | DEAD_LETTER_STREAM))
    }

    /// Every line of the file.
    pub(super) fn all(&self, partitions: u16) -> impl Iterator<Item = StreamId> + '_ {
        self.numbers.values().flat_map(move |number| {
            (0..partitions)
                .map(i64::from)
                .chain([DEAD_LETTER_STREAM])
                .map(move |stream| StreamId(number << STREAM_BITS | stream))
        })
    }

    /// The destination of a line; `None` for a number that no version of this program wrote.
    pub(super) fn destination(&self, stream: StreamId) -> Option<Destination> {
        let number = stream.0 >> STREAM_BITS;
        self.numbers.iter().find(|(_, known)| **known == number).map(|(destination, _)| *destination)
    }

    /// The destinations of the file.
    pub(super) fn destinations(&self) -> impl Iterator<Item = Destination> + '_ {
        self.numbers.keys().copied()
    }
}

impl StreamId {
    pub(super) const fn is_dead_letter(self) -> bool {
        self.0 & DEAD_LETTER_STREAM != 0
    }

    /// The position of the entry with this number.
    pub(super) const fn seq(self, counter: i64) -> SequenceNumber {
        SequenceNumber(self.0 << COUNTER_BITS | counter)
    }

    /// The position before the first entry.
    pub(super) const fn start(self) -> SequenceNumber {
        self.seq(0)
    }

    /// The position after the last possible entry.
    pub(super) const fn end(self) -> SequenceNumber {
        Self(self.0 + 1).start()
    }
}

impl SequenceNumber {
    pub(super) const fn stream(self) -> StreamId {
        StreamId(self.0 >> COUNTER_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> StreamNumbers {
        let last = Destination::parse("bot:last").unwrap();
        StreamNumbers::new(
            [(Destination::Xo, 1), (Destination::ServiceNow, 2), (last, StreamNumbers::MAX)].into(),
        )
    }

    /// The positions are on disk in every deployment: they must not change.
    #[test]
    fn places_on_disk_are_fixed() {
        let stream = numbers().partition(PartitionId { destination: Destination::Xo, index: 3 }).unwrap();
        assert_eq!((stream.0, stream.seq(5).0), (131_075, 131_075 * 1_099_511_627_776 + 5));
        assert_eq!(
            numbers().dead_letter_stream(Destination::ServiceNow),
            Some(StreamId(2 * 131_072 + 65_536))
        );
        assert_eq!(numbers().dead_letter_stream(Destination::Events), None);
    }

    #[test]
    fn a_place_knows_its_line() {
        for stream in numbers().all(u16::MAX) {
            assert_eq!(stream.seq(1).stream(), stream);
            assert!(stream.start() < stream.seq(1) && stream.seq(1).0 > 0);
            assert!(numbers().destination(stream).is_some());
        }
        let last = numbers().dead_letter_stream(Destination::Xo).unwrap();
        assert!(last.is_dead_letter() && numbers().destination(last) == Some(Destination::Xo));
        assert!(last.seq(1) < last.end());
    }
}
