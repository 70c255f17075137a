"""handlers/audio.py: ranges of a recording, and clients that do not read it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from tornado.httpserver import HTTPServer

from asrserver.gateway import archive_files
from asrserver.gateway.archive_files import Opened
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import audio
from asrserver.handlers.audio import requested_range
from tests.waiting import until

#: Of more bytes than the kernel's buffers hold.
SIZE = 64 * 2**20


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=9-999999999999999999", (9, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-100", (0, 100)),
        ("bytes=-101", (0, 100)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=a-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=\u0661-", None),
        ("items=0-1", None),
    ],
)
def test_the_range_of_a_header(header: str, expected: tuple[int, int] | None) -> None:
    assert requested_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=200-300", "bytes=-0"])
def test_a_range_without_any_byte(header: str) -> None:
    found = requested_range(header, 100)
    assert found is not None
    assert found[0] >= found[1]


@pytest.fixture
def opened(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BinaryIO]]:
    """Session s has a large recording; returns the files that were opened for it."""
    path, found = tmp_path / "s.wav", list[BinaryIO]()
    with path.open("wb") as file:
        file.truncate(SIZE)

    async def noted(sid: str, owner: str | None = None) -> bool:
        return True

    async def open_it(sid: str) -> Opened:
        recording = archive_files.open_recording(path, None)
        found.append(recording.file)
        return recording

    monkeypatch.setattr(gateway.storage, "has_audio", noted)
    monkeypatch.setattr(gateway.recordings, "open", open_it)
    yield found
    assert len(found) == 1
    assert found[0].closed


async def begun(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Start a download and read little of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
    writer.write(b"GET /api/v1/session/s/audio HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return reader, writer


@pytest.mark.gen_test(timeout=60)
async def test_a_client_that_leaves_is_no_error(
    http_server: HTTPServer, http_port: int, opened: list[BinaryIO], caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await begun(http_port)
    writer.transport.abort()
    await until(lambda: opened[0].closed)
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.gen_test(timeout=60)
async def test_a_client_that_does_not_read_is_cut(
    http_server: HTTPServer,
    http_port: int,
    opened: list[BinaryIO],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 0.3)
    _, writer = await begun(http_port)
    await until(lambda: opened[0].closed)
    told = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert told == ["session=s its recording was not read for 0.3 s: cut"]
    writer.transport.abort()
