"""Keys of the operator's, in files as age-keygen makes them: age's X25519 identities."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from asrserver.errors import SettingError
from asrserver.process.atomic_file import replace_file, update_lock
from asrserver.process.watched_file import WatchedFile

#: Bytes of a file of keys at most.
MAX_FILE = 1 << 16

_SECRET, _PUBLIC = "age-secret-key-", "age"
_KEY_BYTES = 32


@dataclass(frozen=True)
class KeyPair:
    """A key of the operator's: age's X25519 identity.

    Attributes:
        public: The public half as text, age1…, by which headers and messages name the key.
    """

    public: str
    private: X25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, private: X25519PrivateKey) -> KeyPair:
        """The pair that belongs to a private key."""
        return cls(_encode_bech32(_PUBLIC, private.public_key().public_bytes_raw()), private)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new key, of 256 random bits."""
        return cls.of(X25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> KeyPair:
        """Read the text of a secret key, AGE-SECRET-KEY-1…; raises ValueError."""
        secret = _decode_bech32(_SECRET, text)
        if len(secret) != _KEY_BYTES:
            raise ValueError("it has not 32 bytes")
        return cls.of(X25519PrivateKey.from_private_bytes(secret))

    @property
    def secret(self) -> str:
        """The text of the secret key."""
        return _encode_bech32(_SECRET, self.private.private_bytes_raw()).upper()


class Keyring:
    """The keys of a file: a line for each, the newest first; empty lines and those that begin with # are skipped.

    Args:
        path: The file; empty: there is none, and no keys.
        flag: The setting that names it, for messages.

    Raises:
        SettingError: It cannot be used.
    """

    def __init__(self, path: str, flag: str = "--save-audio-keys") -> None:
        self._file = WatchedFile(flag, path, MAX_FILE)
        self._keys: dict[str, KeyPair] = {}
        self.reread()

    def reread(self) -> bool:
        """Load the file again if it has changed; returns whether it had. Blocks.

        Raises:
            SettingError: It cannot be used; the keys that were loaded before stay.
        """
        if (text := self._file.read_changed()) is None:
            return False
        keys = _parse(text, self._file.label)
        if not keys:
            raise SettingError(f"{self._file.label} has no key: asrserver recordings new-key adds one")
        self._keys = keys
        return True

    @property
    def first(self) -> KeyPair | None:
        """The key for what is written from now on; None if there are none."""
        return next(iter(self._keys.values()), None)

    @property
    def public(self) -> list[str]:
        """The public halves of all keys, the first one first."""
        return list(self._keys)

    def find(self, public: str) -> KeyPair | None:
        """The key with this public half, if it is there."""
        return self._keys.get(public)


def add_key(path: str, flag: str = "--save-audio-keys") -> KeyPair:
    """Put a new key before those of a file, which is made if it is missing, readable by its owner only.

    Returns:
        The key.

    Raises:
        SettingError: The file holds what is no key.
        OSError: It cannot be written.
    """
    key = KeyPair.generate()
    added = f"# created: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n# public key: {key.public}\n{key.secret}\n"
    with update_lock(Path(path)) as real:
        file = WatchedFile(flag, path if real.exists() else "", MAX_FILE)
        text = file.read_changed() or ""
        if not _parse(text, file.label) and real.exists():
            real.chmod(real.stat().st_mode & 0o770)  # it was no secret before
        replace_file(real, (f"{added}\n{text}" if text else added).encode())
    return key


def _parse(text: str, label: str) -> dict[str, KeyPair]:
    """The keys of a file by their public halves; raises SettingError for a line that is none."""
    keys: dict[str, KeyPair] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        try:
            key = KeyPair.parse(line)
        except ValueError:  # without the line: it is a secret
            raise SettingError(f"{label}: line {number} is no key of the kind AGE-SECRET-KEY-1…") from None
        keys.setdefault(key.public, key)
    return keys


# -- text ------------------------------------------------------------------------------------------------------------

_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def _encode_bech32(prefix: str, data: bytes) -> str:
    """Bytes as text with a checksum (BIP 173)."""
    number = int.from_bytes(data) << (-len(data) * 8 % 5)
    count = -(-len(data) * 8 // 5)
    values = [number >> 5 * at & 31 for at in reversed(range(count))]
    check = _bech32_checksum(prefix, [*values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [check >> 5 * at & 31 for at in reversed(range(6))]
    return f"{prefix}1" + "".join(_BECH32[value] for value in values)


def _decode_bech32(prefix: str, text: str) -> bytes:
    """The bytes of such a text, in lower or upper case; raises ValueError."""
    if text not in (text.lower(), text.upper()) or not text.isascii():
        raise ValueError("it is neither in lower nor in upper case")
    found, _, encoded = text.lower().rpartition("1")
    values = [_BECH32.index(character) for character in encoded]
    if found != prefix or len(values) < 6 or _bech32_checksum(prefix, values) != 1:
        raise ValueError("a character is wrong")
    number, bits = 0, 5 * (len(values) - 6)
    for value in values[:-6]:
        number = number << 5 | value
    if number & ((1 << bits % 8) - 1) or bits % 8 > 4:
        raise ValueError("it is too long")
    return (number >> bits % 8).to_bytes(bits // 8)


def _bech32_checksum(prefix: str, values: list[int]) -> int:
    expanded = [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values]
    check = 1
    for value in expanded:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for at, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> at & 1 else 0
    return check
