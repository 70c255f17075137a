"""age's header of a file: the file's random key, wrapped by the operator's, what the file is, and whose."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from asrserver.encryption import MAGIC, TAG
from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.errors import DecryptionError, MissingKey

#: Bytes of a header at most.
MAX_HEADER = 1 << 13

_PUBLIC_KEY = re.compile(r"age1[a-z0-9]{58}")
_KEY_BYTES, _FILE_KEY_BYTES, _SALT_BYTES = 32, 16, 16


class Blocks:
    """Seals and opens the blocks of one file, each under its number in the file, from 0 on, and whether it is the last.

    Args:
        key: The key of the file's payload.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)

    def seal(self, number: int, data: bytes | memoryview, last: bool = False, context: bytes | None = None) -> bytes:
        """Seal a block, which becomes TAG bytes longer. No two may have one number."""
        return self._cipher.encrypt(_nonce(number, last), data, context)

    def open(self, number: int, sealed: bytes, last: bool = False, context: bytes | None = None) -> bytes:
        """Open a block; raises DecryptionError if it is not what was sealed under this number."""
        try:
            return self._cipher.decrypt(_nonce(number, last), sealed, context)
        except (InvalidTag, ValueError):
            reason = f"block {number} is not what was written there: it was changed, moved or cut off"
            raise DecryptionError(reason) from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes((last,))


def make_header(key: KeyPair, kind: str, name: str, context: bytes = b"payload") -> tuple[bytes, Blocks]:
    """Make the header of a new file, with a new random key.

    Args:
        key: The operator's key.
        kind: What the file is, such as recording.
        name: Whose it is. Neither may have spaces.
        context: The `info` from which the key of the blocks is derived; by default that of age's payload.

    Returns:
        The bytes to begin the file with, and what seals its blocks.
    """
    file_key, salt = os.urandom(_FILE_KEY_BYTES), os.urandom(_SALT_BYTES)
    once = X25519PrivateKey.generate()
    recipient = key.private.public_key()
    share = once.public_key().public_bytes_raw()
    wrapped = _wrapping_cipher(once, recipient, share, recipient).encrypt(bytes(12), file_key, None)
    header = MAGIC + b"-> X25519 %b\n%b\n" % (_encode_base64(share), _encode_base64(wrapped))
    header += f"-> asrserver/{kind} {key.public} {name}\n\n---".encode()
    whole = header + b" %b\n" % _encode_base64(_mac(file_key, header)) + salt
    return whole, Blocks(_hkdf(file_key, salt, context))


def read_header(file: BinaryIO, keys: Keyring, kind: str, name: str, context: bytes = b"payload") -> Blocks:
    """Read and check the header of a file from its current position, and leave the file at its first block.

    Args:
        file: The file.
        keys: The operator's keys.
        kind: What the file must be; this and the others as in `make_header`.
        name: Whose it must be.
        context: The `info` from which the key of the blocks is derived.

    Returns:
        What opens its blocks.

    Raises:
        MissingKey: `keys` does not have the key that it is encrypted with.
        DecryptionError: It is of another kind or name, damaged, or was changed.
    """
    header = _Header.read(file)
    public = header.checked_recipient(kind, name)
    key = keys.find(public)
    if key is None:
        raise MissingKey(f"it needs the key {public}, which the file of --save-audio-keys does not have")
    file_key = header.unwrap_file_key(key)
    salt = file.read(_SALT_BYTES)
    if len(salt) < _SALT_BYTES:
        raise DecryptionError("it is cut off in its header")
    return Blocks(_hkdf(file_key, salt, context))


def recipient(file: BinaryIO) -> str:
    """The recipient of a file, age1…: the public half of the key that it is encrypted with.

    Raises:
        DecryptionError: The header is damaged, or another program encrypted the file.
    """
    return _Header.read(file).own_stanza()[1]


@dataclass(frozen=True)
class _Header:
    """A header, taken apart.

    Attributes:
        stanzas: The words of the first line of each stanza, with its body behind them.
        signed: The bytes that its authentication code is of.
        mac: The code.
    """

    stanzas: list[tuple[list[str], bytes]]
    signed: bytes
    mac: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> _Header:
        """Read a header; raises DecryptionError."""
        try:
            return cls._parse(_lines(file))
        except (ValueError, StopIteration):
            raise DecryptionError("its header is damaged") from None

    @classmethod
    def _parse(cls, lines: Iterator[bytes]) -> _Header:
        signed = next(lines)
        if signed != MAGIC:
            raise ValueError
        stanzas: list[tuple[list[str], bytes]] = []
        while (line := next(lines)).startswith(b"-> "):
            signed += line
            body = b""
            while True:  # as long as its lines are full
                encoded = next(lines)
                signed += encoded
                body += encoded[:-1]
                if len(encoded) <= 64:
                    break
            words = line[3:-1].decode("ascii").split(" ")
            if not all(word.isprintable() and word for word in words):
                raise ValueError
            stanzas.append((words, _decode_base64(body)))
        if not line.startswith(b"--- "):
            raise ValueError
        return cls(stanzas, signed + b"---", _decode_base64(line[4:-1]))

    def own_stanza(self) -> list[str]:
        """The first line of this program's stanza: kind, key, name."""
        for words, _ in self.stanzas:
            if words[0].startswith("asrserver/") and len(words) == 3 and _PUBLIC_KEY.fullmatch(words[1]):
                return words
        raise DecryptionError("this program did not encrypt it")

    def checked_recipient(self, kind: str, name: str) -> str:
        """Its recipient; raises DecryptionError if the file is of another kind or name."""
        found, public, whose = self.own_stanza()
        if (found, whose) != (f"asrserver/{kind}", name):
            raise DecryptionError("it belongs to another session")
        return public

    def unwrap_file_key(self, key: KeyPair) -> bytes:
        """Unwrap the key of the file, and check the header with it; raises DecryptionError."""
        for words, body in self.stanzas:
            if words[0] != "X25519" or len(words) != 2 or len(body) != _FILE_KEY_BYTES + TAG:
                continue
            try:
                share = _decode_base64(words[1].encode())
                other = X25519PublicKey.from_public_bytes(share)
                cipher = _wrapping_cipher(key.private, other, share, key.private.public_key())
                file_key = cipher.decrypt(bytes(12), body, None)
            except (ValueError, InvalidTag):
                continue
            if hmac.compare_digest(self.mac, _mac(file_key, self.signed)):
                return file_key
        raise DecryptionError("its header was changed")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a header; raises ValueError for one that does not end, or past MAX_HEADER bytes."""
    left = MAX_HEADER
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        if not line.endswith(b"\n"):
            break
        yield line
    raise ValueError


def _wrapping_cipher(
    private: X25519PrivateKey, other: X25519PublicKey, share: bytes, recipient: X25519PublicKey
) -> ChaCha20Poly1305:
    """The cipher that wraps a file key for `recipient`; raises ValueError if `other` is a point of small order."""
    salt = share + recipient.public_bytes_raw()
    return ChaCha20Poly1305(_hkdf(private.exchange(other), salt, b"age-encryption.org/v1/X25519"))


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt, info).derive(secret)


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_hkdf(file_key, b"", b"header"), header, hashlib.sha256)


def _encode_base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _decode_base64(text: bytes) -> bytes:
    """The bytes of base64 without padding; raises ValueError if it is not the one way to write them."""
    data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    if _encode_base64(data) != text:
        raise binascii.Error
    return data
