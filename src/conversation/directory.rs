//! The calls of the directory for the rest of Causeway. Each call reads or writes the database and decides nothing by
//! itself.
//!
//! A change of a conversation is read, step, write: [`state::step`] decides on the row that was read, and the write
//! succeeds only if the row has not changed since. Otherwise the decision is repeated. So no transaction stays open over an
//! await, and both databases run the same SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::postgres::PostgresDirectory;
use super::row::{RowColumns, StoredConversation, conversation, named, storable, stored};
use super::schema::{self, SqlitePools};
use super::state::{self, StateEvent};
use super::{Claim, Conversation, DirectoryError, DirectorySettings, DirectoryUrl, LastSent};
use super::{ConversationState, ListFilter, Observation, OpenedChat, Origin, statements};
use crate::clock;
use crate::message::{ConversationId, MessageId};

/// The time limit of one statement, including the wait for a connection. After this the directory counts as unavailable.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Each lost race means that another change succeeded. A working database never loses this many in a row.
const RACES_MAX: u32 = 256;
/// Rows that [`Directory::forget`] deletes with one statement.
const BITE: i64 = 1_000;

/// The open directory. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub enum Directory {
    /// A file.
    Sqlite(SqliteDirectory),
    /// A server.
    Postgres(PostgresDirectory),
}

/// The directory in a file.
#[derive(Clone)]
pub struct SqliteDirectory(pub(super) SqlitePools);

impl std::fmt::Debug for Directory {
    /// Prints only the kind of database: connections contain passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "Directory::Sqlite",
            Self::Postgres(_) => "Directory::Postgres",
        })
    }
}

impl std::fmt::Debug for SqliteDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteDirectory")
    }
}

/// Runs one query on the configured database. `done` names a pool, since SQLite has two.
macro_rules! run {
    ($directory:expr, |$pool:ident| $query:expr) => {
        run!($directory, state, |$pool| $query)
    };
    ($directory:expr, $which:ident, |$pool:ident| $query:expr) => {
        match $directory {
            Directory::Sqlite(SqliteDirectory(pools)) => {
                let $pool = &pools.$which;
                $crate::conversation::schema::within(
                    $crate::conversation::directory::STATEMENT_TIMEOUT,
                    $query,
                )
                .await
            }
            Directory::Postgres(server) => {
                let $pool = server.pool();
                let answer = $crate::conversation::schema::within(
                    $crate::conversation::directory::STATEMENT_TIMEOUT,
                    $query,
                )
                .await;
                server.judge(&answer);
                answer
            }
        }
    };
    // The number of changed rows: each of the two databases has its own type for this number.
    ($directory:expr, $which:ident, changed by |$pool:ident| $query:expr) => {
        run!($directory, $which, |$pool| async { Ok::<u64, sqlx::Error>($query.await?.rows_affected()) })
    };
}

pub(super) use run;

impl Directory {
    /// Opens the directory and migrates its tables. Several processes may open it at once.
    pub async fn open(settings: &DirectorySettings) -> Result<Self, DirectoryError> {
        match &settings.url {
            DirectoryUrl::Sqlite(path) => {
                schema::open_sqlite(path).await.map(|pools| Self::Sqlite(SqliteDirectory(pools)))
            }
            DirectoryUrl::Postgres(url) => {
                PostgresDirectory::open(url.expose_secret()).await.map(Self::Postgres)
            }
        }
    }

    /// A handoff was requested: creates a conversation, or starts a new episode of a closed one. An open conversation does
    /// not change.
    pub async fn mark_requested(
        &self,
        id: &ConversationId,
        origin: Origin,
        queue_id: Option<&str>,
    ) -> Result<(), DirectoryError> {
        self.change(id, StateEvent::Requested { origin, queue_id }).await.map(|_| ())
    }

    /// A start was accepted at this time: as [`Self::mark_requested`], for a caller that may be slower than the worker. A
    /// conversation that was closed since then stays closed.
    pub async fn mark_accepted(
        &self,
        id: &ConversationId,
        origin: Origin,
        queue_id: Option<&str>,
        at: Timestamp,
    ) -> Result<(), DirectoryError> {
        self.change(id, StateEvent::Accepted { origin, queue_id, at }).await.map(|_| ())
    }

