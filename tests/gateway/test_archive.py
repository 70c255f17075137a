"""Recordings: one file per session with every chunk once, whatever happens to gateways and disks."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import psycopg2
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from asrserver.cli.startup import check_settings
from asrserver.config import Settings
from asrserver.errors import SettingError
from asrserver.gateway import archive as recordings
from asrserver.gateway import archive_files, archive_parts
from asrserver.gateway.gateway import Gateway
from asrserver.protocol.options import Resume
from tests.audio.signals import decoded_by_ffmpeg, encode
from tests.audio.streams import packets_of, speech
from tests.fakes import FakeWorker
from tests.gateway.recording import end, files, path_of, session, tone, wav, whole
from tests.gateways import offer
from tests.waiting import until

HEADER = {"sid": "s", "mode": "auto", "format": "auto", "rate": 16000, "channels": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path


def part(directory: Path, gateway: str, chunks: dict[int, bytes], tail: bytes = b"", **header: Any) -> None:
    """The file of session s that a gateway left."""
    import json

    records = b"".join(archive_parts.RECORD.pack(index, len(data)) + data for index, data in chunks.items())
    line = json.dumps({**HEADER, **header}).encode() + b"\n"
    archive_files.part_path(directory, header.get("sid", "s"), gateway).write_bytes(line + records + tail)


def made(directory: Path, kind: str = "wav", sid: str = "s") -> tuple[str, bytes]:
    """The suffix and the content of the recording."""
    found = archive_files.assemble(directory, sid, kind)
    assert found is not None
    path = directory / found.path
    assert (path, path.stat().st_size) == (archive_files.find(directory, sid), found.size)
    assert not list(directory.rglob("*.tmp"))
    return path.suffix[1:], path.read_bytes()


def pcm_of(data: bytes) -> tuple[int, int, bytes]:
    """(channels, hertz, samples) of a WAV file."""
    with wave.open(io.BytesIO(data)) as file:
        return file.getnchannels(), file.getframerate(), file.readframes(file.getnframes())


# -- what the file is


def test_pcm_is_one_wav_whatever_came_when_and_how_often(directory: Path) -> None:
    """Two gateways, chunks that both have, chunks out of order, and a last record cut by a crash."""
    pieces = [tone(0.1 + n / 100) for n in range(6)]
    part(directory, "one", dict(enumerate(pieces[:4])), tail=archive_parts.RECORD.pack(4, 10_000) + b"torn")
    part(directory, "two", {3: pieces[3], 4: pieces[4], 5: pieces[5]})
    for _ in range(2):
        suffix, data = made(directory)
        assert (suffix, pcm_of(data)) == ("wav", (1, 16000, b"".join(pieces)))
    assert archive_files.assemble(directory, "s", "wav", 7) is None
    assert archive_files.assemble(directory, "s", "wav", 6) is not None


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_is_the_same_samples(directory: Path, channels: int) -> None:
    pcm = tone(3.21, channels, 24000)
    cut = {n: pcm[n * 9999 : (n + 1) * 9999] for n in range(len(pcm) // 9999 + 1)}  # samples cut in two
    part(directory, "one", cut, rate=24000, channels=channels)
    suffix, data = made(directory, "flac")
    with av.open(io.BytesIO(data)) as file:
        assert (file.streams.audio[0].rate, file.streams.audio[0].channels) == (24000, channels)
        frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
    assert (suffix, np.concatenate(frames, axis=1).astype("<i2").tobytes()) == ("flac", pcm)
    assert len(data) < len(pcm)


def test_floating_point_stays_so_in_wav_and_becomes_16_bits_in_flac(directory: Path) -> None:
    samples = np.array([0.0, 0.5, -1.0, 2.0, np.nan], "<f4")
    part(directory, "one", {0: samples.tobytes()}, format="pcm_f32le")
    suffix, data = made(directory)
    assert (suffix, data[20:22], data[-20:]) == ("wav", b"\3\0", samples.tobytes())
    assert made(directory, "flac")[0] == "flac"
    assert [path.suffix for path in directory.glob("??/*")] == [".flac"]  # the other is not left behind


MAGIC = {"webm": b"\x1aE\xdf\xa3", "ogg": b"OggS\0\2", "flac": b"fLaC", "mp4": b"\0\0\0\x20ftyp", "mp3": b"ID3"}


@pytest.mark.parametrize("suffix", MAGIC)
def test_a_container_stays_as_it_came(directory: Path, suffix: str) -> None:
    pieces = [MAGIC[suffix] + os.urandom(3000), *(b"\x01" + os.urandom(2000) for _ in range(5))]
    part(directory, "one", dict(enumerate(pieces, 7)))
    assert made(directory, "flac") == (suffix, b"".join(pieces))


def test_in_stream_mode_all_is_one_file(directory: Path) -> None:
    pieces = {0: MAGIC["ogg"] + b"x" * 100, 1: b"y", 2: MAGIC["ogg"] + b"z"}
    part(directory, "one", pieces, mode="stream")
    assert made(directory) == ("ogg", b"".join(pieces.values()))


def test_telephony_stays_as_it_came(directory: Path) -> None:
    part(directory, "one", {0: bytes(range(256))}, mode="stream", format="pcm_mulaw", rate=8000)
    suffix, data = made(directory)
    assert (suffix, data[20:22], data[-256:]) == ("wav", b"\7\0", bytes(range(256)))


def test_packets_of_opus_become_a_file(directory: Path) -> None:
    """FFmpeg checks the checksums, and finds every packet as it was; what is none is left out."""
    packets = packets_of(encode(speech(), "-c:a libopus -b:a 256k -f ogg"))
    part(directory, "one", dict(enumerate([*packets, b"\3"])), mode="stream", format="opus")
    suffix, data = made(directory)
    assert (suffix, packets_of(data)) == ("ogg", packets)
    assert len(decoded_by_ffmpeg(data, "ogg")) == len(packets) * 320
    part(directory, "one", {0: data}, mode="stream", format="opus")
    assert made(directory) == ("ogg", data)


@pytest.mark.parametrize("mode", ["auto", "chunk"])
def test_wav_files_of_one_format_are_joined(directory: Path, mode: str) -> None:
    """As clients with voice activity detection send them, with other RIFF chunks, and with wrong lengths."""
    pcm = [tone(1), tone(1.5), tone(2)]
    files = [wav(part) for part in pcm]
    files[1] = files[1][:12] + b"LIST\x03\0\0\0abc\0" + files[1][12:]
    at = files[2].index(b"data")
    files[2] = files[2][: at + 4] + struct.pack("<I", 0xFFFFFFFF) + files[2][at + 8 :]  # written to a pipe
    part(directory, "one", dict(enumerate(files)), mode=mode)
    suffix, data = made(directory)
    assert (suffix, pcm_of(data)) == ("wav", (1, 16000, b"".join(pcm)))


def test_what_cannot_be_joined_is_a_zip_of_all(directory: Path) -> None:
    files = {0: wav(tone(1)), 1: wav(tone(1), 2), 2: MAGIC["webm"] + b"a", 3: b"bc", 4: MAGIC["mp3"]}
    part(directory, "one", files)
    suffix, data = made(directory)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert suffix == "zip"
    assert found == {
        "00000.wav": files[0], "00001.wav": files[1], "00002.webm": files[2] + files[3], "00003.mp3": files[4],
    }  # fmt: skip


@pytest.mark.parametrize(
    "data", [b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff", wav(b"")[:30], b"", b"\0" * 3]
)
def test_damaged_audio_is_kept_as_it_is(directory: Path, data: bytes) -> None:
    part(directory, "one", {0: data, 1: data})
    assert made(directory)[0] in ("wav", "zip")


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "ü" * 128,
    "\U0001f600" * 128,
    "x" * 128,
    "\udc80",
]


@pytest.mark.parametrize("sid", [*NAMES, "CON", "-rf", "*", "[a]", "a.part", ".lock", "%2e%2e%2f", "s"])
def test_no_session_leads_out_of_the_directory(directory: Path, sid: str) -> None:
    """No two sessions have the same name."""
    name = archive_files.name_of(sid)
    assert len(name) < 100
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    path = archive_files.part_path(directory, sid, "../g")
    assert path.resolve().parent == directory / "incoming"
    assert len({archive_files.name_of(other) for other in NAMES}) == len(NAMES)
    part(directory, "../g", {0: tone(1)}, sid=sid)
    made(directory, sid=sid)
    written = [path for path in directory.rglob("*") if path.is_file()]
    assert len(written) > len([directory / ".lock"])
    assert all(path.resolve().is_relative_to(directory) for path in written)
    archive_files.remove(directory, sid)
    assert files(directory) == [".lock"]


def test_a_directory_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"--save-audio .*/file/x: Not a directory"):
        check_settings(Settings(save_audio=str(tmp_path / "file" / "x")), "run")
    check_settings(Settings(save_audio=str(tmp_path / "a" / "b")), "run")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


# -- a gateway that records

gen_test = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, save_audio=str(tmp_path))


@gen_test
async def test_a_session_is_recorded_and_can_be_fetched(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path, http_client: AsyncHTTPClient, base_url: str
) -> None:
    pieces = [tone(0.1 + n / 1000) for n in range(10)]
    await whole(gateway, worker, "a/../b", pieces)
    path = await path_of(gateway, "a/../b")
    assert path is not None
    data = (tmp_path / path).read_bytes()
    assert pcm_of(data)[2] == b"".join(pieces)
    assert list((tmp_path / "incoming").glob("*.part")) == []

    async def fetch(method: str = "GET", **headers: str) -> HTTPResponse:
        url = f"{base_url}/api/v1/session/a%2F..%2Fb/audio"
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http_client.fetch(url, method=method, headers=given, raise_error=False)

    response = await fetch()
    assert (response.code, response.headers["Content-Type"], response.body) == (200, "audio/wav", data)
    head = await fetch("HEAD")
    assert (head.code, head.headers["Content-Length"], head.body) == (200, str(len(data)), b"")
    size = len(data)
    for asked, begin, stop in (
        ("bytes=0-0", 0, 1), ("bytes=44-", 44, size), ("bytes=-5", size - 5, size), ("bytes=9-999999999", 9, size),
        (f"bytes=-{size + 9}", 0, size),
    ):  # fmt: skip
        response = await fetch(Range=asked)
        assert (response.code, response.body) == (206, data[begin:stop])
        assert response.headers["Content-Range"] == f"bytes {begin}-{stop - 1}/{size}"
    for asked in ("bytes=5-4", "bytes=a-", "lines=0-1", "bytes=-", "bytes=0-1,3-4"):
        response = await fetch(Range=asked)
        assert (response.code, response.body) == (200, data)
    for asked in (f"bytes={size}-", "bytes=-0"):
        response = await fetch(Range=asked)
        assert (response.code, response.headers["Content-Range"]) == (416, f"bytes */{size}")
    etag = response.headers["ETag"]
    assert (await fetch(If_None_Match=etag)).code == 304
    for known, code in ((etag, 206), ('"another"', 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 200)):
        response = await fetch(Range="bytes=44-", If_Range=known)
        assert (response.code, response.body) == (code, data[44 if code == 206 else 0 :])
    stats = await gateway.storage.stats()
    assert stats["done"]["audio_bytes"] == size
    assert await gateway.delete("a/../b")
    assert (await fetch()).code == 404
    assert files(tmp_path) == [".lock"]


@gen_test
async def test_two_gateways_and_chunks_sent_twice_make_one_recording(
    gateway: Gateway, worker: FakeWorker, gateway_settings: Settings, tmp_path: Path
) -> None:
    """The session is resumed on the other gateway, which gets the last chunk again."""
    other = Gateway(gateway_settings)
    await other.open()
    pieces = [tone(0.1 + n / 1000) for n in range(5)]
    opened = await session(gateway, "s", resumable=True)
    for index in (0, 1, 1, 2):
        offer(gateway, opened, pieces[index], index)
    await until(lambda: opened.chunk_count == 3)
    resumed, _ = await other.resume(Resume("s", 0), lambda event: None)
    for index in (2, 3, 4):
        offer(other, resumed, pieces[index], index)
    other.finish(resumed)
    await end(worker, "s", 5)
    await until(lambda: "s" not in other.sessions and not other.sessions.delivery.keeping)
    path = await path_of(other, "s")
    assert path is not None
    assert pcm_of((tmp_path / path).read_bytes())[2] == b"".join(pieces)
    await other.close()


@gen_test
async def test_what_a_dead_gateway_left_is_put_together(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is assembled when its session is over, removed if the session was deleted, and left alone while it is
    written."""
    await whole(gateway, worker, "s", [tone(1)])
    await gateway.storage.forget_audio(["s"])
    pieces = {0: tone(1), 1: tone(2)}
    part(tmp_path, "dead", pieces)
    await gateway.storage.delete("deleted", pending=True)
    part(tmp_path, "dead", pieces, sid="deleted")
    part(tmp_path, "dead", pieces, sid="never stored")
    part(tmp_path, "dead", {}, sid="empty")
    (tmp_path / "incoming" / "x.part").write_bytes(b"\xff{")
    opened = await session(gateway, "open")
    offer(gateway, opened, tone(1), 0)
    await until(lambda: opened.chunk_count == 1 and gateway.recordings._files)
    await gateway._tidy()
    assert await path_of(gateway, "s") is None  # too young
    monkeypatch.setattr(recordings, "ABANDONED_SECONDS", -1)
    await gateway._tidy()
    path = await path_of(gateway, "s")
    assert path is not None
    assert pcm_of((tmp_path / path).read_bytes())[2] == b"".join(pieces.values())
    left = archive_files.abandoned(tmp_path, -1, 100)
    assert left.keys() == {"open", "never stored", "empty"}
    monkeypatch.setattr(recordings, "HOPELESS_SECONDS", -1)
    await gateway._tidy()
    assert archive_files.abandoned(tmp_path, -1, 100).keys() == {"open"}


