//! Every SQL text of the directory, once. The same text runs on SQLite and PostgreSQL, except for the locking in `due!` and
//! `to_extend!`, and for the statements about many rows.

/// A statement for many rows. PostgreSQL gets an array for each column, SQLite a JSON array of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManyText {
    pub(super) postgres: &'static str,
    pub(super) sqlite: &'static str,
}

/// In the order of `row::RowColumns`.
macro_rules! columns {
    () => {
        "id, origin, state, chat_group, number, queue_id, position, wait, agent, reason, opened_at, updated_at, \
         revision, released_at, waiting_since"
    };
}

pub(super) const FIND: &str = concat!("SELECT ", columns!(), " FROM conversations WHERE id = $1");

pub(super) const FIND_BY_GROUP: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM conversations WHERE id = (SELECT conversation_id FROM conversation_groups WHERE chat_group = $1)"
);

/// For each message of the list `$1`: how the message was settled, the conversation, its chat and its reply handle, in the order of
/// `snapshot::LookupRow`. Each message has a row, even if nothing is known. The list is a JSON array of `snapshot::Lookup`. The
/// reply handle is read only if it is needed, because a handle may be large.
macro_rules! look_up {
    ($lookups:literal, $conversation:literal, $chat:literal, $reply:literal) => {
        concat!(
            "SELECT (SELECT string_agg(outcome || ' ' || replays || ' ' || COALESCE(digest, ''), ',') FROM journal
                     WHERE message_id = asked.message),
                 chat.chat_group, chat.last_told,
                 CASE WHEN asked.with_reply = 1 THEN reply.handle END, reply.request_id, reply.heard_at,
                 reply.expired, asked.place, c.id, c.origin, c.state, c.chat_group, c.number, c.queue_id, c.position, c.wait,
                 c.agent, c.reason, c.opened_at, c.updated_at, c.revision, c.released_at, c.waiting_since
             FROM ",
            $lookups,
            " LEFT JOIN ",
            $conversation,
            " LEFT JOIN ",
            $chat,
            " LEFT JOIN ",
            $reply
        )
    };
}
pub(super) const LOOK_UP_SQLITE: &str = look_up!(
    "(SELECT value ->> 'place' AS place, value ->> 'name' AS name, value ->> 'by_group' AS by_group,
         value ->> 'with_reply' AS with_reply, value ->> 'message' AS message FROM json_each($1)) AS asked",
    "conversations AS c ON c.id = CASE asked.by_group WHEN 1 THEN
         (SELECT conversation_id FROM conversation_groups WHERE chat_group = asked.name) ELSE asked.name END",
    "conversation_groups AS chat ON chat.chat_group = CASE asked.by_group WHEN 1 THEN asked.name ELSE c.chat_group END",
    "reply_handles AS reply ON reply.conversation_id = c.id"
);
/// `OFFSET 0` keeps each join a search for one row. Otherwise the server could read the whole table for a few messages.
pub(super) const LOOK_UP_POSTGRES: &str = look_up!(
    "json_to_recordset(CAST($1 AS json))
         AS asked (place BIGINT, name TEXT, by_group BIGINT, with_reply BIGINT, message TEXT)",
    "LATERAL (SELECT * FROM conversations WHERE id = CASE asked.by_group WHEN 1 THEN
         (SELECT conversation_id FROM conversation_groups WHERE chat_group = asked.name) ELSE asked.name END OFFSET 0)
         AS c ON TRUE",
    "LATERAL (SELECT * FROM conversation_groups WHERE chat_group =
         CASE asked.by_group WHEN 1 THEN asked.name ELSE c.chat_group END OFFSET 0) AS chat ON TRUE",
    "LATERAL (SELECT * FROM reply_handles WHERE conversation_id = c.id OFFSET 0) AS reply ON TRUE"
);

/// Every id and every chat of the conversations with this id, chat or number.
pub(super) const NAMES: &str = "WITH meant AS (
         SELECT id FROM conversations WHERE id = $1 OR number = $1 OR number = UPPER($1)
         UNION SELECT conversation_id FROM conversation_groups WHERE chat_group = $1)
     SELECT id FROM meant
     UNION SELECT chat_group FROM conversation_groups WHERE conversation_id IN (SELECT id FROM meant)";

