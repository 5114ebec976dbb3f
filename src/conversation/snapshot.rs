//! The rows that an attempt needs, read by one query together with the facts about its message.
//!
//! An attempt asks for the conversation, the relay progress of its chat and the reply handle at several places. Inside
//! [`Snapshot::within`] these questions are answered by the snapshot, and the database is not asked again.
//!
//! Guarantees: a snapshot answers for [`FRESH_FOR`] at most. A write of the same attempt, and each change of the
//! conversation by this process, make the snapshot outdated at once. A change of a conversation checks the revision of its
//! row in any case (`directory.rs`).
//! Not responsible for: when a message is looked up (`worker/deduplication.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};
use tokio::time::Instant;

use super::dedup::{DedupKey, DoneBefore};
use super::directory::Directory;
use super::reader::Lookup;
use super::reply_handles::handle;
use super::row::{RowColumns, conversation, storable};
use super::{Conversation, DirectoryError, StoredReply};
use crate::message::{ConversationId, MessageId, PayloadDigest, ReplyHandle};

/// An attempt usually starts at once after the lookup. It starts later if its destination is slow.
const FRESH_FOR: Duration = Duration::from_millis(500);
const COUNTERS: usize = 64;

tokio::task_local! {
    static CURRENT: Arc<Snapshot>;
}

/// The name by which a conversation is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupName<'a> {
    /// The id of the conversation. `with_reply`: the reply handle is needed, too.
    Conversation {
        /// The id.
        id: &'a str,
        /// The attempt will call the user's bot.
        with_reply: bool,
    },
    /// The group of a chat.
    Group(&'a str),
}

/// The rows at the time of the lookup.
#[derive(Debug)]
pub struct Snapshot {
    /// The id that was looked up, or the id that was found by a group.
    id: Option<String>,
    /// The group that was looked up, or the current chat of the conversation.
    group: Option<String>,
    conversation: Option<Conversation>,
    /// The newest relayed message of the chat; `None` if no row of the chat was read.
    last_relayed: Option<Option<String>>,
    /// `None` if the handle was not read.
    reply: Option<Option<StoredReply>>,
    /// The request and the time of the stored handle.
    heard: Option<(String, i64)>,
    read_at: Instant,
    changes: u64,
    counters: ChangeCounters,
    is_outdated: AtomicBool,
}

/// Counts the changes of conversations in this process. Several conversations share a counter.
#[derive(Debug, Clone)]
pub(super) struct ChangeCounters(Arc<[AtomicU64; COUNTERS]>);

impl Default for ChangeCounters {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| AtomicU64::default())))
    }
}

impl ChangeCounters {
    fn of(&self, id: &str) -> &AtomicU64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % COUNTERS as u64).unwrap_or(0);
        self.0.get(place).unwrap_or(&self.0[0])
    }

    /// Records a change of this conversation.
    pub(super) fn changed(&self, id: &str) {
        self.of(id).fetch_add(1, Ordering::AcqRel);
    }

    fn count(&self, id: &str) -> u64 {
        self.of(id).load(Ordering::Acquire)
    }
}

impl Snapshot {
    /// Runs an attempt with this snapshot.
    pub fn within<F: Future>(self: Arc<Self>, attempt: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, attempt)
    }

    /// Whether the rows still answer the questions of an attempt.
    pub fn is_fresh(&self) -> bool {
        let is_unchanged = || self.id.as_deref().is_none_or(|id| self.counters.count(id) == self.changes);
        !self.is_outdated.load(Ordering::Relaxed) && self.read_at.elapsed() < FRESH_FOR && is_unchanged()
    }
}

/// Reads the snapshot of the running attempt, if the snapshot is fresh.
fn fresh<T>(read: impl FnOnce(&Snapshot) -> Option<T>) -> Option<T> {
    CURRENT.try_with(|known| known.is_fresh().then(|| read(known)).flatten()).ok().flatten()
}

/// The running attempt has written, so its next question goes to the database.
pub(super) fn outdate() {
    let _ = CURRENT.try_with(|known| known.is_outdated.store(true, Ordering::Relaxed));
}

pub(super) fn find(id: &ConversationId) -> Option<Option<Conversation>> {
    fresh(|known| (known.id.as_deref() == Some(id.as_str())).then(|| known.conversation.clone()))
}

pub(super) fn find_by_group(group: &str) -> Option<Option<Conversation>> {
    fresh(|known| (known.group.as_deref() == Some(group)).then(|| known.conversation.clone()))
}

pub(super) fn last_relayed(group: &str) -> Option<Option<String>> {
    fresh(|known| known.last_relayed.clone().filter(|_| known.group.as_deref() == Some(group)))
}