@gen_test
async def test_recordings_are_kept_so_long_and_so_many(
    gateway: Gateway, worker: FakeWorker, gateway_settings: Settings, tmp_path: Path
) -> None:
    for number in range(3):
        await whole(gateway, worker, f"a{number}", [tone(1)], user_id="a")
    await whole(gateway, worker, "b", [tone(1)], user_id="b")
    await whole(gateway, worker, "old", [tone(1)], user_id="c")
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE asr_sessions SET created_at = now() - interval '3 days' WHERE id = 'old'")
    connection.close()

    async def kept(**settings: Any) -> set[str]:
        gateway.recordings._settings = Settings(save_audio=str(tmp_path), **settings)
        await gateway._tidy()
        sids = [record["session_id"] for record in (await gateway.storage.history(9)).records]
        assert len(sids) == 5  # the sessions themselves stay
        noted = {sid for sid in sids if await path_of(gateway, sid)}
        assert noted == {sid for sid in sids if archive_files.find(tmp_path, sid)}
        return noted

    assert await kept() == {"a0", "a1", "a2", "b", "old"}
    assert await kept(audio_keep_per_user=2) == {"a1", "a2", "b", "old"}
    assert await kept(audio_keep_days=2.5) == {"a1", "a2", "b"}
    assert await kept(audio_keep_days=0.5, audio_keep_per_user=1) == {"a2", "b"}


