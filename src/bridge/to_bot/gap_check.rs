//! The result of looking for the row of a callback, and of looking for the messages before the row.
//!
//! Guarantees: pure. A message among agents is never among the missing messages.
//! Not responsible for: reading (`callback_row.rs`), how long a reading counts (`recent_rows.rs`).

use std::time::Duration;

use crate::platform::servicenow::RemoteMessage;

/// The Business Rule runs inside the agent's transaction, so its callback can arrive before the row is visible.
pub(super) const ROW_VISIBLE_WITHIN: Duration = Duration::from_secs(2);

/// The result of looking for a callback's row and for the messages before it.
pub(in crate::bridge) enum GapCheck {
    /// The callback itself shows that no message is missing before it.
    Complete,
    /// The chat was not read. Gap repair finds missing messages later.
    Unknown,
    /// The row, and the messages before it that may not have been relayed yet.
    Read { missing: Vec<RemoteMessage>, row: RemoteMessage },
    /// The row precedes the last relayed message: the callback waited for a long time, or it is a replay.
    Late(RemoteMessage),
    /// One reading did not show the row. A second reading decides.
    Unseen,
    /// Two readings did not show the row: a clone of the instance or a forger sent the callback.
    Absent,
    /// The row is a message among agents.
    Internal,
    /// ServiceNow did not answer. The attempt is repeated.
    NotYet,
}

impl GapCheck {
    /// The row, if it was read.
    pub(in crate::bridge) const fn row(&self) -> Option<&RemoteMessage> {
        match self {
            Self::Read { row, .. } | Self::Late(row) => Some(row),
            _ => None,
        }
    }

    /// Whether the record of the last relayed message moves to this message.
    pub(in crate::bridge) const fn moves_on(&self) -> bool {
        !matches!(self, Self::Unknown | Self::Late(_))
    }
}

/// Finds the row among the messages that were read, oldest first. `last_relayed`: the last relayed message, if the
/// reading goes back further.
pub(super) fn found(remote: &[RemoteMessage], sys_id: &str, last_relayed: Option<&str>) -> Option<GapCheck> {
    let here = remote.iter().position(|remote| remote.sys_id == sys_id)?;
    let row = remote.get(here)?.clone();
    if row.internal {
        return Some(GapCheck::Internal);
    }
    let first = match last_relayed.map(|last| remote.iter().position(|remote| remote.sys_id == last)) {
        None => 0,
        Some(Some(told)) if told < here => told + 1,
        Some(_) => return Some(GapCheck::Late(row)),
    };
    let missing = remote.get(first..here)?.iter().filter(|remote| !remote.internal).cloned().collect();
    Some(GapCheck::Read { missing, row })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(names: &str) -> Vec<RemoteMessage> {
        let remote = names.split_whitespace().map(|name| RemoteMessage {
            sys_id: name.to_owned(),
            created_by: None,
            text: String::new(),
            internal: name.starts_with("note"),
            files: Vec::new(),
        });
        remote.collect()
    }

    fn shown(names: &str, row: &str, last_relayed: Option<&str>) -> String {
        match found(&remote(names), row, last_relayed) {
            Some(GapCheck::Read { missing, row }) => {
                let missing: Vec<String> = missing.into_iter().map(|remote| remote.sys_id).collect();
                format!("{} | {}", missing.join(" "), row.sys_id)
            }
            Some(GapCheck::Late(row)) => format!("late {}", row.sys_id),
            Some(GapCheck::Internal) => "internal".to_owned(),
            _ => "not there".to_owned(),
        }
    }

    #[test]
    fn a_row_is_told_behind_what_is_missing() {
        assert_eq!(shown("a b c", "b", None), "a | b");
        assert_eq!(shown("a note b", "b", None), "a | b");
        assert_eq!(shown("a note b", "note", None), "internal");
        assert_eq!(shown("a b c", "d", None), "not there");
        // A reading that goes back further than the last relayed message repeats nothing.
        assert_eq!(shown("a b c d", "d", Some("b")), "c | d");
        assert_eq!(shown("a b c d", "b", Some("c")), "late b");
        assert_eq!(shown("a b", "b", Some("not shown")), "late b");
    }
}
