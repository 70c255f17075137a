"""The faults. Each is injected, lasts for a while, and is healed by the time that its function returns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.faults import program
from tests.faults.book import Book
from tests.faults.clients import Plan
from tests.faults.cluster import Cluster, Machine

#: The embedded Redis's memory limit in bytes, to which a fault returns.
REDIS_MEMORY = 1 << 30


@dataclass
class Scene:
    """What a fault works on.

    Attributes:
        cluster: The system.
        book: Where it notes what is lost by right.
        plan: The clients'.
        dice: Its own.
        longest: Seconds that it may last at most.
    """

    cluster: Cluster
    book: Book
    plan: Plan
    dice: random.Random
    longest: float

    def seconds(self, least: float, most: float) -> float:
        return min(self.longest, self.dice.uniform(least, most))


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: As reports name it.
        part: What it befalls: faults of the same part wait for each other.
        inject: Does it and undoes it; returns what it did, in words.
        needs_disks: It needs disks of their own.
    """

    name: str
    part: str
    inject: Callable[[Scene], Coroutine[Any, Any, str]]
    needs_disks: bool = False


# -- processes -------------------------------------------------------------------------------------------------------


def _kill(kind: str) -> Callable[[Scene], Coroutine[Any, Any, str]]:
    async def inject(scene: Scene) -> str:
        victim = await _victim(scene, kind)
        victim.kill()
        if kind in ("redis", "postgres"):
            await asyncio.sleep(scene.dice.uniform(0, 1))
            await _bring_back(scene, kind)
        return f"pid {victim.pid}"

    return inject


async def _kill_all(scene: Scene) -> str:
    cluster = scene.cluster
    kinds = ("supervisor", "gateway", "worker", "redis", "postgres")
    family = [process for kind in kinds for process in cluster.processes(kind)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for kind in ("redis", "postgres"):
        await _bring_back(scene, kind)
    await cluster.until(lambda: all(one.children("gateway") for one in cluster.machines), 60, "gateways are back")
    return f"{len(family)} processes"


async def _bring_back(scene: Scene, kind: str) -> None:
    await scene.cluster.restart(scene.cluster.redis if kind == "redis" else scene.cluster.postgres)


def _suspend(kind: str) -> Callable[[Scene], Coroutine[Any, Any, str]]:
    async def inject(scene: Scene) -> str:
        victim = await _victim(scene, kind)
        victims = scene.cluster.processes(kind) if kind in ("redis", "postgres") else [victim]
        seconds = scene.seconds(5, 20) if scene.dice.random() < 0.8 else scene.seconds(20, 60)
        for one in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        try:
            await asyncio.sleep(seconds)
        finally:
            for one in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.resume()
        return f"pid {victim.pid} for {seconds:.0f} s"

    return inject


async def _victim(scene: Scene, kind: str) -> psutil.Process:
    found: list[psutil.Process] = await scene.cluster.until(
        lambda: scene.cluster.processes(kind), 60, f"a {kind} lives"
    )
    return found[0] if kind in ("redis", "postgres") else scene.dice.choice(found)


async def _terminate_child(scene: Scene) -> str:
    kind = scene.dice.choice(("gateway", "worker"))
    victim = await _victim(scene, kind)
    victim.terminate()
    return f"{kind} {victim.pid}"


async def _terminate(scene: Scene) -> str:
    machine = scene.dice.choice(scene.cluster.machines)
    times = scene.dice.choice((1, 1, 5))
    await _signals(machine, signal.SIGTERM, times, scene)
    old = machine.process
    with contextlib.suppress(TimeoutError):
        await scene.cluster.until(lambda: machine.process is not old, 60, "it ended")
    return f"machine {machine.name}, {times} times"


async def _hang_up(scene: Scene) -> str:
    machine = scene.dice.choice(scene.cluster.machines)
    times = scene.dice.choice((1, 5))
    await _signals(machine, signal.SIGHUP, times, scene)
    await asyncio.sleep(scene.seconds(5, 15))
    return f"machine {machine.name}, {times} times"


async def _signals(machine: Machine, number: signal.Signals, times: int, scene: Scene) -> None:
    for _ in range(times):
        if machine.process is not None:
            with contextlib.suppress(ProcessLookupError):
                machine.process.send_signal(number)
        await asyncio.sleep(scene.dice.uniform(0, 0.5))


async def _no_descriptors(scene: Scene) -> str:
    kind = scene.dice.choice(("gateway", "gateway", "worker", "supervisor"))
    victim = await _victim(scene, kind)
    before = victim.rlimit(psutil.RLIMIT_NOFILE)
    limit = victim.num_fds() + scene.dice.randint(0, 3)
    resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        await asyncio.sleep(scene.seconds(5, 10))
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, before)
    return f"{kind} {victim.pid}: {limit}"


