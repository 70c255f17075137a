"""The header of a file: its random key, wrapped by the operator's, what the file is, and whose."""

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


def begin(key: KeyPair, kind: str, name: str, context: bytes = b"payload") -> tuple[bytes, Blocks]:
    """Make the beginning of a file.

    Args:
        key: The operator's key.
        kind: What the file is, such as recording.
        name: Whose it is. Neither may have spaces.
        context: What else its blocks belong to; that of age's own payload by default.

    Returns:
        The bytes that the file begins with, and its blocks.
    """
    file_key, salt = os.urandom(_FILE_KEY_BYTES), os.urandom(_SALT_BYTES)
    once = X25519PrivateKey.generate()
    recipient = key.private.public_key()
    share = once.public_key().public_bytes_raw()
    wrapped = _wrapping(once, recipient, share, recipient).encrypt(bytes(12), file_key, None)
    header = MAGIC + b"-> X25519 %b\n%b\n" % (_base64(share), _base64(wrapped))
    header += f"-> asrserver/{kind} {key.public} {name}\n\n---".encode()
    whole = header + b" %b\n" % _base64(_mac(file_key, header)) + salt
    return whole, Blocks(_derived(file_key, salt, context))


def unlock(file: BinaryIO, keys: Keyring, kind: str, name: str, context: bytes = b"payload") -> Blocks:
    """Read the beginning of a file, from where it stands, which is then at its first block. See `begin`.

    Returns:
        Its blocks.

    Raises:
        MissingKey: There is no key for it.
        DecryptionError: It is something else, or it was changed.
    """
    header = _Header.read(file)
    public = header.needs(kind, name)
    key = keys.find(public)
    if key is None:
        raise MissingKey(f"it needs the key {public}, which the file of --save-audio-keys does not have")
    file_key = header.file_key(key)
    salt = file.read(_SALT_BYTES)
    if len(salt) < _SALT_BYTES:
        raise DecryptionError("it is cut off in its header")
    return Blocks(_derived(file_key, salt, context))


def key_of(file: BinaryIO) -> str:
    """The public half of the key that a file needs; raises DecryptionError if it is not of this program."""
    return _Header.read(file).stanza()[1]


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
            stanzas.append((words, _bytes_of_base64(body)))
        if not line.startswith(b"--- "):
            raise ValueError
        return cls(stanzas, signed + b"---", _bytes_of_base64(line[4:-1]))

    def stanza(self) -> list[str]:
        """The first line of this program's stanza: kind, key, name."""
        for words, _ in self.stanzas:
            if words[0].startswith("asrserver/") and len(words) == 3 and _PUBLIC_KEY.fullmatch(words[1]):
                return words
        raise DecryptionError("this program did not encrypt it")

    def needs(self, kind: str, name: str) -> str:
        """The public half of the key that it needs; raises DecryptionError if it is another file."""
        found, public, whose = self.stanza()
        if (found, whose) != (f"asrserver/{kind}", name):
            raise DecryptionError("it belongs to another session")
        return public

    def file_key(self, key: KeyPair) -> bytes:
        """Unwrap the key of the file, and check the header with it; raises DecryptionError."""
        for words, body in self.stanzas:
            if words[0] != "X25519" or len(words) != 2 or len(body) != _FILE_KEY_BYTES + TAG:
                continue
            try:
                share = _bytes_of_base64(words[1].encode())
                other = X25519PublicKey.from_public_bytes(share)
                wrapping = _wrapping(key.private, other, share, key.private.public_key())
                file_key = wrapping.decrypt(bytes(12), body, None)
            except (ValueError, InvalidTag):
                continue
            if hmac.compare_digest(self.mac, _mac(file_key, self.signed)):
                return file_key
        raise DecryptionError("its header was changed")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a header; ValueError where one does not end."""
    left = MAX_HEADER
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        if not line.endswith(b"\n"):
            break
        yield line
    raise ValueError


def _wrapping(
    private: X25519PrivateKey, other: X25519PublicKey, share: bytes, recipient: X25519PublicKey
) -> ChaCha20Poly1305:
    """What wraps the key of one file, for the operator's key; raises ValueError if `other` is no usable share."""
    salt = share + recipient.public_bytes_raw()
    return ChaCha20Poly1305(_derived(private.exchange(other), salt, b"age-encryption.org/v1/X25519"))


def _derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt, info).derive(secret)


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), header, hashlib.sha256)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _bytes_of_base64(text: bytes) -> bytes:
    """The bytes of base64 without padding; raises ValueError if it is not the one way to write them."""
    data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    if _base64(data) != text:
        raise binascii.Error
    return data