    /// Returns the stored conversation.
    pub async fn find(&self, id: &ConversationId) -> Result<Option<Conversation>, DirectoryError> {
        Ok(self.read(id).await?.map(|stored| stored.conversation))
    }

    /// The conversation of a chat. The chat may belong to an earlier episode: the current chat is [`Conversation::group`].
    pub async fn find_by_group(&self, group: &str) -> Result<Option<Conversation>, DirectoryError> {
        let row: Option<RowColumns> = run!(self, |pool| {
            sqlx::query_as(statements::FIND_BY_GROUP).bind(storable(group)).fetch_optional(pool)
        })?;
        row.map(conversation).transpose()
    }

    /// Every name in a message of the conversations with this id, chat or number: the ids, and all chats that they have
    /// had. Empty if the directory knows none.
    pub async fn names(&self, name: &str) -> Result<BTreeSet<String>, DirectoryError> {
        let rows: Vec<(String,)> =
            run!(self, |pool| { sqlx::query_as(statements::NAMES).bind(storable(name)).fetch_all(pool) })?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// Whether a chat is, or was, one of ours.
    pub async fn group_known(&self, group: &str) -> Result<bool, DirectoryError> {
        Ok(self.owner(group).await?.is_some())
    }

    /// Records the last message that was delivered into a chat, and its `sys_id` at ServiceNow.
    pub async fn mark_sent(
        &self,
        group: &str,
        message: MessageId,
        sys_id: Option<&str>,
    ) -> Result<(), DirectoryError> {
        run!(self, state, changed by |pool| {
            sqlx::query(statements::MARK_SENT)
                .bind(storable(group))
                .bind(storable(sys_id.unwrap_or_default()))
                .bind(message.to_string())
                .bind(clock::now().as_millisecond())
                .execute(pool)
        })
        .map(|_| ())
    }

    /// Whether this message was the last one recorded by [`Self::mark_sent`]. If so, a crash prevented only the record of its
    /// delivery.
    pub async fn was_sent(&self, group: &str, message: MessageId) -> Result<bool, DirectoryError> {
        let row: Option<(i32,)> = run!(self, |pool| {
            sqlx::query_as(statements::WAS_SENT)
                .bind(storable(group))
                .bind(message.to_string())
                .fetch_optional(pool)
        })?;
        Ok(row.is_some())
    }

    /// The last message that was delivered into a chat.
    pub async fn last_sent(&self, group: &str) -> Result<LastSent, DirectoryError> {
        let row: Option<(Option<String>,)> = run!(self, |pool| {
            sqlx::query_as(statements::LAST_SENT).bind(storable(group)).fetch_optional(pool)
        })?;
        Ok(match row {
            None => LastSent::Unknown,
            Some((None,)) => LastSent::Nothing,
            Some((Some(sys_id),)) if sys_id.is_empty() => LastSent::Unknown,
            Some((Some(sys_id),)) => LastSent::Message(sys_id),
        })
    }

    /// ServiceNow opened a chat. The chat is claimed for this conversation first, even if the conversation is closed by
    /// now. A closed conversation keeps its state, and the caller can leave the chat.
    ///
    /// Returns [`DirectoryError::Mismatch`] if the conversation was never [requested](Self::mark_requested).
    pub async fn mark_opened(
        &self,
        id: &ConversationId,
        opened: &OpenedChat,
    ) -> Result<Claim, DirectoryError> {
        let claim = self.claim_group(id, &opened.group).await?;
        if claim == Claim::Ours {
            self.change(id, StateEvent::Opened(opened)).await?;
        }
        Ok(claim)
    }

    /// A chat was requested under this name, and ServiceNow has not answered yet. As with [`Self::mark_opened`] the name is
    /// claimed first, so that every callback finds its conversation.
    pub async fn mark_agent_requested(
        &self,
        id: &ConversationId,
        group: &str,
    ) -> Result<Claim, DirectoryError> {
        let claim = self.claim_group(id, group).await?;
        if claim == Claim::Ours {
            self.change(id, StateEvent::AgentRequested { group }).await?;
        }
        Ok(claim)
    }

    /// The session state of a chat was read. The result counts only for the current chat of the conversation.
    pub async fn record_observation(
        &self,
        id: &ConversationId,
        group: &str,
        seen: &Observation,
    ) -> Result<(), DirectoryError> {
        self.change(id, StateEvent::Observed { group, seen }).await.map(|_| ())
    }

    /// The conversation has ended. Returns true to the one caller that ended it. A `group` other than the current one has
    /// no effect.
    pub async fn mark_ended(
        &self,
        id: &ConversationId,
        group: Option<&str>,
        reason: &str,
    ) -> Result<bool, DirectoryError> {
        self.change(id, StateEvent::Ended { group, reason }).await
    }

    /// No agent will come. Returns true to the one caller that was first. A conversation with an agent does not fail.
    pub async fn mark_failed(&self, id: &ConversationId, reason: &str) -> Result<bool, DirectoryError> {
        self.change(id, StateEvent::Failed { reason }).await
    }

    /// The bot side took its user back: the user gets no more messages in this episode. Returns true to the one caller that
    /// recorded it.
    pub async fn mark_released(&self, id: &ConversationId) -> Result<bool, DirectoryError> {
        self.change(id, StateEvent::Released).await
    }

    /// Conversations whose session state should be polled, those with the oldest poll first. Each conversation is returned
    /// once in its interval, for all callers and processes together.
    pub async fn find_due(
        &self,
        now: Timestamp,
        waiting_every: Duration,
        active_every: Duration,
        limit: u32,
    ) -> Result<Vec<Conversation>, DirectoryError> {
        let sql = match self {
            Self::Sqlite(_) => statements::FIND_DUE_SQLITE,
            Self::Postgres(_) => statements::FIND_DUE_POSTGRES,
        };
        let rows: Vec<RowColumns> = run!(self, |pool| {
            sqlx::query_as(sql)
                .bind(now.as_millisecond())
                .bind(before(now, waiting_every))
                .bind(before(now, active_every))
                .bind(i64::from(limit))
                .fetch_all(pool)
        })?;
        rows.into_iter().map(conversation).collect()
    }

    /// Makes the next poll of this conversation due at once, because an event happened in the conversation.
    pub async fn poll_soon(&self, id: &ConversationId) -> Result<(), DirectoryError> {
        run!(self, state, changed by |pool| {
            sqlx::query(statements::POLL_SOON).bind(id.as_str()).execute(pool)
        })
        .map(|_| ())
    }

    /// Deletes facts of [`Self::mark_done`], and closed conversations whose last change is older than the given times.
    /// Returns the number of deleted rows.
    pub async fn forget(
        &self,
        done_before: Timestamp,
        closed_before: Timestamp,
    ) -> Result<u64, DirectoryError> {
        let done = self.delete(statements::FORGET_DONE, done_before).await?;
        let closed = self.delete(statements::FORGET_CLOSED, closed_before).await?;
        Ok(done + closed)
    }

    /// Empties the write-ahead log of a SQLite file, which still contains deleted rows. Does nothing for PostgreSQL.
    pub async fn empty_log(&self) -> Result<(), DirectoryError> {
        let Self::Sqlite(SqliteDirectory(pools)) = self else { return Ok(()) };
        let emptied = sqlx::query(statements::EMPTY_LOG_SQLITE).execute(&pools.state);
        schema::within(STATEMENT_TIMEOUT, emptied).await.map(|_| ())
    }

    /// The number of conversations in each state; every state is present.
    pub async fn counts(&self) -> Result<BTreeMap<ConversationState, u64>, DirectoryError> {
        let rows: Vec<(String, i64)> = run!(self, |pool| sqlx::query_as(statements::COUNTS).fetch_all(pool))?;
        let mut counts: BTreeMap<ConversationState, u64> =
            ConversationState::ALL.iter().map(|state| (*state, 0)).collect();
        for (state, count) in rows {
            counts.insert(named(&state, ConversationState::parse)?, u64::try_from(count).unwrap_or(0));
        }
        Ok(counts)
    }

    /// The conversations with the newest change first.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Conversation>, DirectoryError> {
        let rows: Vec<RowColumns> = run!(self, |pool| {
            sqlx::query_as(statements::LIST)
                .bind(filter.state.map(ConversationState::as_str))
                .bind(i64::from(filter.limit))
                .fetch_all(pool)
        })?;
        rows.into_iter().map(conversation).collect()
    }

