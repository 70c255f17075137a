"""Recordings that are encrypted with a key of the operator's: during a session and after it, on several gateways."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from asrserver.cli.startup import check_settings
from asrserver.config import Settings
from asrserver.encryption import BLOCK, MAGIC, TAG
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.errors import DecryptionError, SettingError
from asrserver.gateway import archive, archive_files, archive_reencrypt
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway.archive_parts import RECORD, PartWriter, Source
from asrserver.gateway.gateway import Gateway
from asrserver.protocol.options import Resume
from tests.audio.signals import encode
from tests.audio.streams import packets_of, speech
from tests.fakes import FakeWorker
from tests.gateway.recording import end, files, path_of, session, tone, wav, whole
from tests.gateways import offer
from tests.waiting import until

HEADER = {"sid": "s", "mode": "auto", "format": "auto", "rate": 16000, "channels": 1}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{KeyPair.generate().secret}\n")
    return path


@pytest.fixture
def keys(keys_file: Path) -> Keyring:
    return Keyring(str(keys_file))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "audio" / "incoming").mkdir(parents=True)
    return tmp_path / "audio"


def part(
    directory: Path, gateway: str, chunks: dict[int, bytes], keys: Keyring | None, sid: str = "s", **header: Any
) -> Path:
    """The file of a session that a gateway left."""
    path = archive_files.part_path(directory, sid, gateway)
    writer = PartWriter(
        path, archive_files.name_of(sid), {**HEADER, "sid": sid, **header}, keys.first if keys else None
    )
    for index, data in chunks.items():
        writer.write(index, data)
    writer.close()
    return path


def assembled(directory: Path, keys: Keyring | None, kind: str = "wav", sid: str = "s") -> tuple[str, bytes]:
    """The suffix of the recording, and its content as it is read."""
    made = archive_files.assemble(directory, sid, kind, keys=keys)
    assert made is not None
    path = directory / made.path
    assert path.read_bytes().startswith(MAGIC) == bool(keys)
    recording = archive_files.open_recording(path, keys)
    with recording.file as file:
        data = file.read()
    assert (recording.size, recording.name) == (made.size, path.name)
    assert len(data) == made.size
    return path.suffix[1:], data


def hold(directory: Path, data: bytes) -> list[Path]:
    """The files that have these bytes in them."""
    return [path for path in directory.rglob("*") if path.is_file() and data in path.read_bytes()]


def add_key(path: Path) -> str:
    """Put a new key before those of the file, and return its public half."""
    key = KeyPair.generate()
    path.write_text(f"{key.secret}\n{path.read_text()}")
    return key.public


# -- files


SOURCES: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "pcm": ([tone(0.1 + n / 100) for n in range(40)], {}),
    "large": ([tone(9.5), tone(0.01), tone(7)], {}),
    "wav": ([wav(tone(1)), wav(tone(4)), wav(tone(2))], {}),
    "webm": ([b"\x1aE\xdf\xa3" + os.urandom(3 * BLOCK), *(b"\x01" + os.urandom(2 * BLOCK) for _ in range(3))], {}),
    "zip": ([wav(tone(1)), wav(tone(5), 2), b"\x1aE\xdf\xa3" + os.urandom(BLOCK)], {}),
    "nothing": ([b"", b"\0"], {}),
}


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("source", [*SOURCES, "opus"])
def test_what_is_read_is_what_it_would_be_without_a_key(directory: Path, keys: Keyring, source: str, kind: str) -> None:
    pieces, header = SOURCES.get(source) or (
        packets_of(encode(speech(), "-c:a libopus -b:a 256k -f ogg")),
        {"mode": "stream", "format": "opus"},
    )
    part(directory, "one", dict(enumerate(pieces)), None, **header)
    plain = assembled(directory, None, kind)
    archive_files.remove(directory, "s")
    part(directory, "one", dict(enumerate(pieces)), keys, **header)
    found = assembled(directory, keys, kind)
    if source == "zip":  # its entries have times
        contents = []
        for suffix, data in (plain, found):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert archive.testzip() is None
                contents.append((suffix, {name: archive.read(name) for name in archive.namelist()}))
        plain, found = contents  # type: ignore[assignment]
    assert found == plain
    if len(pieces[0]) > 3000:
        assert not hold(directory, pieces[0][1000:1050])


def test_parts_with_and_without_a_key_make_one_recording(directory: Path, keys: Keyring) -> None:
    """One of a server before it had a key, one that a crash cut anywhere, and one with an older key."""
    pieces = [tone(0.1), tone(5), tone(0.2), tone(0.3)]
    part(directory, "old", {0: pieces[0]}, None)
    cut = part(directory, "one", {1: pieces[1], 9: tone(3)}, keys)
    part(directory, "two", {2: pieces[2], 3: pieces[3]}, keys)
    content = cut.read_bytes()
    length = RECORD.size + 96000 + 2 * TAG
    for lost in (1, 20, TAG + 1, BLOCK, length - 1, length):
        cut.write_bytes(content[:-lost])
        assert assembled(directory, keys)[1][44:] == b"".join(pieces)


def test_a_part_that_was_changed_is_no_recording(directory: Path, keys: Keyring) -> None:
    path = part(directory, "one", {0: tone(1), 1: tone(1)}, keys)
    content = path.read_bytes()
    line, record = content.index(b"\n") + 1, RECORD.size + 32000 + TAG
    for changed in (
        content.replace(b'"rate":16000', b'"rate":48000'),
        content[:-1] + bytes((content[-1] ^ 1,)),
        content[:-record] + RECORD.pack(2, 32000) + content[-record + RECORD.size :],
        content[: -2 * record] + content[-record:],
        content[: -2 * record] + content[-record:] + content[-2 * record : -record],
        content[:line] + content[line:].replace(b"asrserver/part", b"asrserver/path"),
    ):
        assert changed != content
        path.write_bytes(changed)
        with pytest.raises(DecryptionError):
            assembled(directory, keys)
    path.write_bytes(content)
    assembled(directory, keys)
    os.replace(path, archive_files.part_path(directory, "mine", "one"))
    with pytest.raises(DecryptionError, match="it belongs to another session"):
        assembled(directory, keys, sid="mine")


def test_recordings_are_written_again_with_another_key_and_without(
    directory: Path, keys: Keyring, keys_file: Path
) -> None:
    part(directory, "one", {0: tone(9)}, None)
    _, data = assembled(directory, None)
    (path,) = archive_reencrypt.recordings(directory)
    os.utime(path, (1, 2))
    path.chmod(0o640)
    old = keys.public[0]

    def check(key: str) -> None:
        assert archive_reencrypt.needed_key(path) == key
        with archive_files.open_recording(path, keys).file as file:
            assert file.read() == data
        assert (path.stat().st_mtime, path.stat().st_mode & 0o777) == (2, 0o640)
        assert list(archive_reencrypt.recordings(directory)) == [path]
        assert not list(directory.rglob("*.rewritten"))

    assert archive_reencrypt.reencrypt(directory, path, keys, keys.first)
    check(old)
    assert not archive_reencrypt.reencrypt(directory, path, keys, keys.first)
    new = add_key(keys_file)
    assert keys.reread()
    check(old)
    assert archive_reencrypt.reencrypt(directory, path, keys, keys.first)
    check(new)
    assert archive_reencrypt.reencrypt(directory, path, keys, None)
    check("")
    assert not archive_reencrypt.reencrypt(directory, path, keys, None)


def test_what_is_deleted_while_it_is_written_again_does_not_come_back(
    directory: Path, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(directory, "one", {0: tone(1)}, None)
    assembled(directory, None)
    (path,) = archive_reencrypt.recordings(directory)
    copy = shutil.copyfileobj

    def deleted(*given: Any) -> None:
        copy(*given)
        archive_files.remove(directory, "s")

    monkeypatch.setattr(shutil, "copyfileobj", deleted)
    assert not archive_reencrypt.reencrypt(directory, path, keys, keys.first)
    assert files(directory) == [".lock"]


def test_a_file_of_keys_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, keys_file: Path) -> None:
    audio = str(tmp_path / "audio")
    check_settings(Settings(save_audio=audio, save_audio_keys=str(keys_file)), "run")
    with pytest.raises(SettingError, match="--save-audio-keys requires --save-audio"):
        check_settings(Settings(save_audio_keys=str(keys_file)), "run")
    with pytest.raises(SettingError, match=r"--save-audio-keys /nowhere: No such file"):
        check_settings(Settings(save_audio=audio, save_audio_keys="/nowhere"), "run")


def test_what_an_error_or_a_crash_left_half_written_is_removed(
    directory: Path, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = part(directory, "one", {0: tone(1)}, keys)
    monkeypatch.setattr(archive_files, "_write", full)
    with pytest.raises(OSError, match="No space"):
        archive_files.assemble(directory, "s", "wav", keys=keys)
    assert sorted(files(directory)) == [".lock", path.name]
    monkeypatch.undo()
    (recording,) = [
        directory / made.path for made in [archive_files.assemble(directory, "s", "wav", keys=keys)] if made
    ]
    recording.with_suffix(".tmp").write_bytes(b"half")
    archive_files.remove(directory, "s", parts_only=True)
    assert sorted(files(directory)) == [".lock", recording.name]


def test_links_are_not_followed(directory: Path, keys: Keyring, tmp_path: Path) -> None:
    """Whoever may write into the directory could otherwise let root overwrite any file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("victim", "linked.wav"):
        (outside / name).write_bytes(b"outside")
    part(directory, "one", {0: tone(1)}, None)
    assembled(directory, None)
    (path,) = archive_reencrypt.recordings(directory)
    (directory / "zz").symlink_to(outside)
    path.with_name("other.wav").symlink_to(outside / "linked.wav")
    assert list(archive_reencrypt.recordings(directory)) == [path]
    for suffix in (".rewritten", ".tmp"):
        path.with_suffix(suffix).symlink_to(outside / "victim")
    assert archive_reencrypt.reencrypt(directory, path, keys, keys.first)
    archive_files.assemble(directory, "s", "wav", keys=keys)
    (directory / "incoming" / ".lock").unlink()
    (directory / "incoming" / ".lock").symlink_to(outside / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        archive_files.remove(directory, "s")
    assert {file.read_bytes() for file in outside.iterdir()} == {b"outside"}


def test_nothing_is_read_behind_the_end_of_a_chunk(directory: Path, keys: Keyring) -> None:
    """Also where its last block is a whole one, which another record follows."""
    for size in (BLOCK, 2 * BLOCK, 1000):
        path = part(directory, "one", {0: os.urandom(size), 1: b"next"}, keys)
        source = Source([path], archive_files.name_of("s"), keys)
        first = source.chunks[0]
        assert [first.read(size), first.read(size + 1), first.read(size, 9)] == [b""] * 3
        assert len(first.read(size - 1)) == 1
        source.close()
        path.unlink()


# -- gateways

gen_test = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, directory: Path, keys_file: Path) -> Settings:
    return Settings(
        redis_url=redis_url, database_url=database_url, save_audio=str(directory), save_audio_keys=str(keys_file)
    )


