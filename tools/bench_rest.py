#!/usr/bin/env python3
"""Measure each REST route's p95, against that of the bare SQL behind it, in one run.

    python tools/bench_rest.py [--sessions 10000] [--requests 400] [--words 0]

A real gateway process serves REST on a real Redis and PostgreSQL with SESSIONS stored sessions. Requests on one
persistent connection alternate with the same statements by psycopg2 on another one, so that both meet the same
disturbances. The bare statements are those of asrserver/storage/queries.py; their rows are fetched and dropped. For a
search that is the question to the index of words: what else it takes, such as to look for a phrase in the texts, counts
for REST. --words makes the sessions as long: 10,000 words are an hour and a half.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
from benching import add_json, write_ratios

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.storage import queries
from asrserver.storage.queries import Filter
from asrserver.storage.search import required

FILL = """
    INSERT INTO asr_sessions (id, user_id, status, mode, language, final_text, chunk_count, total_duration, created_at)
    SELECT 's' || n, 'user' || n %% 100, 'done', 'auto', 'en',
           CASE n %% 100 WHEN 0 THEN 'a zeppelin over the kitchen' WHEN 1 THEN '今天北京的天气预报'
           ELSE 'turn on the light in the kitchen' END || ' ' || n
           || repeat(' and on the light hall kitchen of then all ', %(words)s / 9)
           || CASE n WHEN %(count)s - 2 THEN 'hall light' ELSE '' END, 3, 4.5, now() - n * interval '1 minute'
    FROM generate_series(0, %(count)s - 1) AS n;
    INSERT INTO asr_chunks (session_id, chunk_index, text, duration)
    SELECT 's' || n, i, 'turn on the light', 1.5
    FROM generate_series(0, %(count)s - 1) AS n, generate_series(0, 2) AS i;
    INSERT INTO asr_segments (session_id, number, start_time, end_time, text, worker)
    SELECT 's' || n, i, i, i + 1, 'turn on the light', 'w'
    FROM generate_series(0, %(count)s - 1) AS n, generate_series(0, 2) AS i
"""

Statement = tuple[str, dict[str, Any]]


def page(which: Filter, limit: int = 50) -> list[Statement]:
    """The statements behind a page of the history; what a search finds is not counted."""
    values = which.values()
    names = frozenset(values)
    rows = queries.history(names)
    if which.search is not None:
        found = queries.candidates(names - {"search"} | {"words"})
        return [(found.text, {**found.parameters, "words": required(which.search), "limit": limit + 1})]
    count = queries.total(names)
    return [
        (count.text, {**count.parameters, **values}),
        (rows.text, {**rows.parameters, **values, "limit": limit + 1}),
    ]


def detail(sid: str) -> list[Statement]:
    return [
        (s.text, {**s.parameters, "id": sid, "after": -1})
        for s in (queries.one(False), queries.CHUNKS, queries.SEGMENTS)
    ]


ROUTES: dict[str, list[Statement]] = {
    "/api/v1/history": page(Filter()),
    "/api/v1/history?limit=1000": page(Filter(), 1000),
    "/api/v1/history?user_id=user7": page(Filter(user_id="user7")),
    "/api/v1/history?status=done": page(Filter(status="done")),
    "/api/v1/history?q=zeppelin": page(Filter(search="zeppelin")),
    "/api/v1/history?q=kitchen": page(Filter(search="kitchen")),
    "/api/v1/history?q=%E5%A4%A9%E6%B0%94%E9%A2%84%E6%8A%A5": page(Filter(search="天气预报")),
    "/api/v1/history?q=%22the+light%22": page(Filter(search="the light")),
    "/api/v1/history?q=%22hall+light%22": page(Filter(search="hall light")),
    "/api/v1/session/s77": detail("s77"),
    "/api/v1/stats": [(queries.sums(False).text, queries.sums(False).parameters)],
}


def measure(port: int, dsn: str, requests: int) -> dict[str, list[float]]:
    """Measure all routes; return the ratio of each, by medians."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    database = psycopg2.connect(dsn)
    database.autocommit = True

    def ask(path: str) -> None:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body

    def bare(statements: list[Statement]) -> None:
        with database.cursor() as cursor:
            for text, values in statements:
                cursor.execute(text, values)
                cursor.fetchall()

    ratios = {}
    print(f"{'p95 of':<56} {'REST':>9} {'bare SQL':>9} {'ratio':>6}   (medians)")
    for path, statements in ROUTES.items():
        rest, sql = [], []
        for _ in range(requests):
            rest.append(timed(lambda path=path: ask(path)))  # type: ignore[misc]
            sql.append(timed(lambda statements=statements: bare(statements)))  # type: ignore[misc]
        (rest_95, rest_50), (sql_95, sql_50) = ((quantile(t, 0.95), statistics.median(t)) for t in (rest, sql))
        ratios[f"{path} to bare SQL, time"] = [rest_50 / sql_50]
        print(
            f"{path:<56} {1000 * rest_95:6.2f} ms {1000 * sql_95:6.2f} ms {rest_95 / sql_95:6.1f}   "
            f"{1000 * rest_50:.2f} / {1000 * sql_50:.2f} ms = {rest_50 / sql_50:.1f}"
        )
    database.close()
    connection.close()
    return ratios


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def quantile(times: list[float], part: float) -> float:
    return sorted(times)[int(part * len(times))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--words", type=int, default=0, help="words of each session, beside a few")
    add_json(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as place:
        os.chmod(place, 0o755)
        redis, postgres = EmbeddedRedis(Path(place), appendfsync="no"), EmbeddedPostgres(Path(place))
        redis.start()
        postgres.start()
        command = [sys.executable, "-m", "asrserver", "gateway", "--port", "0", "--log-level", "warning"]
        env = {**os.environ, "REDIS_URL": redis.url, "DATABASE_URL": postgres.dsn}
        gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert gateway.stdout is not None
            found = re.search(r"http://\S+:(\d+)", gateway.stdout.readline())
            assert found is not None, "the gateway does not start"
            database = psycopg2.connect(postgres.dsn)
            database.autocommit = True
            with database.cursor() as cursor:
                cursor.execute(FILL, {"count": arguments.sessions, "words": arguments.words})
                cursor.execute("VACUUM ANALYZE")
            database.close()
            print(
                f"{arguments.sessions} sessions, {arguments.words} words more, {arguments.requests} requests per route"
            )
            write_ratios(arguments, measure(int(found[1]), postgres.dsn, arguments.requests))
        finally:
            gateway.terminate()
            gateway.wait(60)
            postgres.stop(10)
            redis.stop(10)


if __name__ == "__main__":
    main()
