"""Shared fixtures: real servers, the real program, recordings with their transcripts.

io_loop      uvloop for pytest-tornado's fixtures
servers      one Redis and one PostgreSQL for the whole run; each test has its own `redis_url`, `database_url`
start        starts the program as a user does, and stops it; `system` is one with default settings
utterances   recordings that the model understands, so that a wrong text is an error of the system
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import tornado.httputil
import tornado.ioloop
import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from asrserver.config import Settings
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from tests import needs
from tests.api_keys import Keys
from tests.fakes import FakeWorker
from tests.gateways import Gateways, GatewayServer, accepting, repair_often
from tests.program import NONE, System
from tests.recordings import Utterance, recorded, understood
from tests.servers import Databases, Servers
from tests.shards import ShardServers, running

if TYPE_CHECKING:
    from asrserver.inference.recogniser import Recogniser
    from asrserver.inference.whisper import Whisper


# In whatever language the developer's terminal is: the tests read what the program says in English.
os.environ["LANGUAGE"] = "en"


# -- what a test needs -----------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by what it needs, before -m selects."""
    for item in items:
        if isinstance(item, pytest.Function):
            needs.mark(item)


@pytest.fixture(scope="session")
def real_servers() -> None:
    """Requested by fixtures that start a Redis or a PostgreSQL: their tests are marked `service`."""


@pytest.fixture(scope="session")
def processes() -> None:
    """Requested by fixtures that start processes: their tests are marked `system`."""


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test starts a program that its marker does not allow."""
    (kind,) = needs.kinds(request.node)
    with needs.guarded(kind):
        yield


@pytest.fixture
def io_loop() -> Iterator[tornado.ioloop.IOLoop]:
    """pytest-tornado's loop fixture, on uvloop and without make_current(); at the end it cancels what is left on it."""
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


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers(real_servers: None) -> Iterator[Servers]:
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


@pytest.fixture(scope="session")
def all_shards(real_servers: None) -> Iterator[ShardServers]:
    with running(3) as shards:
        yield shards


@pytest.fixture
def shards(all_shards: ShardServers) -> ShardServers:
    """Three Redis servers, empty."""
    all_shards.clear()
    return all_shards


@pytest.fixture(scope="session")
def databases(servers: Servers) -> Databases:
    return Databases(servers)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The URL of a database that is empty, or does not exist yet: the program creates it."""
    with databases.lent() as url:
        yield url


# -- a gateway in this process ---------------------------------------------------------------------------------------


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, max_message=1 << 20)


@pytest.fixture
def gateway(
    io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    """An open gateway, with shorter pauses than in production."""
    repair_often(monkeypatch, 0.3)

    async def opened() -> Gateway:
        made = Gateway(gateway_settings)
        await made.open()
        accepting(made)
        return made

    made = io_loop.run_sync(opened)
    yield made
    io_loop.run_sync(made.close)


@pytest.fixture
def app(io_loop: tornado.ioloop.IOLoop, gateway: Gateway) -> Iterator[AsrApplication]:
    """The application for pytest-tornado's `http_server`, `http_client` and `base_url`."""
    made = AsrApplication(gateway)
    yield made
    io_loop.run_sync(made.close_connections)


@pytest.fixture
def url(gateway: Gateway, base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/ws/asr"


@pytest.fixture
def gateways(
    io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateways]:
    """Two gateways that poll often."""
    repair_often(monkeypatch, 0.2)
    listeners = []

    async def opened() -> GatewayServer:
        gateway = Gateway(replace(gateway_settings))
        await gateway.open()
        accepting(gateway)
        application = AsrApplication(gateway)
        server = HTTPServer(application)
        [listener] = bind_sockets(0, "127.0.0.1")
        server.add_socket(listener)
        listeners.append(server)
        return GatewayServer(gateway, application, f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/asr")

    both = io_loop.run_sync(opened), io_loop.run_sync(opened)
    yield both

    async def closed() -> None:
        for http, server in zip(listeners, both, strict=True):
            http.stop()
            await server.application.close_connections()
            await http.close_all_connections()
            await server.gateway.close()

    io_loop.run_sync(closed)


@pytest.fixture
def worker(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[FakeWorker]:
    """A worker that sends the results that the test tells it to."""

    async def made() -> FakeWorker:
        return FakeWorker(redis_url)

    fake = io_loop.run_sync(made)
    yield fake
    io_loop.run_sync(fake.close)


@pytest.fixture
def acyclic() -> Iterator[None]:
    """Start without garbage cycles, and with the cyclic collector off: the test sees what only it would free."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


# -- the program -------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(processes: None, redis_url: str, database_url: str) -> Iterator[Callable[..., System]]:
    """Return a function that starts the program on the test's servers: start("run", …); it is not ready yet."""
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


@pytest.fixture(scope="module")
def shared(processes: None) -> Iterator[System]:
    """One running system with its own servers, for commands that only use it."""
    directory = Path(tempfile.mkdtemp(prefix="asrserver-cli-"))
    system = System("run", "--port", "0", "--data-dir", str(directory), env=NONE)
    try:
        yield system.wait_ready()
        assert system.stop() == 0
    finally:
        system.close()
        shutil.rmtree(directory, ignore_errors=True)


# -- recordings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def all_utterances() -> list[Utterance]:
    """A hundred recordings in English."""
    return recorded("utterances")


@pytest.fixture(scope="session")
def mandarin() -> list[Utterance]:
    """Twenty recordings in Mandarin."""
    return recorded("mandarin")


@pytest.fixture(scope="session")
def model() -> Whisper:
    """The packaged model, on the CPU."""
    from asrserver.inference.whisper import Whisper

    return Whisper("demo", "cpu", "default", 1, 1)


@pytest.fixture
def recogniser(io_loop: tornado.ioloop.IOLoop, model: Whisper) -> Iterator[Recogniser]:
    """Everything behind a worker's sessions, with the real model."""
    from asrserver.inference.engine import Engine
    from asrserver.inference.partials import PartialScheduler
    from tests.worker_harness import recogniser_of

    made: list[Any] = []

    async def make() -> None:
        partials = PartialScheduler()
        engine = Engine(model, 0, lambda thread, labels: None, partials)
        made.extend((engine, recogniser_of(engine, partials)))

    io_loop.run_sync(make)
    yield made[1]
    made[1].close()
    made[0].stop(10)


@pytest.fixture(scope="session")
def utterances(all_utterances: list[Utterance]) -> list[Utterance]:
    """The recordings that the model understands reliably: see `understood`."""
    return understood(all_utterances)
