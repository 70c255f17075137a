#!/usr/bin/env python3
"""Measure how cost grows: with idle connections, with streams, with the length of a session, with the history.

    python tools/bench_growth.py connections|streams|base|length|history|all [--out build/growth] [--quick]

Prints one table per part, with the ratio of each figure to that of the first row. Writes DIR/growth-PART.json, with the
machine, the commit and the load before the run, and a chart DIR/growth-PART.png. Each part has its own Redis,
PostgreSQL and server and takes two to three minutes on two cores; --quick omits the last one or two steps.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
import psutil
import psycopg2
import real_voices
import redis
from bench_rest import FILL, Statement, detail, page
from benching import (
    KINDS,
    Silent,
    System,
    a_stream,
    about,
    about_line,
    cpu,
    family,
    processes,
    quantile,
    server_process,
    servers,
    system,
)
from matplotlib.figure import Figure

from asrserver.broker.keys import audio_key, events_key, session_key, transcript_key
from asrserver.client import Client
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import Outcome, run
from asrserver.loadtest.speech import Scripts, load, quiet_frames
from asrserver.storage.queries import Filter

CLIENTS = Path(__file__).with_name("idle_clients.py")

#: Size of a chart in inches, and its resolution in dots per inch.
SIZE, DPI = (9.0, 3.2), 80


@dataclass
class Growth:
    """One table of figures.

    Attributes:
        grows: The column of the quantity that grows.
        panels: The charts: for each title, the columns that are drawn together.
        rows: The rows of the table.
    """

    grows: str
    panels: dict[str, list[str]]
    rows: list[dict[str, float]] = field(default_factory=list)

    def table(self) -> list[list[str]]:
        """The cells, each with its ratio to that of the first row."""
        first = self.rows[0]
        lines = [list(first)]
        for row in self.rows:
            cells = [f"{row[self.grows]:,.0f}"]
            for name, value in row.items():
                if name != self.grows:
                    ratio = f" (×{value / first[name]:.2f})" if first[name] and row is not first else ""
                    cells.append(f"{value:,.3g}{ratio}" if abs(value) < 1000 else f"{value:,.0f}{ratio}")
            lines.append(cells)
        return lines

    def draw(self, path: Path) -> None:
        style: dict[Any, Any] = {
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        with mpl.rc_context(style):
            figure = Figure(figsize=SIZE, layout="constrained")
            for axes, (title, columns) in zip(
                figure.subplots(1, len(self.panels), squeeze=False)[0], self.panels.items(), strict=True
            ):
                for name in columns:
                    axes.plot(
                        [row[self.grows] for row in self.rows], [row[name] for row in self.rows], ".-", label=name
                    )
                axes.set(title=title, xlabel=self.grows, xscale="log")
                axes.title.set_size("medium")
                axes.set_ylim(bottom=0)
                axes.legend(fontsize="x-small", frameon=False)
            figure.savefig(path, dpi=DPI)


# -- idle connections ------------------------------------------------------------------------------------------------


def connections(quick: bool) -> Growth:
    """10 to 5,000 WebSockets that send nothing and answer pings, on one gateway."""
    growth = Growth(
        "connections",
        {
            "memory": ["KB each"],
            "CPU": ["gateway, millicores"],
            "health, ms": ["health p50, ms", "health p95, ms"],
        },
    )
    with servers() as own, system(own, "gateway", "--log-level", "warning") as gateway:
        [process] = gateway.children("gateway")
        with idle(gateway.port, 50):  # the first connections load modules: not to be counted
            health(gateway, 2.0)
        base = process.memory_info().rss
        nobody = idling(gateway, process)
        for count in (10, 100, 1000) if quick else (10, 100, 1000, 5000):
            before = cpu([process])
            with idle(gateway.port, count):
                opening = (cpu([process]) - before) / count
                row = {"connections": count, "ms to open one": 1000 * opening, **idling(gateway, process)}
                memory = process.memory_info().rss
            each = {
                "KB each": (memory - base) / count / 1024,
                "microcores each": 1000 * row["gateway, millicores"] / count,
            }
            growth.rows.append({**row, **each})
        for row in growth.rows:
            row["health p95, ratio to none"] = row["health p95, ms"] / nobody["health p95, ms"]
        print("without connections: " + ", ".join(f"{name} {value:.1f}" for name, value in nobody.items()))
    return growth


@contextmanager
def idle(port: int, count: int) -> Iterator[None]:
    """Hold idle connections in another process."""
    line = [sys.executable, str(CLIENTS), str(port), str(count)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        if clients.stdout.readline().strip() != str(count):
            raise SystemExit(f"{count} connections could not be opened")
        try:
            yield
        finally:
            lost = clients.poll()
            clients.stdin.close()
    if lost is not None:
        raise SystemExit("idle connections were lost")
    time.sleep(1.0)  # until the gateway has noticed that they are closed


def idling(gateway: System, process: psutil.Process) -> dict[str, float]:
    """Measure the gateway's CPU while every connection is pinged once, and then the latency of the health route."""
    before, begun = cpu([process]), time.monotonic()
    time.sleep(21.0)  # every connection is pinged once: --ping-interval is 20 s
    cores = (cpu([process]) - before) / (time.monotonic() - begun)
    times = health(gateway, 5.0)
    return {
        "gateway, millicores": 1000 * cores,
        "health p50, ms": 1000 * statistics.median(times),
        "health p95, ms": 1000 * quantile(times, 0.95),
    }


