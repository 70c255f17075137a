-- Which migrations were applied stands in the database.

-- The migrations that were applied, by asrserver/storage/migrate.py.
CREATE TABLE IF NOT EXISTS asr_migrations (
    version    integer PRIMARY KEY,                     -- the number of the file in asrserver/storage/sql
    title      text NOT NULL,                           -- what the file is called behind its number
    oldest     integer NOT NULL,                        -- programs that know no migration of this number must not go on
    applied_at timestamptz NOT NULL DEFAULT now()
);