pub(super) fn reply_handle(id: &ConversationId) -> Option<Option<StoredReply>> {
    fresh(|known| known.reply.clone().filter(|_| known.id.as_deref() == Some(id.as_str())))
}

/// Whether exactly this handle is stored.
pub(super) fn has_reply_handle(id: &ConversationId, handle: &ReplyHandle, at: Timestamp) -> bool {
    let is_same = |known: &Snapshot| {
        let stored = known.heard.as_ref().filter(|_| known.id.as_deref() == Some(id.as_str()));
        stored.map(|(request, heard_at)| *request == handle.request_id && *heard_at == at.as_millisecond())
    };
    fresh(is_same).unwrap_or(false)
}

/// In the order of `lookup!` in `statements`.
pub(super) struct LookupRow {
    /// The place of the lookup in its query.
    pub(super) place: i64,
    done: Option<String>,
    conversation: Option<RowColumns>,
    group: Option<String>,
    last_relayed: Option<String>,
    reply: Option<String>,
    request_id: Option<String>,
    heard_at: Option<i64>,
    expired: Option<i64>,
}

impl<'r, R: Row> FromRow<'r, R> for LookupRow
where
    usize: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        let id: Option<String> = row.try_get(8)?;
        let read = |id| -> Result<RowColumns, sqlx::Error> {
            Ok((
                id,
                row.try_get(9)?,
                row.try_get(10)?,
                row.try_get(11)?,
                row.try_get(12)?,
                row.try_get(13)?,
                row.try_get(14)?,
                row.try_get(15)?,
                row.try_get(16)?,
                row.try_get(17)?,
                row.try_get(18)?,
                row.try_get(19)?,
                row.try_get(20)?,
                row.try_get(21)?,
                row.try_get(22)?,
            ))
        };
        Ok(Self {
            place: row.try_get(7)?,
            done: row.try_get(0)?,
            group: row.try_get(1)?,
            last_relayed: row.try_get(2)?,
            reply: row.try_get(3)?,
            request_id: row.try_get(4)?,
            heard_at: row.try_get(5)?,
            expired: row.try_get(6)?,
            conversation: id.map(read).transpose()?,
        })
    }
}

impl Directory {
    /// Reads which of these facts settled the message, and the rows of its conversation.
    pub async fn look_up(
        &self,
        name: LookupName<'_>,
        message: MessageId,
        keys: &[DedupKey],
    ) -> Result<(Vec<DoneBefore>, Arc<Snapshot>), DirectoryError> {
        let (asked, by_group, with_reply) = match name {
            LookupName::Conversation { id, with_reply } => (id, false, with_reply),
            LookupName::Group(group) => (group, true, false),
        };
        let (read_at, before) = (Instant::now(), self.changes.count(asked));
        let (name_asked, message) = (storable(asked).into_owned(), message.to_string());
        let lookup = Lookup { name: name_asked, by_group, with_reply, message };
        let row = self.reader.look_up(lookup).await?;
        let done = row.done.as_deref().unwrap_or_default().split(',').filter_map(|entry| {
            let mut parts = entry.split(' ');
            let (outcome, replays) = (parts.next()?, parts.next()?.parse().ok()?);
            let key = keys.iter().find(|key| key.is_settled_as(outcome, replays))?;
            let digest = parts.next()?;
            Some(DoneBefore { key: *key, digest: PayloadDigest::parse(digest) })
        });
        let done = done.collect();
        let found = row.conversation.map(conversation).transpose()?;
        let id = match name {
            LookupName::Conversation { id, .. } => Some(id.to_owned()),
            LookupName::Group(_) => found.as_ref().map(|found| found.id.as_str().to_owned()),
        };
        let reply = match (row.reply, with_reply) {
            (Some(text), _) => {
                Some(Some(StoredReply { handle: handle(&text)?, expired: row.expired != Some(0) }))
            }
            (None, true) => Some(None),
            (None, false) => None,
        };
        let group = match name {
            LookupName::Group(group) => Some(group.to_owned()),
            LookupName::Conversation { .. } => found.as_ref().and_then(|found| found.group.clone()),
        };
        // The counter of a conversation that was found by its group is only known now, so a change during the lookup is
        // not seen. The revision of the row protects each later change.
        let changes = match name {
            LookupName::Conversation { .. } => before,
            LookupName::Group(_) => id.as_deref().map_or(0, |id| self.changes.count(id)),
        };
        let snapshot = Snapshot {
            id,
            last_relayed: row.group.is_some().then_some(row.last_relayed),
            group,
            conversation: found,
            reply,
            heard: row.request_id.zip(row.heard_at),
            read_at,
            changes,
            counters: self.changes.clone(),
            is_outdated: AtomicBool::new(false),
        };
        Ok((done, Arc::new(snapshot)))
    }
}
