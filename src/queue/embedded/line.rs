//! The position of an entry in the file: the number of its line (a partition or a dead-letter queue) and its number within
//! the line, in one integer, the primary key.
//!
//! Guarantees: a later entry of a line has a greater [`Seq`]. The entries of a line form one range of the key. The file
//! itself assigns the numbers of the destinations (`destination` in `schema.sql`): [`LineNumbers`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::PartitionId;
use crate::message::Destination;

/// Bits of a [`Seq`] for the number within its line, enough for 10^12 entries.
const COUNTER_BITS: u32 = 40;
/// Bits for the lines of one destination: partitions are below [`SIDING`], the dead-letter queue is at [`SIDING`].
const LINES_BITS: u32 = 17;
const SIDING: i64 = 1 << 16;

/// A partition or a dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Line(pub(super) i64);

/// The position of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Seq(pub(super) i64);

/// The numbers of the destinations in one file, 1 to 63. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LineNumbers {
    numbers: Arc<BTreeMap<Destination, i64>>,
}

impl LineNumbers {
    /// How many destinations fit into one file.
    pub(super) const MAX: i64 = 63;

    pub(super) fn new(numbers: BTreeMap<Destination, i64>) -> Self {
        Self { numbers: Arc::new(numbers) }
    }

    /// `None` if the file knows no such destination.
    pub(super) fn partition(&self, partition: PartitionId) -> Option<Line> {
        let number = self.numbers.get(&partition.destination)?;
        Some(Line(number << LINES_BITS | i64::from(partition.index)))
    }

    /// `None` if the file knows no such destination.
    pub(super) fn siding(&self, destination: Destination) -> Option<Line> {
        Some(Line(self.numbers.get(&destination)? << LINES_BITS | SIDING))
    }

    /// Every line of the file.
    pub(super) fn all(&self, partitions: u16) -> impl Iterator<Item = Line> + '_ {
        self.numbers.values().flat_map(move |number| {
            (0..partitions).map(i64::from).chain([SIDING]).map(move |line| Line(number << LINES_BITS | line))
        })
    }

    /// The destination of a line; `None` for a number that no version of this program wrote.
    pub(super) fn destination(&self, line: Line) -> Option<Destination> {
        let number = line.0 >> LINES_BITS;
        self.numbers.iter().find(|(_, known)| **known == number).map(|(destination, _)| *destination)
    }

    /// The destinations of the file.
    pub(super) fn destinations(&self) -> impl Iterator<Item = Destination> + '_ {
        self.numbers.keys().copied()
    }
}

impl Line {
    pub(super) const fn is_siding(self) -> bool {
        self.0 & SIDING != 0
    }

    /// The position of the entry with this number.
    pub(super) const fn seq(self, counter: i64) -> Seq {
        Seq(self.0 << COUNTER_BITS | counter)
    }

    /// The position before the first entry.
    pub(super) const fn start(self) -> Seq {
        self.seq(0)
    }

    /// The position after the last possible entry.
    pub(super) const fn end(self) -> Seq {
        Self(self.0 + 1).start()
    }
}

impl Seq {
    pub(super) const fn line(self) -> Line {
        Line(self.0 >> COUNTER_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> LineNumbers {
        let last = Destination::parse("bot:last").unwrap();
        LineNumbers::new(
            [(Destination::Xo, 1), (Destination::ServiceNow, 2), (last, LineNumbers::MAX)].into(),
        )
    }

    /// The positions are on disk in every deployment: they must not change.
    #[test]
    fn places_on_disk_are_fixed() {
        let line = numbers().partition(PartitionId { destination: Destination::Xo, index: 3 }).unwrap();
        assert_eq!((line.0, line.seq(5).0), (131_075, 131_075 * 1_099_511_627_776 + 5));
        assert_eq!(numbers().siding(Destination::ServiceNow), Some(Line(2 * 131_072 + 65_536)));
        assert_eq!(numbers().siding(Destination::Events), None);
    }

    #[test]
    fn a_place_knows_its_line() {
        for line in numbers().all(u16::MAX) {
            assert_eq!(line.seq(1).line(), line);
            assert!(line.start() < line.seq(1) && line.seq(1).0 > 0);
            assert!(numbers().destination(line).is_some());
        }
        let last = numbers().siding(Destination::Xo).unwrap();
        assert!(last.is_siding() && numbers().destination(last) == Some(Destination::Xo));
        assert!(last.seq(1) < last.end());
    }
}
