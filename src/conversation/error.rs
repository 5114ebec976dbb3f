//! The errors of the directory, as far as callers must distinguish them.
//!
//! Guarantees: no text here contains a URL, a password or a bound value of a statement.

use sqlx::error::ErrorKind;

/// Why the directory could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DirectoryError {
    /// The database is unreachable or too busy, or the disk is full: the caller tries again later.
    #[error("the directory cannot be reached: {0}")]
    Unavailable(String),
    /// The database is not what this program expects or may use: an operator must act.
    #[error("{0}")]
    Mismatch(String),
}

impl DirectoryError {
    /// The same error with the name of the directory in its text.
    pub(super) fn at(self, place: &str) -> Self {
        match self {
            Self::Unavailable(why) => Self::Unavailable(format!("{place}: {why}")),
            Self::Mismatch(why) => Self::Mismatch(format!("{place}: {why}")),
        }
    }
}

impl From<sqlx::Error> for DirectoryError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(answer) if needs_operator(answer.code().as_deref(), answer.kind()) => {
                Self::Mismatch(answer.message().to_owned())
            }
            sqlx::Error::Database(answer) => Self::Unavailable(answer.message().to_owned()),
            sqlx::Error::PoolTimedOut => Self::Unavailable("no connection in time".to_owned()),
            sqlx::Error::PoolClosed => Self::Unavailable("it was closed".to_owned()),
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => Self::Unavailable(error.to_string()),
            _ => Self::Mismatch(error.to_string()),
        }
    }
}

/// Whether waiting cannot help. PostgreSQL answers with SQLSTATE (five characters), SQLite with a number whose low byte is
/// the primary code.
fn needs_operator(code: Option<&str>, kind: ErrorKind) -> bool {
    const SQLITE_ERROR: u32 = 1;
    const SQLITE_PERM: u32 = 3;
    const SQLITE_READONLY: u32 = 8;
    const SQLITE_CORRUPT: u32 = 11;
    const SQLITE_CANTOPEN: u32 = 14;
    const SQLITE_NOTADB: u32 = 26;
    if kind == ErrorKind::CheckViolation || kind == ErrorKind::NotNullViolation {
        return true;
    }
    match code {
        // Login refused, no such database, or tables that are missing or not ours.
        Some(state) if state.len() == 5 => {
            ["28", "3D", "3F", "42"].iter().any(|class| state.starts_with(class))
        }
        Some(code) => code.parse::<u32>().is_ok_and(|code| {
            [SQLITE_ERROR, SQLITE_PERM, SQLITE_READONLY, SQLITE_CORRUPT, SQLITE_CANTOPEN, SQLITE_NOTADB]
                .contains(&(code & 0xff))
        }),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_told_from_mending() {
        for (code, operator) in [
            ("28P01", true),  // wrong password
            ("3D000", true),  // no such database
            ("42P01", true),  // no such table
            ("57P01", false), // the server is being stopped
            ("53300", false), // too many connections
            ("40P01", false), // deadlock
            ("5", false),     // busy
            ("517", false),   // busy, stale snapshot
            ("13", false),    // disk full
            ("14", true),     // cannot open
            ("1032", true),   // read-only file system
            ("26", true),     // some other file
        ] {
            assert_eq!(needs_operator(Some(code), ErrorKind::Other), operator, "{code}");
        }
    }
}
