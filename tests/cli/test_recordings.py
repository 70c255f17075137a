"""asrserver recordings; and a server that records with keys, whose gateway is killed in the middle."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyrage
import pytest
from click.testing import CliRunner, Result

from asrserver.auth.keys import KeyLimits, KeysFile
from asrserver.cli.recordings import recordings
from asrserver.encryption import MAGIC
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.gateway import archive_files
from asrserver.gateway.archive_parts import PartWriter, Source
from tests.gateway.recording import files
from tests.program import System, cli
from tests.recordings import Utterance
from tests.waiting import until
from tests.ws_client import WsClient

Start = Callable[..., System]


def fetched(system: System, sid: str) -> bytes:
    """The recording as REST has it; empty while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{system.port}/api/v1/session/{sid}/audio", timeout=30) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError:
        return b""


def chunks_on_disk(directory: Path, sid: str, keys: Path) -> int:
    """The chunks of a session in the parts of all gateways."""
    name = archive_files.name_of(sid)
    source = Source(sorted((directory / "incoming").glob(f"{name}.*.part")), name, Keyring(str(keys)))
    source.close()
    return len(source.chunks)


@pytest.mark.usefixtures("processes")
@pytest.mark.gen_test(timeout=170)
async def test_keys_of_a_server_whose_gateway_is_killed(
    start: Start, tmp_path: Path, utterances: list[Utterance]
) -> None:
    """All that was written before is in the recording; nothing is ever on the disk in the clear."""
    directory, keys = tmp_path / "audio", tmp_path / "keys"
    options = ("--save-audio", directory, "--save-audio-keys", keys)
    done = cli("recordings", "new-key", "--save-audio-keys", keys)
    assert (done.returncode, keys.stat().st_mode & 0o777) == (0, 0o600)
    first = done.stdout.strip()
    system = start("run", "--workers", "1", *map(str, options)).wait_ready()
    (gateway,) = system.children("gateway")
    pcm = [one.pcm for one in utterances[:4]]
    async with await WsClient.open(system.url) as ws:
        await ws.start("s", format="pcm_s16le", resume=True)
        for index in (0, 1):
            await ws.chunk("s", index, pcm[index])
        await until(lambda: chunks_on_disk(directory, "s", keys) == 2, 30)
        gateway.kill()
        await until(lambda: [child for child in system.children("gateway") if child.pid != gateway.pid], 30)
    assert not [name for name in files(directory) if name.endswith(".wav")]
    async with await until_open(system) as ws:
        await ws.send({"action": "resume", "session_id": "s", "last_seq": 0})
        await ws.find("s", "ack")
        for index in (2, 3):
            await ws.chunk("s", index, pcm[index])
        await until(lambda: chunks_on_disk(directory, "s", keys) == 4, 30)
        assert not [path for path in directory.rglob("*") if path.is_file() and has(path, pcm)]
        await ws.send({"action": "finish", "session_id": "s"})
        await ws.find("s", "final_result")
        whole = b"".join(pcm)
        assert (await until(lambda: fetched(system, "s"), 30))[44:] == whole
    (path,) = directory.glob("??/*.wav")
    assert path.read_bytes().startswith(MAGIC)
    shown = await asyncio.to_thread(cli, "recordings", "keys", *options)
    assert shown.stdout.splitlines()[1].split()[:4] == [first, "for", "new", "recordings"]
    second = (await asyncio.to_thread(cli, "recordings", "new-key", "--save-audio-keys", keys)).stdout.strip()
    await until(lambda: "keys of recordings were reloaded" in system.output(), 30)
    for command, told in (("encrypt", "1 recordings encrypted"), ("encrypt", "0 recordings encrypted, 1 left as")):
        done = await asyncio.to_thread(cli, "recordings", command, *options)
        assert (done.returncode, done.stdout.startswith(told)) == (0, True), done
    assert second.encode() in path.read_bytes()[:1000]
    assert (await asyncio.to_thread(fetched, system, "s"))[44:] == whole
    identities = [pyrage.x25519.Identity.from_str(line) for line in keys.read_text().splitlines() if line[:3] == "AGE"]
    assert len(identities) == 2
    assert pyrage.decrypt(path.read_bytes(), identities)[44:] == whole
    done = await asyncio.to_thread(cli, "recordings", "decrypt", *options)
    assert (done.returncode, path.read_bytes()[44:] == whole) == (0, True), done
    assert (await asyncio.to_thread(fetched, system, "s"))[44:] == whole


async def until_open(system: System) -> WsClient:
    """A connection to the gateway that comes after the one that was killed."""
    while True:
        try:
            return await WsClient.open(system.url)
        except OSError:
            await asyncio.sleep(0.1)


