"""Files that are encrypted while they are written, and decrypted from any position: age's payload."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from asrserver.encryption import BLOCK, TAG
from asrserver.encryption.header import make_header, read_header
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.errors import DecryptionError

_SEALED = BLOCK + TAG


class _Positioned(io.RawIOBase):
    """What reading and writing share: the file, which is closed with this one, and the position in what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def _target(self, offset: int, whence: int, size: int) -> int:
        """The position that `seek` names."""
        return offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class EncryptedWriter(_Positioned):
    """Encrypts a file while it is written.

    The first block is kept until the end, so that a header in it can be written again when the rest is known, as that
    of FLAC is. Behind it only appending is possible: no block may be sealed twice under one number.

    Args:
        file: The target, empty; it is closed with the writer.
        key: The key.
        kind: What it is; see `make_header`.
        name: Whose it is.
    """

    def __init__(self, file: BinaryIO, key: KeyPair, kind: str, name: str) -> None:
        super().__init__(file)
        header, self._blocks = make_header(key, kind, name)
        self._payload_at = len(header)
        self._first, self._rest = bytearray(), bytearray()
        self._number = 1  # of the block at which _rest begins
        file.write(header)
        file.seek(self._payload_at + _SEALED)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._first) if len(self._first) < BLOCK else self._number * BLOCK + len(self._rest)

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the first block, or to the end."""
        at = self._target(offset, whence, self.size)
        if not (0 <= at <= min(self.size, BLOCK) or at == self.size):
            raise io.UnsupportedOperation("only the beginning of an encrypted file can be written again")
        self._position = at
        return at

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        length = len(view)
        if self._position < BLOCK:
            part = view[: BLOCK - self._position]
            self._first[self._position : self._position + len(part)] = part
            self._position += len(part)
            view = view[len(part) :]
        if view:
            if self._position != self.size:
                raise io.UnsupportedOperation("only the beginning of an encrypted file can be written again")
            self._position += len(view)
            self._append(view)
        return length

    def _append(self, data: memoryview) -> None:
        self._rest += data
        whole = (len(self._rest) - 1) // BLOCK  # one more may be the last, which only the end can tell
        with memoryview(self._rest) as view:
            for at in range(0, whole * BLOCK, BLOCK):
                self._file.write(self._blocks.seal(self._number, view[at : at + BLOCK]))
                self._number += 1
        del self._rest[: whole * BLOCK]

    def finish(self) -> None:
        """Write what was kept: without it, the file cannot be decrypted."""
        if self._rest:
            self._file.write(self._blocks.seal(self._number, bytes(self._rest), last=True))
        self._file.seek(self._payload_at)
        self._file.write(self._blocks.seal(0, bytes(self._first), last=not self._rest))


class EncryptedReader(_Positioned):
    """Decrypts a file, from any position. The last block is checked at once: a file that was cut off is not read.

    Args:
        file: The file, at its beginning; it is closed with the reader.
        keys: The keys.
        kind: What it must be; see `make_header`.
        name: Whose it must be.

    Attributes:
        size: The bytes in it, decrypted.

    Raises:
        DecryptionError: See `read_header`. `read` raises it for a block that was changed.
    """

    def __init__(self, file: BinaryIO, keys: Keyring, kind: str, name: str) -> None:
        super().__init__(file)
        self._blocks = read_header(file, keys, kind, name)
        self._payload_at = file.tell()
        size = file.seek(0, os.SEEK_END) - self._payload_at
        self._last = max(0, (size - 1) // _SEALED)
        if size - self._last * _SEALED < TAG + (self._last > 0):
            raise DecryptionError("it is cut off")
        self.size = size - (self._last + 1) * TAG
        self._block(self._last)

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, self._target(offset, whence, self.size))
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = self.size - self._position
        size = left if size is None or size < 0 else min(size, left)
        if size <= 0:
            return b""
        first, skip = divmod(self._position, BLOCK)
        data = b"".join(self._block(number) for number in range(first, (self._position + size - 1) // BLOCK + 1))
        self._position += size
        return data[skip : skip + size]

    def _block(self, number: int) -> bytes:
        self._file.seek(self._payload_at + number * _SEALED)
        return self._blocks.open(number, self._file.read(_SEALED), last=number == self._last)