/// The ids of the conversations with this id, chat or number.
pub(super) const IDS: &str = "SELECT id FROM conversations WHERE id = $1 OR number = $1 OR number = UPPER($1)
     UNION SELECT conversation_id FROM conversation_groups WHERE chat_group = $1";

pub(super) const GROUPS_OF: &str = "SELECT chat_group FROM conversation_groups WHERE conversation_id = $1";

pub(super) const COUNT_REPLY_HANDLES: &str = "SELECT COUNT(*) FROM reply_handles WHERE conversation_id = $1";

/// The chats and the reply handle go with the row.
pub(super) const ERASE: &str = "DELETE FROM conversations WHERE id = $1";

pub(super) const ERASE_CLOSED: &str =
    "DELETE FROM conversations WHERE id = $1 AND state IN ('ended', 'failed')";

/// Changes nothing if another writer was first: the caller reads again.
pub(super) const INSERT: &str = concat!(
    "INSERT INTO conversations (",
    columns!(),
    ", polled_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $12)
     ON CONFLICT (id) DO NOTHING"
);

/// Changes nothing if another writer was first: the caller reads again. `$13` is the revision that the caller read.
pub(super) const UPDATE: &str =
    "UPDATE conversations SET origin = $2, state = $3, chat_group = $4, number = $5,
     queue_id = $6, position = $7, wait = $8, agent = $9, reason = $10, opened_at = $11, updated_at = $12,
     released_at = $14, waiting_since = $15, revision = revision + 1
     WHERE id = $1 AND revision = $13";

pub(super) const CLAIM_GROUP: &str =
    "INSERT INTO conversation_groups (chat_group, conversation_id) VALUES ($1, $2)
     ON CONFLICT (chat_group) DO NOTHING";

pub(super) const GROUP_OWNER: &str = "SELECT conversation_id FROM conversation_groups WHERE chat_group = $1";

pub(super) const MARK_SENT: &str = "UPDATE conversation_groups SET last_sent = $2, last_sent_message = $3, active_at = $4 WHERE chat_group = $1";

/// As [`MARK_SENT`] for many rows.
pub(super) const MARK_SENT_MANY: ManyText = ManyText {
    postgres: "UPDATE conversation_groups
         SET last_sent = sent.sys_id, last_sent_message = sent.message, active_at = sent.at
         FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[]) AS sent (chat, sys_id, message, at)
         WHERE chat_group = sent.chat",
    sqlite: "UPDATE conversation_groups
         SET last_sent = sent.value ->> 1, last_sent_message = sent.value ->> 2, active_at = sent.value ->> 3
         FROM json_each($1) AS sent WHERE chat_group = sent.value ->> 0",
};

pub(super) const LAST_SENT: &str = "SELECT last_sent FROM conversation_groups WHERE chat_group = $1";

/// Takes the conversations whose last poll is older than `$2` (waiting) or `$3` (active). On SQLite one statement excludes
/// all others. On PostgreSQL two statements could pick the same rows and wait for each other, so each skips the rows that
/// the other has locked.
macro_rules! due {
    ($locking:literal) => {
        concat!(
            "UPDATE conversations SET polled_at = $1 WHERE id IN (
                 SELECT id FROM conversations
                 WHERE (state = 'waiting' AND polled_at <= $2) OR (state = 'active' AND polled_at <= $3)
                 ORDER BY polled_at LIMIT $4 ",
            $locking,
            ") RETURNING ",
            columns!()
        )
    };
}
pub(super) const FIND_DUE_SQLITE: &str = due!("");
pub(super) const FIND_DUE_POSTGRES: &str = due!("FOR UPDATE SKIP LOCKED");

/// Returns those of a few keys that are stored. A caller with fewer keys repeats one.
pub(super) const FIND_DONE_FEW: &str =
    "SELECT dedup_key, digest FROM dedup_keys WHERE dedup_key IN ($1, $2, $3, $4)";

/// The same for many keys.
pub(super) const FIND_DONE_MANY: &str = "SELECT dedup_key, digest FROM dedup_keys WHERE dedup_key IN (
         $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
         $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38,
         $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, $51, $52, $53, $54, $55, $56,
         $57, $58, $59, $60)";

