-- Version 6: records of failed handoffs, OAuth tokens, and questions about queues. Runs as it stands on SQLite and on PostgreSQL; never edited once released.

-- The numbers of the records that were created at ServiceNow.
CREATE TABLE incidents (
    -- The id of the message that created the record.
    incident_id      TEXT PRIMARY KEY,
    conversation_id  TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    -- Empty if ServiceNow returned no number.
    number           TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);
CREATE INDEX incidents_by_conversation ON incidents (conversation_id);

-- The newest refresh token of each configured login at ServiceNow.
CREATE TABLE oauth_tokens (
    -- A digest of instance, client and configured token.
    token_name     TEXT PRIMARY KEY,
    refresh_token  TEXT NOT NULL,
    changed_at     BIGINT NOT NULL
);

-- Questions of an ingress about queues of ServiceNow, and the answers of the workers.
CREATE TABLE queue_checks (
    queue_id  TEXT PRIMARY KEY,
    -- The number of the last question, of the last question that a worker claimed, and of the last answered question.
    asked     BIGINT NOT NULL,
    claimed   BIGINT NOT NULL,
    answered  BIGINT NOT NULL,
    -- JSON.
    answer    TEXT,
    asked_at  BIGINT NOT NULL
);
