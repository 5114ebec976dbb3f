//! The calls of the directory for the rest of Causeway. Each call reads or writes the database and decides nothing by
//! itself.
//!
//! A change of a conversation is read, step, write: [`state::step`] decides on the row that was read, and the write
//! succeeds only if the row has not changed since. Otherwise the decision is repeated. So no transaction stays open over an
//! await, and both databases run the same SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::Histogram;

use super::database::{Database, run};
use super::postgres::PostgresDirectory;
use super::reader::DirectoryReader;
use super::row::{RowColumns, StoredConversation, conversation, named, storable, stored};
use super::schema;
use super::snapshot::{self, ChangeCounters};
use super::state::{self, StateEvent};
use super::write::{Changes, SqlValue, Statement};
use super::writer::DirectoryWriter;
use super::{Claim, Conversation, DirectoryError, DirectorySettings, DirectoryUrl, LastSent};
use super::{ConversationState, ListFilter, Observation, OpenedChat, Origin, statements};
use crate::clock;
use crate::message::{ConversationId, MessageId};

/// Each lost race means that another change succeeded. A working database never loses this many in a row.
const RACES_MAX: u32 = 256;

/// The open directory. Cheap to clone; all clones share their connections, their readers and their writer.
#[derive(Clone)]
pub struct Directory {
    pub(super) database: Database,
    pub(super) writer: DirectoryWriter,
    pub(super) reader: DirectoryReader,
    pub(super) changes: ChangeCounters,
}

impl std::fmt::Debug for Directory {
    /// Prints only the kind of database: connections contain passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.database {
            Database::Sqlite(_) => "Directory::Sqlite",
            Database::Postgres(_) => "Directory::Postgres",
        })
    }
}

impl Directory {
    /// Opens the directory and migrates its tables. Several processes may open it at once.
    pub async fn open(settings: &DirectorySettings) -> Result<Self, DirectoryError> {
        let database = match &settings.url {
            DirectoryUrl::Sqlite(path) => Database::Sqlite(schema::open_sqlite(path).await?),
            DirectoryUrl::Postgres(url) => Database::Postgres(PostgresDirectory::open(url.clone()).await?),
        };
        Ok(Self::of(database))
    }

    /// As [`Self::open`], for a process that must not end because a server is away. The error says why the directory
    /// cannot be used yet. [`Self::probe`] opens it when the server is back.
    pub async fn start(
        settings: &DirectorySettings,
    ) -> Result<(Self, Option<DirectoryError>), DirectoryError> {
        let DirectoryUrl::Postgres(url) = &settings.url else {
            return Ok((Self::open(settings).await?, None));
        };
        let (server, trouble) = PostgresDirectory::start(url.clone()).await?;
        Ok((Self::of(Database::Postgres(server)), trouble))
    }

    fn of(database: Database) -> Self {
        Self {
            writer: DirectoryWriter::start(database.clone()),
            reader: DirectoryReader::start(&database),
            database,
            changes: ChangeCounters::default(),
        }
    }

