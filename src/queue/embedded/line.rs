//! Where a message stands in the file: its line (a partition or a siding) and its number within that line, in one
//! integer that is the primary key.
//!
//! Guarantees: a later entry of a line has a greater [`Seq`]; the entries of a line are one range of the key.
//! These numbers are on disk in every deployment: they may never change.

use super::super::PartitionId;
use crate::message::Destination;

/// Bits of a [`Seq`] that count within the line: 17 million million entries.
const COUNTER_BITS: u32 = 44;
/// Line numbers of one destination: partitions below [`SIDING`], the siding at it.
const LINES_BITS: u32 = 17;
const SIDING: i64 = 1 << 16;

/// A partition or a siding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Line(pub(super) i64);

/// An entry's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Seq(pub(super) i64);

impl Line {
    pub(super) const fn partition(partition: PartitionId) -> Self {
        Self(number(partition.destination) << LINES_BITS | partition.index as i64)
    }

    pub(super) const fn siding(destination: Destination) -> Self {
        Self(number(destination) << LINES_BITS | SIDING)
    }

    /// Every line of a file with so many partitions.
    pub(super) fn all(partitions: u16) -> impl Iterator<Item = Self> {
        Destination::ALL.iter().flat_map(move |destination| {
            PartitionId::all(*destination, partitions)
                .map(Self::partition)
                .chain(std::iter::once(Self::siding(*destination)))
        })
    }

    pub(super) const fn is_siding(self) -> bool {
        self.0 & SIDING != 0
    }

    /// Whose line it is; `None` for a number that no version of this program wrote.
    pub(super) fn destination(self) -> Option<Destination> {
        Destination::ALL.iter().copied().find(|destination| number(*destination) == self.0 >> LINES_BITS)
    }

    /// The place of the entry with this number.
    pub(super) const fn seq(self, counter: i64) -> Seq {
        Seq(self.0 << COUNTER_BITS | counter)
    }

    /// Before the first entry.
    pub(super) const fn start(self) -> Seq {
        self.seq(0)
    }

    /// After the last possible entry.
    pub(super) const fn end(self) -> Seq {
        Self(self.0 + 1).start()
    }
}

impl Seq {
    pub(super) const fn line(self) -> Line {
        Line(self.0 >> COUNTER_BITS)
    }
}

const fn number(destination: Destination) -> i64 {
    match destination {
        Destination::ServiceNow => 0,
        Destination::Xo => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_disk_are_fixed_for_ever() {
        let line = Line::partition(PartitionId { destination: Destination::Xo, index: 3 });
        assert_eq!((line.0, line.seq(5).0), (131_075, 131_075 * 17_592_186_044_416 + 5));
        assert_eq!(Line::siding(Destination::ServiceNow).0, 65_536);
    }

    #[test]
    fn a_place_knows_its_line() {
        for line in Line::all(u16::MAX) {
            assert_eq!(line.seq(1).line(), line);
            assert!(line.start() < line.seq(1) && line.seq(1) < line.end());
        }
        let last = Line::siding(Destination::Xo);
        assert!(last.is_siding() && last.destination() == Some(Destination::Xo));
    }
}
