"""Parts of recordings: what a gateway writes of a session while it is open, chunk by chunk.

    DIR/incoming/<name>.<gateway>.part     a line of JSON, then for each chunk a record: index, length, bytes

With a key of the operator's, the header of an encrypted file follows the line, and the bytes of each record are
sealed in blocks of 64 KiB, numbered through the part. The line and the head of the record are authenticated with them.
A record is whole at once, as without a key: what a crash cuts is the last one.

All functions block.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from asrserver.encryption import BLOCK, TAG

if TYPE_CHECKING:
    from asrserver.encryption.header import Blocks
    from asrserver.encryption.keys import KeyPair, Keyring

#: The head of each record in a part: the index of the chunk and its length in bytes, before it is sealed.
RECORD = struct.Struct("<QI")

#: Bytes of a chunk that are read at a time.
COPY_BYTES = 1 << 20

#: Maximum size of the first line in bytes.
MAX_LINE = 1 << 16


class PartWriter:
    """Writes a part.

    Args:
        path: The file; it must not exist.
        name: The name of the session in the file system.
        header: What the line of JSON says.
        key: The operator's key; None: the part is not encrypted.

    Raises:
        OSError: It cannot be made; then nothing is left of it. `write` raises it, too.
    """

    def __init__(self, path: Path, name: str, header: dict[str, Any], key: KeyPair | None) -> None:
        self._path = path
        self._blocks: Blocks | None = None
        self._number = 0  # of the next block
        start = orjson.dumps({**header, "encrypted": True} if key else header) + b"\n"
        if key is not None:
            from asrserver.encryption.header import make_header

            encryption_header, self._blocks = make_header(key, "part", name, context=start)
            start += encryption_header
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._put(start)
        except OSError:
            self.drop()
            raise

    def write(self, index: int, data: bytes) -> None:
        """Append a chunk."""
        head = RECORD.pack(index, len(data))
        if self._blocks is None:
            self._put(head + data)
            return
        view, sealed = memoryview(data), [head]
        for at in range(0, max(1, len(data)), BLOCK):
            sealed.append(self._blocks.seal(self._number, view[at : at + BLOCK], context=head))
            self._number += 1
        self._put(b"".join(sealed))

    def _put(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written < len(data):
            os.write(self._file, data[written:])  # raises the reason

    def close(self) -> None:
        """End the part, which stays."""
        os.close(self._file)

    def drop(self) -> None:
        """End the part and remove it."""
        self.close()
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk is in a part.

    Attributes:
        file: The part.
        offset: Where its bytes begin.
        size: How many they are.
        head: The head of its record.
        blocks: What opens them, if they are sealed.
        number: The number of their first block.
    """

    file: BinaryIO
    offset: int
    size: int
    head: bytes
    blocks: Blocks | None = None
    number: int = 0

    def read(self, offset: int = 0, most: int | None = None) -> bytes:
        """Read bytes of it, from an offset on.

        Raises:
            DecryptionError: They were changed.
        """
        if offset >= self.size > 0:  # what follows a whole last block is the next record
            return b""
        size = max(0, self.size - offset if most is None else min(most, self.size - offset))
        if self.blocks is None:
            self.file.seek(self.offset + offset)
            return self.file.read(size)
        first, skip = divmod(offset, BLOCK)
        last = max(first, (offset + size - 1) // BLOCK)
        self.file.seek(self.offset + first * (BLOCK + TAG))
        pieces = []
        for number in range(first, last + 1):
            sealed = self.file.read(min(BLOCK, self.size - number * BLOCK) + TAG)
            pieces.append(self.blocks.open(self.number + number, sealed, context=self.head))
        return b"".join(pieces)[skip : skip + size]

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """Read `size` bytes from `offset` on, COPY_BYTES at a time; raises OSError if the part has become shorter."""
        for at in range(offset, offset + size, COPY_BYTES):
            length = min(COPY_BYTES, offset + size - at)
            data = self.read(at, length)
            if len(data) < length:
                raise OSError("a part became shorter")
            yield data


class Source:
    """The chunks of all parts, each once, by their indexes. A last record that a crash cut short is left out.

    Args:
        parts: The files.
        name: The name of the session in the file system.
        keys: The operator's keys; None: there are none.

    Raises:
        DecryptionError: A part cannot be read.
    """

    def __init__(self, parts: list[Path], name: str, keys: Keyring | None) -> None:
        self.header: dict[str, Any] = {}
        self._files: list[BinaryIO] = []
        found: dict[int, Chunk] = {}
        try:
            for path in parts:
                file = path.open("rb")
                self._files.append(file)
                line = file.readline(MAX_LINE)
                if line.endswith(b"\n"):
                    header = json.loads(line)
                    self.header = self.header or header
                    blocks = _read_encryption_header(file, name, keys, line) if header.get("encrypted") else None
                    for index, chunk in _records(file, blocks):
                        found.setdefault(index, chunk)
        except BaseException:
            self.close()
            raise
        self.chunks = [found[index] for index in sorted(found)]

    def close(self) -> None:
        """Close the parts."""
        for file in self._files:
            file.close()


def session_of(file: BinaryIO) -> str:
    """The id of the session that a part is of; raises ValueError, KeyError or TypeError if it does not say so."""
    sid: str = json.loads(file.readline(MAX_LINE))["sid"]
    return sid


def _read_encryption_header(file: BinaryIO, name: str, keys: Keyring | None, line: bytes) -> Blocks:
    from asrserver.encryption.header import read_header
    from asrserver.encryption.keys import Keyring

    return read_header(file, keys or Keyring(""), "part", name, context=line)


def _records(file: BinaryIO, blocks: Blocks | None) -> Iterator[tuple[int, Chunk]]:
    """The indexes and chunks of the records, from where the file stands."""
    end = os.fstat(file.fileno()).st_size
    number = 0
    while len(head := file.read(RECORD.size)) == RECORD.size:
        index, size = RECORD.unpack(head)
        count = max(1, -(-size // BLOCK)) if blocks is not None else 0
        at, length = file.tell(), size + count * TAG
        if at + length > end:
            break
        yield index, Chunk(file, at, size, head, blocks, number)
        number += count
        file.seek(at + length)
