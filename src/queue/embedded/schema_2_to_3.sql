-- Changes a file of schema version 2 to version 3: a message carries the ids of the request that caused it.
--
-- The table of messages is built anew, so that the new columns stand before the body. A column behind a large body could
-- only be read by reading the body.

ALTER TABLE message RENAME TO message_2;

CREATE TABLE message (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    lane        TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    replays     INTEGER NOT NULL,
    digest      TEXT,
    request_id  TEXT,
    traceparent TEXT,
    body        BLOB NOT NULL
) STRICT;

INSERT INTO message (seq, id, kind, lane, accepted_at, replays, digest, body)
SELECT seq, id, kind, lane, accepted_at, replays, digest, body FROM message_2;

DROP TABLE message_2;

-- A dead letter is always read as a whole.
ALTER TABLE dead_letter ADD COLUMN request_id TEXT;
ALTER TABLE dead_letter ADD COLUMN traceparent TEXT;
