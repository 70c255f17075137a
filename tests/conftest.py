"""What the tests share: real servers, the real program, recordings with their transcripts.

io_loop      uvloop for pytest-tornado's fixtures
servers      one Redis and one PostgreSQL for the whole run; `redis_url`, `database_url` are a test's own
start        starts the program as its user would, and stops it; `system` is one with default settings
utterances   recordings that the model understands alone, so that a wrong text is the system's fault
"""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import psycopg2
import pytest
import redis
import tornado.ioloop
import uvloop
from psycopg2.extensions import make_dsn, parse_dsn
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from asrserver.config import Settings
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication

if TYPE_CHECKING:
    from asrserver.inference.recognise import Recogniser
    from asrserver.inference.whisper import Whisper
    from tests.fakes import Pretender

DATA = Path(__file__).parent / "data"


def wait_until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """Poll until the condition is true, and return it; fails with its name after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        time.sleep(0.02)
    return value


async def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """`wait_until` for coroutines."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:.0f} s: {what or condition}")
        await asyncio.sleep(0.02)
    return value


@pytest.fixture
def io_loop() -> Iterator[tornado.ioloop.IOLoop]:
    """pytest-tornado's loop fixture, on uvloop and without make_current()."""
    aio = uvloop.new_event_loop()
    asyncio.set_event_loop(aio)
    loop = tornado.ioloop.IOLoop(asyncio_loop=aio, make_current=False)
    yield loop
    pending = asyncio.all_tasks(aio)
    for task in pending:
        task.cancel()
    if pending:
        aio.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    aio.run_until_complete(aio.shutdown_default_executor())
    loop.close(all_fds=True)
    asyncio.set_event_loop(None)


# -- servers ---------------------------------------------------------------------------------------------------------


@dataclass
class Servers:
    """The run's Redis and PostgreSQL."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    # Not pytest's tmp_path: its parents are closed to the user that PostgreSQL runs as where the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="asrserver-tests-"))
    both = Servers(EmbeddedRedis(directory, appendfsync="no"), EmbeddedPostgres(directory))
    try:
        both.redis.start()
        both.postgres.start()
        yield both
    finally:
        both.postgres.stop(10)
        both.redis.stop(10)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """An empty Redis."""
    client = redis.Redis.from_url(servers.redis.url)
    client.flushall()
    client.close()
    return servers.redis.url


_databases = itertools.count()


def _execute(dsn: str, statement: str) -> None:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def drop_database(servers: Servers, name: str) -> None:
    """With whoever is still in it. As the superuser: an autovacuum at work there is nobody else's to end."""
    dsn = make_dsn(**{**parse_dsn(servers.postgres.dsn), "user": "postgres", "dbname": "postgres"})
    _execute(dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """A database that does not exist yet: the program makes it."""
    name = f"test_{os.getpid()}_{next(_databases)}"
    yield make_dsn(**{**parse_dsn(servers.postgres.dsn), "dbname": name})
    drop_database(servers, name)


# -- a gateway in this process ---------------------------------------------------------------------------------------


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, max_message=1 << 20)


