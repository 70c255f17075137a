-- The database schema of asrserver, whole, for new databases. A database of an earlier version gets the numbered files in
-- asrserver/storage/sql that it lacks; a test compares the two ways. Gateways do either at start, under an advisory lock,
-- and apply this file again when something is missing, so each statement must be safe to repeat. How to change it:
-- CONTRIBUTING.md.
--
-- Times are timestamptz; durations and positions are seconds of audio. Rows are written from durable results only: a
-- text in these tables was sent to the client, or was about to be.

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

-- Columns added later.
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS owner text;         -- name of its API key; NULL: there were none
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS audio_path text;    -- its recording, relative to --save-audio
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS audio_bytes bigint; -- size of the recording
CREATE INDEX IF NOT EXISTS asr_sessions_owner ON asr_sessions (owner, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_status ON asr_sessions (status, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_audio ON asr_sessions (owner, user_id, created_at) WHERE audio_path IS NOT NULL;

-- Full-text search, for scripts with and without spaces between words. For the latter (Han, kana, Hangul, Thai, Lao,
-- Burmese, Khmer, Tibetan) each character and each pair of adjacent characters is a word of the index, so that a search
-- for 天气预报 looks for 天气, 气预 and 预报; asrserver/storage/search.py makes the matching query. No stemming: a session
-- may contain several languages. Punctuation outside ASCII is replaced by a space, because with the locale C the parser
-- takes all of it for letters. A tsvector holds 1 MiB: any 100,000 characters fit, and only these are searched in a
-- longer text. To change the function, give it another name and create a new index on it.
CREATE OR REPLACE FUNCTION asr_words(text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    COST 10000                                          -- otherwise the planner computes it for each row
    SET search_path = pg_catalog                        -- this also prevents inlining
AS $$
    WITH input AS (
        SELECT regexp_replace(left($1, 100000), '[\u2000-\u206F\u3000-\u3004\u3008-\u303F\uFF00-\uFF0F\uFF1A-\uFF20]',
                              ' ', 'g') AS t
    ), signs AS (
        SELECT t, '[\u0E00-\u0FFF\u1000-\u109F\u1100-\u11FF\u1780-\u17FF\u2E80-\u2FDF\u3005-\u3007\u3040-\u318F'
                  '\u31A0-\u31BF\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97F\uAC00-\uD7FF\uF900-\uFAFF'
                  '\uFF66-\uFFDC\U00020000-\U0003FFFF]' AS sign FROM input
    )
    SELECT to_tsvector('simple', regexp_replace(t, '(' || sign || ')', ' \1 ', 'g'))
        || CASE WHEN t ~ sign THEN to_tsvector('simple', regexp_replace(t, '(' || sign || sign || ')', ' \1 ', 'g'))
        || to_tsvector('simple', regexp_replace(regexp_replace(t, '(^|[^' || substr(sign, 2) || ')' || sign, '\1 ', 'g'),
                                                '(' || sign || sign || ')', ' \1 ', 'g'))
           ELSE ''::tsvector END
    FROM signs
$$;
CREATE INDEX IF NOT EXISTS asr_sessions_search ON asr_sessions USING gin (asr_words(final_text));

-- The number of sessions by owner and status: the sum of these rows, so that nothing has to count asr_sessions. Every
-- statement that changes asr_sessions inserts its differences (no two statements wait for each other), and the gateways
-- merge the rows from time to time.
CREATE TABLE IF NOT EXISTS asr_tally (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner       text NOT NULL,                          -- '': sessions without an owner
    status      text NOT NULL,
    sessions    bigint NOT NULL,
    audio_ms    bigint NOT NULL,                        -- sum of total_duration
    audio_bytes bigint NOT NULL                         -- size of recordings
);

CREATE OR REPLACE FUNCTION asr_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
        SELECT coalesce(owner, ''), status, count(*), sum(round(total_duration * 1000)), sum(coalesce(audio_bytes, 0))
        FROM added GROUP BY 1, 2;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
        SELECT coalesce(owner, ''), status, -count(*), -sum(round(total_duration * 1000)), -sum(coalesce(audio_bytes, 0))
        FROM removed GROUP BY 1, 2;
    ELSE
        INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
        SELECT coalesce(owner, ''), status, sum(n), sum(n * round(total_duration * 1000)), sum(n * coalesce(audio_bytes, 0))
        FROM (SELECT owner, status, total_duration, audio_bytes, 1 AS n FROM added
              UNION ALL SELECT owner, status, total_duration, audio_bytes, -1 FROM removed) AS changed
        GROUP BY 1, 2
        HAVING sum(n) <> 0 OR sum(n * round(total_duration * 1000)) <> 0 OR sum(n * coalesce(audio_bytes, 0)) <> 0;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER asr_sessions_inserted AFTER INSERT ON asr_sessions
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION asr_count();
CREATE OR REPLACE TRIGGER asr_sessions_updated AFTER UPDATE ON asr_sessions
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION asr_count();
CREATE OR REPLACE TRIGGER asr_sessions_deleted AFTER DELETE ON asr_sessions
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION asr_count();

-- Counted again whenever this file is applied; CREATE TRIGGER's lock keeps writers out until the transaction ends.
DELETE FROM asr_tally;
INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
SELECT coalesce(owner, ''), status, count(*), sum(round(total_duration * 1000)), sum(coalesce(audio_bytes, 0))
FROM asr_sessions GROUP BY 1, 2;

-- The migrations that were applied, by asrserver/storage/migrate.py.
CREATE TABLE IF NOT EXISTS asr_migrations (
    version    integer PRIMARY KEY,                     -- the number of the file in asrserver/storage/sql
    title      text NOT NULL,                           -- what the file is called behind its number
    oldest     integer NOT NULL,                        -- programs that know no migration of this number must not go on
    applied_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE asr_segments ADD COLUMN IF NOT EXISTS channel integer;    -- from 0; null where channels are mixed
