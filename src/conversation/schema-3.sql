-- Version 3: how long a user waits. Runs as it stands on SQLite and on PostgreSQL; never edited once released.

-- Since when it has had no agent: its request, or the going of the last one. Empty in what older versions wrote.
ALTER TABLE conversations ADD COLUMN waiting_since BIGINT;
