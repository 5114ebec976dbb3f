-- Version 4: one key for each kind of fact. Runs as it stands on SQLite and on PostgreSQL; never edited once released.

-- What was done once and must not be done again; dedup.rs says what each kind of key means.
CREATE TABLE dedup_keys (
    dedup_key  TEXT PRIMARY KEY,
    done_at    BIGINT NOT NULL,
    -- The digest of the message that did it, if its caller chose a key for it.
    digest     TEXT
);
CREATE INDEX dedup_keys_by_time ON dedup_keys (done_at);

-- Until version 3 every fact was written as if it were a delivered message. Which of them were deliveries cannot be told. The others
-- match no key under this name, and are forgotten like all of them.
INSERT INTO dedup_keys (dedup_key, done_at)
    SELECT 'delivered:' || message_id, delivered_at FROM delivered_messages;
DROP TABLE delivered_messages;
