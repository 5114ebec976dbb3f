//! Reads the lanes of the messages in the file. The spool must know these lanes before it accepts a message.
//!
//! Not responsible for: later messages (`../spool/lanes.rs`).

use super::store::MessageStore;
use super::stream::SequenceNumber;
use crate::message::{Destination, LaneKey};

/// The lane and the size of one message in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue) struct StoredLane {
    pub(in crate::queue) destination: Destination,
    pub(in crate::queue) lane: LaneKey,
    pub(in crate::queue) body_bytes: u64,
}

impl MessageStore {
    /// The lane of each message in the file. Unlike every other statement this one reads all rows.
    pub(super) fn stored_lanes(&self) -> rusqlite::Result<Vec<StoredLane>> {
        let mut lanes = self.connection.prepare("SELECT seq, lane, length(body) FROM message")?;
        let mut rows = lanes.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let destination = self.numbers().destination(SequenceNumber(row.get(0)?).stream());
            let lane = LaneKey::parse(&row.get::<_, String>(1)?).ok();
            if let (Some(destination), Some(lane)) = (destination, lane) {
                found.push(StoredLane { destination, lane, body_bytes: row.get(2)? });
            }
        }
        Ok(found)
    }
}
