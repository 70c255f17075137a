"""What one gateway process allows: which API keys, which origins of web pages, which host names, which proxies."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from asrserver.auth import comma_separated
from asrserver.auth.addresses import HostNames, is_address, parse_networks, unmapped
from asrserver.auth.keys import Key, parse_api_keys, parse_keys_file
from asrserver.errors import Refused
from asrserver.process.watched_file import WatchedFile

#: A key as its user sends it, with its id as the group.
_TEXT = re.compile(r"asr_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")

#: Subprotocols that are a key behind these.
_KEY_PREFIXES = ("bearer.", "openai-insecure-api-key.")

#: Bytes of the file of keys at most: some hundred thousand keys.
MAX_KEYS_FILE = 1 << 26


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
        self._given = {key.id: key for key in parse_api_keys(api_keys)}
        self._keys: dict[str, Key] = {}
        self._origins = frozenset(comma_separated(origins))
        self._proxies = parse_networks(proxies)
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
        found = parse_keys_file(text, self._file.label)
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
        for hop in reversed(comma_separated(headers.get("X-Forwarded-For", headers.get("X-Real-Ip", "")))):
            if not is_address(hop):
                break
            peer = hop
            if not self.trusts(hop):
                break
        return unmapped(peer)

    def trusts(self, peer: str) -> bool:
        """Whether this peer is a trusted proxy."""
        if not self._proxies or not is_address(peer):
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
    for item in comma_separated(protocols or ""):
        prefix = next((one for one in _KEY_PREFIXES if item.startswith(one)), None)
        if prefix is not None:
            keys.append(item.removeprefix(prefix))
        elif rest and not keys and rest[-1].lower() in ("token", "bearer"):
            keys.append(item)
        else:
            rest.append(item)
    shown = authorization or next((f"Bearer {key}" for key in (*keys, token) if key), None)
    return shown, ", ".join(rest) or None
