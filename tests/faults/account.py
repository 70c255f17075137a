"""The account: what the book, PostgreSQL, Redis and the operating system say when all is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.book import Book, Talk
from tests.faults.cluster import Cluster
from tests.program import alive

#: What may not be: nothing acknowledged is lost, nothing comes twice, no text is wrong, no row is missing, nothing is
#: left, no session fails that was not bound to.
KINDS = ("lost", "duplicated", "wrong", "rows missing", "left over", "failed")

#: Keys that live as long as the installation.
LASTING = re.compile(r"asr_tasks(:.+)?|asr_offered|asr_dead|asr_alive:(gateway|worker)")

#: Seconds within which everything must be over after the last client has left: a session whose gateway died waits for
#: half a minute.
SETTLE_SECONDS = 120.0

#: Seconds that processes may take to end after their supervisor.
LINGER_SECONDS = 5.0

#: Descriptors by which a process may have more than a new one: connections of pools that are made when needed.
SPARE_DESCRIPTORS = 12


@dataclass
class Account:
    """What was found.

    Attributes:
        counts: Sessions, chunks and results; what was lost by right.
        wrong: Counts of KINDS.
        problems: Each in one line.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, kind: str, what: str, number: int = 1) -> None:
        """Note what may not be."""
        self.wrong[kind] += number
        self.problems.append(f"{kind}: {what}")

    @property
    def is_clean(self) -> bool:
        return not self.wrong


# -- sessions --------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """What PostgreSQL has of a session."""

    session: tuple[Any, ...] | None = None  # status, text, chunk count, duration
    chunks: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)  # index → text, error code
    segments: list[str] = field(default_factory=list)


def read_rows(cluster: Cluster) -> dict[str, Rows]:
    """All rows, by session."""
    found: defaultdict[str, Rows] = defaultdict(Rows)
    for sid, *session in cluster.query("SELECT id, status, final_text, chunk_count, total_duration FROM asr_sessions"):
        found[sid].session = tuple(session)
    for sid, index, text, code in cluster.query("SELECT session_id, chunk_index, text, error_code FROM asr_chunks"):
        found[sid].chunks[index] = (text, code)
    for sid, text in cluster.query("SELECT session_id, text FROM asr_segments ORDER BY session_id, number"):
        found[sid].segments.append(text)
    return found


def check_sessions(account: Account, book: Book, rows: dict[str, Rows]) -> None:
    """Compare what was said, what clients were told, and what is stored."""
    for talk in book.talks.values():
        account.counts["sessions"] += 1
        account.counts["chunks sent"] += len(talk.chunks)
        account.counts["chunks acknowledged"] += len(talk.acknowledged)
        stored = rows.get(talk.sid, Rows())
        if talk.sid in book.emptied:
            _check_emptied(account, talk, stored)
        else:
            _check_told(account, talk)
            _check_stored(account, talk, stored)
        _check_texts(account, talk, stored)


def _check_emptied(account: Account, talk: Talk, stored: Rows) -> None:
    """A session that was only in Redis: its client may lose it, but must not be told that it is done."""
    account.counts["sessions lost when Redis was emptied"] += not talk.finals
    if stored.session is not None and stored.session[0] == "recording":
        account.counts["rows that stay open because Redis was emptied"] += 1
    if not talk.over:
        account.problem("failed", f"{talk.sid}: Redis was emptied, and its client was never told")
    answered = sum(bool(chunk.answers) for chunk in talk.chunks)
    if talk.finals and talk.finals[-1]["status"] == "done" and not talk.live and answered < len(talk.chunks):
        account.problem("lost", f"{talk.sid}: done, with {answered} of {len(talk.chunks)} results")


