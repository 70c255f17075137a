"""Access control: API keys and their file, allowed origins of web pages, trusted proxies, TLS.

Knows neither Tornado nor Redis. A key is `asr_<id>_<secret>`. Logs, rows and quotas name the id; the secret is printed
once, when the key is created. Only its SHA-256 is stored: a secret of 256 random bits cannot be guessed however fast
guesses are, so the slow, salted hashes that protect passwords would add nothing here and cost every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from asrserver.errors import Refused, SettingError
from asrserver.process.replaced_file import changing, replace_file
from asrserver.process.watched_file import WatchedFile

if TYPE_CHECKING:
    import ssl

#: An id, or a name from the setting api-keys: it is logged, stored, and part of Redis keys.
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: A key as its user sends it, with its id as the group.
_TEXT = re.compile(r"asr_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")

#: Subprotocols that are a key behind these.
_KEY_PREFIXES = ("bearer.", "openai-insecure-api-key.")

#: Minimum length of a key from the setting api-keys, in characters: what an operator makes up must not be a password.
MIN_KEY_LENGTH = 24

#: Bytes of the file of keys at most: some hundred thousand keys.
MAX_KEYS_FILE = 1 << 26

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


class HostNames:
    """The names by which a server that asks for no key may be addressed.

    A page of any name can let that name resolve to this machine (DNS rebinding): for the browser, the server then is of
    the page's own origin. So it must be addressed by what nobody else can own: an IP address, a name without a dot,
    localhost, its own name, or a configured one.

    Args:
        hosts: The setting allowed-hosts.
        origins: The setting allowed-origins: the names in it are this server's too.
    """

    def __init__(self, hosts: str, origins: str) -> None:
        own = (socket.gethostname(), *(_host_name(urlsplit(origin).netloc) for origin in _parts(origins)))
        self._names = frozenset(name.lower().rstrip(".") for name in (*_parts(hosts), *own))

    def allow(self, host: str) -> bool:
        """Whether a Host header may be this."""
        name = _host_name(host).lower().rstrip(".")
        if "." not in name or _is_address(name) or "*" in self._names:
            return True
        return name in self._names or name.endswith(".localhost")


class Access:
    """The access control of one gateway process: keys, allowed origins, trusted proxies.

    Args:
        keys_file: The setting keys-file.
        api_keys: The setting api-keys.
        origins: The setting allowed-origins.
        proxies: The setting trusted-proxies.
        hosts: The setting allowed-hosts.

    Raises:
        SettingError: One of them cannot be used; names which.
    """

    def __init__(
        self, keys_file: str = "", api_keys: str = "", origins: str = "", proxies: str = "", hosts: str = ""
    ) -> None:
        self.enabled = bool(keys_file or api_keys)
        self.on_change: Callable[[], None] = lambda: None
        self._file = WatchedFile("keys-file:", keys_file, MAX_KEYS_FILE, "asrserver keys create creates it")
        self._given = {key.id: key for key in _given(api_keys)}
        self._keys: dict[str, Key] = {}
        self._origins = frozenset(_parts(origins))
        self._proxies = _networks(proxies)
        self._hosts = HostNames(hosts, origins)
        self.reread()

    def authenticate(self, authorization: str | None) -> Key | None:
        """The key of an Authorization header; None where no keys are configured.

        The schemes Bearer and Token, or no scheme: as clients of other servers send it.

        Raises:
            Refused: The key is missing or not valid (401).
        """
        if not self.enabled:
            return None
        text = credential(authorization)
        key = self._find(text) if text else None
        if key is None:
            raise Refused(401, "unauthorized", "a valid API key is required")
        return key

    def key(self, owner: str) -> Key | None:
        """The valid key with this id; None if it is revoked or unknown."""
        return self._keys.get(owner) or self._given.get(owner)

    @property
    def count(self) -> int:
        """The number of valid keys."""
        return len(self._keys) + len(self._given)

    @property
    def keys(self) -> Iterable[Key]:
        """All valid keys."""
        return [*self._keys.values(), *self._given.values()]

    def _find(self, text: str) -> Key | None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        named = _TEXT.fullmatch(text)
        candidates = [self._keys[named[1]]] if named and named[1] in self._keys else self._given.values()
        # In constant time, although only timing of a hash could leak: so that nobody has to wonder.
        return next((key for key in candidates if hmac.compare_digest(key.sha256, digest)), None)

    def reread(self) -> bool:
        """Reload the file if it has changed. Blocks for as long as reading a small file takes.

        Returns:
            Whether it had changed.

        Raises:
            SettingError: The file cannot be used; the keys that were loaded before stay valid.
        """
        if (text := self._file.read_changed()) is None:
            return False
        found = _keys(text, self._file.label)
        self._keys = {key.id: key for key in found if not key.revoked}
        return True

    # -- web pages and proxies -----------------------------------------------------------------------------------

    def allows_host(self, host: str) -> bool:
        """Whether a request may name the server so in its Host header: see HostNames; with keys, a page lacks one."""
        return self.enabled or self._hosts.allow(host)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a web page of `origin` may send requests to `host`: it is the server's own origin, or allowed."""
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return self.allows_pages_of(origin) or (netloc != "" and netloc == host.lower())

    def allows_pages_of(self, origin: str) -> bool:
        """Whether allowed-origins contains this origin."""
        return "*" in self._origins or origin in self._origins

    def address(self, peer: str, headers: Mapping[str, str]) -> str:
        """The client's address: the peer's, or the one that a trusted proxy forwards.

        X-Forwarded-For is read from the right, where the nearest proxy appends; the first address that is not a trusted
        proxy is the client. The client may have written everything before it.
        """
        if not self.trusts(peer):
            return unmapped(peer)
        for hop in reversed(_parts(headers.get("X-Forwarded-For", headers.get("X-Real-Ip", "")))):
            if not _is_address(hop):
                break
            peer = hop
            if not self.trusts(hop):
                break
        return unmapped(peer)

    def trusts(self, peer: str) -> bool:
        """Whether this peer is a trusted proxy."""
        if not self._proxies or not _is_address(peer):
            return False
        address = ipaddress.ip_address(unmapped(peer))
        return any(address in network for network in self._proxies)


