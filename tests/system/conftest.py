"""One running system for all tests of a module, which must not disturb each other."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator

import imageio_ffmpeg
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from tests.program import System
from tests.servers import Servers, drop_database
from tests.system.support import CONTAINERS, MAX_MESSAGE, Running
from tests.ws_client import look


@pytest.fixture(scope="module")
def running(processes: None, servers: Servers) -> Iterator[Running]:
    """One system for all tests of the module, with default settings but for MAX_MESSAGE."""
    name = f"test_system_{os.getpid()}"
    database = make_dsn(**{**parse_dsn(servers.postgres.dsn), "dbname": name})
    with look(servers.redis.url) as client:
        client.flushall()
    environment = {"REDIS_URL": servers.redis.url, "DATABASE_URL": database}
    system = System("run", "--port", "0", "--max-message", str(MAX_MESSAGE), env=environment)
    try:
        yield Running(system.wait_ready(), servers.redis.url, database)
        assert system.stop() == 0
        assert "Traceback" not in system.output(), system.output().partition("Traceback")[2][:3000]
        assert " died: " not in system.output()
    finally:
        system.close()
        drop_database(servers, name)


_ids = itertools.count()


@pytest.fixture
def sid(request: pytest.FixtureRequest) -> str:
    """A session id for this test."""
    return f"{request.node.name[:60]}-{next(_ids)}".replace("[", "-").replace("]", "")


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, str], bytes]:
    """Return a function that encodes a WAV file with FFmpeg: encode(wav, name of CONTAINERS)."""
    folder = tmp_path_factory.mktemp("containers")
    program = imageio_ffmpeg.get_ffmpeg_exe()

    def encoder(wav: bytes, name: str) -> bytes:
        options, suffix = CONTAINERS[name]
        target = folder / f"{next(_ids)}.{suffix}"
        command = [program, "-v", "error", "-y", "-f", "wav", "-i", "pipe:0", *options, str(target)]
        subprocess.run(command, input=wav, check=True, timeout=60)
        return target.read_bytes()

    return encoder