def _marked(mark: bytes, kills: bool = False) -> Callable[[Scene], Coroutine[Any, Any, str]]:
    async def inject(scene: Scene) -> str:
        one = scene.dice.choice(scene.plan.utterances)
        name = f"{scene.dice.randrange(1 << 32):x}"
        scene.plan.special.append((one.wav + mark + (b"" if kills else name.encode()), None if kills else one.text))
        return "one chunk"

    return inject


async def _step_clock(scene: Scene) -> str:
    machine = scene.dice.choice(scene.cluster.machines)
    step = scene.dice.choice((-3600.0, -20.0, 20.0, 3600.0))
    machine.step_clock(step)
    try:
        await asyncio.sleep(scene.seconds(5, 15))
    finally:
        machine.step_clock(0.0)
    return f"machine {machine.name} by {step:+.0f} s"


# -- networks --------------------------------------------------------------------------------------------------------


async def _cut_clients(scene: Scene) -> str:
    count = 0
    for _ in range(3):
        count += sum(proxy.cut_soon(0.4, scene.dice) for proxy in scene.cluster.client_proxies)
        await asyncio.sleep(scene.dice.uniform(0, 2))
    return f"{count} connections"


async def _redis_slow(scene: Scene) -> str:
    proxy = scene.cluster.redis_proxy
    proxy.delay = scene.dice.uniform(0.05, 0.5)
    seconds = scene.seconds(5, 15)
    try:
        for _ in range(5):
            await asyncio.sleep(seconds / 5)
            proxy.cut_soon(0.3, scene.dice)
        return f"up to {proxy.delay:.2f} s each way for {seconds:.0f} s"
    finally:
        proxy.delay = 0.0


async def _redis_cut(scene: Scene) -> str:
    for _ in range(5):
        scene.cluster.redis_proxy.cut()
        await asyncio.sleep(scene.dice.uniform(0, 1))
    return "5 times"


async def _redis_refuses(scene: Scene) -> str:
    return await _refuse(scene, scene.cluster.redis_proxy)


async def _postgres_refuses(scene: Scene) -> str:
    return await _refuse(scene, scene.cluster.postgres_proxy)


async def _refuse(scene: Scene, proxy: Any) -> str:
    seconds = scene.seconds(3, 15)
    proxy.refusing = True
    try:
        proxy.cut()
        await asyncio.sleep(seconds)
    finally:
        proxy.refusing = False
    return f"for {seconds:.0f} s"


async def _postgres_slow(scene: Scene) -> str:
    proxy = scene.cluster.postgres_proxy
    proxy.delay, seconds = scene.dice.uniform(0.2, 3), scene.seconds(5, 20)
    try:
        await asyncio.sleep(seconds)
        return f"up to {proxy.delay:.1f} s each way for {seconds:.0f} s"
    finally:
        proxy.delay = 0.0


# -- what Redis and PostgreSQL refuse ----------------------------------------------------------------------------------


async def _redis_full(scene: Scene) -> str:
    factor, seconds = scene.dice.choice((0.8, 1.0, 1.1)), scene.seconds(4, 12)

    def limit(value: int | None) -> None:
        with scene.cluster.look_into_redis() as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", str(value or int(used * factor)))

    await scene.cluster.in_thread(limit, None)
    try:
        await asyncio.sleep(seconds)
    finally:
        await scene.cluster.in_thread(limit, REDIS_MEMORY)
    return f"maxmemory is {factor:g} of what is used, for {seconds:.0f} s"


