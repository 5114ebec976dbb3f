//! Lock files that only one process can hold.
//!
//! Guarantees: the operating system releases the lock when its holder ends, in every case. A refusal names the holder.
//! Not responsible for: the locks of SQLite, which separate single writes of several processes.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::data_files;
use crate::queue::QueueError;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock. If another process holds the lock, `busy` makes the error from its name, such as `process 4711`.
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
        // The number only serves the message of a refusal, so a full disk must not prevent a start.
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
        let lock = FileLock::take(&path, str::to_owned).unwrap();
        let refused = FileLock::take(&path, |holder| format!("held by {holder}")).unwrap_err();
        assert_eq!(refused.to_string(), format!("held by process {}", std::process::id()));
        drop(lock);
        assert!(FileLock::take(&path, str::to_owned).is_ok());
    }
}