def has(path: Path, pieces: list[bytes]) -> bool:
    """Whether a file holds some of the audio as it was."""
    data = path.read_bytes()
    return any(piece[8000:8064] in data for piece in pieces)


def run(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(recordings, [str(argument) for argument in arguments])


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    """With a key that is missing, a file that is none, a recording that was changed."""
    directory, keys, other = tmp_path / "audio", tmp_path / "keys", KeyPair.generate()
    (directory / "incoming").mkdir(parents=True)
    (directory / "ab").mkdir()
    run("new-key", "--save-audio-keys", keys)
    first = Keyring(str(keys)).first
    assert first is not None
    for name, key in (("one", first), ("two", other)):
        with archive_files.create_recording(directory / "ab" / f"{name}.wav", key, name) as file:
            file.write(b"voice")
    (directory / "ab" / "three.wav").write_bytes(b"plain")
    (directory / "ab" / "four.wav").write_bytes((directory / "ab" / "one.wav").read_bytes())
    (directory / "ab" / "five.wav").write_bytes(MAGIC + b"damaged")
    options = ("--save-audio", directory, "--save-audio-keys", keys)
    done = run("keys", *options)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}
    assert rows[other.public][:2] == ["MISSING", "1"]
    assert rows["-"] == ["not", "encrypted", "1", "0", "5"]
    assert (done.exit_code, done.stderr) == (1, f"{directory}/ab/five.wav: its header is damaged\n")
    done = run("decrypt", *options)
    assert (done.exit_code, done.stdout) == (1, "1 recordings decrypted, 1 left as they are, 3 failed\n")
    assert f"two.wav: it needs the key {other.public}, which" in done.stderr
    assert "four.wav: it belongs to another session" in done.stderr
    keys.write_text("nonsense\n")
    for command in (("new-key",), ("keys", "--save-audio", directory), ("encrypt", "--save-audio", directory)):
        done = run(*command, "--save-audio-keys", keys)
        assert done.exit_code == 1
        assert f"--save-audio-keys {keys}: line 1 is no key" in done.stderr
    assert keys.read_text() == "nonsense\n"
    done = run("new-key", "--save-audio-keys", tmp_path / "none" / "keys")
    assert (done.exit_code, done.stderr) == (1, f"Error: {tmp_path}/none/keys: No such file or directory\n")


def test_encrypting_without_a_key_is_refused(tmp_path: Path) -> None:
    """Else an empty variable in a script would look like success, or decrypt everything."""
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "one.wav").write_bytes(b"plain")
    done = run("encrypt", "--save-audio", tmp_path, "--save-audio-keys", "")
    assert done.exit_code == 2
    assert "--save-audio-keys is empty" in done.stderr


def test_two_at_once_do_not_destroy_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first is in the middle of a recording."""
    keys, path = tmp_path / "keys", tmp_path / "audio" / "ab" / "one.wav"
    path.parent.mkdir(parents=True)
    (tmp_path / "audio" / "incoming").mkdir()
    path.write_bytes(b"voice" * 1000)
    run("new-key", "--save-audio-keys", keys)
    command = ("encrypt", "--save-audio", tmp_path / "audio", "--save-audio-keys", keys)
    copy = shutil.copyfileobj
    second: list[Result] = []

    def overlapping(*given: Any) -> None:
        if not second:
            monkeypatch.setattr(shutil, "copyfileobj", copy)
            second.append(run(*command))
        copy(*given)

    monkeypatch.setattr(shutil, "copyfileobj", overlapping)
    done = run(*command)
    assert (done.exit_code, done.stdout) == (0, "1 recordings encrypted, 0 left as they are, 0 failed\n"), done.stderr
    told = f"Error: {tmp_path}/audio: another encrypt or decrypt is running there\n"
    assert (second[0].exit_code, second[0].stderr) == (1, told)
    with archive_files.open_recording(path, Keyring(str(keys))).file as file:
        assert file.read() == b"voice" * 1000


def test_what_cannot_be_written_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the directory of the gateways it is made; and only a recording that is gone is none."""
    keys, path = tmp_path / "keys", tmp_path / "audio" / "ab" / "one.wav"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"voice")
    run("new-key", "--save-audio-keys", keys)
    command = ("encrypt", "--save-audio", tmp_path / "audio", "--save-audio-keys", keys)

    def gone(*given: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", gone)
        done = run(*command)
    assert (done.exit_code, done.stdout) == (1, "0 recordings encrypted, 0 left as they are, 1 failed\n")
    assert done.stderr == f"{path}: No such file or directory\n"
    done = run(*command)
    assert (done.exit_code, done.stdout) == (0, "1 recordings encrypted, 0 left as they are, 0 failed\n"), done.stderr
    assert path.read_bytes().startswith(MAGIC)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
def test_root_acts_as_the_user_of_the_gateways(tmp_path: Path) -> None:
    """So the gateways can use what it made, and a link there leads nowhere that they cannot go themselves."""
    user, keys = 12345, tmp_path / "keys"
    run("new-key", "--save-audio-keys", keys)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for below in ("ab", "incoming"):
            (directory / below).mkdir()
        (directory / "ab" / "one.wav").write_bytes(b"voice")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user, user)
        done = run("encrypt", "--save-audio", directory, "--save-audio-keys", keys)
        assert (done.exit_code, done.stdout[:23]) == (0, "1 recordings encrypted,"), done.stderr
        assert os.geteuid() == os.getegid() == 0
        found = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in directory.rglob("*")}
        assert found == dict.fromkeys(("ab", "one.wav", "incoming", ".lock", ".rewrite.lock"), (user, user))
        shutil.rmtree(directory / "incoming")
        done = run("decrypt", "--save-audio", directory, "--save-audio-keys", keys)
        assert (done.exit_code, (directory / "incoming").stat().st_uid) == (0, user), done.stderr
        (directory / "incoming").chmod(0)
        done = run("decrypt", "--save-audio", directory, "--save-audio-keys", keys)
        assert (done.exit_code, done.stderr) == (1, f"Error: {directory}/incoming/.rewrite.lock: Permission denied\n")


