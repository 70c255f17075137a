#!/usr/bin/env python3
"""Measure the CPU of storing sessions' results, against a raw multi-row INSERT of the same rows in the same run.

    python tools/bench_storage.py [--sessions 200] [--results 4] [--batches 10] [--rounds 3]
                                  [--backlog 2000]

SESSIONS sessions run at the same time; a batch contains RESULTS new results of each: a chunk with one segment, as in
mode stream. Three ways to store the same batches alternate, each for its own sessions, all through aiopg on uvloop,
with one transaction per batch:

    raw       INSERT … VALUES (…), (…), …  of the rows; existing sessions are updated (ON CONFLICT)
    storage   Storage.save(): late and repeated rows change nothing, deleted sessions stay deleted, a final status stays
    flush     WriteBehind: reads the workers' results back from Redis, makes rows of them, and saves them

CPU is user and system time of this process, and of the processes of PostgreSQL and Redis. Ratios are to raw.

At the end, BACKLOG finished sessions wait, as after an outage of PostgreSQL, and are stored as a gateway stores them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psutil
import uvloop
from benching import Servers, add_json, cpu, family, server_process, servers, write_ratios
from psycopg2.extras import Json

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.keys import events_key
from asrserver.gateway.persistence import WriteBehind, record, row
from asrserver.protocol import codec
from asrserver.protocol.events import ChunkResult, Segment, Word
from asrserver.protocol.options import Options
from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record

TEXT = "turn on the light in the kitchen and close the window"

WORDS = [Word(word, n / 4, n / 4 + 0.2, 0.98) for n, word in enumerate(TEXT.split())]

#: The columns that the raw statements set.
TABLES = {
    "asr_sessions": "id user_id status mode created_at model total_duration chunk_count language",
    "asr_chunks": "session_id chunk_index text duration language received_at recognised_at",
    "asr_segments": "session_id number chunk_index start_time end_time text language confidence words worker",
}
AGAIN = {
    "asr_sessions": "ON CONFLICT (id) DO UPDATE SET total_duration = excluded.total_duration, "
    "chunk_count = excluded.chunk_count, language = excluded.language, updated_at = now()"
}


def event(sid: str, number: int, epoch: int = 1) -> ChunkResult:
    """A worker's result of chunk `number` (from 0)."""
    segment = Segment(
        number=number, start=2.0 * number, end=2.0 * number + 1.8, text=TEXT, language="en", confidence=0.97,
        chunk_index=number, words=WORDS,
    )  # fmt: skip
    return ChunkResult(
        session_id=sid, seq=number + 1, id=f"{epoch}-{number + 1}", chunk_index=number, text=TEXT, duration=2.0,
        language="en", time=time.time(), received=time.time() - 0.3, worker="bench", model="demo",
        chunk_count=number + 1, total=2.0 * (number + 1), segments=[segment],
    )  # fmt: skip


def fields() -> dict[str, str]:
    options = codec.encode_options(Options(mode="chunk"))
    return {"options": options, "user_id": "somebody", "created": str(time.time()), "gateway": "bench"}


