-- Owners and recordings of sessions; full-text search; the tally. This is the schema of release 0.1.0.

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
