-- The embedded queue's file, schema version 2 (PRAGMA user_version).
--
-- A line is a partition or a siding. The upper bits of every seq name the line, the lower ones count within it, so that
-- the primary key alone keeps each line together and in order, and no index has to be kept up (embedded/line.rs).

-- What the whole file agrees on.
CREATE TABLE about (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    partitions INTEGER NOT NULL,
    -- How many messages of a partition may have been out when the serving process last stopped.
    prefetch   INTEGER NOT NULL,
    -- 1: the last serving process stopped in order, and wrote down in `line.lent` what it had lent.
    clean      INTEGER NOT NULL
) STRICT;

-- The numbers of the destinations, which are part of every line's number. A destination keeps its number for ever.
CREATE TABLE destination (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- Counted in the transaction that changes what is counted, so that nobody ever counts rows.
CREATE TABLE line (
    line INTEGER PRIMARY KEY,
    -- The number of the next entry. Never goes back, also when the line runs empty.
    next INTEGER NOT NULL DEFAULT 1,
    held INTEGER NOT NULL DEFAULT 0,
    -- The last seq that may have been lent; NULL after a crash: nobody knows.
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
    -- Hexadecimal digits, of messages whose id comes from a key that the caller chose.
    digest      TEXT,
    body        BLOB NOT NULL
) STRICT;

CREATE TABLE dead_letter (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    lane        TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    replays     INTEGER NOT NULL,
    -- Hexadecimal digits, of messages whose id comes from a key that the caller chose.
    digest      TEXT,
    body        BLOB NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    died_at     INTEGER NOT NULL,
    -- JSON.
    story       TEXT NOT NULL
) STRICT;