@gen_test
async def test_an_encrypted_recording_is_fetched_like_any(
    gateway: Gateway, worker: FakeWorker, directory: Path, http_client: AsyncHTTPClient, base_url: str
) -> None:
    pieces = [tone(1 + n / 1000) for n in range(10)]
    opened = await session(gateway, "s")
    for index, data in enumerate(pieces):
        offer(gateway, opened, data, index)
    await until(lambda: sum(path.stat().st_size for path in directory.rglob("*.part")) > sum(map(len, pieces)))
    assert not any(hold(directory, data[1000:1030]) for data in pieces)
    gateway.finish(opened)
    await end(worker, "s", len(pieces))
    await until(lambda: not gateway.sessions and not gateway.sessions.delivery.keeping)
    data = wav(b"".join(pieces))
    path = directory / str(await path_of(gateway, "s"))
    assert path.suffix == ".wav"
    assert path.read_bytes().startswith(MAGIC)
    assert (await gateway.storage.stats())["done"]["audio_bytes"] == len(data)

    async def fetch(method: str = "GET", **headers: str) -> HTTPResponse:
        url = f"{base_url}/api/v1/session/s/audio"
        return await http_client.fetch(url, method=method, headers=headers, raise_error=False)

    response = await fetch()
    assert (response.code, response.headers["Content-Type"], response.body) == (200, "audio/wav", data)
    head = await fetch("HEAD")
    assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(len(data)), response.headers["ETag"])
    for begin, last in ((0, 0), (44, 99), (BLOCK - 1, BLOCK), (3 * BLOCK + 5, len(data) - 1), (len(data) - 1,) * 2):
        response = await fetch(Range=f"bytes={begin}-{last}")
        assert (response.code, response.body) == (206, data[begin : last + 1])
        assert response.headers["Content-Range"] == f"bytes {begin}-{last}/{len(data)}"
    assert (await fetch(Range=f"bytes={len(data)}-")).code == 416
    assert await gateway.delete("s")
    assert files(directory) == [".lock"]


