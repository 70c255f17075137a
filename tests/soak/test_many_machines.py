"""Hosts in network namespaces: gateways, workers, a Redis with a replica, and PostgreSQL. One of them is lost.

Each host has its own network, joined by a bridge, as docs/run/several-machines.md describes it: Redis and PostgreSQL
ask for passwords, over TLS, gateways for a key, and clients know both gateways. As root only.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import real_voices
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
PASSWORD = "of-all-servers"

#: The network of the hosts; nothing else is in it. Another run of the tests has another one.
NUMBER = os.getpid() % 250
NETWORK = f"10.213.{NUMBER}"
BRIDGE = f"asrbridge{NUMBER}"

#: The address of Redis, which moves with it: first the host redis1 has it.
REDIS = f"{NETWORK}.9"

#: The hosts, which are numbered from 2.
HOSTS = ("redis1", "redis2", "postgres", "g1", "g2", "w1", "w2")

#: The hosts with a sentinel, and what these call the primary, in the test that has some.
SENTINELS = ("redis1", "redis2", "postgres")
PRIMARY = "asr"

#: Debian's Redis, which knows TLS: that of the wheel does not.
PACKAGES = ("redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1", "libatomic1", "lua-cjson", "lua-bitop")

#: Seconds for which a host is cut off: longer than a lease, than heartbeats and than a client's pings.
CUT_SECONDS = 25.0

#: Numbers of links: the kernel removes one some time after its namespace, and its name stays taken until then.
LINKS = itertools.count(os.getpid() * 1000 % 10**9)

#: Announces an address by gratuitous ARP (RFC 5227), as keepalived does: else hosts use its old place for up to 45 s.
ANNOUNCE = """
import socket, struct, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0x0806))
    mac, address = raw.getsockname()[4], socket.inet_aton(sys.argv[1])
    head = struct.pack("!6s6sHHHBBH", bytes([255] * 6), mac, 0x0806, 1, 0x0800, 6, 4, 1)
    raw.send(head + mac + address + bytes(6) + address)
