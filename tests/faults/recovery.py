"""How long clients wait after each fault: `python -m tests.faults.recovery`, for the page on what can fail.

The system of the harness, under light load: each client sends a chunk every half second, so that a session is always
owed something. A fault is injected several times, and each time counts, for the sessions that it befell:

    worker       from the kill to the session's next result: the other worker takes over, or the only one starts again
    gateway      from the kill to the acknowledgement of `resume`: at the other gateway, or the only one starts again
    Redis        from its first answer after a kill to the session's next result
    PostgreSQL   rows a second, from the end of an outage until nothing waits
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from asrserver.client import Client, ConnectionObserver
from asrserver.process.limits import raise_file_limit
from tests.faults.book import Event
from tests.faults.cluster import Cluster
from tests.recordings import Utterance, recorded, understood

#: Seconds between two chunks of a session.
EVERY = 0.5

#: Seconds that a recovery may take at most.
PATIENCE = 60.0


class Speaker(ConnectionObserver):
    """A client with one endless session.

    Attributes:
        sid: Its session.
        results: The times of its results (time.monotonic()), the newest last.
        resumed: The times of its acknowledgements of `resume`.
    """

    def __init__(self, number: int, url: str, others: list[str], utterances: Sequence[Utterance]) -> None:
        self.sid = f"speaker-{number}"
        self.url = url
        self.results: list[float] = []
        self.resumed: list[float] = []
        self._urls = [url, *others]
        self._number = number
        self._utterances = utterances

    def received(self, event: Event) -> None:
        if event.get("status") == "session_resumed":
            self.resumed.append(time.monotonic())

    async def run(self) -> None:
        """Speak until cancelled."""
        async with await Client.connect(self._urls, observer=self, retry=True) as client:
            session = await client.start(self.sid, ack_interval=0.0)
            listening = asyncio.ensure_future(self._listen(session))
            try:
                for count in range(1 << 30):
                    one = self._utterances[(self._number * 7 + count) % len(self._utterances)]
                    await session.send(one.wav)
                    await asyncio.sleep(EVERY)
            finally:
                listening.cancel()

    async def _listen(self, session: object) -> None:
        async for event in session.events():  # type: ignore[attr-defined]
            assert event["type"] == "chunk_result", event
            self.results.append(time.monotonic())


async def _after(speakers: Sequence[Speaker], since: float, what: str) -> list[float]:
    """Seconds from a time to the next entry of each speaker's list."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        later = [next((at for at in getattr(one, what) if at > since), None) for one in speakers]
        if None not in later:
            return [at - since for at in later if at is not None]
        await asyncio.sleep(0.01)
    raise TimeoutError(f"no {what} within {PATIENCE:.0f} s")


async def _calm(speakers: Sequence[Speaker]) -> None:
    """Wait until all have results again, several of them."""
    for _ in range(3):
        await _after(speakers, time.monotonic(), "results")


async def _worker(cluster: Cluster, speakers: Sequence[Speaker]) -> list[float]:
    def owners() -> dict[str, int]:
        """The pid of each session's worker."""
        with cluster.look_into_redis() as client:
            pids = {}
            for key in client.keys("worker:*:heartbeat"):
                state = json.loads(client.get(key) or "{}")
                pids[state["name"]] = state["pid"]
            sids = {entry: fields["sid"] for entry, fields in client.xrange("asr_tasks")}
            pending = client.xpending_range("asr_tasks", "asr_workers", "-", "+", 1000)
            return {sids[one["message_id"]]: pids.get(one["consumer"], 0) for one in pending}

    owned = await cluster.in_thread(owners)
    victim = max(cluster.processes("worker"), key=lambda one: list(owned.values()).count(one.pid))
    hit = [one for one in speakers if owned.get(one.sid) == victim.pid]
    killed = time.monotonic()
    victim.kill()
    return await _after(hit, killed, "results")


async def _gateway(cluster: Cluster, speakers: Sequence[Speaker]) -> list[float]:
    machine = cluster.machines[0]
    [victim] = machine.children("gateway")
    held = {c.raddr.port for c in victim.net_connections() if c.raddr and c.laddr.port == machine.port}
    before = {one.sid: len(one.resumed) for one in speakers}
    killed = time.monotonic()
    victim.kill()
    await asyncio.sleep(1.0)  # whoever was connected there has lost the connection
    waits: list[float] = []
    deadline = killed + PATIENCE
    while len(waits) < len(held) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        waits = [one.resumed[before[one.sid]] - killed for one in speakers if len(one.resumed) > before[one.sid]]
    assert len(waits) >= len(held), f"{len(waits)} of {len(held)} came back"
    return waits


async def _redis(cluster: Cluster, speakers: Sequence[Speaker]) -> list[float]:
    cluster.processes("redis")[0].kill()
    await cluster.restart(cluster.redis)
    return await _after(speakers, time.monotonic(), "results")


async def measure(counts: tuple[int, int], machines: int, clients: int, times: int) -> dict[str, list[float]]:
    """Measure with so many gateways and workers on each of one or two machines."""
    place = tempfile.mkdtemp(prefix="asrserver-recovery-")
    os.chmod(place, 0o755)
    cluster = Cluster(Path(place), "--gateways", str(counts[0]), "--workers", str(counts[1]), machines=machines)
    utterances = understood(recorded("utterances"))
    found: dict[str, list[float]] = {}
    try:
        await cluster.open()
        urls = [f"ws://127.0.0.1:{proxy.port}/ws/asr" for proxy in cluster.client_proxies]
        speakers = [
            Speaker(n, urls[n % machines], [url for url in urls if url != urls[n % machines]], utterances)
            for n in range(clients)
        ]
        tasks = [asyncio.create_task(one.run()) for one in speakers]
        try:
            for name, fault in (("worker", _worker), ("gateway", _gateway), ("Redis", _redis)):
                found[name] = []
                for _ in range(times):
                    await _calm(speakers)
                    found[name] += await fault(cluster, speakers)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await cluster.close()
        cluster.remove()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.recovery")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    raise_file_limit()
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {asked.clients} sessions, {asked.times} times each"
    )
    for machines in (2, 1):
        found = asyncio.run(measure((1, 1), machines, asked.clients, asked.times))
        for name, waits in found.items():
            print(
                f"{machines} machine{'s' * (machines > 1)}, {name} killed: median {statistics.median(waits):.2f} s, "
                f"longest {max(waits):.2f} s ({len(waits)} sessions)",
                flush=True,
            )


if __name__ == "__main__":
    main()
