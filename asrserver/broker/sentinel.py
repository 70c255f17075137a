"""How to connect to what an address in REDIS_URL names: a Redis, or the primary that Redis Sentinel knows.

    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]…/NAME[/DATABASE][?OPTION=VALUE&…]

HOST is a sentinel, NAME the name by which the sentinels know the primary; with rediss+sentinel all connections use TLS.
The sentinels are asked before each connection. redis-py's own Sentinel client believes the first answer, even that of a
sentinel which was cut off and does not know of the failover yet.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from asrserver.broker.addresses import SENTINEL, label
from asrserver.errors import SettingError

#: The port of a sentinel that names none.
SENTINEL_PORT = 26379

#: Seconds that a sentinel may take to connect, and to answer.
SENTINEL_TIMEOUT = 1.0

#: Seconds that all sentinels together may take to answer: less than any wait for a connection. And seconds that the
#: others are waited for when most have answered.
ROUND_SECONDS = 1.0
STRAGGLER_SECONDS = 0.1


@dataclass(frozen=True)
class Sentinels:
    """Where to ask for a primary.

    Attributes:
        name: The name of the primary.
        places: The sentinels' hosts and ports.
        options: What connections to them need: password, TLS.
    """

    name: str
    places: tuple[tuple[str, int], ...]
    options: Mapping[str, Any]

    def primary(self) -> tuple[str, int]:
        """Return the address of the primary: that of the last failover of which any sentinel knows. It blocks.

        Raises:
            redis.ConnectionError: No sentinel says where it is.
        """
        heard: SimpleQueue[tuple[int, tuple[str, int]] | Exception] = SimpleQueue()
        for place in self.places:  # a thread each, which may end later: a name may take long to resolve
            Thread(target=lambda place=place: heard.put(self._ask(place)), name="sentinel", daemon=True).start()
        known: list[tuple[int, tuple[str, int]]] = []
        errors: list[Exception] = []
        deadline = time.monotonic() + ROUND_SECONDS
        while len(known) + len(errors) < len(self.places):
            try:
                answer = heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                errors.append(TimeoutError(f"no answer within {ROUND_SECONDS:g} s"))
                break
            if isinstance(answer, Exception):
                errors.append(answer)
            else:
                known.append(answer)
                if 2 * len(known) > len(self.places):
                    deadline = min(deadline, time.monotonic() + STRAGGLER_SECONDS)
        if known:
            return max(known)[1]
        error = max(errors, key=lambda each: isinstance(each, redis.ResponseError) or is_refusal(each))
        raise redis.ConnectionError(f"no sentinel says where {self.name} is: {error}") from error

    def _ask(self, place: tuple[str, int]) -> tuple[int, tuple[str, int]] | Exception:
        """What one sentinel says: the number of the last failover, and the address. Or why it says nothing."""
        options: dict[str, Any] = {
            "protocol": 2,
            "decode_responses": True,
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
            **self.options,
        }
        try:
            with redis.Redis(*place, **options) as client:
                # In this order: a failover between the two makes the answer look old, not one that is old look new.
                epoch = int(client.sentinel_master(self.name)["config-epoch"])
                address: Any = client.sentinel_get_master_addr_by_name(self.name)
            return epoch, (str(address[0]), int(address[1]))
        except (redis.RedisError, OSError) as exc:
            return exc


def is_refusal(error: BaseException) -> bool:
    """Whether an operator has to act: the password is wrong or missing, TLS fails, sentinels do not know the primary.

    redis-py and `Sentinels.primary` wrap all of these.
    """
    links = (error, error.__context__, error.__cause__)
    refused = any(isinstance(link, redis.AuthenticationError | ssl.SSLError) for link in links)
    return refused or isinstance(error.__cause__, redis.ResponseError)


class _Primary(redis.connection.Connection):
    """A blocking connection to the primary."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._sentinels = sentinels

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect if it is not connected: what all ways of redis-py 8.1 to do so come to."""
        if not self.is_connected:
            self.host, self.port = self._sentinels.primary()
        super().connect_check_health(check_health, retry_socket_connect)


class _PrimaryTLS(_Primary, redis.connection.SSLConnection):
    """The same with TLS."""


class _AsyncPrimary(redis.asyncio.connection.Connection):
    """A connection of the event loop to the primary."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect if it is not connected: what all ways of redis-py 8.1 to do so come to."""
        if not self.is_connected:
            self.host, self.port = await asyncio.to_thread(self._sentinels.primary)
        await super().connect_check_health(check_health, retry_socket_connect)


class _AsyncPrimaryTLS(_AsyncPrimary, redis.asyncio.connection.SSLConnection):
    """The same with TLS."""


def asyncio_client(url: str, **defaults: Any) -> redis.asyncio.Redis:
    """Create a client of the event loop.

    Args:
        url: The URL.
        defaults: Options of connections and of their pool, where the URL says nothing else.

    Raises:
        SettingError: The URL cannot be used.
    """
    with _errors(url):
        options = _options(url, redis.asyncio.connection.parse_url, _AsyncPrimary, _AsyncPrimaryTLS)
        pool = redis.asyncio.BlockingConnectionPool(**(defaults | options))
        pool.make_connection()  # raises for options that do not exist
    return redis.asyncio.Redis.from_pool(pool)


def blocking_client(url: str, **defaults: Any) -> redis.Redis:
    """Create a client whose commands block; otherwise as `asyncio_client`."""
    with _errors(url):
        options = _options(url, redis.connection.parse_url, _Primary, _PrimaryTLS)
        pool = redis.ConnectionPool(**(defaults | options))
        pool.make_connection()
    return redis.Redis.from_pool(pool)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Raise SettingError for a URL that redis-py refuses."""
    try:
        yield
    except TypeError as exc:  # "… got an unexpected keyword argument 'x'"
        reason = f"there is no option {str(exc).rpartition(' ')[2]}"
    except (ValueError, redis.RedisError) as exc:
        reason = str(exc)
    else:
        return
    raise SettingError(f"REDIS_URL, {label(url)}: {reason}") from None


def _options(url: str, parse: Any, primary: Any, primary_tls: Any) -> dict[str, Any]:
    """What a pool needs to connect to a URL; raises ValueError if it is none."""
    parts = urlsplit(url)
    if not parts.scheme.endswith(SENTINEL):
        return dict(parse(url))
    login, _, hosts = parts.netloc.rpartition("@")
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise ValueError(f"it names no primary: {parts.scheme}://HOST:{SENTINEL_PORT}/NAME, as its sentinels call it")
    # The rest is as in the URL of a Redis.
    plain = parts._replace(scheme=parts.scheme.removesuffix(SENTINEL), netloc=f"{login}@", path=f"/{database}")
    found: dict[str, Any] = dict(parse(urlunsplit(plain)))
    tls = plain.scheme == "rediss"
    asking = {key: value for key, value in found.items() if key.startswith("ssl_")} | {"ssl": tls}
    for word in ("username", "password"):
        if f"sentinel_{word}" in found:
            asking[word] = found.pop(f"sentinel_{word}")
    found["sentinels"] = Sentinels(name, tuple(map(_place, hosts.split(","))), asking)
    found["connection_class"] = primary_tls if tls else primary
    return found


def _place(text: str) -> tuple[str, int]:
    """The host and port of a sentinel."""
    parts = urlsplit(f"//{text.strip()}")
    if not parts.hostname:
        raise ValueError("a sentinel has no host")
    return parts.hostname, parts.port or SENTINEL_PORT
