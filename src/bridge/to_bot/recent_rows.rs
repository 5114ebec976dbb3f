//! The rows of recent readings that showed more than the row of one callback. If an agent writes faster than the bot side
//! accepts, the next callbacks of the chat are answered from here, and ServiceNow is not asked again for each of them.
//!
//! Guarantees: a reading counts for [`FRESH_FOR`]. It answers only if it shows the callback's row and the chat was relayed
//! up to a place that the reading covers, so a gap before the row is always seen. All readings together hold at most
//! [`BYTES_MAX`] of text.
//! Not responsible for: reading, and rows that no recent reading shows (`callback_row.rs`).

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::bridge::to_bot::gap_check::{GapCheck, ROW_VISIBLE_WITHIN, found};
use crate::platform::servicenow::RemoteMessage;

/// A row may become visible this long after a later row of the same chat. A reading that is older could hide such a row.
const FRESH_FOR: Duration = ROW_VISIBLE_WITHIN;
/// A reading that does not fit removes all others.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// The recent readings, one for each chat.
#[derive(Debug, Default)]
pub(in crate::bridge) struct RecentRows {
    readings: HashMap<String, Reading>,
    bytes: usize,
}

#[derive(Debug)]
struct Reading {
    /// The message after which the reading begins; `None` if it begins with the chat.
    since: Option<String>,
    /// Oldest first.
    rows: Vec<RemoteMessage>,
    bytes: usize,
    at: Instant,
}

impl RecentRows {
    /// Keeps a reading if it shows rows after the row of this callback.
    pub(super) fn keep(
        &mut self,
        group: &str,
        sys_id: &str,
        since: Option<String>,
        rows: Vec<RemoteMessage>,
    ) {
        self.forget(group);
        if rows.last().is_none_or(|last| last.sys_id == sys_id) {
            return;
        }
        let at = Instant::now();
        self.readings.retain(|_, reading| at.duration_since(reading.at) < FRESH_FOR);
        let bytes = rows.iter().map(size).sum();
        self.bytes = self.readings.values().map(|reading| reading.bytes).sum();
        if self.bytes + bytes > BYTES_MAX {
            self.readings.clear();
            self.bytes = 0;
        }
        if bytes <= BYTES_MAX {
            self.bytes += bytes;
            self.readings.insert(group.to_owned(), Reading { since, rows, bytes, at });
        }
    }

    /// The row of a callback and the messages that are missing before it. `None` if no recent reading shows both.
    pub(super) fn find(&mut self, group: &str, sys_id: &str, last_relayed: Option<&str>) -> Option<GapCheck> {
        let reading = self.readings.get(group)?;
        if reading.at.elapsed() >= FRESH_FOR {
            self.forget(group);
            return None;
        }
        let after = if reading.since.as_deref() == last_relayed { None } else { Some(last_relayed?) };
        match found(&reading.rows, sys_id, after)? {
            // A new reading decides about a row that precedes the last relayed message.
            GapCheck::Late(_) => None,
            found => Some(found),
        }
    }

    fn forget(&mut self, group: &str) {
        if let Some(reading) = self.readings.remove(group) {
            self.bytes -= reading.bytes;
        }
    }
}

fn size(row: &RemoteMessage) -> usize {
    let files: usize = row.files.iter().map(|file| file.name.len() + file.sys_id.len()).sum();
    row.text.len() + row.sys_id.len() + files + size_of::<RemoteMessage>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(names: &str) -> Vec<RemoteMessage> {
        let row = |name: &str| RemoteMessage {
            sys_id: name.to_owned(),
            created_by: None,
            text: name.to_owned(),
            internal: name.starts_with("note"),
            files: Vec::new(),
        };
        names.split_whitespace().map(row).collect()
    }

    fn shown(recent: &mut RecentRows, row: &str, last_relayed: Option<&str>) -> String {
        match recent.find("g", row, last_relayed) {
            Some(GapCheck::Read { missing, row }) => {
                let missing: Vec<String> = missing.into_iter().map(|row| row.sys_id).collect();
                format!("{} | {}", missing.join(" "), row.sys_id)
            }
            Some(GapCheck::Internal) => "internal".to_owned(),
            Some(_) => "other".to_owned(),
            None => "not shown".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_reading_serves_the_callbacks_that_wait() {
        let mut recent = RecentRows::default();
        recent.keep("g", "a", Some("z".to_owned()), rows("a b lost note c"));
        assert_eq!(shown(&mut recent, "b", Some("a")), " | b");
        assert_eq!(shown(&mut recent, "c", Some("b")), "lost | c", "a gap is seen");
        assert_eq!(shown(&mut recent, "note", Some("b")), "internal");
        assert_eq!(shown(&mut recent, "b", Some("z")), "a | b", "the attempt of a failed");
        assert_eq!(shown(&mut recent, "a", Some("b")), "not shown", "a row before the last relayed message");
        assert_eq!(shown(&mut recent, "b", Some("elsewhere")), "not shown", "the reading may begin too late");
        assert_eq!(shown(&mut recent, "b", None), "not shown");
        assert_eq!(shown(&mut recent, "d", Some("c")), "not shown", "the row is newer than the reading");
        tokio::time::advance(FRESH_FOR).await;
        assert_eq!(shown(&mut recent, "b", Some("a")), "not shown", "the reading is too old");
        assert_eq!((recent.readings.len(), recent.bytes), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_without_later_rows_is_not_kept() {
        let mut recent = RecentRows::default();
        recent.keep("g", "b", None, rows("a b"));
        assert!(recent.readings.is_empty());
        recent.keep("g", "a", None, rows("a b"));
        recent.keep("g", "b", None, rows("a b"));
        assert!(recent.readings.is_empty(), "a newer reading replaces the older one");
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_has_a_limit() {
        let mut recent = RecentRows::default();
        let large = |megabytes: usize| {
            let mut rows = rows("a b");
            rows[0].text = "x".repeat(megabytes << 20);
            rows
        };
        for number in 0..20 {
            recent.keep(&format!("g{number}"), "a", None, large(1));
            assert!(recent.bytes <= BYTES_MAX);
        }
        assert!(!recent.readings.is_empty());
        recent.keep("g", "a", None, large(9));
        assert!(!recent.readings.contains_key("g"));
    }
}
