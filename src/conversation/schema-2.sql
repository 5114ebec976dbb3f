-- Version 2: what two-way conversations need. Runs as it stands on SQLite and on PostgreSQL; never edited once released.

-- When the bot side was given back to the bot: nothing more is said to its user until the next episode.
ALTER TABLE conversations ADD COLUMN released_at BIGINT;

-- The newest message of the other side that was told to the bot side; whoever reads the chat back looks behind it.
ALTER TABLE conversation_groups ADD COLUMN last_told TEXT;
-- Our name for the message in last_sent: whoever finds it there again after a crash need not send it.
ALTER TABLE conversation_groups ADD COLUMN last_sent_message TEXT;
-- When either side last said something.
ALTER TABLE conversation_groups ADD COLUMN active_at BIGINT;

-- XO's newest reply handle of each conversation.
CREATE TABLE reply_handles (
    conversation_id  TEXT PRIMARY KEY REFERENCES conversations (id) ON DELETE CASCADE,
    handle           TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    -- Acceptance of the event that brought it: only a newer one replaces it.
    heard_at         BIGINT NOT NULL,
    -- When its life was last asked to be extended.
    extended_at      BIGINT NOT NULL,
    -- 1 where XO said that it is gone.
    expired          BIGINT NOT NULL
);
CREATE INDEX reply_handles_by_extension ON reply_handles (extended_at);