def test_parts_of_open_sessions_need_keys_too(tmp_path: Path) -> None:
    """The part of a session from before a new key has the old one, which must not look needless."""
    keys, incoming = tmp_path / "keys", tmp_path / "audio" / "incoming"
    incoming.mkdir(parents=True)
    old, lost = KeyPair.generate(), KeyPair.generate()
    keys.write_text(f"{old.secret}\n")
    new = run("new-key", "--save-audio-keys", keys).stdout.strip()
    for name, key in (("a", old), ("b", old), ("c", lost), ("d", None)):
        writer = PartWriter(incoming / f"{name}.part", name, {"sid": name}, key)
        writer.write(0, b"voice")
        writer.close()
    done = run("keys", "--save-audio", incoming.parent, "--save-audio-keys", keys)
    rows = {line.split()[0]: line.split()[1:-1] for line in done.stdout.splitlines()[1:]}
    assert rows == {
        new: ["for", "new", "recordings", "0", "0"],
        old.public: ["for", "older", "recordings", "0", "2"],
        lost.public: ["MISSING", "0", "1"],
        "-": ["not", "encrypted", "0", "1"],
    }
    assert done.exit_code == 1


@pytest.mark.parametrize("content", ["", "# keys of recordings\n", "\ufeff# made by an editor\n"])
def test_a_file_without_keys_gets_its_first_one(tmp_path: Path, content: str) -> None:
    """Of a file that held no secret, whoever could read it cannot any more, but for its group."""
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o644)
    done = run("new-key", "--save-audio-keys", path)
    assert (done.exit_code, Keyring(str(path)).public) == (0, [done.stdout.strip()]), done.stderr
    assert path.read_text().endswith(content.lstrip("\ufeff"))
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_key_is_put_into_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """With what is there, also from an editor that begins files with a byte order mark."""
    real, path, old = tmp_path / "there" / "real", tmp_path / "keys", KeyPair.generate()
    real.parent.mkdir()
    real.write_text(f"\ufeff{old.secret}\r\n")
    real.chmod(0o604)
    path.symlink_to(real)
    done = run("new-key", "--save-audio-keys", path)
    assert (done.exit_code, Keyring(str(path)).public) == (0, [done.stdout.strip(), old.public]), done.stderr
    assert (path.is_symlink(), real.stat().st_mode & 0o777) == (True, 0o604)
    assert [file.name for file in real.parent.iterdir()] == ["real"]
    (tmp_path / "keys.json").symlink_to(real.parent / "api.json")
    KeysFile(str(tmp_path / "keys.json")).create("one", KeyLimits(), False)
    assert len(KeysFile(str(real.parent / "api.json")).read()) == 1


def test_keys_that_are_made_at_once_are_all_there(tmp_path: Path) -> None:
    """Both kinds of files: of recordings, and of the API."""
    path, api = tmp_path / "keys", KeysFile(str(tmp_path / "keys.json"))
    make = recordings.commands["new-key"].callback
    assert make is not None
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, [str(path)] * 24))
        ids = list(pool.map(lambda number: api.create("one", KeyLimits(), False)[0].id, range(24)))
    assert len(Keyring(str(path)).public) == 24
    assert sorted(key.id for key in api.read()) == sorted(ids)
