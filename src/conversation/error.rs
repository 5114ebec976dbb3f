//! The errors of the directory, as far as callers or operators must distinguish them.
//!
//! Guarantees: no text here contains a URL, a password or a bound value of a statement. Each state of a PostgreSQL server
//! that an operator ends in a different way has a variant of its own.

use sqlx::error::ErrorKind;

use super::pooler;
use crate::tls::{self, TlsFault};

/// Why the directory could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The database is unreachable or too busy: the caller tries again later.
    #[error("the directory cannot be reached: {0}")]
    Unavailable(String),
    /// The session of the server is not our own, so it does not know our prepared statement. The statement was not run.
    #[error("the directory cannot be reached: {0}")]
    Pooled(String),
    /// The disk of the database is full.
    #[error("the directory is full: {0}")]
    Full(String),
    /// The database accepts no writes, such as a standby of PostgreSQL.
    #[error("the directory is read-only: {0}")]
    ReadOnly(String),
    /// The database refuses the login or the statements of its user, or does not exist.
    #[error("{0}")]
    Refused(String),
    /// A table of Causeway is missing or differs.
    #[error("{0}")]
    Tables(String),
    /// TLS failed.
    #[error("TLS failed: {1}")]
    Tls(TlsFault, String),
    /// The database is not what this program expects: an operator must act.
    #[error("{0}")]
    Mismatch(String),
}

impl DirectoryError {
    /// Whether the error can end without a change of the settings or of the program.
    pub(super) const fn can_heal(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Pooled(_) | Self::Full(_) | Self::ReadOnly(_))
    }

    /// The error of every call after the directory was closed.
    pub(super) fn closed() -> Self {
        Self::Unavailable("it was closed".to_owned())
    }

    /// The same error with the name of the directory in its text.
    pub(super) fn at(self, place: &str) -> Self {
        let at = |why: String| format!("{place}: {why}");
        match self {
            Self::Unavailable(why) => Self::Unavailable(at(why)),
            Self::Pooled(why) => Self::Pooled(at(why)),
            Self::Full(why) => Self::Full(at(why)),
            Self::ReadOnly(why) => Self::ReadOnly(at(why)),
            Self::Refused(why) => Self::Refused(at(why)),
            Self::Tables(why) => Self::Tables(at(why)),
            Self::Tls(fault, why) => Self::Tls(fault, at(why)),
            Self::Mismatch(why) => Self::Mismatch(at(why)),
        }
    }
}

impl From<sqlx::Error> for DirectoryError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(answer) if pooler::is_lost_session(&**answer) => {
                Self::Pooled(answer.message().to_owned())
            }
            sqlx::Error::Database(answer) => {
                of_answer(answer.code().as_deref(), answer.kind(), answer.message().to_owned())
            }
            sqlx::Error::PoolTimedOut => Self::Unavailable("no connection in time".to_owned()),
            sqlx::Error::PoolClosed => Self::closed(),
            sqlx::Error::Io(io) => match tls::fault_of(io) {
                Some((fault, detail)) => Self::Tls(fault, detail),
                None => Self::Unavailable(error.to_string()),
            },
            sqlx::Error::WorkerCrashed => Self::Unavailable(error.to_string()),
            sqlx::Error::Tls(inner) => match inner.downcast_ref::<rustls::Error>().map(tls::fault) {
                Some((fault, detail)) => Self::Tls(fault, detail),
                None if inner.to_string().contains("not support TLS") => {
                    Self::Tls(TlsFault::NotTls, "the server does not support TLS".to_owned())
                }
                None => Self::Tls(TlsFault::Other, inner.to_string()),
            },
            // The answer to the request for TLS was neither yes nor no, but TLS itself.
            sqlx::Error::Protocol(text) if text.contains("SSLRequest: 0x15") => {
                Self::Tls(TlsFault::TlsNeeded, "the server speaks TLS from the first byte".to_owned())
            }
            _ => Self::Mismatch(error.to_string()),
        }
    }
}

