-- Version 1. Runs as it stands on SQLite and on PostgreSQL; never edited once released: changes are a further step
-- of MIGRATIONS in schema.rs. Times are milliseconds since 1970.

CREATE TABLE conversations (
    id          TEXT PRIMARY KEY,
    origin      TEXT NOT NULL,
    state       TEXT NOT NULL,
    chat_group  TEXT,
    number      TEXT,
    queue_id    TEXT,
    position    BIGINT,
    wait        TEXT,
    agent       TEXT,
    reason      TEXT,
    opened_at   BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    -- When somebody last took it to look at its session state.
    polled_at   BIGINT NOT NULL,
    -- Counts the changes: whoever changes a conversation proves that it saw the last change.
    revision    BIGINT NOT NULL
);
CREATE INDEX conversations_by_poll ON conversations (state, polled_at);
CREATE INDEX conversations_by_update ON conversations (updated_at);

-- Every chat that ever was ours, also of earlier episodes of a conversation.
CREATE TABLE conversation_groups (
    chat_group       TEXT PRIMARY KEY,
    conversation_id  TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    -- ServiceNow's name for the last message that we delivered into it; empty where ServiceNow gave none.
    last_sent        TEXT
);
CREATE INDEX conversation_groups_by_conversation ON conversation_groups (conversation_id);

-- Repeats of these messages are suppressed.
CREATE TABLE delivered_messages (
    message_id    TEXT PRIMARY KEY,
    delivered_at  BIGINT NOT NULL
);
CREATE INDEX delivered_messages_by_time ON delivered_messages (delivered_at);
