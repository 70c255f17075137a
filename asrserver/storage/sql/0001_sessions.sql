-- Sessions, chunks and segments.

-- One row per session: one recording, or one conversation in utterances.
CREATE TABLE IF NOT EXISTS asr_sessions (
    id             text PRIMARY KEY,                    -- the client's session_id, or one that the server made
    user_id        text,                                -- the user's name as the client gave it; not verified
    status         text NOT NULL DEFAULT 'recording'    -- the last three are final:
                   CHECK (status IN ('recording',       --   audio may still arrive
                                     'done',            --   finished by the client
                                     'interrupted',     --   connection lost, and not resumed in time
                                     'error')),         --   failed: see error_code
    mode           text,                                -- auto | chunk | stream, as requested
    language       text,                                -- requested or detected: en, zh, …
    model          text,                                -- name of the model
    final_text     text,                                -- the complete text; NULL until the status is final
    chunk_count    integer NOT NULL DEFAULT 0,          -- chunks from the client; never decreases
    total_duration double precision NOT NULL DEFAULT 0, -- seconds of audio; never decreases
    error_code     text,                                -- for the session as a whole; chunks have their own
    error_message  text,
    created_at     timestamptz NOT NULL DEFAULT now(),  -- when the client started it
    completed_at   timestamptz,                         -- when the status became final
    updated_at     timestamptz NOT NULL DEFAULT now()   -- last write to this row; old for a stuck session
);

-- The history is read newest first, for all users or for one.
CREATE INDEX IF NOT EXISTS asr_sessions_history ON asr_sessions (created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_user ON asr_sessions (user_id, created_at DESC);

-- One row per chunk, the unit that the client sends: a whole utterance, or a piece of a recording (then the text is
-- often empty: the words are in the segments).
CREATE TABLE IF NOT EXISTS asr_chunks (
    session_id    text NOT NULL REFERENCES asr_sessions (id) ON DELETE CASCADE,
    chunk_index   bigint NOT NULL,                      -- the client's number; the first may be any
    text          text,                                 -- as in chunk_result; NULL if it failed
    duration      double precision,                     -- seconds of audio in this chunk
    language      text,
    error_code    text,                                 -- NULL if it was recognised
    error_message text,
    received_at   timestamptz,                          -- by the gateway
    recognised_at timestamptz,                          -- by the worker; minus received_at: the client's wait
    PRIMARY KEY (session_id, chunk_index)
);

-- One row per segment: a stretch of speech between two silences.
CREATE TABLE IF NOT EXISTS asr_segments (
    session_id  text NOT NULL REFERENCES asr_sessions (id) ON DELETE CASCADE,
    number      integer NOT NULL,                       -- order in the session
    chunk_index bigint,                                 -- the chunk, if the segment lies within one
    start_time  double precision NOT NULL,              -- seconds from the start of the recording
    end_time    double precision NOT NULL,              -- seconds from the start of the recording
    text        text NOT NULL,
    language    text,
    confidence  double precision,                       -- 0 to 1: the mean probability of its tokens
    words       jsonb,                                  -- [{"word", "start", "end", …}] in seconds, if requested
    worker      text,                                   -- name of the worker, as in its log lines
    PRIMARY KEY (session_id, number)
);

-- Sessions that were deleted on request: results that arrive later are not stored. Gateways remove a row after a month,
-- when Redis no longer has the session either.
CREATE TABLE IF NOT EXISTS asr_tombstones (
    session_id text PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
