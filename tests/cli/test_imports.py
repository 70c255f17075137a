"""asrserver import-kikipounamu: the ancestor's history, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tests.program import NONE, cli
from tests.servers import Databases

#: The tables as its Go server makes them.
TABLES = """
    CREATE TABLE asr_sessions (
        id VARCHAR(64) PRIMARY KEY, user_id VARCHAR(64), status VARCHAR(20) NOT NULL DEFAULT 'recording',
        final_text TEXT, chunk_count INT DEFAULT 0, total_duration FLOAT DEFAULT 0, audio_path TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, completed_at TIMESTAMP
    );
    CREATE TABLE asr_chunks (session_id VARCHAR(64), chunk_index INT, text TEXT);
"""

ROWS = [
    ("a", "anna", "done", "打开卧室的窗户", 3, 2.5, "2025-11-01 10:00:00", "2025-11-01 10:00:03"),
    ("b", None, "recording", None, None, None, "2025-11-02 10:00:00", None),
]


@pytest.fixture
def ancestor(servers: object, databases: Databases) -> Iterator[str]:
    """The URL of a database of the ancestor's, in a time zone east of ours."""
    with databases.lent() as dsn:
        assert cli("db", "upgrade", env={**NONE, "DATABASE_URL": dsn}).returncode == 0  # which creates the database
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public;" + TABLES)
            cursor.execute(f"ALTER DATABASE \"{connection.info.dbname}\" SET TimeZone = 'Asia/Shanghai'")
            columns = "id, user_id, status, final_text, chunk_count, total_duration, created_at, completed_at"
            for row in ROWS:
                cursor.execute(f"INSERT INTO asr_sessions ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", row)
            connection.commit()
        yield dsn


@pytest.mark.usefixtures("processes")
def test_its_history_is_copied_once(ancestor: str, database_url: str) -> None:
    here = {**NONE, "DATABASE_URL": database_url}
    done = cli("import-kikipounamu", ancestor, "--owner", "team", env=here)
    assert (done.returncode, done.stdout[:36]) == (0, "2 sessions copied, 0 left out: they "), done.stderr
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        columns = "id, user_id, owner, status, final_text, chunk_count, total_duration"
        cursor.execute(f"SELECT {columns}, created_at AT TIME ZONE 'UTC' FROM asr_sessions ORDER BY id")
        rows = [(*row[:-1], f"{row[-1]:%m-%d %H}") for row in cursor.fetchall()]
        cursor.execute("SELECT count(*) FROM asr_sessions WHERE asr_words(final_text) @@ to_tsquery('simple', '卧室')")
        assert cursor.fetchone() == (1,)
    assert rows == [
        ("a", "anna", "team", "done", "打开卧室的窗户", 3, 2.5, "11-01 02"),
        ("b", None, "team", "interrupted", "", 0, 0.0, "11-02 02"),
    ]
    again = cli("import-kikipounamu", ancestor, env=here)
    assert again.stdout.startswith("0 sessions copied, 2 left out")


@pytest.mark.usefixtures("processes")
def test_another_database_is_refused_by_name(database_url: str) -> None:
    here = {**NONE, "DATABASE_URL": database_url}
    assert cli("db", "upgrade", env=here).returncode == 0
    itself = cli("import-kikipounamu", database_url, env=here)
    assert itself.returncode == 1
    assert "is one of asrserver itself" in itself.stderr
    nowhere = cli("import-kikipounamu", "postgresql://u:s3cret@127.0.0.1:9/x", env=here)
    assert nowhere.returncode == 1
    assert "Traceback" not in nowhere.stderr
    assert "s3cret" not in nowhere.stderr
    assert "DATABASE_URL" in cli("import-kikipounamu", database_url, env=NONE).stderr