async def _redis_emptied(scene: Scene) -> str:
    def empty() -> list[str]:
        with scene.cluster.look_into_redis() as client, client.pipeline(transaction=True) as commands:
            commands.zrange("asr_open", 0, -1)
            commands.flushall()
            return list(commands.execute()[0])

    open_ = await scene.cluster.in_thread(empty)
    scene.book.emptied |= set(open_)
    return f"{len(open_)} sessions were open"


async def _redis_restarts(scene: Scene) -> str:
    (victim, *_) = scene.cluster.processes("redis")
    victim.terminate()
    await _bring_back(scene, "redis")
    return ""


async def _postgres_read_only(scene: Scene) -> str:
    seconds = scene.seconds(4, 15)

    def turn(value: str) -> None:
        scene.cluster.as_superuser(
            f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()"
        )

    await scene.cluster.in_thread(turn, "on")
    try:
        await asyncio.sleep(seconds)
    finally:
        await scene.cluster.in_thread(turn, "off")
    return f"for {seconds:.0f} s"


def _disk_full(disk: str) -> Callable[[Scene], Coroutine[Any, Any, str]]:
    async def inject(scene: Scene) -> str:
        cluster, seconds = scene.cluster, scene.seconds(3, 10)
        place = {"redis": cluster.redis_disk, "postgres": cluster.postgres_disk, "audio": cluster.audio_disk}[disk]
        with _ballast(place):
            await asyncio.sleep(seconds)
        if disk == "audio":
            return f"for {seconds:.0f} s"
        server = cluster.redis if disk == "redis" else cluster.postgres
        await asyncio.sleep(1)
        if ended := server.poll() is not None:
            await cluster.restart(server)
        return f"for {seconds:.0f} s" + (", it ended" if ended else "")

    return inject


@contextmanager
def _ballast(place: Path) -> Iterator[None]:
    """Leave no byte on a disk."""
    file = place / "ballast"
    try:
        with file.open("wb") as output:
            for block in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(output.fileno(), os.fstat(output.fileno()).st_size, block)
        yield
    finally:
        file.unlink()


#: All faults. Those of processes come first.
FAULTS = [
    *(Fault(f"kill {kind}", kind, _kill(kind)) for kind in ("gateway", "worker", "supervisor", "redis", "postgres")),
    Fault("kill everything", "all", _kill_all),
    *(Fault(f"stop {kind}", kind, _suspend(kind)) for kind in ("gateway", "worker", "supervisor", "redis", "postgres")),
    Fault("terminate a child", "worker", _terminate_child),
    Fault("terminate a machine", "supervisor", _terminate),
    Fault("SIGHUP", "supervisor", _hang_up),
    Fault("no descriptors", "gateway", _no_descriptors),
    Fault("a decoder hangs", "audio", _marked(program.HANGS)),
    Fault("a decoder hangs and holds the GIL", "audio", _marked(program.HOLDS)),
    Fault("a deadly chunk", "audio", _marked(program.KILLS, kills=True)),
    Fault("a clock is stepped", "clock", _step_clock),
    Fault("connections are cut", "clients", _cut_clients),
    Fault("Redis is slow", "redis", _redis_slow),
    Fault("Redis is cut off", "redis", _redis_cut),
    Fault("Redis refuses", "redis", _redis_refuses),
    Fault("Redis is full", "redis", _redis_full),
    Fault("Redis is emptied", "redis", _redis_emptied),
    Fault("Redis restarts", "redis", _redis_restarts),
    Fault("Redis's disk is full", "redis", _disk_full("redis"), needs_disks=True),
    Fault("PostgreSQL refuses", "postgres", _postgres_refuses),
    Fault("PostgreSQL is read-only", "postgres", _postgres_read_only),
    Fault("PostgreSQL is slow", "postgres", _postgres_slow),
    Fault("PostgreSQL's disk is full", "postgres", _disk_full("postgres"), needs_disks=True),
    Fault("the disk of recordings is full", "audio disk", _disk_full("audio"), needs_disks=True),
]

BY_NAME = {fault.name: fault for fault in FAULTS}
