-- The embedded queue's file, schema version 3 (PRAGMA user_version).
--
-- A line is a partition or a dead-letter queue. The upper bits of a seq are the number of the line, the lower bits count
-- within the line. So the primary key alone keeps each line together and in order, without an index (embedded/line.rs).

-- Facts about the whole file.
CREATE TABLE about (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    partitions INTEGER NOT NULL,
    -- How many messages of a partition may have been in flight when the serving process last stopped.
    prefetch   INTEGER NOT NULL,
    -- 1: the last serving process stopped cleanly, and recorded in `line.lent` the last delivered message.
    clean      INTEGER NOT NULL
) STRICT;

-- The numbers of the destinations, which are part of each line number. A destination keeps its number for ever.
CREATE TABLE destination (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- Counters, updated in the transaction that changes the rows, so that no query counts rows.
CREATE TABLE line (
    line INTEGER PRIMARY KEY,
    -- The number of the next entry. It never decreases, even if the line becomes empty.
    next INTEGER NOT NULL DEFAULT 1,
    held INTEGER NOT NULL DEFAULT 0,
    -- The last seq that may have been delivered; NULL (unknown) after a crash.
    lent INTEGER DEFAULT 0
) STRICT;

CREATE TABLE message (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    lane        TEXT NOT NULL,
    -- Milliseconds since 1970.
    accepted_at INTEGER NOT NULL,
    replays     INTEGER NOT NULL,
    -- Hexadecimal digits; only for messages whose id comes from a key of the caller.
    digest      TEXT,
    -- The x-request-id and the traceparent of the request that caused the message, if there was one. They stand before
    -- the body, because a column behind a large body can only be read by reading the body.
    request_id  TEXT,
    traceparent TEXT,
    body        BLOB NOT NULL
) STRICT;

CREATE TABLE dead_letter (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    lane        TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    replays     INTEGER NOT NULL,
    -- Hexadecimal digits; only for messages whose id comes from a key of the caller.
    digest      TEXT,
    body        BLOB NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    died_at     INTEGER NOT NULL,
    -- JSON.
    story       TEXT NOT NULL,
    -- As in `message`.
    request_id  TEXT,
    traceparent TEXT
) STRICT;