def _hurry(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("gateway.REPAIR_EVERY", "sessions.REPAIR_EVERY", "gateway.SWEEP_EVERY"):
        monkeypatch.setattr(f"asrserver.gateway.{name}", seconds)


@pytest.fixture
def gateway(
    io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    """One that is open, and in less of a hurry to be patient than a real one."""
    _hurry(monkeypatch, 0.3)

    async def opened() -> Gateway:
        made = Gateway(gateway_settings)
        await made.open()
        return made

    made = io_loop.run_sync(opened)
    yield made
    io_loop.run_sync(made.close)


@pytest.fixture
def app(io_loop: tornado.ioloop.IOLoop, gateway: Gateway) -> Iterator[AsrApplication]:
    """For pytest-tornado's `http_server`, `http_client` and `base_url`."""
    made = AsrApplication(gateway)
    yield made
    io_loop.run_sync(made.shut)


@dataclass
class Door:
    """A gateway and where it listens."""

    gateway: Gateway
    application: AsrApplication
    url: str


@pytest.fixture
def doors(
    io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Door, Door]]:
    """Two gateways that look often."""
    _hurry(monkeypatch, 0.2)
    servers = []

    async def opened() -> Door:
        gateway = Gateway(replace(gateway_settings))
        await gateway.open()
        application = AsrApplication(gateway)
        server = HTTPServer(application)
        [listener] = bind_sockets(0, "127.0.0.1")
        server.add_socket(listener)
        servers.append(server)
        return Door(gateway, application, f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/asr")

    both = io_loop.run_sync(opened), io_loop.run_sync(opened)
    yield both

    async def closed() -> None:
        for server, door in zip(servers, both, strict=True):
            server.stop()
            await door.application.shut()
            await server.close_all_connections()
            await door.gateway.close()

    io_loop.run_sync(closed)


@pytest.fixture
def worker(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Pretender]:
    """A worker that says what the test tells it to."""
    from tests.fakes import Pretender

    async def made() -> Pretender:
        return Pretender(redis_url)

    pretender = io_loop.run_sync(made)
    yield pretender
    io_loop.run_sync(pretender.close)


@pytest.fixture
def acyclic() -> Iterator[None]:
    """There is no garbage that only the search for cycles would free, and none is looked for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# -- the program -----------------------------------------------------------------------------------------------------


class System:
    """The program, running. `port` is where it listens."""

    #: How it is started; a test may put another launcher here.
    program = ("-m", "asrserver")

    def __init__(self, command: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", prefix="asrserver-", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *self.program, command, *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
        self.port = 0

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def wait_ready(self, timeout: float = 60.0) -> System:
        def ready() -> re.Match[str] | None:
            if self.process.poll() is not None:
                pytest.fail(f"the program ended with {self.process.returncode}:\n{self.output()}")
            return re.search(
                r"^asrserver(?: listening on https?://\S+:(\d+)|: \d+ workers? ready)", self.output(), re.M
            )

        found = wait_until(ready, timeout, "the program is ready")
        self.port = int(found[1] or 0)
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/asr"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1{path}", timeout=10) as response:
            return json.load(response)

    def children(self, kind: str) -> list[psutil.Process]:
        """The living gateway or worker processes, as the log names them."""
        pids = re.findall(rf"{kind} \S+ started: pid (\d+)", self.output())
        return [
            psutil.Process(int(pid))
            for pid in pids
            if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        ]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        """However the test ended: no process, no file."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture
def start(redis_url: str, database_url: str) -> Iterator[Callable[..., System]]:
    """start("run", "--workers", "2"): the program on this test's Redis and PostgreSQL; not yet ready."""
    systems: list[System] = []

    def starter(command: str = "run", *arguments: str, env: dict[str, str] | None = None) -> System:
        options = () if command == "worker" else ("--port", "0")
        defaults = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
        systems.append(System(command, *options, *arguments, env={**defaults, **(env or {})}))
        return systems[-1]

    yield starter
    for system in systems:
        system.close()


@pytest.fixture
def system(start: Callable[..., System]) -> System:
    return start("run").wait_ready()


# -- recordings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Utterance:
    """A recording: 16 kHz 16-bit mono PCM, and what is said in it."""

    name: str
    text: str
    pcm: bytes

    @property
    def wav(self) -> bytes:
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(self.pcm)
        return buffer.getvalue()


def recorded(folder: str) -> list[Utterance]:
    """The recordings of a folder of tests/data, with what is said in them."""
    from asrserver.audio import files

    found = []
    for name, text in json.loads((DATA / folder / "transcripts.json").read_text()).items():
        samples = files.decode((DATA / folder / name).read_bytes(), "ogg", 60)
        found.append(Utterance(name, text, (samples * 32767).astype("<i2").tobytes()))
    return found


@pytest.fixture(scope="session")
def all_utterances() -> list[Utterance]:
    """A hundred recordings in English."""
    return recorded("utterances")


@pytest.fixture(scope="session")
def mandarin() -> list[Utterance]:
    """Twenty in Mandarin."""
    return recorded("mandarin")


@pytest.fixture(scope="session")
def model() -> Whisper:
    """The one in the package, on the CPU."""
    from asrserver.inference.whisper import Whisper

    return Whisper("demo", "cpu", "default", 1, 1)


@pytest.fixture
def recogniser(io_loop: tornado.ioloop.IOLoop, model: Whisper) -> Iterator[Recogniser]:
    """Everything behind a worker's sessions, with the real model."""
    from asrserver.inference.engine import Engine
    from tests.worker_harness import recogniser_of

    made: list[Any] = []

    async def make() -> None:
        engine = Engine(model, 0, lambda place, labels: None)
        made.extend((engine, recogniser_of(engine)))

    io_loop.run_sync(make)
    yield made[1]
    made[1].close()
    made[0].stop(10)


@pytest.fixture(scope="session")
def utterances(all_utterances: list[Utterance]) -> list[Utterance]:
    """Those that the model understands, and not by luck.

    Whole and by its segments, a few milliseconds later, with quiet around it and with the noise of a lossy coder, its
    language told or not: a test that changes no more than that may expect the right text.
    """
    from asrserver.inference import vad
    from asrserver.inference.features import log_mel
    from asrserver.inference.whisper import Request, Whisper, window_for

    model = Whisper("demo", "cpu", "default", 1, 1)
    random = np.random.default_rng(1)

    def text(samples: np.ndarray, request: Request, whole: bool = False) -> str:
        spans = [(0, len(samples))] if whole else vad.segments(samples, 0.4)
        rows = [(samples[a:b], (b - a) / 16000) for a, b in spans]
        return " ".join(
            model.recognise([(log_mel(part, window_for(seconds, "fit"), model.n_mels), request, seconds)])[0].text
            for part, seconds in rows
        )

    def heard(utterance: Utterance) -> Iterator[str]:
        samples = np.frombuffer(utterance.pcm, "<i2").astype(np.float32) / 32768
        yield text(samples, Request("en"), whole=True)
        for around in (0, 1728, 16000):
            yield text(np.pad(samples, around), Request())
        for level in (0.01, 0.02):
            noise = random.normal(0, level, len(samples)).astype(np.float32)
            yield text(np.pad(samples + noise * np.abs(samples), 1000), Request())

    found = [one for one in all_utterances if all(one.text == text for text in heard(one))]
    assert len(found) > 50
    return found