/// Classifies an answer. PostgreSQL answers with SQLSTATE (five characters), SQLite with a number whose low byte is the
/// primary code.
fn of_answer(code: Option<&str>, kind: ErrorKind, words: String) -> DirectoryError {
    if kind == ErrorKind::CheckViolation || kind == ErrorKind::NotNullViolation {
        return DirectoryError::Mismatch(words);
    }
    match code {
        Some(state) if state.len() == 5 => of_postgres(state, words),
        Some(code) => of_sqlite(code.parse().unwrap_or(0), words),
        None => DirectoryError::Unavailable(words),
    }
}

fn of_postgres(state: &str, words: String) -> DirectoryError {
    match state {
        "25006" => DirectoryError::ReadOnly(words),
        "53100" => DirectoryError::Full(words),
        "42501" => DirectoryError::Refused(words),
        _ => match &state[..2] {
            // Login refused, no such database.
            "28" | "3D" => DirectoryError::Refused(words),
            "3F" | "42" => DirectoryError::Tables(words),
            _ => DirectoryError::Unavailable(words),
        },
    }
}

fn of_sqlite(code: u32, words: String) -> DirectoryError {
    const ERROR: u32 = 1;
    const PERM: u32 = 3;
    const READONLY: u32 = 8;
    const CORRUPT: u32 = 11;
    const FULL: u32 = 13;
    const CANTOPEN: u32 = 14;
    const NOTADB: u32 = 26;
    match code & 0xff {
        READONLY => DirectoryError::ReadOnly(words),
        FULL => DirectoryError::Full(words),
        PERM | CANTOPEN => DirectoryError::Refused(words),
        // SQLite has no code of its own for a missing table.
        ERROR => DirectoryError::Tables(words),
        CORRUPT | NOTADB => DirectoryError::Mismatch(words),
        _ => DirectoryError::Unavailable(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_a_database_has_its_error() {
        type Error = DirectoryError;
        let unavailable: fn(String) -> Error = Error::Unavailable;
        for (code, expected) in [
            ("28P01", Error::Refused as fn(String) -> Error), // wrong password
            ("28000", Error::Refused),                        // no entry in pg_hba.conf
            ("3D000", Error::Refused),                        // no such database
            ("42501", Error::Refused),                        // no right on a table
            ("42P01", Error::Tables),                         // no such table
            ("42703", Error::Tables),                         // no such column
            ("25006", Error::ReadOnly),                       // a standby
            ("53100", Error::Full),                           // disk full
            ("57P01", unavailable),                           // the server is being stopped
            ("53300", unavailable),                           // too many connections
            ("40P01", unavailable),                           // deadlock
            ("5", unavailable),                               // busy
            ("517", unavailable),                             // busy, stale snapshot
            ("13", Error::Full),                              // disk full
            ("14", Error::Refused),                           // cannot open
            ("1032", Error::ReadOnly),                        // read-only file system
            ("26", Error::Mismatch),                          // some other file
        ] {
            let found = of_answer(Some(code), ErrorKind::Other, "words".to_owned());
            assert_eq!(found, expected("words".to_owned()), "{code}");
        }
    }

    #[test]
    fn a_fault_of_tls_is_told_from_an_outage() {
        let io = |error: rustls::Error| sqlx::Error::Io(std::io::Error::other(error));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let unsupported = sqlx::Error::Tls("server does not support TLS".into());
        let direct = sqlx::Error::Protocol("unexpected response from SSLRequest: 0x15".into());
        for (error, fault) in [
            (io(unknown.clone()), TlsFault::UnknownIssuer),
            (sqlx::Error::Tls(unknown.into()), TlsFault::UnknownIssuer),
            (unsupported, TlsFault::NotTls),
            (direct, TlsFault::TlsNeeded),
        ] {
            let found = DirectoryError::from(error);
            assert!(matches!(&found, DirectoryError::Tls(found, _) if *found == fault), "{found:?}");
        }
        let away = sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(DirectoryError::from(away), DirectoryError::Unavailable(_)));
    }
}
