"""encryption/: files that other programs read, and that show every change; keys."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pyrage
import pytest

from asrserver.encryption import BLOCK, TAG, is_encrypted
from asrserver.encryption.files import EncryptedReader, EncryptedWriter
from asrserver.encryption.header import recipient
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.errors import DecryptionError, SettingError

#: Around the borders of blocks.
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 300_000]


class Kept(io.BytesIO):
    """A file in memory whose content can be had when it is closed."""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


def encrypted(data: bytes, key: KeyPair, name: str = "name", kind: str = "recording") -> bytes:
    """Written in pieces that do not fit the blocks."""
    file = Kept()
    with EncryptedWriter(file, key, kind, name) as writer:
        for at in range(0, len(data), 7001):
            assert writer.write(data[at : at + 7001]) == len(data[at : at + 7001])
        assert writer.size == writer.tell() == len(data)
        writer.finish()
    return file.content


def decrypted(data: bytes, keys: Keyring, name: str = "name", kind: str = "recording") -> bytes:
    with EncryptedReader(io.BytesIO(data), keys, kind, name) as reader:
        return reader.read()


@pytest.fixture
def key() -> KeyPair:
    return KeyPair.generate()


@pytest.fixture
def keys(key: KeyPair, tmp_path: Path) -> Keyring:
    (tmp_path / "keys").write_text(f"{key.secret}\n")
    return Keyring(str(tmp_path / "keys"))


# -- files


@pytest.mark.parametrize("size", SIZES)
def test_another_program_decrypts_it(key: KeyPair, keys: Keyring, size: int) -> None:
    data = random.Random(size).randbytes(size)
    sealed = encrypted(data, key)
    assert pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(key.secret)]) == data
    assert is_encrypted(io.BytesIO(sealed))
    assert recipient(io.BytesIO(sealed)) == key.public
    assert data[:100] not in sealed or not data[4:]
    with EncryptedReader(io.BytesIO(sealed), keys, "recording", "name") as reader:
        assert reader.size == size
        for at, count in ((0, size), (size - 1, 9), (BLOCK - 3, 6), (BLOCK, BLOCK + 1), (size, 1), (size + 9, 1)):
            assert reader.seek(at) == max(0, at)
            assert reader.read(count) == data[max(0, at) :][:count]


def test_no_two_files_have_a_key_in_common(key: KeyPair) -> None:
    assert encrypted(b"same", key)[-50:] != encrypted(b"same", key)[-50:]


def test_every_changed_bit_is_noticed(key: KeyPair, keys: Keyring) -> None:
    sealed = encrypted(b"voice", key)
    assert decrypted(sealed, keys) == b"voice"
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DecryptionError):
            decrypted(bytes(changed), keys)


def test_what_was_cut_off_is_noticed_before_anything_is_read(key: KeyPair, keys: Keyring) -> None:
    sealed = encrypted(os.urandom(3 * BLOCK), key)
    begin = len(sealed) - 3 * (BLOCK + TAG)
    ends = [*range(begin + 1), begin + TAG, begin + BLOCK + TAG, begin + BLOCK + TAG + 1, begin + BLOCK + 2 * TAG + 1]
    for end in [*ends, begin + 2 * (BLOCK + TAG), len(sealed) - 1]:
        with pytest.raises(DecryptionError):
            EncryptedReader(io.BytesIO(sealed[:end]), keys, "recording", "name")
    with pytest.raises(DecryptionError, match="it is cut off"):
        EncryptedReader(io.BytesIO(sealed + b"x"), keys, "recording", "name")


def test_blocks_that_changed_places_are_noticed_and_others_are_read(key: KeyPair, keys: Keyring) -> None:
    data = os.urandom(4 * BLOCK)
    sealed = encrypted(data, key)
    begin, one = len(sealed) - 4 * (BLOCK + TAG), BLOCK + TAG
    blocks = [sealed[begin + n * one : begin + (n + 1) * one] for n in range(4)]
    swapped = sealed[:begin] + blocks[0] + blocks[2] + blocks[1] + blocks[3]
    with EncryptedReader(io.BytesIO(swapped), keys, "recording", "name") as reader:
        assert reader.read(BLOCK) == data[:BLOCK]
        with pytest.raises(DecryptionError, match="block 1 is not what was written there"):
            reader.read(1)
        reader.seek(3 * BLOCK)
        assert reader.read() == data[3 * BLOCK :]


def test_a_file_is_read_as_what_it_is_only(key: KeyPair, keys: Keyring) -> None:
    """Or the server would decrypt a foreign file for whoever puts it in the place of his own."""
    sealed = encrypted(b"voice", key, "hers")
    for kind, name in (("recording", "his"), ("part", "hers")):
        with pytest.raises(DecryptionError, match="it belongs to another session"):
            decrypted(sealed, keys, name, kind)
    with pytest.raises(DecryptionError, match="its header was changed"):
        decrypted(sealed.replace(b" hers\n", b" his\n"), keys, "his")
    foreign = pyrage.encrypt(b"voice", [pyrage.x25519.Recipient.from_str(key.public)])
    with pytest.raises(DecryptionError, match="this program did not encrypt it"):
        decrypted(foreign, keys)


def test_the_key_that_is_missing_is_named(key: KeyPair, tmp_path: Path) -> None:
    other = KeyPair.generate()
    (tmp_path / "keys").write_text(other.secret)
    for keys in (Keyring(str(tmp_path / "keys")), Keyring("")):
        with pytest.raises(DecryptionError, match=f"it needs the key {key.public}, which"):
            decrypted(encrypted(b"voice", key), keys)
    swapped = encrypted(b"voice", key).replace(key.public.encode(), other.public.encode())
    with pytest.raises(DecryptionError, match="its header was changed"):
        decrypted(swapped, Keyring(str(tmp_path / "keys")))


def test_only_the_first_block_is_written_again(key: KeyPair, keys: Keyring) -> None:
    file = Kept()
    with EncryptedWriter(file, key, "recording", "name") as writer:
        writer.write(bytes(BLOCK + 10))
        writer.seek(8)
        writer.write(b"header")
        for at in (BLOCK + 1, -1, BLOCK + 11):
            with pytest.raises(io.UnsupportedOperation):
                writer.seek(at)
        writer.seek(BLOCK - 1)
        with pytest.raises(io.UnsupportedOperation):
            writer.write(b"xx")
        assert writer.seek(0, os.SEEK_END) == BLOCK + 10
        writer.write(b"end")
        writer.finish()
    assert decrypted(file.content, keys) == bytes(8) + b"header" + bytes(BLOCK - 15) + b"x" + bytes(10) + b"end"


# -- keys


def test_keys_are_those_of_age(tmp_path: Path) -> None:
    for _ in range(20):
        theirs = pyrage.x25519.Identity.generate()
        assert KeyPair.parse(str(theirs)).public == str(theirs.to_public())
        ours = KeyPair.generate()
        assert str(pyrage.x25519.Identity.from_str(ours.secret).to_public()) == ours.public
        assert ours.secret not in repr(ours)


def test_the_first_key_of_a_file_is_for_what_is_new(tmp_path: Path) -> None:
    one, two = KeyPair.generate(), KeyPair.generate()
    path = tmp_path / "keys"
    path.write_text(f"# created: today\r\n\r\n{one.secret}\r\n  {two.secret.lower()}\n{one.secret}\n")
    keys = Keyring(str(path))
    assert keys.public == [one.public, two.public]
    assert keys.first == keys.find(one.public)
    assert not keys.reread()
    path.write_text(f"{two.secret}\n{one.secret}\n{'#' * 9}")
    assert keys.reread()
    assert keys.public == [two.public, one.public]
    path.write_text("nothing")
    with pytest.raises(SettingError):
        keys.reread()
    assert not keys.reread()  # told once
    assert keys.public == [two.public, one.public]
    path.unlink()
    with pytest.raises(SettingError, match="No such file"):
        keys.reread()
    assert not keys.reread()


BAD = KeyPair.parse("AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX").secret


@pytest.mark.parametrize(
    "line",
    [
        BAD[:-1],
        BAD + "Q",
        BAD.replace("G", "H", 1),
        BAD[:20] + BAD[20:].lower(),
        KeyPair.generate().public,
        BAD.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-PQ-1"),
        "AGE-SECRET-KEY-1qqqqqq",
        "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=",
        "é" * 10,
        "AGE-SECRET-KEY-1İ",
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# old\n{BAD}\n\n{line}\n")
    with pytest.raises(SettingError, match=f"--save-audio-keys {path}: line 4 is no key of the kind AGE-") as told:
        Keyring(str(path))
    assert line not in str(told.value)


def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for content, reason in (
        (b"# none\n\n", "has no key: asrserver recordings new-key adds one"),
        (b"\xff", "is not text in UTF-8"),
        (b"#" * 70000, "has more than"),
    ):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=f"--save-audio-keys {path} {reason}"):
            Keyring(str(path))
