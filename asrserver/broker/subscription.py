"""Listens to a Pub/Sub channel forever: a silent connection is tested with PING, and a lost one replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import hiredis
import redis
import redis.asyncio

from asrserver.broker.pipeline import CONNECTION_ERRORS
from asrserver.broker.raw_connection import RawConnection, cannot_serve

log = logging.getLogger("asrserver.broker")

#: Seconds without a message after which a PING is sent, and in which it must be answered.
SILENCE_SECONDS = 15.0


class Subscription(RawConnection):
    """A connection that is subscribed to a channel. redis-py sets a timeout for each message, which costs 15 µs."""

    def __init__(self, connection: Any, client: redis.asyncio.Redis) -> None:
        super().__init__(connection, client)
        self._heard = False
        self._error: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._on_message: Callable[[bytes], None]
        self._on_subscribed: Callable[[], None]

    async def hear(self, channel: str, on_message: Callable[[bytes], None], on_subscribed: Callable[[], None]) -> None:
        """Listen until the connection is lost; raises redis.RedisError or OSError then."""
        self._on_message, self._on_subscribed = on_message, on_subscribed
        self._send("SUBSCRIBE", channel)
        asked = False
        while not self._error.done():
            self._heard = False
            await asyncio.wait([self._error], timeout=SILENCE_SECONDS)
            if self._heard or self._error.done():
                asked = False
                continue
            if asked:
                raise redis.ConnectionError("no answer to a ping")
            self._send("PING")
            asked = True
        raise self._error.result()

    def _send(self, *command: Any) -> None:
        self._transport.write(hiredis.pack_command(command))

    def received(self, replies: list[Any]) -> None:
        self._heard = True
        for reply in replies:
            if isinstance(reply, Exception):
                self._fail(redis.ConnectionError(str(reply)) if cannot_serve(reply) else reply)
                return
            if reply[0] == b"subscribe":
                self._on_subscribed()
            elif reply[0] == b"message":
                try:
                    self._on_message(reply[2])
                except Exception:  # anybody may publish; durable events are read again
                    log.exception("a published message could not be handled")

    def ended(self, error: Exception) -> None:
        if not self._error.done():
            self._error.set_result(error)


async def listen(
    client: redis.asyncio.Redis,
    channel: str,
    on_message: Callable[[bytes], None],
    on_subscribed: Callable[[], None],
) -> None:
    """Call `on_message` with every message of the channel, and `on_subscribed` after each (re)subscription."""
    delay = 0.05

    def subscribed() -> None:
        nonlocal delay
        delay = 0.05
        on_subscribed()

    while True:
        try:
            subscription = await Subscription.connect(client)
            try:
                await subscription.hear(channel, on_message, subscribed)
            finally:
                await subscription.close()
        except CONNECTION_ERRORS as exc:
            log.warning("Pub/Sub connection lost (%s): subscribing again", exc or type(exc).__name__)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)
