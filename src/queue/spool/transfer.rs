//! Hands the spool of an ingress that never sees its broker again to another ingress.
//!
//! Guarantees: an exported spool is set aside, so its messages are not published twice from there. An imported one is
//! published as any spool whose process is gone (`adopt.rs`): with its ids, each lane in its order.
//! Not responsible for: the order between the imported messages and those that the other ingress accepts.

use std::path::{Path, PathBuf};

use super::{FOLDERS_MAX, place};
use crate::message::Destinations;
use crate::queue::QueueError;
use crate::queue::embedded::StoredCount;
use crate::queue::embedded::transfer::{CopiedQueue, copy_in, copy_out};

/// One exported or imported spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferredSpool {
    /// The file that was written, or the folder that was filled.
    pub to: PathBuf,
    /// Its contents.
    pub count: StoredCount,
    /// The place of the original after an export.
    pub aside: Option<PathBuf>,
}

/// Exports each spool below `folder`. The first one goes to `file`, each further one to `file` with a number. If one of
/// them cannot be copied, no spool changes and no file stays.
pub fn export_spools(folder: &Path, file: &Path) -> Result<Vec<TransferredSpool>, QueueError> {
    let mut copied: Vec<(PathBuf, CopiedQueue)> = Vec::new();
    for number in 1..=FOLDERS_MAX {
        let own = place(folder, number);
        if !own.join("queue.sqlite").exists() {
            continue;
        }
        let to = if copied.is_empty() { file.to_owned() } else { numbered(file, copied.len() + 1) };
        match copy_out(&own, &to) {
            Ok(Some(copy)) => copied.push((to, copy)),
            Ok(None) => {}
            Err(error) => {
                for (written, _) in copied {
                    let _ = std::fs::remove_file(written);
                }
                return Err(error);
            }
        }
    }
    let set_aside = |(to, copy): (PathBuf, CopiedQueue)| {
        Ok(TransferredSpool { to, count: copy.count, aside: Some(copy.set_aside()?) })
    };
    copied.into_iter().map(set_aside).collect()
}

/// Imports a file that [`export_spools`] wrote into the first folder without a spool.
pub fn import_spool(
    folder: &Path,
    file: &Path,
    known: &Destinations,
) -> Result<TransferredSpool, QueueError> {
    for number in 1..=FOLDERS_MAX {
        let own = place(folder, number);
        if own.join("queue.sqlite").exists() {
            continue;
        }
        match copy_in(file, &own, known) {
            Ok(count) => return Ok(TransferredSpool { to: own, count, aside: None }),
            // A process has just taken the folder.
            Err(QueueError::Busy(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(QueueError::Busy(format!(
        "all {FOLDERS_MAX} folders below {} hold a spool: start an ingress that publishes them",
        folder.display()
    )))
}

fn numbered(file: &Path, number: usize) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;
    use crate::message::{Destination, Kind, LaneKey, Message, MessageId};
    use crate::queue::embedded::{EmbeddedQueue, EmbeddedSettings};
    use crate::queue::{PartitionId, Queue, QueueTuning};

    fn destinations() -> Destinations {
        Destinations::new([Destination::Xo])
    }

    async fn store(folder: &Path, number: u32) -> Queue {
        let publish_timeout = Duration::from_secs(5);
        let tuning =
            QueueTuning { destinations: destinations(), partitions: 8, prefetch: 64, publish_timeout };
        let settings = EmbeddedSettings { data_dir: place(folder, number), tuning, max_messages: None };
        Queue::Embedded(EmbeddedQueue::open(settings).await.unwrap())
    }

    fn message(lane: &str, text: String) -> Message {
        let lane = LaneKey::parse(lane).unwrap();
        Message::new(MessageId::fresh(), Kind::CallbackMessage, Destination::Xo, lane, text)
    }

    #[tokio::test]
    async fn a_spool_changes_its_place_with_ids_and_order() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = old.path().join("spool.export");
        let mut sent = Vec::new();
        for number in [1, 3] {
            let queue = store(old.path(), number).await;
            for n in 0..20 {
                let message = message(&format!("lane-{number}"), format!("text {n}"));
                queue.publish(&message).await.unwrap();
                sent.push((number, message));
            }
            let refused = export_spools(old.path(), &file).unwrap_err();
            assert!(matches!(&refused, QueueError::Busy(why) if why.contains("stop it first")), "{refused}");
            assert!(!file.exists());
            queue.close().await;
        }
        let exported = export_spools(old.path(), &file).unwrap();
        assert_eq!(exported.iter().map(|one| one.count.messages).collect::<Vec<_>>(), [20, 20]);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(export_spools(old.path(), &file).unwrap(), [], "nothing is exported twice");
        let beside = std::fs::read_dir(old.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(beside.filter(|name| name.to_string_lossy().starts_with("spool.export")).count(), 2);

        // The folder 1 is in use by the other ingress.
        let own = store(new.path(), 1).await;
        for (one, number) in exported.iter().zip([2, 3]) {
            let wrong =
                import_spool(new.path(), &one.to, &Destinations::new([Destination::Events])).unwrap_err();
            assert!(wrong.to_string().contains("destination xo"), "{wrong}");
            let imported = import_spool(new.path(), &one.to, &destinations()).unwrap();
            assert_eq!((imported.to.clone(), imported.count), (place(new.path(), number), one.count));
        }
        own.close().await;
        for (number, origin) in [(2, 1), (3, 3)] {
            let queue = store(new.path(), number).await;
            let of_origin: Vec<_> = sent.iter().filter(|(number, _)| *number == origin).collect();
            let (_, first) = of_origin[0];
            let partition = PartitionId::of(Destination::Xo, &first.lane, 8);
            let mut subscription = queue.subscribe(partition).await.unwrap();
            for (_, expected) in of_origin {
                let received = subscription.next().await.unwrap();
                assert_eq!((received.message.id, &received.message.body), (expected.id, &expected.body));
                received.ack().await.unwrap();
            }
            queue.close().await;
        }
        std::fs::write(&file, "no database").unwrap();
        assert!(import_spool(new.path(), &file, &destinations()).is_err());
    }
}