def _check_told(account: Account, talk: Talk) -> None:
    if not talk.over:
        account.problem("failed", f"{talk.sid}: its client still waits, {len(talk.acknowledged)} acknowledged")
        return
    if len(talk.seqs) != len(set(talk.seqs)) or talk.seqs != sorted(talk.seqs):
        account.problem("duplicated", f"{talk.sid}: results with the numbers {talk.seqs}")
    if len(talk.finals) > 1:
        account.problem("duplicated", f"{talk.sid}: {len(talk.finals)} final results")
    if talk.dropped:
        account.counts["sessions of lost connections"] += 1
        return
    if talk.failure:
        account.problem("failed", f"{talk.sid}: {talk.failure}")
    elif talk.finals[0]["status"] == "interrupted":
        account.counts["sessions interrupted, their clients were away"] += 1
    elif talk.finals[0]["chunk_count"] != len(talk.chunks) or not talk.finishing:
        account.problem("lost", f"{talk.sid}: done with {talk.finals[0]['chunk_count']} of {len(talk.chunks)} chunks")
    if not talk.live:
        account.counts["results"] += sum(bool(chunk.answers) for chunk in talk.chunks)
        if lost := [index for index in talk.acknowledged if not talk.chunks[index].answers]:
            account.problem("lost", f"{talk.sid}: chunks {lost} were acknowledged and not answered", len(lost))


def _check_stored(account: Account, talk: Talk, stored: Rows) -> None:
    if not talk.acknowledged and not talk.finals:
        return
    if stored.session is None:
        account.problem("rows missing", f"{talk.sid}: no session, {len(talk.acknowledged)} acknowledged")
        return
    status, text, count, duration = stored.session
    if status == "recording":
        account.problem("rows missing", f"{talk.sid}: its end is not stored")
    if talk.finals and (status, text) != (talk.finals[0]["status"], talk.finals[0]["text"]):
        account.problem("rows missing", f"{talk.sid}: stored as {status} {text!r}, not {talk.finals[0]}")
    if count < len(talk.acknowledged):
        account.problem("rows missing", f"{talk.sid}: {count} chunks of {len(talk.acknowledged)} ({duration:.1f} s)")
    if not talk.live and (missing := set(talk.acknowledged) - stored.chunks.keys()):
        account.problem("rows missing", f"{talk.sid}: chunks {sorted(missing)}", len(missing))
    if talk.live and talk.finals and stored.segments != [segment["text"] for segment in talk.segments]:
        account.problem("rows missing", f"{talk.sid}: segments {stored.segments}, not {talk.segments}")


def _check_texts(account: Account, talk: Talk, stored: Rows) -> None:
    for index, chunk in enumerate(talk.chunks):
        if talk.live:
            break
        if len(chunk.answers) > 1:
            account.problem("duplicated", f"{talk.sid}: chunk {index} has {len(chunk.answers)} answers")
        found = [(event.get("text"), event.get("code")) for _, event in chunk.answers]
        found += [stored.chunks[index]] if index in stored.chunks else []
        for text, code in found:
            expected = (chunk.text, None) if chunk.text is not None else (None, "audio_rejected")
            if (text if code is None else None, code) != expected:
                account.problem("wrong", f"{talk.sid}: chunk {index} is {text!r} {code or ''}, not {expected}")
    if unknown := stored.chunks.keys() - range(len(talk.chunks)):
        account.problem("wrong", f"{talk.sid}: chunks {sorted(unknown)} were never sent")
    if talk.live and talk.finals and talk.finals[0]["status"] == "done":
        texts = [segment["text"] for segment in talk.segments]
        account.counts["results"] += len(texts)
        if texts != talk.said:
            account.problem("wrong", f"{talk.sid}: {texts}, not {talk.said}")


# -- what is left ----------------------------------------------------------------------------------------------------