def credential(authorization: str | None) -> str:
    """The key that an Authorization header shows, by whichever scheme; empty if none."""
    scheme, _, text = (authorization or "").strip().rpartition(" ")
    return text if scheme.strip().lower() in ("bearer", "token", "") else ""


def bearer(authorization: str | None, protocols: str | None, token: str | None) -> tuple[str | None, str | None]:
    """Make one Authorization header of the three ways to send a key: a browser's WebSocket cannot set headers.

    Args:
        authorization: The Authorization header.
        protocols: The Sec-WebSocket-Protocol header, in which a key is `bearer.<key>`, or comes after `token` or
            `bearer` (Deepgram's clients), or is `openai-insecure-api-key.<key>`.
        token: The query parameter `token`.

    Returns:
        The Authorization header and the remaining subprotocols; None for each that is empty.
    """
    keys: list[str] = []
    rest: list[str] = []
    for item in _parts(protocols or ""):
        prefix = next((one for one in _KEY_PREFIXES if item.startswith(one)), None)
        if prefix is not None:
            keys.append(item.removeprefix(prefix))
        elif rest and not keys and rest[-1].lower() in ("token", "bearer"):
            keys.append(item)
        else:
            rest.append(item)
    shown = authorization or next((f"Bearer {key}" for key in (*keys, token) if key), None)
    return shown, ", ".join(rest) or None


def unmapped(address: str) -> str:
    """An address without the IPv4-mapped IPv6 form in which a dual-stack socket reports IPv4 (RFC 4291, 2.5.5.2)."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def address_block(address: str) -> str:
    """The block that counts as one client: the address of IPv4, the /64 of IPv6, which every customer gets at least."""
    if ":" not in address or not _is_address(address):
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether a socket bound to this address can be reached only from this machine."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return host != "" and all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def tls_context(certificate: str, key: str = "") -> ssl.SSLContext:
    """A server's TLS context (TLS 1.2 or later).

    Raises:
        SettingError: A file cannot be read or used; names the setting.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("tls-cert", certificate), ("tls-key", key)):
        if path and not os.access(path, os.R_OK):
            raise SettingError(f"{name}: {path} cannot be read")
    try:
        # An empty password, so that OpenSSL never asks for one at the terminal.
        context.load_cert_chain(certificate, key or None, password=lambda: "")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or "not a matching certificate and key in PEM"
        raise SettingError(f"tls-cert: {certificate}: {reason}") from None
    return context


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """A Host header, or the authority of a URL, without user, port and brackets."""
    name = host.rpartition("@")[2].strip()
    literal = re.fullmatch(r"\[([^\]]*)\](:\d*)?", name)
    return literal[1] if literal else re.sub(r":\d*$", "", name)


def _parts(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(item, strict=False) for item in _parts(text)]
    except ValueError as exc:
        raise SettingError(f"trusted-proxies: {exc}") from None


def _given(text: str) -> list[Key]:
    """The keys of the setting api-keys, NAME:KEY or NAME:KEY:operator each. Errors never quote a key."""
    keys = []
    for number, item in enumerate(_parts(text), 1):
        name, secret, role = (*item.split(":", 2), "", "")[:3]
        valid = re.fullmatch(rf"[A-Za-z0-9._~+/=-]{{{MIN_KEY_LENGTH},}}", secret) and role in ("", "operator")
        if not _ID.fullmatch(name) or not valid or item.endswith(":"):
            raise SettingError(
                f"ASRSERVER_API_KEYS: item {number} must be NAME:KEY, or NAME:KEY:operator, with a key of at least "
                f"{MIN_KEY_LENGTH} characters out of A-Z a-z 0-9 . _ ~ + / = -"
            )
        keys.append(Key(name, name, hashlib.sha256(secret.encode()).hexdigest(), operator=role == "operator"))
    return keys


# -- the keys file --------------------------------------------------------------------------------------------------


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
            return _keys(self.path.read_bytes(), f"keys-file: {self.path}")
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
        with changing(self.path) as path:
            keys = self.read() if path.exists() else []
            before = list(keys)
            yield keys
            if keys != before:
                text = orjson.dumps({"keys": [asdict(key) for key in keys]}, option=orjson.OPT_INDENT_2)
                replace_file(path, text + b"\n")


def _keys(text: str | bytes, label: str) -> list[Key]:
    """Parse a file of keys; raises SettingError."""
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
