//! Publishes the spools of processes that no longer run.
//!
//! Processes that share a `data_dir` have numbered folders, and a process that starts takes the first free one. So a folder
//! with messages may be left over if fewer processes run than before.
//! Guarantees: one process publishes a left folder. A folder counts as left only after it was free for [`FREE_FOR`], so that a
//! process that restarts takes its own folder again.
//! Not responsible for: the order between a left spool and the messages that other processes accept meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{FOLDERS_MAX, PARTITIONS, Spool, place};
use crate::queue::embedded::EmbeddedQueue;
use crate::queue::{PartitionId, QueueError};
use crate::tasks::CancellationToken;

/// How long a folder must be free.
const FREE_FOR: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Spool {
    /// Looks for left folders and publishes their messages until `stop`.
    pub(super) async fn adopt(self, stop: CancellationToken) -> Result<(), QueueError> {
        // The folders that are free, and since when. `None`: their messages have been published.
        let mut free: BTreeMap<u32, Option<Instant>> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(LOOK_EVERY) => {}
            }
            for number in 1..=FOLDERS_MAX {
                if !EmbeddedQueue::is_left(&place(&self.0.settings.folder, number)) {
                    free.remove(&number);
                    continue;
                }
                let since = free.entry(number).or_insert_with(|| Some(Instant::now()));
                if since.is_some_and(|since| since.elapsed() >= FREE_FOR) {
                    *since = None;
                    self.publish_left(number, &stop).await;
                }
            }
        }
    }

    async fn publish_left(&self, number: u32, stop: &CancellationToken) {
        let (settings, broker) = (self.0.settings.clone(), self.0.broker.clone());
        let Ok(left) = Self::open_folder(number, settings, broker).await else { return };
        let done = CancellationToken::default();
        let tasks = left.0.store.destinations().iter().flat_map(|it| PartitionId::all(it, PARTITIONS));
        let drains = tasks.map(|partition| left.clone().drain_partition(partition, done.clone()));
        let emptied = async {
            loop {
                let _ = left.0.move_dead_letters().await;
                if stop.is_cancelled() || left.0.lanes().messages() == 0 {
                    break done.cancel();
                }
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::join!(join_all(drains), emptied);
        left.close().await;
    }
}