pub(super) const MARK_DONE: &str = "INSERT INTO dedup_keys (dedup_key, done_at, digest) VALUES ($1, $2, $3) ON CONFLICT (dedup_key) DO NOTHING";

/// Fails if a table is missing, and returns no row.
pub(super) const READ_TABLES: &str = "SELECT 1 FROM conversations, conversation_groups, reply_handles, journal
     WHERE conversations.id = '' AND conversation_groups.chat_group = '' AND reply_handles.conversation_id = ''
     AND journal.message_id = ''";

/// Writes each time.
pub(super) const WRITE_TEST: &str = "INSERT INTO dedup_keys (dedup_key, done_at) VALUES ($1, $2)
     ON CONFLICT (dedup_key) DO UPDATE SET done_at = excluded.done_at";

/// As [`MARK_DONE`] for many rows.
pub(super) const MARK_DONE_MANY: ManyText = ManyText {
    postgres: "INSERT INTO dedup_keys (dedup_key, done_at, digest)
         SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::text[]) ON CONFLICT (dedup_key) DO NOTHING",
    sqlite: "INSERT INTO dedup_keys (dedup_key, done_at, digest)
         SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each($1) WHERE TRUE ON CONFLICT (dedup_key) DO NOTHING",
};

/// In the order of `journal::JournalColumns`.
macro_rules! journal_columns {
    () => {
        "message_id, outcome, replays, settled_at, conversation, kind, destination, accepted_at, attempts, status, \
         reason, request_id, trace_id, digest"
    };
}

pub(super) const JOURNAL: &str = concat!(
    "INSERT INTO journal (",
    journal_columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
     ON CONFLICT (message_id, outcome, replays) DO NOTHING"
);

macro_rules! journal_many {
    ($rows:literal) => {
        concat!(
            "INSERT INTO journal (",
            journal_columns!(),
            ") SELECT ",
            $rows,
            " WHERE TRUE ON CONFLICT (message_id, outcome, replays) DO NOTHING"
        )
    };
}
/// As [`JOURNAL`] for many rows.
pub(super) const JOURNAL_MANY: ManyText = ManyText {
    postgres: journal_many!(
        "* FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[],
             $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[])"
    ),
    sqlite: journal_many!(
        "value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
             value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13 FROM json_each($1)"
    ),
};

pub(super) const JOURNAL_OF_MESSAGE: &str = concat!(
    "SELECT ",
    journal_columns!(),
    " FROM journal WHERE message_id = $1 ORDER BY settled_at DESC LIMIT $2"
);

pub(super) const JOURNAL_OF_CHAT: &str = concat!(
    "SELECT ",
    journal_columns!(),
    " FROM journal WHERE conversation = $1 ORDER BY settled_at DESC LIMIT $2"
);

pub(super) const JOURNAL_SINCE: &str = concat!(
    "SELECT ",
    journal_columns!(),
    " FROM journal WHERE settled_at >= $1 ORDER BY settled_at DESC LIMIT $2"
);

/// How some messages were settled. A caller with fewer messages repeats one.
pub(super) const FIND_SETTLED_FEW: &str =
    "SELECT message_id, outcome, replays, digest FROM journal WHERE message_id IN ($1, $2, $3, $4)";

/// The same for many messages.
pub(super) const FIND_SETTLED_MANY: &str =
    "SELECT message_id, outcome, replays, digest FROM journal WHERE message_id IN (
         $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
         $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38,
         $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, $51, $52, $53, $54, $55, $56,
         $57, $58, $59, $60)";

/// Removes what names a conversation from the journal. The rows stay, so that a repeat of a message is still recognised.
pub(super) const ERASE_FROM_JOURNAL: &str =
    "UPDATE journal SET conversation = NULL, request_id = NULL, trace_id = NULL WHERE conversation = $1";

/// Deletes in small batches, as [`FORGET_DONE`].
pub(super) const FORGET_JOURNAL: &str = "DELETE FROM journal WHERE (message_id, outcome, replays) IN (
         SELECT message_id, outcome, replays FROM journal WHERE settled_at < $1 LIMIT $2)";

/// Deletes in small batches, so that other writers do not wait long.
pub(super) const FORGET_DONE: &str = "DELETE FROM dedup_keys WHERE dedup_key IN (
         SELECT dedup_key FROM dedup_keys WHERE done_at < $1 LIMIT $2)";

