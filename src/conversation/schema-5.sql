-- Version 5: the journal. Runs as it stands on SQLite and on PostgreSQL; never edited once released.

-- How each message was settled, never its text. A repeat of a message is recognised here. One message may have several rows: it died,
-- and its replay was delivered. Rows of older versions have a NULL in the columns that these versions did not record.
CREATE TABLE journal (
    message_id    TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    -- The number of the replay that died or was dropped; 0 for every other outcome.
    replays       BIGINT NOT NULL,
    settled_at    BIGINT NOT NULL,
    -- The conversation, or the chat if only the chat was known.
    conversation  TEXT,
    kind          TEXT,
    destination   TEXT,
    accepted_at   BIGINT,
    attempts      BIGINT,
    -- The HTTP status of the last attempt, if that attempt failed with an answer.
    status        BIGINT,
    reason        TEXT,
    request_id    TEXT,
    trace_id      TEXT,
    -- The digest of the message, if its caller chose a key for it.
    digest        TEXT,
    PRIMARY KEY (message_id, outcome, replays)
);
CREATE INDEX journal_by_conversation ON journal (conversation, settled_at);
CREATE INDEX journal_by_time ON journal (settled_at);

-- The keys of settled messages move into the journal. The other keys stay.
INSERT INTO journal (message_id, outcome, replays, settled_at, digest)
    SELECT SUBSTR(dedup_key, 11), 'delivered', 0, done_at, digest FROM dedup_keys WHERE dedup_key LIKE 'delivered:%';
INSERT INTO journal (message_id, outcome, replays, settled_at, digest)
    SELECT SUBSTR(dedup_key, 11), 'forwarded', 0, done_at, digest FROM dedup_keys WHERE dedup_key LIKE 'forwarded:%';
INSERT INTO journal (message_id, outcome, replays, settled_at, digest)
    SELECT SUBSTR(dedup_key, 10), 'answered', 0, done_at, digest FROM dedup_keys WHERE dedup_key LIKE 'answered:%';
INSERT INTO journal (message_id, outcome, replays, settled_at, digest)
    SELECT SUBSTR(dedup_key, 15, 36), 'dead_lettered', CAST(SUBSTR(dedup_key, 52) AS BIGINT), done_at, digest
    FROM dedup_keys WHERE dedup_key LIKE 'dead-lettered:%';
INSERT INTO journal (message_id, outcome, replays, settled_at, digest)
    SELECT SUBSTR(dedup_key, 17, 36), 'dropped', CAST(SUBSTR(dedup_key, 54) AS BIGINT), done_at, digest
    FROM dedup_keys WHERE dedup_key LIKE 'nothing-to-send:%';
DELETE FROM dedup_keys WHERE dedup_key LIKE 'delivered:%' OR dedup_key LIKE 'forwarded:%' OR dedup_key LIKE 'answered:%'
    OR dedup_key LIKE 'dead-lettered:%' OR dedup_key LIKE 'nothing-to-send:%';