def health(gateway: System, seconds: float) -> list[float]:
    """Request the health document repeatedly on one connection; return the seconds that each answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        connection.request("GET", "/api/v1/health")
        connection.getresponse().read()
        times.append(time.perf_counter() - begun)
        time.sleep(0.03)
    connection.close()
    return times


# -- streams ---------------------------------------------------------------------------------------------------------


#: The charts of streams.
STREAM_PANELS = {
    "millicores per stream": [*KINDS, "tester", "sum"],
    "cores": ["cores needed"],
    "finalisation, s": ["finalisation p50, s", "finalisation p95, s"],
}


def streams(quick: bool) -> Growth:
    """10 to 500 live streams of the load test, with speech three tenths of the time."""
    return streaming((10, 50, 100) if quick else (10, 50, 100, 250, 500), "demo", duration=15.0)


def base(quick: bool) -> Growth:
    """1 to 12 live streams of an audio book with the model base: what a heavy model leaves to the rest."""
    real_voices.fetch([real_voices.BOOK])
    folder = real_voices.DIRECTORY / real_voices.BOOK / real_voices.PLACES[real_voices.BOOK]
    spoken = tuple((str(folder / f"{voice.name}.wav"), voice.text) for voice in real_voices.book())
    options: dict[str, Any] = {"audio": spoken, "language": "en", "max_word_errors": 0.2}
    return streaming((1, 4, 8) if quick else (1, 4, 8, 12), "base", duration=30.0, **options)


def streaming(counts: Sequence[int], model: str, **plan: Any) -> Growth:
    """Rows of `of_streams` for so many streams at once."""
    growth = Growth("streams", STREAM_PANELS)
    with servers() as own, system(own, "run", "--model", model) as server:
        url = f"ws://127.0.0.1:{server.port}/ws/asr"
        for count in counts:
            outcome = run(
                Plan(urls=(url,), connections=count, talk_ratio=0.3, **plan), processes(server, own), Silent()
            )
            growth.rows.append(of_streams(outcome))
            print(f"  {count} streams: {outcome.stats.right} of {outcome.stats.sessions} sessions right", flush=True)
    return growth


def of_streams(outcome: Outcome) -> dict[str, float]:
    """A row: millicores per stream for each kind of process. If more cores are needed than exist, results are late."""
    cores = a_stream(outcome)
    times = outcome.stats.times["finalisation"]
    return {
        "streams": outcome.plan.connections,
        **{kind: 1000 * value for kind, value in cores.items()},
        "sum": 1000 * sum(cores.values()),
        "cores needed": sum(cores.values()) * outcome.plan.connections,
        "right, %": 100 * outcome.stats.right / max(1, outcome.stats.sessions),
        "finalisation p50, s": times.percentile(0.5),
        "finalisation p95, s": times.percentile(0.95),
    }


# -- length of a session ---------------------------------------------------------------------------------------------

#: The long session sends its audio this many times faster than real time.
SPEED = 30.0

#: The kinds of processes whose resident memory is shown.
RESIDENT = ("gateway", "worker")


def length(quick: bool) -> Growth:
    """One session of an hour: its memory, and the CPU per minute of audio, by its length."""
    growth = Growth(
        "minutes",
        {
            "CPU per minute, ms": [f"{kind}, ms per minute" for kind in ("gateway", "worker", "Redis", "PostgreSQL")],
            "resident, MiB": ["gateway, MiB", "worker, MiB"],
            "Redis, KiB": ["session's keys, KiB"],
        },
    )
    with servers() as own, system(own, "run", "--workers", "1") as server:
        parts = {
            "gateway": server.children("gateway"),
            "worker": server.children("worker"),
            "Redis": [server_process(own.redis)],
            "PostgreSQL": [server_process(own.postgres)],
        }
        marks = (1, 2, 5, 10, 20) if quick else (1, 2, 5, 10, 20, 40, 60)
        with redis.Redis.from_url(own.redis.url) as broker:
            asyncio.run(talk(server, marks, lambda used: growth.rows.append(used), parts, broker))
    return growth


async def talk(
    server: System,
    marks: tuple[int, ...],
    on_mark: Callable[[dict[str, float]], None],
    parts: dict[str, list[psutil.Process]],
    broker: redis.Redis,
) -> None:
    """Run a session of marks[-1] minutes; at each mark, report the cost of the minutes since the last mark."""
    plan = Plan(urls=(), connections=1, talk_ratio=0.3, mode="long")
    quiet = quiet_frames()
    async with await Client.connect([f"ws://127.0.0.1:{server.port}/ws/asr"]) as client:
        session = await client.start("long", mode="stream", format="pcm_s16le")
        sent, begun, reached = 0, time.monotonic(), 0
        before = {name: cpu(_living(processes)) for name, processes in parts.items()}
        for part in Scripts(load(()), plan).script(0, 0):
            for frame in (*(quiet[n % len(quiet)] for n in range(part.quiet)), *part.sentence.frames):
                await asyncio.sleep(begun + sent / 10 / SPEED - time.monotonic())
                await session.send(frame)
                sent += 1
                if sent == marks[reached] * 600:
                    await asyncio.sleep(1.0)  # until the last words are recognised
                    now = {name: cpu(_living(processes)) for name, processes in parts.items()}
                    minutes = marks[reached] - (marks[reached - 1] if reached else 0)
                    memory = {f"{kind}, MiB": parts[kind][0].memory_info().rss / 2**20 for kind in RESIDENT}
                    keys = (session_key("long"), audio_key("long"), events_key("long"), transcript_key("long"))
                    on_mark(
                        {
                            "minutes": marks[reached],
                            **{f"{name}, ms per minute": 1000 * (now[name] - before[name]) / minutes for name in parts},
                            **memory,
                            "session's keys, KiB": sum(broker.memory_usage(key) or 0 for key in keys) / 1024,
                            "Redis, MiB": broker.info("memory")["used_memory"] / 2**20,
                            "speed": minutes * 60 / (time.monotonic() - begun - (sent / 10 - minutes * 60) / SPEED),
                        }
                    )
                    before, reached = now, reached + 1
                    begun = time.monotonic() - sent / 10 / SPEED
                    if reached == len(marks):
                        await session.finish()
                        return


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for process in processes for each in family(process)]


# -- history ---------------------------------------------------------------------------------------------------------

ROUTES: dict[str, tuple[str, list[Statement]]] = {
    "newest page": ("/api/v1/history", page(Filter())),
    "a user's": ("/api/v1/history?user_id=user7", page(Filter(user_id="user7"))),
    "a rare word": ("/api/v1/history?q=7777", page(Filter(search="7777"))),
    "a word in 1 %": ("/api/v1/history?q=zeppelin", page(Filter(search="zeppelin"))),
    "one session": ("/api/v1/session/s77", detail("s77")),
    "stats": ("/api/v1/stats", []),
}

#: Seconds for one route at one size: slow routes get fewer requests.
ROUTE_SECONDS = 2.5


def history(quick: bool) -> Growth:
    """1e3 to 1e6 stored sessions: REST against the bare SQL behind it."""
    growth = Growth(
        "sessions",
        {
            "REST, ms (median)": [f"{name}, ms" for name in ROUTES],
            "REST / bare SQL": [f"{name}, ratio to SQL" for name, (_, bare) in ROUTES.items() if bare],
        },
    )
    with servers() as own, system(own, "gateway") as gateway:
        database = psycopg2.connect(own.postgres.dsn)
        database.autocommit = True
        stored = 0
        for count in (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
            fill(database, stored, count)
            stored = count
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
            row: dict[str, float] = {"sessions": count}
            for name, (path, bare) in ROUTES.items():
                rest, sql = both(connection, database, path, bare)
                row[f"{name}, ms"] = 1000 * statistics.median(rest)
                if bare:
                    row[f"{name}, ratio to SQL"] = statistics.median(rest) / statistics.median(sql)
            connection.close()
            growth.rows.append(row)
            print(f"  {count} sessions measured", flush=True)
        database.close()
    return growth


def fill(database: Any, first: int, count: int) -> None:
    """Store the sessions `first` to `count` of bench_rest, and chunks and segments for one in a hundred."""
    every, some = "generate_series(%(first)s, %(count)s - 1)", "generate_series(%(first)s + 77, %(count)s - 1, 100)"
    sessions, *others = FILL.split(";")
    others = [each.replace("generate_series(0, %(count)s - 1)", some) for each in others]
    sessions = sessions.replace("generate_series(0, %(count)s - 1)", every)
    with database.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off; SET maintenance_work_mem = '256MB'")
        # The index of words is created afterwards: inserting a million rows into it would take most of the time.
        cursor.execute("SELECT pg_get_indexdef('asr_sessions_search'::regclass)")
        (index,) = cursor.fetchone()
        cursor.execute("DROP INDEX asr_sessions_search")
        cursor.execute(sessions, {"first": first, "count": count})
        for each in others:
            cursor.execute(each, {"first": first, "count": count})
        cursor.execute(index)
        cursor.execute("VACUUM ANALYZE")


def both(
    connection: http.client.HTTPConnection, database: Any, path: str, statements: list[Statement]
) -> tuple[list[float], list[float]]:
    """Measure requests and, alternating with them, the same statements; return the seconds of each."""
    rest: list[float] = []
    sql: list[float] = []
    end = time.monotonic() + ROUTE_SECONDS
    while time.monotonic() < end or len(rest) < 3:
        begun = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        rest.append(time.perf_counter() - begun)
        if response.status != 200:
            raise SystemExit(f"{path}: {body.decode()}")
        begun = time.perf_counter()
        with database.cursor() as cursor:
            for text, values in statements:
                cursor.execute(text, values)
                cursor.fetchall()
        sql.append(time.perf_counter() - begun)
    return rest, sql


# -- the program -----------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool], Growth]] = {
    "connections": connections,
    "streams": streams,
    "base": base,
    "length": length,
    "history": history,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, default=Path("build/growth"), help="directory for JSON files and charts")
    parser.add_argument("--quick", action="store_true", help="omit the last steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in PARTS if options.part == "all" else [options.part]:
        where = about()
        begun = time.monotonic()
        print(f"\n{name}: {PARTS[name].__doc__}", flush=True)
        growth = PARTS[name](options.quick)
        print(f"{about_line(where)}; took {time.monotonic() - begun:.0f} s")
        lines = growth.table()
        print("| " + " | ".join(lines[0]) + " |\n|" + "---:|" * len(lines[0]))
        for line in lines[1:]:
            print("| " + " | ".join(line) + " |")
        path = options.out / f"growth-{name}"
        path.with_suffix(".json").write_bytes(
            orjson.dumps({"about": where, "rows": growth.rows}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        growth.draw(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