class Bench:
    """One run of the three ways."""

    def __init__(self, servers: Servers, options: argparse.Namespace) -> None:
        self._options = options
        self._broker = GatewayBroker(servers.redis.url, "bench")
        self._storage = Storage(servers.postgres.dsn)
        self._write_behind = WriteBehind(self._broker, self._storage, 60.0)
        self._processes = {name: server_process(getattr(servers, name)) for name in ("postgres", "redis")}

    async def run(self) -> dict[str, list[dict[str, float]]]:
        """Measure what each way costs in each round."""
        await self._broker.open()
        await self._storage.open()
        ways = {"raw": self.raw, "storage": self.saved, "flush": self.flushed}
        used: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(-1, self._options.rounds):  # the first warms up
            for way, store in ways.items():
                cost = await store([f"{way}-{number}-{n}" for n in range(self._options.sessions)])
                if number >= 0:
                    used[way].append(cost)
        await self._caught_up()
        await self._storage.close()
        await self._broker.close()
        return used

    async def raw(self, sids: list[str]) -> dict[str, float]:
        cost = Cost(self._processes)
        for records in self._records(sids):
            tables = (
                [each.session for each in records],
                [
                    {**row, "received_at": datetime.fromtimestamp(row["received_at"], UTC)}
                    for each in records
                    for row in each.chunks
                ],
                [{**row, "words": Json(row["words"])} for each in records for row in each.segments],
            )
            with cost:
                async with self._storage.connection() as conn, conn.begin(), conn.connection.cursor() as cursor:
                    for (table, columns), rows in zip(TABLES.items(), tables, strict=True):
                        names = columns.split()
                        places = f"({', '.join(['%s'] * len(names))})"
                        text = f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([places] * len(rows))}"
                        values = [each[name] for each in rows for name in names]
                        await cursor.execute(f"{text} {AGAIN.get(table, '')}", values)
        return cost.total

    async def saved(self, sids: list[str]) -> dict[str, float]:
        cost = Cost(self._processes)
        for records in self._records(sids):
            with cost:
                assert not await self._storage.save(records)
        return cost.total

    async def flushed(self, sids: list[str]) -> dict[str, float]:
        cost = Cost(self._processes)
        for sid in sids:
            await self._broker.open_session(sid, sid, fields(), time.time() + 600)
        for numbers in self._batches():
            pipeline = self._broker.pipeline
            for sid in sids:
                for each in (event(sid, number) for number in numbers):
                    data = codec.encode(each)
                    pipeline.call(lambda _: None, "XADD", events_key(sid), each.id, "seq", each.seq, "data", data)
            await pipeline.drain()
            with cost:
                for sid in sids:
                    self._write_behind.mark_dirty(sid)
                await self._write_behind._write()
        assert not self._write_behind._dirty  # `waiting` counts the batch until the loop goes on
        return cost.total

    async def _caught_up(self) -> None:
        """Store a backlog, and print how fast that was."""
        count, results = self._options.backlog, self._options.results
        sids = [f"backlog-{number}" for number in range(count)]
        pipeline = self._broker.pipeline
        for sid in sids:
            await self._broker.open_session(sid, sid, fields(), time.time() + 600)
            for each in (event(sid, number) for number in range(results)):
                data = codec.encode(each)
                pipeline.call(lambda _: None, "XADD", events_key(sid), each.id, "seq", each.seq, "data", data)
            self._write_behind.mark_dirty(sid)
        await pipeline.drain()
        cost = Cost(self._processes)
        with cost:
            writing = asyncio.ensure_future(self._write_behind.run())
            while not self._write_behind.is_flushed():
                await asyncio.sleep(0.005)
        writing.cancel()
        rows, seconds = count * (1 + 2 * results), cost.total["wall"]
        used = ", ".join(f"{name} {cost.total[name]:.2f}" for name in ("client", "postgres", "redis"))
        print(f"backlog of {count}: {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} a second (CPU s: {used})")

    def _batches(self) -> list[range]:
        """The chunks of each batch."""
        count = self._options.results
        return [range(batch * count, (batch + 1) * count) for batch in range(self._options.batches)]

    def _records(self, sids: list[str]) -> Iterator[list[Record]]:
        for numbers in self._batches():
            yield [record(row(sid, fields()), [event(sid, number) for number in numbers]) for sid in sids]


class Cost:
    """Sums up, over all its blocks, the CPU seconds of this process, PostgreSQL and Redis, and the wall time."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self.total = dict.fromkeys(("client", "postgres", "redis", "wall"), 0.0)

    def _now(self) -> dict[str, float]:
        others = {name: cpu(family(process)) for name, process in self._processes.items()}
        return {**others, "client": time.process_time(), "wall": time.monotonic()}

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, *_exc: object) -> None:
        used = time.process_time()  # before reading the others, which takes time
        now = {**self._now(), "client": used}
        for name, value in now.items():
            self.total[name] += value - self._before[name]


def report(options: argparse.Namespace, used: dict[str, list[dict[str, float]]]) -> None:
    rows = options.sessions * options.batches * (1 + 2 * options.results)
    print(f"{rows} rows per round in {options.batches} batches of {options.sessions} sessions; microseconds per row")
    print(f"{'':10}{'client':>9}{'postgres':>10}{'redis':>8}{'wall':>8}   ratios: {'client':>7}{'both':>7}{'wall':>7}")
    found = {}
    for way, rounds in used.items():
        median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        figures = "".join(f"{1e6 * median[name] / rows:{width}.1f}" for name, width in
                          (("client", 9), ("postgres", 10), ("redis", 8), ("wall", 8)))  # fmt: skip
        pairs = list(zip(rounds, used["raw"], strict=True))
        ratios = [
            [sum(a[name] for name in names) / sum(b[name] for name in names) for a, b in pairs]
            for names in (("client",), ("client", "postgres"), ("wall",))
        ]
        print(f"{way:10}{figures}           {''.join(f'{statistics.median(each):7.2f}' for each in ratios)}")
        found[way] = ratios[1]
    names = {"storage": "storage", "flush": "persistence with reading back"}
    write_ratios(
        options, {f"{name} to raw INSERT, client and PostgreSQL CPU": found[way] for way, name in names.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--results", type=int, default=4, help="results per session and batch")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=2000, help="sessions that wait at the end")
    add_json(parser)
    options = parser.parse_args()
    with servers() as own:
        report(options, uvloop.run(Bench(own, options).run()))


if __name__ == "__main__":
    main()
