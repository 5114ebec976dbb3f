//! The bodies of messages that wait for their attempt, bounded in bytes for any number and size of messages.
//!
//! A subscription has up to `prefetch` messages of each partition, and RabbitMQ has no limit in bytes. A larger body
//! therefore leaves the memory while its message waits, and is loaded right before the attempt. On the embedded engine
//! the body stays in its row. With RabbitMQ the body is written to an unnamed file on arrival, if more than
//! [`MEMORY_BYTES`] are in use.
//! Guarantees: bodies up to [`SMALL_BYTES`] stay in memory and do not count. A body that cannot be written stays in
//! memory, so that nothing is lost. The space of a file becomes free when none of its messages waits, and at the end of
//! the process.
//! Not responsible for: the number of bodies in memory during their attempts (`delivery/gate.rs`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, mem};

use bytes::Bytes;

use super::QueueError;
use super::embedded::RowBody;

/// Most bodies are smaller. 4,096 bodies of this size, the windows of 16 partitions, take 16 MiB.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// A larger body waits for a memory permit before its attempt, on both engines.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// The limit for the larger bodies of all subscriptions of the process.
const MEMORY_BYTES: usize = 24 << 20;
/// A file of this size takes no more bodies, so that its space can become free.
const FILE_BYTES: u64 = 64 << 20;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static NEWEST: Mutex<Option<NewestFile>> = Mutex::new(None);

/// Sets the folder for body files. Without a folder, or if it cannot be written, files go to the system's temporary folder.
pub fn keep_bodies_in(folder: &Path) {
    let _ = FOLDER.set(folder.to_owned());
}

/// The place of the body of a waiting message.
#[derive(Debug)]
pub(crate) enum WaitingBody {
    /// In the message.
    Here(#[allow(dead_code, reason = "gives its part back when it is dropped")] Option<MemoryShare>),
    /// In a file of this process.
    File(FileBody),
    /// In its row of the embedded engine.
    Row(RowBody),
}

/// A share of [`MEMORY_BYTES`].
#[derive(Debug)]
pub(crate) struct MemoryShare(usize);

impl MemoryShare {
    fn try_take(bytes: usize) -> Option<Self> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= MEMORY_BYTES);
        TAKEN.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Self(bytes))
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A body in a file.
#[derive(Debug)]
pub(crate) struct FileBody {
    file: Arc<File>,
    at: u64,
    bytes: usize,
}

#[derive(Debug)]
struct NewestFile {
    file: Arc<File>,
    end: u64,
}

impl WaitingBody {
    /// Takes a body that has just arrived out of `body`, unless the body may stay there.
    pub(crate) fn keep(body: &mut Vec<u8>) -> Self {
        if body.len() <= SMALL_BYTES {
            return Self::Here(None);
        }
        if let Some(taken) = MemoryShare::try_take(body.len()) {
            return Self::Here(Some(taken));
        }
        match write(body) {
            Ok(written) => {
                drop(mem::take(body));
                Self::File(written)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot write the body of a waiting message to a file; the body stays in memory");
                Self::Here(None)
            }
        }
    }

    /// Whether the body is stored outside of the message.
    pub(crate) const fn is_away(&self) -> bool {
        !matches!(self, Self::Here(_))
    }

    /// The size in bytes of a body outside of the message, otherwise 0.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Here(_) => 0,
            Self::File(file) => file.bytes,
            Self::Row(row) => row.bytes,
        }
    }

    /// Reads a body outside of the message; `None` if the body is in the message.
    pub(crate) async fn read(&self) -> Result<Option<Bytes>, QueueError> {
        match self {
            Self::Here(_) => Ok(None),
            Self::File(body) => body.read().map(Some).map_err(|error| {
                QueueError::Unavailable(format!(
                    "the file with the body of a waiting message cannot be read: {error}"
                ))
            }),
            Self::Row(row) => row.read().await.map(Some),
        }
    }
}

impl FileBody {
    fn read(&self) -> io::Result<Bytes> {
        let mut body = vec![0; self.bytes];
        self.file.read_exact_at(&mut body, self.at)?;
        Ok(body.into())
    }
}

fn write(body: &[u8]) -> io::Result<FileBody> {
    let mut newest = NEWEST.lock().unwrap_or_else(PoisonError::into_inner);
    let NewestFile { file, end } = match newest.take() {
        // If only this list has the file, no message needs its bodies any more.
        Some(NewestFile { file, .. }) if Arc::strong_count(&file) == 1 => {
            file.set_len(0)?;
            NewestFile { file, end: 0 }
        }
        Some(open) if open.end < FILE_BYTES => open,
        _ => NewestFile { file: Arc::new(without_name()?), end: 0 },
    };
    file.write_all_at(body, end)?;
    let written = FileBody { file: Arc::clone(&file), at: end, bytes: body.len() };
    *newest = Some(NewestFile { file, end: end + body.len() as u64 });
    Ok(written)
}

/// A file that no other process can open, and that ends with this process.
fn without_name() -> io::Result<File> {
    let system = std::env::temp_dir();
    let made = FOLDER.get().map(|folder| {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        without_name_in(folder)
    });
    match made {
        Some(Ok(file)) => Ok(file),
        _ => without_name_in(&system),
    }
}

fn without_name_in(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".causeway-bodies-{}", uuid::Uuid::new_v4().simple()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because the process has one shared account.
    #[tokio::test]
    async fn bodies_beyond_the_room_in_memory_come_back_from_a_file() {
        let body = |n: u8| vec![n; 1 << 20];
        let mut kept = Vec::new();
        for n in 0..100 {
            let mut given = body(n);
            let place = WaitingBody::keep(&mut given);
            assert_eq!(given.is_empty(), place.is_away());
            kept.push((n, place, given));
        }
        let in_memory: usize = kept.iter().map(|(_, _, given)| given.len()).sum();
        assert!((MEMORY_BYTES / 2..=MEMORY_BYTES).contains(&in_memory), "{in_memory}");
        for (n, place, given) in &kept {
            let read = place.read().await.unwrap().unwrap_or_else(|| given.clone().into());
            assert_eq!(read, body(*n));
        }
        let small = WaitingBody::keep(&mut vec![1; SMALL_BYTES]);
        assert!(matches!(small, WaitingBody::Here(None)));
        drop(kept);
        assert!(WaitingBody::keep(&mut body(1)).bytes() == 0, "its room is free again");
    }
}