/// Whether a row is old enough for [`FORGET_DONE`].
pub(super) const OLD_DONE: &str = "SELECT 1 FROM dedup_keys WHERE done_at < $1 LIMIT 1";
pub(super) const OLD_JOURNAL: &str = "SELECT 1 FROM journal WHERE settled_at < $1 LIMIT 1";
pub(super) const OLD_CLOSED: &str =
    "SELECT 1 FROM conversations WHERE state IN ('ended', 'failed') AND updated_at < $1 LIMIT 1";

/// Checks the condition twice: between the selection and the deletion the conversation may be requested again.
pub(super) const FORGET_CLOSED: &str = "DELETE FROM conversations WHERE id IN (
         SELECT id FROM conversations WHERE state IN ('ended', 'failed') AND updated_at < $1 LIMIT $2)
     AND state IN ('ended', 'failed') AND updated_at < $1";

pub(super) const COUNTS: &str = "SELECT state, COUNT(*) FROM conversations GROUP BY state";

pub(super) const LIST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM conversations WHERE $1 IS NULL OR state = $1 ORDER BY updated_at DESC, id LIMIT $2"
);

/// Does nothing for an unknown conversation. An older handle never replaces a newer one.
pub(super) const SAVE_REPLY_HANDLE: &str =
    "INSERT INTO reply_handles (conversation_id, handle, request_id, heard_at, extended_at, expired)
     SELECT $1, $2, $3, $4, $4, 0 FROM conversations WHERE id = $1
     ON CONFLICT (conversation_id) DO UPDATE SET handle = excluded.handle, request_id = excluded.request_id,
         heard_at = excluded.heard_at, extended_at = excluded.extended_at, expired = 0
     WHERE reply_handles.heard_at <= excluded.heard_at";

/// Does nothing for an unknown conversation.
pub(super) const SAVE_INCIDENT: &str =
    "INSERT INTO incidents (incident_id, conversation_id, number, created_at)
     SELECT $1, id, $3, $4 FROM conversations WHERE id = $2
     ON CONFLICT (incident_id) DO UPDATE SET number = excluded.number";

pub(super) const INCIDENT_NUMBER: &str = "SELECT number FROM incidents WHERE incident_id = $1";

pub(super) const REFRESH_TOKEN: &str = "SELECT refresh_token FROM oauth_tokens WHERE token_name = $1";

pub(super) const SAVE_REFRESH_TOKEN: &str =
    "INSERT INTO oauth_tokens (token_name, refresh_token, changed_at) VALUES ($1, $2, $3)
     ON CONFLICT (token_name) DO UPDATE SET refresh_token = excluded.refresh_token, changed_at = excluded.changed_at";

pub(super) const FORGET_QUEUE_CHECKS: &str = "DELETE FROM queue_checks WHERE asked_at < $1";

pub(super) const ASK_ABOUT_QUEUE: &str =
    "INSERT INTO queue_checks (queue_id, asked, claimed, answered, asked_at) VALUES ($1, 1, 0, 0, $2)
     ON CONFLICT (queue_id) DO UPDATE SET asked = queue_checks.asked + 1, asked_at = excluded.asked_at";

pub(super) const QUEUE_QUESTION: &str = "SELECT asked FROM queue_checks WHERE queue_id = $1";

pub(super) const OPEN_QUEUE_QUESTIONS: &str =
    "SELECT queue_id, asked FROM queue_checks WHERE claimed < asked ORDER BY asked_at LIMIT $1";

/// Changes nothing if another worker was first.
pub(super) const CLAIM_QUEUE_QUESTION: &str =
    "UPDATE queue_checks SET claimed = $2 WHERE queue_id = $1 AND claimed < $2";

pub(super) const ANSWER_QUEUE_QUESTION: &str =
    "UPDATE queue_checks SET answered = $2, answer = $3 WHERE queue_id = $1 AND answered < $2";

pub(super) const QUEUE_ANSWER: &str =
    "SELECT answer FROM queue_checks WHERE queue_id = $1 AND answered >= $2";

pub(super) const READ_REPLY_HANDLE: &str =
    "SELECT handle, expired FROM reply_handles WHERE conversation_id = $1";

pub(super) const MARK_REPLY_EXPIRED: &str =
    "UPDATE reply_handles SET expired = 1 WHERE conversation_id = $1 AND request_id = $2";