    /// Closes the database. Every later call returns [`DirectoryError::Unavailable`].
    pub async fn close(&self) {
        match self {
            Self::Sqlite(SqliteDirectory(pools)) => {
                pools.done.close().await;
                pools.state.close().await;
            }
            Self::Postgres(server) => server.pool().close().await,
        }
    }

    /// Read, step, write; repeated if another change came in between. Returns true if the row changed.
    async fn change(&self, id: &ConversationId, event: StateEvent<'_>) -> Result<bool, DirectoryError> {
        for _ in 0..RACES_MAX {
            let stored = self.read(id).await?;
            let before = stored.as_ref().map(|stored| &stored.conversation);
            let Some(after) = state::step(id, before, event, clock::now()) else {
                return Ok(false);
            };
            let (sql, revision) = match &stored {
                Some(stored) => (statements::UPDATE, stored.revision),
                None => (statements::INSERT, 0),
            };
            if self.write(sql, &after, revision).await? {
                return Ok(true);
            }
        }
        Err(DirectoryError::Unavailable("too many changes of one conversation at once".to_owned()))
    }

    async fn read(&self, id: &ConversationId) -> Result<Option<StoredConversation>, DirectoryError> {
        let row: Option<RowColumns> =
            run!(self, |pool| sqlx::query_as(statements::FIND).bind(id.as_str()).fetch_optional(pool))?;
        row.map(stored).transpose()
    }

