"""One run: the system, its clients, the faults, the account."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import account as accounts
from tests.faults.account import Account
from tests.faults.book import Book
from tests.faults.catalogue import FAULTS, Fault, Scene
from tests.faults.clients import Plain, Plan, Resuming
from tests.faults.cluster import DISK_BYTES, DISK_BYTES_PER_SECOND, Cluster
from tests.faults.growth import Scales, Tenth, check_flat
from tests.faults.schedule import BETWEEN, Planned, scheduled
from tests.recordings import Utterance

#: Seconds that clients get for their last sessions when the faults are over.
FINISH_SECONDS = 300.0


@dataclass
class Options:
    """How a run is made.

    Attributes:
        seed: Of the faults, and of what the clients say.
        seconds: Time in which clients begin sessions.
        clients: Their number: half of them send chunks, a quarter live streams, a quarter cannot resume.
        pause: Seconds between two chunks of a session, at most.
        gateways: Gateways of each of the two machines.
        workers: Workers of each of the two machines.
        longest: Seconds that a fault lasts at most.
        resume_timeout: Seconds that a session waits for its client.
        hurry: End sessions of dead gateways at once when the last client has left, not after half a minute.
        between: Seconds between two faults, on average.
        faults: Which there are.
        keep: Keep all files.
    """

    seed: int
    seconds: float = 120.0
    clients: int = 40
    pause: float = 3.0
    gateways: int = 1
    workers: int = 1
    longest: float = 60.0
    resume_timeout: float = 30.0
    hurry: bool = False
    between: float = BETWEEN
    faults: Sequence[Fault] = tuple(FAULTS)
    keep: bool = False


@dataclass
class Happened:
    """A fault that was injected: when, in seconds from the start of the clients, and how long its clients waited."""

    name: str
    began: float
    ended: float
    what: str
    wait: float = 0.0
    waiting: int = 0


@dataclass
class Run:
    """What a run gave."""

    options: Options
    account: Account
    happened: list[Happened] = field(default_factory=list)
    tenths: list[Tenth] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    place: str = ""
    skipped: list[str] = field(default_factory=list)


async def run(options: Options, utterances: Sequence[Utterance]) -> Run:
    """Make one run."""
    place = tempfile.mkdtemp(prefix=f"asrserver-faults-{options.seed}-")
    os.chmod(place, 0o755)  # PostgreSQL runs as another user where we are root
    counts = ("--gateways", str(options.gateways), "--workers", str(options.workers))
    size = DISK_BYTES + int(options.seconds * DISK_BYTES_PER_SECOND)
    disks = size if any(fault.needs_disks for fault in options.faults) else 0
    cluster = Cluster(Path(place), *counts, "--resume-timeout", str(options.resume_timeout), disks=disks)
    made = Run(options, Account(), place=place)
    began = time.monotonic()
    try:
        await _run(made, cluster, utterances)
    except Exception:  # two hours must not end without a report
        made.account.problem("failed", f"the harness: {traceback.format_exc()}")
    finally:
        await cluster.close()
    made.seconds = time.monotonic() - began
    if not options.keep and made.account.is_clean and not made.tracebacks:
        cluster.remove()
    return made


async def _run(made: Run, cluster: Cluster, utterances: Sequence[Utterance]) -> None:
    options, account = made.options, made.account
    await cluster.open()
    fresh = {
        kind: max(process.num_fds() for process in cluster.processes(kind))
        for kind in ("gateway", "worker", "supervisor")
    }
    book = Book()
    begin = time.monotonic()
    urls = [f"ws://127.0.0.1:{proxy.port}/ws/asr" for proxy in cluster.client_proxies]
    plan = Plan(urls, utterances, book, options.pause, [], begin + options.seconds)
    scales = Scales(cluster)
    weighing = asyncio.create_task(scales.weigh())
    talking = [asyncio.create_task(client.run()) for client in _clients(options, plan)]
    faults = [fault for fault in options.faults if cluster.disks or not fault.needs_disks]
    made.skipped = sorted({fault.name for fault in options.faults} - {fault.name for fault in faults})
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    planned = scheduled(options.seed, options.seconds, faults, options.between)
    await asyncio.gather(*(_inject(one, made, cluster, book, plan, begin, locks) for one in planned))
    _, late = await asyncio.wait(talking, timeout=max(0.0, plan.until - time.monotonic()) + FINISH_SECONDS)
    for task in late:
        task.cancel()
    for outcome in await asyncio.gather(*talking, return_exceptions=True):
        if isinstance(outcome, Exception):
            account.problem("failed", "a client: " + "".join(traceback.format_exception(outcome, limit=-3)))
    weighing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await weighing
    made.tenths = scales.tenths(book, begin, options.seconds)
    check_flat(account, made.tenths, options.seconds)
    # One that was just started again has no handler of signals yet.
    await cluster.until(lambda: all(one.children("worker") for one in cluster.machines), 60, "the machines are up")
    await accounts.settle(cluster, options.hurry)
    await cluster.in_thread(accounts.check_redis, account, cluster)
    rows = await cluster.in_thread(accounts.read_rows, cluster)
    accounts.check_sessions(account, book, rows)
    accounts.check_descriptors(account, cluster, fresh)
    cluster.look()
    for what in await cluster.stop():
        account.problem("left over", what)
    accounts.check_system(account, cluster)
    made.tracebacks = accounts.check_logs(account, cluster)
    made.refusals = dict(book.refusals)
    for one in made.happened:
        one.wait, one.waiting = book.longest_wait(begin + one.began, begin + one.ended)


def _clients(options: Options, plan: Plan) -> list[Resuming | Plain]:
    clients: list[Resuming | Plain] = []
    for number in range(options.clients):
        if number % 4 == 3:
            clients.append(Plain(number, options.seed, plan))
        else:
            clients.append(Resuming(number, options.seed, plan, live=number % 4 == 2))
    return clients


async def _inject(
    one: Planned,
    made: Run,
    cluster: Cluster,
    book: Book,
    plan: Plan,
    begin: float,
    locks: defaultdict[str, asyncio.Lock],
) -> None:
    await asyncio.sleep(begin + one.at - time.monotonic())
    scene = Scene(cluster, book, plan, random.Random(one.seed), made.options.longest)
    async with locks[one.fault.part]:
        happened = Happened(one.fault.name, time.monotonic() - begin, 0.0, "")
        made.happened.append(happened)
        try:
            happened.what = await one.fault.inject(scene)
        except Exception as exc:  # the harness's own: a victim that was gone, for example
            happened.what = f"could not be injected: {type(exc).__name__}: {exc}"
        happened.ended = time.monotonic() - begin
