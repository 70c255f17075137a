"""API keys: their limits, the setting api-keys, and the file of keys.

A key is `asr_<id>_<secret>`. Logs, rows and quotas name the id; the secret is printed once, when the key is created.
Only its SHA-256 is stored: a secret of 256 random bits cannot be guessed however fast guesses are, so the slow, salted
hashes that protect passwords would add nothing here and cost every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from asrserver.auth import comma_separated
from asrserver.errors import SettingError
from asrserver.process.atomic_file import replace_file, update_lock

#: An id, or a name from the setting api-keys: it is logged, stored, and part of Redis keys.
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: Minimum length of a key from the setting api-keys, in characters: what an operator makes up must not be a password.
MIN_KEY_LENGTH = 24

#: The weights that a key may have.
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0

#: The priorities that a key may have: under overload, new sessions of low priority are refused first.
PRIORITIES = ("low", "normal")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of one key over all gateways; 0: unlimited. And its weight and priority beside other keys."""

    connections: int = 0
    sessions: int = 0
    starts_per_minute: int = 0
    audio_per_minute: float = 0.0  # seconds of audio that workers decode per minute
    keep_days: float = 0.0  # after which its sessions are deleted; 0: as the setting keep-days says
    weight: float = 1.0
    priority: str = "normal"


@dataclass(frozen=True, slots=True)
class Key:
    """One API key. An `operator` key sees the sessions of all keys, another key only its own."""

    id: str
    name: str
    sha256: str = field(repr=False)
    created: str = ""
    revoked: str = ""
    operator: bool = False
    limits: KeyLimits = KeyLimits()

    @property
    def scope(self) -> str | None:
        """The owner whose sessions it sees; None: those of all owners."""
        return None if self.operator else self.id


class KeysFile:
    """The file of API keys: JSON, {"keys": [{"id", "name", "sha256", "created", "revoked", "operator", "limits"}]}."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def read(self) -> list[Key]:
        """All keys, revoked ones too.

        Raises:
            SettingError: The file cannot be read or is not valid; names what is wrong.
        """
        try:
            return parse_keys_file(self.path.read_bytes(), f"keys-file: {self.path}")
        except OSError as exc:
            raise SettingError(f"keys-file: {self.path}: {exc.strerror}") from None

    def create(self, name: str, limits: KeyLimits, operator: bool) -> tuple[Key, str]:
        """Add a key.

        Returns:
            The key, and the text that its user sends, which is stored nowhere.
        """
        key_id = secrets.token_hex(6)
        text = f"asr_{key_id}_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        key = Key(key_id, name, digest, _now(), operator=operator, limits=limits)
        with self._changing() as keys:
            keys.append(key)
        return key, text

    def revoke(self, key_id: str) -> Key | None:
        """Revoke a key; it stays listed, so that its sessions keep a name. None if the id is unknown."""
        return self._replace(key_id, lambda key: replace(key, revoked=key.revoked or _now()))

    def limit(self, key_id: str, changes: dict[str, Any]) -> Key | None:
        """Change limits of a key. None if the id is unknown."""
        return self._replace(key_id, lambda key: replace(key, limits=replace(key.limits, **changes)))

    def _replace(self, key_id: str, change: Callable[[Key], Key]) -> Key | None:
        with self._changing() as keys:
            for index, key in enumerate(keys):
                if key.id == key_id:
                    keys[index] = change(key)
                    return keys[index]
        return None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """Yield the keys for modification, then replace the file atomically: no reader sees half of it."""
        with update_lock(self.path) as path:
            keys = self.read() if path.exists() else []
            before = list(keys)
            yield keys
            if keys != before:
                text = orjson.dumps({"keys": [asdict(key) for key in keys]}, option=orjson.OPT_INDENT_2)
                replace_file(path, text + b"\n")


def parse_api_keys(text: str) -> list[Key]:
    """Parse the setting api-keys, NAME:KEY or NAME:KEY:operator each.

    Raises:
        SettingError: An item is not valid. The message never quotes it.
    """
    keys = []
    for number, item in enumerate(comma_separated(text), 1):
        name, secret, role = (*item.split(":", 2), "", "")[:3]
        valid = re.fullmatch(rf"[A-Za-z0-9._~+/=-]{{{MIN_KEY_LENGTH},}}", secret) and role in ("", "operator")
        if not _ID.fullmatch(name) or not valid or item.endswith(":"):
            raise SettingError(
                f"ASRSERVER_API_KEYS: item {number} must be NAME:KEY, or NAME:KEY:operator, with a key of at least "
                f"{MIN_KEY_LENGTH} characters out of A-Z a-z 0-9 . _ ~ + / = -"
            )
        keys.append(Key(name, name, hashlib.sha256(secret.encode()).hexdigest(), operator=role == "operator"))
    return keys


def parse_keys_file(text: str | bytes, label: str) -> list[Key]:
    """Parse the text of a file of keys, revoked ones too.

    Args:
        text: JSON; see KeysFile.
        label: What messages call the file.

    Raises:
        SettingError: It is not valid.
    """
    try:
        found = [_key(entry) for entry in orjson.loads(text)["keys"]]
    except (ValueError, TypeError, KeyError) as exc:
        raise SettingError(f"{label}: not a valid keys file: {exc}") from None
    if len({key.id for key in found}) < len(found):
        raise SettingError(f"{label}: two keys have the same id")
    return found


def _key(entry: dict[str, Any]) -> Key:
    """Parse a key of the file; raises ValueError naming the field."""
    key_id, digest = entry["id"], entry["sha256"]
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise ValueError("an id must be 1 to 64 characters out of A-Z a-z 0-9 . _ -")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"key {key_id}: sha256 must be 64 hexadecimal digits")
    limits = entry.get("limits") or {}
    if limits.get("priority", "normal") not in PRIORITIES:
        raise ValueError(f"key {key_id}: priority must be one of {', '.join(PRIORITIES)}")
    for name, value in limits.items():
        if name == "priority":
            continue
        if name not in KeyLimits.__slots__ or isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"key {key_id}: {name} is not a limit, or its value is not a number")
        if value < 0:
            raise ValueError(f"key {key_id}: {name} must not be negative")
        if name == "weight" and not MIN_WEIGHT <= value <= MAX_WEIGHT:
            raise ValueError(f"key {key_id}: weight must be from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
    return Key(
        key_id,
        str(entry.get("name", "")),
        digest,
        str(entry.get("created") or ""),
        str(entry.get("revoked") or ""),
        entry.get("operator") is True,
        KeyLimits(**limits),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
