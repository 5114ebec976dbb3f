//! Copies a queue out of its folder and into another one.
//!
//! Guarantees: a copy holds every message that was in the queue, with its id, in the same order. The folder that is copied
//! out or in is locked, so no other process serves it meanwhile. A copy that was interrupted is never used. Files have mode
//! 0600.
//! Not responsible for: the choice of the folders (`queue/spool/transfer.rs`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::lock::FileLock;
use super::store::SCHEMA;
use crate::message::Destinations;
use crate::queue::QueueError;
use crate::{clock, data_files};

/// The contents of a queue's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredCount {
    /// The messages.
    pub messages: u64,
    /// The dead letters.
    pub dead_letters: u64,
}

impl StoredCount {
    /// Whether there is nothing.
    pub const fn is_empty(self) -> bool {
        self.messages == 0 && self.dead_letters == 0
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> QueueError {
    QueueError::Unavailable(format!("{}: {error}", path.display()))
}

fn lock(folder: &Path) -> Result<FileLock, QueueError> {
    FileLock::take(&folder.join("causeway.lock"), |holder| {
        format!("{holder} uses {}: stop it first", folder.display())
    })
}

/// The contents of a file that is a complete queue of this version.
pub(in crate::queue) fn count(file: &Path, known: Option<&Destinations>) -> Result<StoredCount, QueueError> {
    let broken = |error: rusqlite::Error| failed(file, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(broken)?;
    let version: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(broken)?;
    if version != SCHEMA {
        return Err(QueueError::Mismatch(format!(
            "{} is not an exported spool of this version of causeway",
            file.display()
        )));
    }
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(broken)?;
    if check != "ok" {
        return Err(QueueError::Mismatch(format!("{} is damaged: {check}", file.display())));
    }
    if let Some(known) = known {
        let mut names = connection.prepare("SELECT name FROM destination").map_err(broken)?;
        let names = names.query_map([], |row| row.get::<_, String>(0)).map_err(broken)?;
        for name in names {
            let name = name.map_err(broken)?;
            if !known.iter().any(|destination| destination.as_str() == name) {
                return Err(QueueError::Mismatch(format!(
                    "{} has messages for the destination {name}, which these settings do not have: use the settings of an ingress \
                     that has it",
                    file.display()
                )));
            }
        }
    }
    let rows = |table: &str| -> Result<u64, QueueError> {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get(0)).map_err(broken)
    };
    Ok(StoredCount { messages: rows("message")?, dead_letters: rows("dead_letter")? })
}

/// A copied queue. Its folder stays locked until this value is dropped.
#[derive(Debug)]
pub(in crate::queue) struct CopiedQueue {
    pub(in crate::queue) count: StoredCount,
    folder: PathBuf,
    _lock: FileLock,
}

impl CopiedQueue {
    /// Moves the original aside, so that no process publishes its messages again. Returns its new name.
    pub(in crate::queue) fn set_aside(self) -> Result<PathBuf, QueueError> {
        let path = self.folder.join("queue.sqlite");
        let aside = self.folder.join(format!("queue.sqlite.exported-{}", clock::now().as_second()));
        std::fs::rename(&path, &aside).map_err(|error| failed(&path, &error))?;
        for companion in ["queue.sqlite-wal", "queue.sqlite-shm"] {
            let _ = std::fs::remove_file(self.folder.join(companion));
        }
        Ok(aside)
    }
}

/// Copies the queue in `folder` to the new file `file`. An empty queue makes no file.
pub(in crate::queue) fn copy_out(folder: &Path, file: &Path) -> Result<Option<CopiedQueue>, QueueError> {
    let lock = lock(folder)?;
    let path = folder.join("queue.sqlite");
    let broken = |error: rusqlite::Error| failed(&path, &error);
    // What a crash left in the write-ahead log goes into the file. A copy without such a log needs no files beside it. The
    // engine turns the log on again.
    let connection = Connection::open(&path).map_err(broken)?;
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(broken)?;
    connection.close().map_err(|(_, error)| broken(error))?;
    let found = count(&path, None)?;
    if found.is_empty() {
        return Ok(None);
    }
    install(&path, file).map_err(|error| failed(file, &error))?;
    if !count(file, None).is_ok_and(|copy| copy == found) {
        let _ = std::fs::remove_file(file);
        return Err(failed(file, &"the copy is not complete"));
    }
    Ok(Some(CopiedQueue { count: found, folder: folder.to_owned(), _lock: lock }))
}

/// Copies `file` to the queue of `folder`, which must have none.
pub(in crate::queue) fn copy_in(
    file: &Path,
    folder: &Path,
    known: &Destinations,
) -> Result<StoredCount, QueueError> {
    let found = count(file, Some(known))?;
    data_files::create_folder(folder).map_err(|error| failed(folder, &error))?;
    let _lock = lock(folder)?;
    let path = folder.join("queue.sqlite");
    if path.exists() {
        return Err(QueueError::Busy(format!("{} exists already", path.display())));
    }
    install(file, &path).map_err(|error| failed(&path, &error))?;
    Ok(found)
}

/// Copies a file under another name, syncs it, and gives it its name as the last step.
fn install(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists already"));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut target = data_files::open_private(&partial)?;
    target.set_len(0)?;
    io::copy(&mut File::open(from)?, &mut target)?;
    target.sync_all()?;
    std::fs::rename(&partial, to)?;
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