async def settle(cluster: Cluster, hurry: bool) -> None:
    """Wait until all sessions are over and stored, or SETTLE_SECONDS are over.

    Args:
        cluster: The system.
        hurry: Declare the sessions of dead gateways overdue at once; those of living ones are renewed.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    if hurry:
        with cluster.look_into_redis() as client:
            for sid in client.zrange("asr_open", 0, -1):
                client.zadd("asr_open", {sid: 1}, xx=True)
    while time.monotonic() < deadline:
        try:
            if not await cluster.in_thread(_left_in_redis, cluster):
                return
        except OSError:
            pass
        await asyncio.sleep(1)


def _left_in_redis(cluster: Cluster) -> list[str]:
    with cluster.look_into_redis() as client:
        left = [f"{client.zcard(key)} in {key}" for key in ("asr_open", "asr_finished") if client.zcard(key)]
        left += [f"{client.xlen(key)} in {key}" for key in client.keys("asr_tasks*") if client.xlen(key)]
        for kind, zeros in (("gateway", ("sessions", "backlog", "to_store")), ("worker", ("sessions", "backlog"))):
            for key in client.keys(f"{kind}:*:heartbeat"):
                state = json.loads(client.get(key) or "{}")
                left += [f"{key}: {name} {state[name]}" for name in zeros if state.get(name)]
        return left


def check_redis(account: Account, cluster: Cluster) -> None:
    """No session, no backlog, no key without an end."""
    for what in _left_in_redis(cluster):
        account.problem("left over", what)
    with cluster.look_into_redis() as client:
        for key in client.scan_iter(count=1000):
            if client.ttl(key) == -1 and not LASTING.fullmatch(key):
                account.problem("left over", f"the key {key} has no TTL")


def check_descriptors(account: Account, cluster: Cluster, fresh: dict[str, int]) -> None:
    """No process has more open than a new one, about, and nobody is connected."""
    ports = {machine.port for machine in cluster.machines}
    for kind in ("gateway", "worker", "supervisor"):
        for process in cluster.processes(kind):
            count = process.num_fds()
            if count > fresh[kind] + SPARE_DESCRIPTORS:
                what = (
                    f"{kind} {process.pid} has {count} descriptors, a new one {fresh[kind]}: {_open(process, cluster)}"
                )
                account.problem("left over", what)
            connected = [c for c in process.net_connections() if c.laddr and c.laddr.port in ports and c.raddr]
            if connected:
                account.problem("left over", f"{kind} {process.pid} has {len(connected)} connections")


def _open(process: psutil.Process, cluster: Cluster) -> str:
    """What a process has open, by kind, for the report."""
    names = {cluster.redis_proxy.port: "to Redis", cluster.postgres_proxy.port: "to PostgreSQL"}
    names |= {machine.port: f"machine {machine.name}" for machine in cluster.machines}
    found: Counter[str] = Counter()
    for one in process.net_connections("all"):
        place = names.get(getattr(one.raddr or one.laddr, "port", 0), str(one.raddr or one.laddr or "unnamed"))
        found[f"socket {place} {one.status}"] += 1
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        target = os.readlink(descriptor)
        if not target.startswith("socket:"):
            found[re.sub(r"\d+", "N", target)] += 1
    return ", ".join(f"{count} × {what}" for what, count in found.most_common())


def check_system(account: Account, cluster: Cluster) -> None:
    """After the stop: no process, no shared memory, no temporary file."""
    # Not psutil.wait_procs (7.2): where the id of one that ended is a thread's now it ends with FileNotFoundError.
    until = time.monotonic() + LINGER_SECONDS  # multiprocessing's helper ends after its supervisor
    while (left := list(filter(alive, cluster.seen.values()))) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            account.problem("left over", f"process {process.pid}: {process.cmdline()}")
    for folder in sorted(cluster.shared):
        # What a killed supervisor left is removed by the next one, and that of the last one by itself.
        if os.path.exists(folder):
            account.problem("left over", f"shared memory: {folder}")
    for path in sorted(Path(cluster.place / "tmp").iterdir()):
        account.problem("left over", f"temporary file: {path.name}")


def check_logs(account: Account, cluster: Cluster) -> list[str]:
    """The tracebacks in the logs, each kind once, with how often it came; they fail no run, but each is a question."""
    found: Counter[str] = Counter()
    for machine in cluster.machines:
        text = machine.log.read_text(errors="replace")
        for block in re.findall(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(.*)$", text, re.M):
            found[re.sub(r"\d+", "N", block)[:200]] += 1
    account.counts["tracebacks"] += sum(found.values())
    return [f"{count} × {what}" for what, count in found.most_common()]