"""

#: The user who runs PostgreSQL, which refuses root.
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

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
        ip("-n", self.name, "route", "add", "blackhole", f"{REDIS}/32")

    def unmute(self) -> None:
        ip("-n", self.name, "route", "del", "blackhole", f"{REDIS}/32")

    def take_address(self, other: Host | None = None) -> None:
        """Take the address of Redis, from another host, and tell everybody."""
        if other is not None:
            ip("-n", other.name, "address", "del", f"{REDIS}/24", "dev", "eth0")
        ip("-n", self.name, "address", "add", f"{REDIS}/24", "dev", "eth0")
        ip("netns", "exec", self.name, sys.executable, "-c", ANNOUNCE, REDIS)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # on SIGTERM, PostgreSQL waits for clients that are gone
        try:
            for process in self.processes:
                process.wait(60)
        finally:
            for pid in subprocess.run(["ip", "netns", "pids", self.name], capture_output=True).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", self.name)


class Region:
    """All hosts, serving.

    Args:
        folder: For files.
        sentinels: Whether sentinels say where Redis is; otherwise an address that moves does.

    Attributes:
        hosts: By name; see HOSTS.
        database_url: PostgreSQL, for the test.
    """

    def __init__(self, folder: Path, sentinels: bool) -> None:
        self._folder, self._sentinels = folder, sentinels
        self._certificate = folder / "certificate.pem"
        self._key = folder / "key.pem"
        self._numbers = {name: number for number, name in enumerate(HOSTS, 2)}
        self.hosts: dict[str, Host] = {}
        trusted = f"ssl_ca_certs={self._certificate}"
        self._redis_url = f"rediss://:{PASSWORD}@{{}}:6379/0?{trusted}"
        place = f"postgres:{PASSWORD}@{NETWORK}.{self._numbers['postgres']}/asrserver"
        self.database_url = f"postgresql://{place}?sslmode=verify-full&sslrootcert={self._certificate}"

    def open(self) -> None:
        self._make_certificate()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for name, number in self._numbers.items():
            self.hosts[name] = Host(f"asr{NUMBER}-{name}", number, self._folder)
        self._start_redis()
        self._start_postgres()
        url = self._start_sentinels() if self._sentinels else self._redis_url.format(REDIS)
        for name in ("g1", "g2"):
            keys = {"ASRSERVER_API_KEYS": f"test:{KEY}", "DATABASE_URL": self.database_url}
            self.hosts[name].run("gateway", "--host", "0.0.0.0", "--port", "8080", REDIS_URL=url, **keys)
        for name in ("w1", "w2"):
            self.hosts[name].run("worker", "--workers", "1", "--lease", "5", REDIS_URL=url)
        for name in ("g1", "g2", "w1", "w2"):
            ready = "listening on" if name.startswith("g") else "workers ready"
            output = self.hosts[name].output
            wait_until(lambda output=output, ready=ready: ready in output(), 90, f"{name} is ready")

    def _make_certificate(self) -> None:
        names = ",".join(f"IP:{NETWORK}.{number}" for number in (9, *self._numbers.values()))
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=asr"]
        files = ["-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run([*command, *files, "-addext", f"subjectAltName={names}"], check=True, capture_output=True)
        os.chown(self._key, 65534, 65534)  # PostgreSQL wants it to be its own; root may read it anyway

    def _start_redis(self) -> None:
        program, libraries = tls_redis(self._folder)
        files = {"cert": self._certificate, "key": self._key, "ca-cert": self._certificate}
        tls = [word for name, file in files.items() for word in (f"--tls-{name}-file", str(file))]
        tls += ["--port", "0", "--tls-port", "6379", "--tls-auth-clients", "no", "--tls-replication", "yes"]
        policy = ["--maxmemory", "200mb", "--maxmemory-policy", "noeviction", "--appendonly", "yes", "--save", ""]
        access = ["--bind", "0.0.0.0", "--requirepass", PASSWORD, "--masterauth", PASSWORD]
        self.hosts["redis1"].take_address()
        for name in ("redis1", "redis2"):
            (folder := self._folder / name).mkdir()
            following = ["--replicaof", f"{self.hosts['redis1'].address} 6379"] if name == "redis2" else []
            arguments = [*tls, *policy, *access, *following, "--dir", str(folder)]
            self.hosts[name].start(program, *arguments, LD_LIBRARY_PATH=libraries)
        with self.redis("redis2") as replica:
            wait_until(lambda: answers(replica) and replica.info("replication")["master_link_status"] == "up", 30)

    def _start_sentinels(self) -> str:
        """Start them, with a password and TLS as well; return what REDIS_URL is then."""
        program, libraries = tls_redis(self._folder)
        lines = (
            "port 0",
            "tls-port 26379",
            f"tls-cert-file {self._certificate}",
            f"tls-key-file {self._key}",
            f"tls-ca-cert-file {self._certificate}",
            "tls-auth-clients no",
            "tls-replication yes",
            f"requirepass {PASSWORD}",
            f"sentinel sentinel-pass {PASSWORD}",
            f"sentinel monitor {PRIMARY} {self.hosts['redis1'].address} 6379 2",
            f"sentinel auth-pass {PRIMARY} {PASSWORD}",
            f"sentinel down-after-milliseconds {PRIMARY} 3000",
        )
        for name in SENTINELS:
            (folder := self._folder / f"{name}-sentinel").mkdir()
            (folder / "sentinel.conf").write_text("\n".join(lines))
            self.hosts[name].start(program, folder / "sentinel.conf", "--sentinel", LD_LIBRARY_PATH=libraries)
        for name in SENTINELS:
            with redis.Redis.from_url(
                self._redis_url.format(self.hosts[name].address).replace(":6379", ":26379")
            ) as one:
                wait_until(lambda one=one: knows_all(one), 60, f"the sentinel on {name} knows all")
        places = ",".join(f"{self.hosts[name].address}:26379" for name in SENTINELS)
        login = f"ssl_ca_certs={self._certificate}&sentinel_password={PASSWORD}"
        return f"rediss+sentinel://:{PASSWORD}@{places}/{PRIMARY}?{login}"

    def redis(self, name: str) -> redis.Redis:
        """A client of the Redis on a host."""
        return redis.Redis.from_url(self._redis_url.format(self.hosts[name].address))

    def _start_postgres(self) -> None:
        programs, data, secret = tls_postgres(), self._folder / "cluster", self._folder / "password"
        data.mkdir()
        secret.write_text(PASSWORD)
        os.chown(data, 65534, 65534)
        init = [*NOBODY, programs / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256", "--pwfile", secret]
        subprocess.run([*map(str, init), "--no-instructions", "-E", "UTF8"], check=True, capture_output=True)
        (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
        settings = {"ssl": "on", "ssl_cert_file": self._certificate, "ssl_key_file": self._key}
        settings |= {"listen_addresses": "*", "unix_socket_directories": ""}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.hosts["postgres"].start(*NOBODY, programs / "postgres", "-D", data, *options)
        wait_until(self._postgres_answers, 30, "PostgreSQL answers")

    def _postgres_answers(self) -> bool:
        try:
            psycopg2.connect(self.database_url.replace("/asrserver?", "/postgres?"), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def move_redis(self) -> None:
        """The replica becomes the primary, as announced: no write is lost. Then the address follows."""
        with self.redis("redis1") as primary, self.redis("redis2") as replica:
            primary.execute_command("FAILOVER", "TO", self.hosts["redis2"].address, 6379, "TIMEOUT", 10_000)
            wait_until(lambda: replica.info("replication")["role"] == "master", 20, "the replica is the primary")
        self.hosts["redis2"].take_address(self.hosts["redis1"])

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(ip, "link", "delete", BRIDGE)
            for host in self.hosts.values():
                stack.callback(host.close)


def knows_all(sentinel: redis.Redis) -> bool:
    """Whether a sentinel knows the replica, and the other sentinels."""
    if not answers(sentinel):
        return False
    state: Any = sentinel.sentinel_master(PRIMARY)
    return (state["num-slaves"], state["num-other-sentinels"]) == (1, len(SENTINELS) - 1)


def tls_redis(folder: Path) -> tuple[Path, str]:
    """A Redis with TLS, and where its libraries are: the system's, or that of Debian's packages, not installed."""
    if found := shutil.which("redis-server"):
        return Path(found), ""
    place = real_voices.DIRECTORY.with_name("redis")
    try:
        real_voices.fetch(PACKAGES, place)
    except real_voices.Unavailable as exc:
        pytest.skip(f"no Redis with TLS: {exc}")
    program = folder / "redis-server"  # the name makes it one
    if not program.exists():
        program.symlink_to(place / "redis-tools" / "usr" / "bin" / "redis-check-rdb")
    return program, ":".join(map(str, place.glob("*/usr/lib/*-linux-gnu")))


def tls_postgres() -> Path:
    """The programs of a PostgreSQL with TLS: the system's, because the wheel's knows none."""
    found = sorted(locate.SYSTEM_POSTGRES.glob("[1-9][0-9]/bin"))
    if not found:
        pytest.skip("no PostgreSQL with TLS: install postgresql")
    return found[-1]


@pytest.fixture
def region(processes: None, loss: str) -> Iterator[Region]:
    """All hosts, serving."""
    with tempfile.TemporaryDirectory(prefix="asrserver-region-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL runs as another user
        made = Region(Path(folder), sentinels=loss == "kill redis1")
        try:
            made.open()
            yield made
        finally:
            made.close()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


async def lose(region: Region, loss: str) -> None:
    """Lose a host in one of the ways, and for the ways that end, wait and bring it back."""
    what, _, name = loss.partition(" ")
    loop = asyncio.get_running_loop()
    if what == "move":
        await loop.run_in_executor(None, region.move_redis)
        return
    host = region.hosts[name]
    if what == "kill":
        await loop.run_in_executor(None, host.kill)
        return
    act, undo = (host.cut, host.join) if what == "cut" else (host.mute, host.unmute)
    act()
    await asyncio.sleep(CUT_SECONDS)
    undo()


@pytest.mark.timeout(600)
@pytest.mark.gen_test(timeout=290)
@pytest.mark.parametrize(
    "loss",
    ["kill g1", "kill w1", "cut g1", "cut w1", "mute w1", "mute g1", "cut postgres", "move redis", "kill redis1"],
)
async def test_a_host_is_lost(region: Region, utterances: list[Utterance], loss: str) -> None:
    """Every utterance that was acknowledged is recognised and stored, once, and with the right words."""
    hosts = region.hosts
    urls = [f"ws://{hosts[name].address}:8080/ws/asr" for name in ("g1", "g2")]
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
    opened = partial(lambda: sum(hosts[name].output().count(" open") for name in ("g1", "g2")) >= STREAMS)
    await until(opened, 60, "all sessions are open")
    losing = asyncio.ensure_future(lose(region, loss))
    lost.set()
    for sid, events in zip(streams, await asyncio.gather(*streams.values()), strict=True):
        check_once(events, SPOKEN)
        assert [event["text"] for event in events[:-1]] == [utterance.text for utterance in said[sid]]
    await losing
    await until(lambda: all(stored(region.database_url, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(region.database_url, sid, spoken)