    async fn write(
        &self,
        sql: &'static str,
        after: &Conversation,
        revision: i64,
    ) -> Result<bool, DirectoryError> {
        let text = |value: &Option<String>| value.as_deref().map(|value| storable(value).into_owned());
        let changed = run!(self, state, changed by |pool| {
            sqlx::query(sql)
                .bind(after.id.as_str())
                .bind(after.origin.as_str())
                .bind(after.state.as_str())
                .bind(text(&after.group))
                .bind(text(&after.number))
                .bind(text(&after.queue_id))
                .bind(after.position.map(i64::from))
                .bind(text(&after.wait))
                .bind(text(&after.agent))
                .bind(text(&after.reason))
                .bind(after.opened_at.as_millisecond())
                .bind(after.updated_at.as_millisecond())
                .bind(revision)
                .bind(after.released_at.map(Timestamp::as_millisecond))
                .bind(after.waiting_since.as_millisecond())
                .execute(pool)
        })?;
        Ok(changed > 0)
    }

    /// Assigns this chat to this conversation, before it becomes the current chat.
    pub async fn claim_group(&self, id: &ConversationId, group: &str) -> Result<Claim, DirectoryError> {
        if self.read(id).await?.is_none() {
            return Err(DirectoryError::Mismatch(format!(
                "conversation {id:?} has a chat but was never requested"
            )));
        }
        run!(self, state, changed by |pool| {
            sqlx::query(statements::CLAIM_GROUP).bind(storable(group)).bind(id.as_str()).execute(pool)
        })?;
        let ours = self.owner(group).await?.as_deref() == Some(id.as_str());
        Ok(if ours { Claim::Ours } else { Claim::TakenByAnother })
    }

    async fn owner(&self, group: &str) -> Result<Option<String>, DirectoryError> {
        let row: Option<(String,)> = run!(self, |pool| {
            sqlx::query_as(statements::GROUP_OWNER).bind(storable(group)).fetch_optional(pool)
        })?;
        Ok(row.map(|(owner,)| owner))
    }

    async fn delete(&self, sql: &'static str, before: Timestamp) -> Result<u64, DirectoryError> {
        let mut all = 0;
        loop {
            let bite = run!(self, state, changed by |pool| {
                sqlx::query(sql).bind(before.as_millisecond()).bind(BITE).execute(pool)
            })?;
            if bite == 0 {
                return Ok(all);
            }
            all += bite;
        }
    }
}

fn before(now: Timestamp, interval: Duration) -> i64 {
    now.as_millisecond().saturating_sub(i64::try_from(interval.as_millis()).unwrap_or(i64::MAX))
}