/// Each handle is given to one caller in its interval, as in `due!`.
macro_rules! to_extend {
    ($locking:literal) => {
        concat!(
            "UPDATE reply_handles SET extended_at = $1 WHERE conversation_id IN (
                 SELECT reply_handles.conversation_id FROM reply_handles
                 JOIN conversations ON conversations.id = reply_handles.conversation_id
                 WHERE reply_handles.extended_at <= $2 AND reply_handles.expired = 0
                   AND conversations.state IN ('requested', 'waiting', 'active') AND conversations.released_at IS NULL
                 ORDER BY reply_handles.extended_at LIMIT $3 ",
            $locking,
            ") RETURNING conversation_id, handle"
        )
    };
}
pub(super) const FIND_TO_EXTEND_SQLITE: &str = to_extend!("");
pub(super) const FIND_TO_EXTEND_POSTGRES: &str = to_extend!("FOR UPDATE OF reply_handles SKIP LOCKED");

pub(super) const WAS_SENT: &str =
    "SELECT 1 FROM conversation_groups WHERE chat_group = $1 AND last_sent_message = $2";

/// Makes the next poll of its session state due at once.
pub(super) const POLL_SOON: &str = "UPDATE conversations SET polled_at = 0 WHERE id = $1";

/// The index on state and poll finds the row of each state.
pub(super) const OLDEST_POLL: &str =
    "SELECT MIN(polled_at) FROM conversations WHERE state IN ('waiting', 'active') AND polled_at > 0";

pub(super) const MARK_RELAYED: &str =
    "UPDATE conversation_groups SET last_told = $2, active_at = $3 WHERE chat_group = $1";

/// As [`MARK_RELAYED`] for many rows.
pub(super) const MARK_RELAYED_MANY: ManyText = ManyText {
    postgres: "UPDATE conversation_groups SET last_told = relayed.sys_id, active_at = relayed.at
         FROM UNNEST($1::text[], $2::text[], $3::bigint[]) AS relayed (chat, sys_id, at)
         WHERE chat_group = relayed.chat",
    sqlite: "UPDATE conversation_groups SET last_told = relayed.value ->> 1, active_at = relayed.value ->> 2
         FROM json_each($1) AS relayed WHERE chat_group = relayed.value ->> 0",
};

pub(super) const LAST_RELAYED: &str = "SELECT last_told FROM conversation_groups WHERE chat_group = $1";

pub(super) const TOUCH: &str = "UPDATE conversation_groups SET active_at = $2 WHERE chat_group = $1";

/// Active chats without a message since `$1`.
pub(super) const FIND_SILENT: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM conversations WHERE state = 'active' AND updated_at < $1 AND chat_group IN (
         SELECT chat_group FROM conversation_groups WHERE conversation_id = conversations.id
            AND COALESCE(active_at, 0) < $1)
     ORDER BY updated_at LIMIT $2"
);

/// Conversations that have had no agent since before `$1`.
pub(super) const FIND_OVERDUE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM conversations WHERE state = 'waiting' AND COALESCE(waiting_since, opened_at) < $1
     ORDER BY opened_at LIMIT $2"
);

pub(super) const CREATE_VERSION: &str =
    "CREATE TABLE IF NOT EXISTS directory_version (version BIGINT NOT NULL)";
pub(super) const READ_VERSION: &str = "SELECT MAX(version) FROM directory_version";
pub(super) const WRITE_VERSION: &str = "INSERT INTO directory_version (version) VALUES ($1)";

/// Held until the migration is committed. The number is the text `causeway` in ASCII.
pub(super) const LOCK_SCHEMA_POSTGRES: &str = "SELECT pg_advisory_xact_lock(7161134020979810681)";
/// SQLite allows one writer. With the lock taken at the start, other processes wait instead of failing.
pub(super) const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";
/// A frozen process, or one behind a broken network, keeps the rows of its transaction locked. The server ends such a transaction
/// after this time, so the worker that takes over its conversations can write.
pub(super) const BEGIN_POSTGRES: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";
pub(super) const EMPTY_LOG_SQLITE: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

pub(super) const WRITE_AHEAD_SQLITE: &str = "PRAGMA journal_mode = WAL";
