-- asrserver's tables in PostgreSQL: the one truth. Applied by every gateway at start, under an advisory lock, when
-- something in it is missing from the database; each statement must therefore be safe to repeat. A table that exists
-- is not changed by CREATE TABLE IF NOT EXISTS: to add a column later, append
--     ALTER TABLE … ADD COLUMN IF NOT EXISTS …
-- and add it to the same table in asrserver/storage/tables.py (a test compares the two).
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

-- Sessions deleted on request: results that arrive later are not stored. The gateways remove a row after a month, when
-- Redis has forgotten the session too.
CREATE TABLE IF NOT EXISTS asr_tombstones (
    session_id text PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

-- Columns that came later.
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS owner text;         -- the access key that opened it; NULL: no keys
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS audio_path text;    -- its recording, below --save-audio's directory
ALTER TABLE asr_sessions ADD COLUMN IF NOT EXISTS audio_bytes bigint; -- the recording's size
CREATE INDEX IF NOT EXISTS asr_sessions_owner ON asr_sessions (owner, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_status ON asr_sessions (status, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS asr_sessions_audio ON asr_sessions (owner, user_id, created_at) WHERE audio_path IS NOT NULL;

-- Full-text search, in the languages that put spaces between words and in those that do not. Of the latter (Han, kana,
-- Hangul, Thai, Lao, Burmese, Khmer, Tibetan) each sign and each pair of neighbours is a word of the index, so that a
-- search for 天气预报 asks for 天气, 气预 and 预报; asrserver/storage/search.py makes the query to match. No stemming:
-- one session may be in several languages. Punctuation beyond ASCII becomes a space, for under the locale C the parser
-- takes all of that for letters. A tsvector holds 1 MiB: 100,000 characters fit, whatever they are, and a longer text
-- is searched so far. To change the function: another name, and a new index on it.
CREATE OR REPLACE FUNCTION asr_words(text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    COST 10000                                          -- or the planner would rather compute it for each row
    SET search_path = pg_catalog                        -- and for this it must not be inlined
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

-- How many sessions there are, by owner and status, without counting them: the sum of these rows. Every statement that
-- changes asr_sessions adds what it changed (nobody waits for another), and the gateways add the rows up now and then.
CREATE TABLE IF NOT EXISTS asr_tally (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner       text NOT NULL,                          -- '': sessions without
    status      text NOT NULL,
    sessions    bigint NOT NULL,
    audio_ms    bigint NOT NULL,                        -- of total_duration
    audio_bytes bigint NOT NULL                         -- of recordings
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

-- Counted anew whenever this file is applied; the triggers' lock keeps writers out until then.
DELETE FROM asr_tally;
INSERT INTO asr_tally (owner, status, sessions, audio_ms, audio_bytes)
SELECT coalesce(owner, ''), status, count(*), sum(round(total_duration * 1000)), sum(coalesce(audio_bytes, 0))
FROM asr_sessions GROUP BY 1, 2;