    /// A query that is prepared once for each connection, unless a connection pooler forbids this.
    pub(super) fn query_as<'q, DB, O>(
        &self,
        sql: &'static str,
    ) -> sqlx::query::QueryAs<'q, DB, O, <DB as sqlx::Database>::Arguments>
    where
        DB: sqlx::Database + sqlx::database::HasStatementCache,
        O: for<'r> sqlx::FromRow<'r, DB::Row>,
    {
        sqlx::query_as(sql).persistent(self.database.prepares())
    }

    /// Measures every later commit with this histogram.
    pub fn measure_commits(&self, seconds: Histogram) {
        self.writer.measure(seconds);
    }

    /// The number of transactions that this process has committed.
    pub fn commits(&self) -> u64 {
        self.writer.commits()
    }

    /// Writes all changes of a message in one transaction.
    pub async fn record(&self, changes: Changes) -> Result<(), DirectoryError> {
        self.write(changes.into_statements()).await.map(|_| ())
    }

    /// Runs one statement. Returns the number of changed rows.
    pub(super) async fn execute<const N: usize>(
        &self,
        sql: &'static str,
        values: [SqlValue; N],
    ) -> Result<u64, DirectoryError> {
        self.write(vec![Statement::new(sql, values)]).await
    }

    pub(super) async fn write(&self, statements: Vec<Statement>) -> Result<u64, DirectoryError> {
        let written = self.writer.write(statements).await;
        snapshot::outdate();
        written
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
        if let Some(known) = snapshot::find(id) {
            return Ok(known);
        }
        Ok(self.read(id).await?.map(|stored| stored.conversation))
    }

    /// The conversation of a chat. The chat may belong to an earlier episode: the current chat is [`Conversation::group`].
    pub async fn find_by_group(&self, group: &str) -> Result<Option<Conversation>, DirectoryError> {
        if let Some(known) = snapshot::find_by_group(group) {
            return Ok(known);
        }
        let row: Option<RowColumns> = run!(self, |pool| {
            self.query_as(statements::FIND_BY_GROUP).bind(storable(group)).fetch_optional(pool)
        })?;
        row.map(conversation).transpose()
    }

    /// Every name in a message of the conversations with this id, chat or number: the ids, and all chats that they have
    /// had. Empty if the directory knows none.
    pub async fn names(&self, name: &str) -> Result<BTreeSet<String>, DirectoryError> {
        let rows: Vec<(String,)> =
            run!(self, |pool| { self.query_as(statements::NAMES).bind(storable(name)).fetch_all(pool) })?;
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
        self.record(Changes::default().sent(group, message, sys_id)).await
    }

    /// Whether this message was the last one recorded by [`Self::mark_sent`]. If so, a crash prevented only the record of its
    /// delivery.
    pub async fn was_sent(&self, group: &str, message: MessageId) -> Result<bool, DirectoryError> {
        let row: Option<(i32,)> = run!(self, |pool| {
            self.query_as(statements::WAS_SENT)
                .bind(storable(group))
                .bind(message.to_string())
                .fetch_optional(pool)
        })?;
        Ok(row.is_some())
    }

    /// The last message that was delivered into a chat.
    pub async fn last_sent(&self, group: &str) -> Result<LastSent, DirectoryError> {
        let row: Option<(Option<String>,)> = run!(self, |pool| {
            self.query_as(statements::LAST_SENT).bind(storable(group)).fetch_optional(pool)
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
    /// `answered`: the journal row of a start that ServiceNow answered. It is written only together with the failure: a
    /// repeat of the start can otherwise arrive in between and begin the conversation again.
    pub async fn mark_failed(
        &self,
        id: &ConversationId,
        reason: &str,
        answered: Changes,
    ) -> Result<bool, DirectoryError> {
        self.change_with(id, StateEvent::Failed { reason }, answered.into_statements()).await
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
        let sql = match self.database {
            Database::Sqlite(_) => statements::FIND_DUE_SQLITE,
            Database::Postgres(_) => statements::FIND_DUE_POSTGRES,
        };
        let rows: Vec<RowColumns> = run!(self, writer, |pool| {
            self.query_as(sql)
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
        self.record(Changes::default().poll_soon(id)).await
    }

    /// The number of conversations in each state; every state is present.
    pub async fn counts(&self) -> Result<BTreeMap<ConversationState, u64>, DirectoryError> {
        let rows: Vec<(String, i64)> = run!(self, |pool| self.query_as(statements::COUNTS).fetch_all(pool))?;
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
            self.query_as(statements::LIST)
                .bind(filter.state.map(ConversationState::as_str))
                .bind(i64::from(filter.limit))
                .fetch_all(pool)
        })?;
        rows.into_iter().map(conversation).collect()
    }

    /// Commits the writes that wait, and closes the database. Every later call returns [`DirectoryError::Unavailable`].
    pub async fn close(&self) {
        self.writer.close().await;
        match &self.database {
            Database::Sqlite(pools) => {
                pools.reader.close().await;
                pools.writer.close().await;
            }
            Database::Postgres(server) => server.pool().close().await,
        }
    }

    /// Read, step, write; repeated if another change came in between. Returns true if the row changed.
    async fn change(&self, id: &ConversationId, event: StateEvent<'_>) -> Result<bool, DirectoryError> {
        self.change_with(id, event, Vec::new()).await
    }

    async fn change_with(
        &self,
        id: &ConversationId,
        event: StateEvent<'_>,
        more: Vec<Statement>,
    ) -> Result<bool, DirectoryError> {
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
            if self.save(sql, &after, revision, &more).await? {
                self.changes.changed(id.as_str());
                return Ok(true);
            }
        }
        Err(DirectoryError::Unavailable("too many changes of one conversation at once".to_owned()))
    }

    async fn read(&self, id: &ConversationId) -> Result<Option<StoredConversation>, DirectoryError> {
        let row: Option<RowColumns> =
            run!(self, |pool| self.query_as(statements::FIND).bind(id.as_str()).fetch_optional(pool))?;
        row.map(stored).transpose()
    }

    async fn save(
        &self,
        sql: &'static str,
        after: &Conversation,
        revision: i64,
        more: &[Statement],
    ) -> Result<bool, DirectoryError> {
        let values = [
            after.id.as_str().into(),
            after.origin.as_str().into(),
            after.state.as_str().into(),
            after.group.as_deref().into(),
            after.number.as_deref().into(),
            after.queue_id.as_deref().into(),
            after.position.map(i64::from).into(),
            after.wait.as_deref().into(),
            after.agent.as_deref().into(),
            after.reason.as_deref().into(),
            after.opened_at.into(),
            after.updated_at.into(),
            revision.into(),
            after.released_at.map(Timestamp::as_millisecond).into(),
            after.waiting_since.into(),
        ];
        let more = more.iter().cloned().map(Statement::after_change);
        let statements = std::iter::once(Statement::new(sql, values)).chain(more).collect();
        Ok(self.write(statements).await? > 0)
    }

    /// Assigns this chat to this conversation, before it becomes the current chat.
    pub async fn claim_group(&self, id: &ConversationId, group: &str) -> Result<Claim, DirectoryError> {
        if self.read(id).await?.is_none() {
            return Err(DirectoryError::Mismatch(format!(
                "conversation {id:?} has a chat but was never requested"
            )));
        }
        self.execute(statements::CLAIM_GROUP, [group.into(), id.as_str().into()]).await?;
        let ours = self.owner(group).await?.as_deref() == Some(id.as_str());
        Ok(if ours { Claim::Ours } else { Claim::TakenByAnother })
    }

    async fn owner(&self, group: &str) -> Result<Option<String>, DirectoryError> {
        let row: Option<(String,)> = run!(self, |pool| {
            self.query_as(statements::GROUP_OWNER).bind(storable(group)).fetch_optional(pool)
        })?;
        Ok(row.map(|(owner,)| owner))
    }
}

fn before(now: Timestamp, interval: Duration) -> i64 {
    now.as_millisecond().saturating_sub(i64::try_from(interval.as_millis()).unwrap_or(i64::MAX))
}
