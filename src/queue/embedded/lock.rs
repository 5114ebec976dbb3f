//! Files that only one process may hold.
//!
//! Guarantees: the operating system frees the lock when its holder ends, however it ends; a refusal names the holder.
//! Leaves to others: SQLite's own locks, which keep single writes of several processes apart.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::data_files;
use crate::queue::QueueError;

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says what `busy` makes of its holder, such as `process 4711`.
    pub(super) fn take(path: &Path, busy: impl FnOnce(&str) -> String) -> Result<Self, QueueError> {
        let unavailable = |error: std::io::Error| {
            QueueError::Unavailable(format!("cannot use the lock file {}: {error}", path.display()))
        };
        let mut file = data_files::open_private(path).map_err(unavailable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(QueueError::Busy(busy(&holder(&mut file)))),
            Err(TryLockError::Error(error)) => return Err(unavailable(error)),
        }
        // Only so that a refusal can name the holder: a full disk is no reason not to serve what is there.
        let _ = note_holder(&mut file);
        Ok(Self { _file: file })
    }
}

fn note_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(20).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let lock = Lock::take(&path, str::to_owned).unwrap();
        let refused = Lock::take(&path, |holder| format!("held by {holder}")).unwrap_err();
        assert_eq!(refused.to_string(), format!("held by process {}", std::process::id()));
        drop(lock);
        assert!(Lock::take(&path, str::to_owned).is_ok());
    }
}
