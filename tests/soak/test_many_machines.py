"""Hosts in network namespaces: two for connections, two for recognition, one for Redis; one of them is lost.

Each host has its own network, joined by a bridge, as docs/run/several-machines.md describes it: Redis asks for a
password, gateways for a key, and clients know both gateways. PostgreSQL is the tests' own. As root only.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis

from asrserver.client import Client
from asrserver.embedded import locate
from tests.recordings import Utterance
from tests.system.test_outages import check_once, events_of
from tests.waiting import until, wait_until
from tests.ws_client import check_stored, stored

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces with a bridge between them need root"),
]

KEY = "k" * 32
PASSWORD = "of-redis"

#: The network of the hosts; nothing else is in it.
NETWORK = "10.213.77"
BRIDGE = "asrbridge"

#: Seconds for which a host is cut off: longer than a lease, than heartbeats and than a client's pings.
CUT_SECONDS = 25.0

#: Numbers of links: the kernel removes one some time after its namespace, and its name stays taken until then.
LINKS = itertools.count(os.getpid() * 1000 % 10**9)

STREAMS = 6
SPOKEN = 8


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Host:
    """A network namespace with an address on the bridge, and what runs in it."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.address, self.log = name, f"{NETWORK}.{number}", folder / f"{name}.log"
        self.link = f"asr{next(LINKS)}"
        self.processes: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", self.link, "master", BRIDGE, "up")
        ip("-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def start(self, *command: str | Path, **env: str) -> None:
        with self.log.open("ab") as log:
            inside = ["ip", "netns", "exec", self.name, *map(str, command)]
            environment = {**os.environ, "ASRSERVER_MODEL": "demo", **env}
            self.processes.append(subprocess.Popen(inside, stdout=log, stderr=log, env=environment))

    def run(self, *arguments: str, **env: str) -> None:
        self.start(sys.executable, "-m", "asrserver", *arguments, **env)

    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """A power failure: nothing says goodbye, not even the kernel, because the link goes first."""
        self.cut()
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid)
                for one in [family, *family.children(recursive=True)]:
                    one.kill()
            process.wait(20)

    def cut(self) -> None:
        """Nothing gets in or out, and no connection is closed."""
        ip("link", "set", self.link, "down")

    def join(self) -> None:
        ip("link", "set", self.link, "up")

    def mute(self) -> None:
        """What it sends to Redis is lost, what it is sent arrives."""
        ip("-n", self.name, "route", "add", "blackhole", f"{NETWORK}.2/32")

    def unmute(self) -> None:
        ip("-n", self.name, "route", "del", "blackhole", f"{NETWORK}.2/32")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)
        ip("netns", "delete", self.name)


Region = dict[str, Host]


@pytest.fixture
def region(processes: None, database_url: str, tmp_path: Path) -> Iterator[Region]:
    """The hosts g1, g2, w1, w2 and redis, all of them serving."""
    ip("link", "add", BRIDGE, "type", "bridge")
    hosts: Region = {}
    try:
        ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(("redis", "g1", "g2", "w1", "w2"), 2):
            hosts[name] = Host(f"asr-{name}", number, tmp_path)
        server = ("--bind", "0.0.0.0", "--requirepass", PASSWORD, "--maxmemory", "200mb", "--appendonly", "yes")
        policy = ("--maxmemory-policy", "noeviction", "--save", "", "--dir", str(tmp_path))
        hosts["redis"].start(locate.redis(), *server, *policy)
        url = f"redis://:{PASSWORD}@{hosts['redis'].address}:6379/0"
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: answers(client), 30, "Redis answers")
        for name in ("g1", "g2"):
            keys = {"ASRSERVER_API_KEYS": f"test:{KEY}", "DATABASE_URL": database_url}
            hosts[name].run("gateway", "--host", "0.0.0.0", "--port", "8080", REDIS_URL=url, **keys)
        for name in ("w1", "w2"):
            hosts[name].run("worker", "--workers", "1", "--lease", "5", REDIS_URL=url)
        for name in ("g1", "g2", "w1", "w2"):
            ready = "listening on" if name.startswith("g") else "workers ready"
            wait_until(partial(lambda host, text: text in host.output(), hosts[name], ready), 90, f"{name} is ready")
        yield hosts
    finally:
        for host in hosts.values():
            host.close()
        ip("link", "delete", BRIDGE)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


async def lose(region: Region, loss: str) -> None:
    """Lose a host in one of the ways, and for the ways that end, wait and bring it back."""
    what, _, name = loss.partition(" ")
    host = region[name]
    loop = asyncio.get_running_loop()
    if what == "kill":
        await loop.run_in_executor(None, host.kill)
        return
    act, undo = (host.cut, host.join) if what == "cut" else (host.mute, host.unmute)
    act()
    await asyncio.sleep(CUT_SECONDS)
    undo()


@pytest.mark.timeout(300)
@pytest.mark.gen_test(timeout=290)
@pytest.mark.parametrize("loss", ["kill g1", "kill w1", "cut g1", "cut w1", "mute w1", "mute g1"])
async def test_a_host_is_lost(region: Region, database_url: str, utterances: list[Utterance], loss: str) -> None:
    """Every utterance that was acknowledged is recognised and stored, once, and with the right words."""
    urls = [f"ws://{region[name].address}:8080/ws/asr" for name in ("g1", "g2")]
    said = {f"s{number}": (utterances * 3)[number : number + SPOKEN] for number in range(STREAMS)}
    lost = asyncio.Event()

    async def stream(sid: str) -> list[dict[str, object]]:
        async with await Client.connect(urls, key=KEY, reconnect_timeout=120) as client:
            session = await client.start(sid)
            for number, utterance in enumerate(said[sid]):
                await session.send(utterance.wav)
                if number == SPOKEN // 2:
                    await lost.wait()
                await asyncio.sleep(0.5)
            await session.end()
            return await events_of(session)

    streams = {sid: asyncio.ensure_future(stream(sid)) for sid in said}
    opened = partial(lambda: sum(region[name].output().count(" open") for name in ("g1", "g2")) >= STREAMS)
    await until(opened, 60, "all sessions are open")
    losing = asyncio.ensure_future(lose(region, loss))
    lost.set()
    for sid, events in zip(streams, await asyncio.gather(*streams.values()), strict=True):
        check_once(events, SPOKEN)
        assert [event["text"] for event in events[:-1]] == [utterance.text for utterance in said[sid]]
    await losing
    await until(lambda: all(stored(database_url, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(database_url, sid, spoken)