@gen_test
async def test_a_session_deleted_while_it_is_open_leaves_no_recording(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path
) -> None:
    opened = await session(gateway)
    offer(gateway, opened, tone(1), 0)
    await until(lambda: gateway.recordings._files)
    assert await gateway.delete("s")
    offer(gateway, opened, tone(1), 1)
    gateway.finish(opened)
    await end(worker, "s", 2)
    await until(lambda: not gateway.sessions and not gateway.sessions.delivery.keeping)
    assert files(tmp_path) == [".lock"]
    assert gateway.recordings._lost == set()


@gen_test
async def test_a_full_disk_costs_the_recording_and_nothing_else(
    gateway: Gateway, worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = os.write, threading.Event()

    def limited(file: int, data: bytes) -> int:
        if full.is_set() and threading.current_thread().name == "record":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", limited)
    opened = await session(gateway)
    offer(gateway, opened, tone(1), 0)
    await until(lambda: list((tmp_path / "incoming").glob("*.part")))
    full.set()
    offer(gateway, opened, tone(1), 1)
    gateway.finish(opened)
    await end(worker, "s", 2)
    await until(lambda: not gateway.sessions and not gateway.sessions.delivery.keeping)
    found = await gateway.storage.session("s")
    assert found is not None
    assert (found["status"], found["audio_path"]) == ("done", None)
    full.clear()
    assert files(tmp_path) == [".lock"]
    await whole(gateway, worker, "next", [tone(1)])
    assert await path_of(gateway, "next")


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A disk that does not write until it is told to."""
    goes, write = threading.Event(), os.write

    def slow(file: int, data: bytes) -> int:
        if threading.current_thread().name == "record":
            goes.wait()
        return write(file, data)

    monkeypatch.setattr(os, "write", slow)
    yield goes.set
    goes.set()


@gen_test
async def test_a_slow_disk_costs_recordings_and_no_memory(
    gateway: Gateway, worker: FakeWorker, stuck: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "MAX_WAITING_BYTES", 100_000)
    opened = await session(gateway)
    began = time.monotonic()
    for index in range(20):
        offer(gateway, opened, tone(1), index)
    await until(lambda: opened.chunk_count == 20)
    assert gateway.recordings.waiting_bytes <= 100_000
    assert "s" in gateway.recordings._lost
    assert time.monotonic() - began < 15  # nothing waited for the disk
    gateway.finish(opened)
    await end(worker, "s", 20)
    stuck()
    await until(lambda: not gateway.sessions and not gateway.sessions.delivery.keeping)
    assert gateway.recordings.waiting_bytes == 0
    assert await path_of(gateway, "s") is None
    assert await gateway.recordings.open("s") is None
