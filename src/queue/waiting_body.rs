//! The bodies of messages that wait for their attempt: bounded by bytes, however many messages wait and however large they are.
//!
//! A subscription holds up to `prefetch` messages of each partition, and RabbitMQ knows no limit of bytes for them. So a larger
//! body leaves the memory while its message waits, and comes back right before its attempt: on the embedded engine it stays in
//! its row; of RabbitMQ it is written to a file without a name as soon as it arrives, once [`MEMORY_BYTES`] are taken.
//! Guarantees: bodies up to [`SMALL_BYTES`] stay in memory and cost nothing; a body that cannot be written stays in memory, so
//! that nothing is lost; the room of a file is free once none of its messages waits, and after the end of the process in any case.
//! Not responsible for: how many bodies are in memory for their attempts (`delivery/gate.rs`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, mem};

use bytes::Bytes;

use super::QueueError;
use super::embedded::RowBody;

/// Most bodies are smaller. 4,096 of them, the windows of 16 partitions, take 16 MiB.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// A larger body waits for room before its attempt, wherever the body is.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// For the larger bodies of all subscriptions of the process.
const MEMORY_BYTES: usize = 24 << 20;
/// A file takes no more bodies beyond this, so that its room is free again some time.
const FILE_BYTES: u64 = 64 << 20;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static NEWEST: Mutex<Option<Newest>> = Mutex::new(None);

/// Where files for bodies are made, if anywhere; without it, and if it cannot be written, in the system's folder for such files.
pub fn keep_bodies_in(folder: &Path) {
    let _ = FOLDER.set(folder.to_owned());
}

/// Where the body of a waiting message is.
#[derive(Debug)]
pub(crate) enum WaitingBody {
    /// In the message.
    Here(#[allow(dead_code, reason = "gives its part back when it is dropped")] Option<Taken>),
    /// In a file of this process.
    File(FileBody),
    /// In its row of the embedded engine.
    Row(RowBody),
}

/// A part of [`MEMORY_BYTES`].
#[derive(Debug)]
pub(crate) struct Taken(usize);

impl Taken {
    fn try_take(bytes: usize) -> Option<Self> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= MEMORY_BYTES);
        TAKEN.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Self(bytes))
    }
}

impl Drop for Taken {
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
struct Newest {
    file: Arc<File>,
    end: u64,
}

impl WaitingBody {
    /// Takes a body that has just arrived out of `body`, unless it may stay there.
    pub(crate) fn keep(body: &mut Vec<u8>) -> Self {
        if body.len() <= SMALL_BYTES {
            return Self::Here(None);
        }
        if let Some(taken) = Taken::try_take(body.len()) {
            return Self::Here(Some(taken));
        }
        match write(body) {
            Ok(written) => {
                drop(mem::take(body));
                Self::File(written)
            }
            Err(error) => {
                tracing::warn!(%error, "a waiting body stays in memory: it cannot be written to a file");
                Self::Here(None)
            }
        }
    }

    /// Whether the body is somewhere else than in the message.
    pub(crate) const fn is_away(&self) -> bool {
        !matches!(self, Self::Here(_))
    }

    /// How large the body is that is somewhere else.
    pub(crate) const fn bytes(&self) -> usize {
        match self {
            Self::Here(_) => 0,
            Self::File(file) => file.bytes,
            Self::Row(row) => row.bytes,
        }
    }

    /// Reads the body that is somewhere else; `None` if it is in the message.
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
    let Newest { file, end } = match newest.take() {
        // A file that only this list knows holds nothing that anybody needs.
        Some(Newest { file, .. }) if Arc::strong_count(&file) == 1 => {
            file.set_len(0)?;
            Newest { file, end: 0 }
        }
        Some(open) if open.end < FILE_BYTES => open,
        _ => Newest { file: Arc::new(without_name()?), end: 0 },
    };
    file.write_all_at(body, end)?;
    let written = FileBody { file: Arc::clone(&file), at: end, bytes: body.len() };
    *newest = Some(Newest { file, end: end + body.len() as u64 });
    Ok(written)
}

/// A file that nobody else can open, and that is gone with this process.
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

    /// One test, since the process has one account.
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
