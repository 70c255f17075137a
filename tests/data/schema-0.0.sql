-- asrserver's tables in PostgreSQL: the one truth. Applied by every gateway at start, under an advisory lock, when
-- something in it is missing from the database; each statement must therefore be safe to repeat. A table that exists
-- is not changed by CREATE TABLE IF NOT EXISTS: to add a column later, append
--     ALTER TABLE … ADD COLUMN IF NOT EXISTS …
-- and add it to the same table in asrserver/storage.py (a test compares the two).
--
-- Times are timestamptz; durations and positions are seconds of audio. Rows come from durable results alone: a text
-- that is here was sent to the client or was about to be.

-- One row a session: one recording, or one conversation in utterances.
CREATE TABLE IF NOT EXISTS asr_sessions (
    id             text PRIMARY KEY,                    -- the client's session_id, or the one the server made
    user_id        text,                                -- what the client called its user; never checked
    status         text NOT NULL DEFAULT 'recording'    -- never leaves one of the last three:
                   CHECK (status IN ('recording',       --   audio may still come
                                     'done',            --   finished by the client
                                     'interrupted',     --   the connection dropped and nobody resumed
                                     'error')),         --   given up: see error_code
    mode           text,                                -- auto | chunk | stream, as asked for
    language       text,                                -- asked for, or recognised: en, zh, …
    model          text,                                -- the model that recognised it
    final_text     text,                                -- the whole text; NULL until the status is final
    chunk_count    integer NOT NULL DEFAULT 0,          -- chunks the client sent; never shrinks
    total_duration double precision NOT NULL DEFAULT 0, -- seconds of audio; never shrinks
    error_code     text,                                -- of the session as a whole; a chunk has its own
    error_message  text,
    created_at     timestamptz NOT NULL DEFAULT now(),  -- the client's start
    completed_at   timestamptz,                         -- when the status became final
    updated_at     timestamptz NOT NULL DEFAULT now()   -- the last write to this row: a stuck session is old here
);

-- History is read newest first, and by user.
CREATE INDEX IF NOT EXISTS asr_sessions_history ON asr_sessions (created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_user ON asr_sessions (user_id, created_at DESC);

-- One row a chunk, the client's unit: a whole utterance, or a piece of a recording (text then often empty: the words
-- are in the segments).
CREATE TABLE IF NOT EXISTS asr_chunks (
    session_id    text NOT NULL REFERENCES asr_sessions (id) ON DELETE CASCADE,
    chunk_index   bigint NOT NULL,                      -- the client's numbering; the first may be any
    text          text,                                 -- what chunk_result said; NULL when it failed
    duration      double precision,                     -- seconds of audio in this chunk
    language      text,
    error_code    text,                                 -- NULL: recognised
    error_message text,
    received_at   timestamptz,                          -- in the gateway
    recognised_at timestamptz,                          -- by the worker; minus received_at: what the client waited
    PRIMARY KEY (session_id, chunk_index)
);

-- One row a segment: a stretch of speech between two silences.
CREATE TABLE IF NOT EXISTS asr_segments (
    session_id  text NOT NULL REFERENCES asr_sessions (id) ON DELETE CASCADE,
    number      integer NOT NULL,                       -- order in the session
    chunk_index bigint,                                 -- the chunk, where a segment is within one
    start_time  double precision NOT NULL,              -- seconds from the start of the recording
    end_time    double precision NOT NULL,              -- seconds from the start of the recording
    text        text NOT NULL,
    language    text,
    confidence  double precision,                       -- 0 to 1: the mean probability of its tokens
    words       jsonb,                                  -- [{"word", "start", "end", …}], if asked for; in seconds
    worker      text,                                   -- who recognised it: find its log under this name
    PRIMARY KEY (session_id, number)
);

-- Sessions deleted on request: results that arrive later are not stored. A row may go once Redis has forgotten the
-- session; a month is plenty: DELETE FROM asr_tombstones WHERE deleted_at < now() - interval '1 month';
CREATE TABLE IF NOT EXISTS asr_tombstones (
    session_id text PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
