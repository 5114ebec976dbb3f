//! What the readings of ServiceNow's tables have in common: the rights of the user, and why a reading failed.
//!
//! Guarantees: a failed call and trouble of our own are told apart, because only the first one ends the use of a table.
//! Not responsible for: the readings (`watch/bulk_read.rs`, `conversation_rows/`).

use crate::conversation::DirectoryError;
use crate::delivery::InternalError;
use crate::platform::CallError;

/// Whether the tables show the rows of chats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::bridge) enum TableRights {
    #[default]
    Unknown,
    Granted,
    Refused,
}

/// The reason why rows could not be read.
pub(in crate::bridge) enum TableError {
    Call(CallError),
    Internal(InternalError),
}

impl From<CallError> for TableError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<InternalError> for TableError {
    fn from(error: InternalError) -> Self {
        Self::Internal(error)
    }
}

impl From<DirectoryError> for TableError {
    fn from(error: DirectoryError) -> Self {
        Self::Internal(error.into())
    }
}