@gen_test
async def test_what_cannot_be_read_is_told_and_logged(
    gateway: Gateway,
    worker: FakeWorker,
    directory: Path,
    keys_file: Path,
    http_client: AsyncHTTPClient,
    base_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for sid in ("s", "other"):
        await whole(gateway, worker, sid, [tone(20)])
    path, other = [directory / str(await path_of(gateway, sid)) for sid in ("s", "other")]
    content = path.read_bytes()

    async def refused(reason: str) -> None:
        caplog.clear()
        answer = await http_client.fetch(f"{base_url}/api/v1/session/s/audio", raise_error=False)
        told = f"the recording cannot be read: {reason}"
        assert answer.code == 500
        assert f'"code":"recording_unreadable","message":"{told}' in answer.body.decode()
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert f"session=s its recording cannot be read: {reason}" in errors

    path.write_bytes(content[:-1])
    await refused("block 9 is not what was written there: it was changed, moved or cut off")
    path.write_bytes(content[:100])
    await refused("its header is damaged")
    path.write_bytes(other.read_bytes())
    await refused("it belongs to another session")
    path.write_bytes(content[:9000] + b"changed" + content[9007:])
    await refused("block 0 is not what was written there: it was changed, moved or cut off")
    path.write_bytes(content[:-200_000] + b"changed" + content[-200_000 + 7 :])
    with pytest.raises(Exception, match=r"(?i)closed|connection"):  # it has got the first blocks by then
        await http_client.fetch(f"{base_url}/api/v1/session/s/audio")
    assert "session=s its recording cannot be read: block 6 is not what was written there" in caplog.text
    path.write_bytes(content)
    answer = await http_client.fetch(f"{base_url}/api/v1/session/s/audio")
    assert answer.body == wav(tone(20))
    (old,) = Keyring(str(keys_file)).public
    await asyncio.to_thread(keys_file.write_text, KeyPair.generate().secret)
    await until(lambda: cast(Keyring, gateway.recordings._keys).public != [old])
    await refused(f"it needs the key {old}, which the file of --save-audio-keys does not have")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed files are noticed at once."""
    monkeypatch.setattr(gateway_module, "FILES_EVERY", 0.05)


@gen_test
async def test_keys_change_while_gateways_run(
    often: None,
    gateway: Gateway,
    worker: FakeWorker,
    gateway_settings: Settings,
    directory: Path,
    keys_file: Path,
) -> None:
    """A session moves from one gateway to another, and back, and the key is another one each time."""
    other = Gateway(gateway_settings)
    await other.open()
    try:
        pieces = [tone(0.1 + n / 1000) for n in range(6)]
        opened = await session(gateway, "s", resumable=True)
        public = Keyring(str(keys_file)).public
        for count, at in enumerate((gateway, other, gateway)):
            for index in (2 * count, 2 * count + 1):
                offer(at, opened, pieces[index], index)
            await until(lambda opened=opened: opened.chunk_count == 2)
            await until(lambda count=count: len(list(directory.rglob("*.part"))) == count + 1)
            if count < 2:
                public = [add_key(keys_file), *public]
                rings = [cast(Keyring, each.recordings._keys) for each in (gateway, other)]
                await until(lambda public=public, rings=rings: all(ring.public == public for ring in rings))
                opened, _ = await (other, gateway)[count].resume(Resume("s", 0), lambda event: None)
        gateway.finish(opened)
        await end(worker, "s", 6)
        await until(lambda: "s" not in gateway.sessions and not gateway.sessions.delivery.keeping)
        path = directory / str(await path_of(gateway, "s"))
        assert archive_reencrypt.needed_key(path) == public[0]
        recording = await gateway.recordings.open("s")
        assert recording is not None
        with recording.file as file:
            assert await asyncio.to_thread(file.read) == wav(b"".join(pieces))
    finally:
        await other.close()


@gen_test
async def test_what_lacks_its_key_waits_for_it(
    gateway: Gateway, worker: FakeWorker, directory: Path, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is damaged is removed after a day; a key may have been taken out of the file by mistake."""
    await whole(gateway, worker, "s", [tone(1)])
    await gateway.storage.forget_audio(["s"])
    keys, text = Keyring(str(keys_file)), await asyncio.to_thread(keys_file.read_text)
    waiting = part(directory, "dead", {0: tone(2)}, keys)
    damaged = part(directory, "dead", {0: tone(2)}, keys, sid="damaged")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes((content[-1] ^ 1,)))
    monkeypatch.setattr(archive, "ABANDONED_SECONDS", -1)
    monkeypatch.setattr(archive, "HOPELESS_SECONDS", -1)

    await asyncio.to_thread(keys_file.write_text, KeyPair.generate().secret)
    await asyncio.to_thread(gateway.recordings.reread_keys)
    await until(lambda: cast(Keyring, gateway.recordings._keys).public != keys.public)
    await gateway._tidy()
    assert await path_of(gateway, "s") is None
    assert waiting.exists()
    await asyncio.to_thread(keys_file.write_text, text)
    await asyncio.to_thread(gateway.recordings.reread_keys)
    await until(lambda: cast(Keyring, gateway.recordings._keys).public == keys.public)
    await gateway._tidy()
    assert await path_of(gateway, "s") is not None
    assert (waiting.exists(), damaged.exists()) == (False, False)
