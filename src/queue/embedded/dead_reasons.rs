//! Counts the dead letters by reason.
//!
//! Guarantees: a count reads an index alone, so it is quick with any number of dead letters of any size.

use std::collections::BTreeMap;

use super::store::MessageStore;
use crate::message::DeadReason;

/// An index changes no row, so files with and without it have the same schema version.
pub(super) const INDEX: &str = "CREATE INDEX IF NOT EXISTS dead_letter_reason ON dead_letter (reason)";

impl MessageStore {
    /// The number of dead letters by reason.
    pub(super) fn dead_reasons(&self) -> rusqlite::Result<BTreeMap<DeadReason, u64>> {
        let mut counts =
            self.connection.prepare_cached("SELECT reason, count(*) FROM dead_letter GROUP BY reason")?;
        let mut rows = counts.query([])?;
        let mut reasons = BTreeMap::new();
        while let Some(row) = rows.next()? {
            // A reason that this version does not know is shown as `row::dead_letter` shows it.
            let reason = row.get_ref(0)?.as_str().ok().and_then(DeadReason::parse);
            *reasons.entry(reason.unwrap_or(DeadReason::Unreadable)).or_default() += row.get::<_, u64>(1)?;
        }
        Ok(reasons)
    }
}
