"""Listens to a Pub/Sub channel forever: a silent connection is tested, and a lost one is made again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import redis
import redis.asyncio

from asrserver.broker.pipeline import CONNECTION_ERRORS

log = logging.getLogger("asrserver.broker")

#: Seconds without a message after which Redis is asked whether it is still there.
SILENCE_SECONDS = 15.0


async def listen(
    client: redis.asyncio.Redis,
    channel: str,
    on_message: Callable[[bytes], None],
    on_subscribed: Callable[[], None],
) -> None:
    """Call `on_message` with every message of the channel, and `on_subscribed` after each (re)subscription."""
    delay = 0.05
    while True:
        pubsub = client.pubsub()
        asked = False
        try:
            await pubsub.subscribe(channel)
            while True:
                message = await pubsub.get_message(timeout=SILENCE_SECONDS)
                if message is None:
                    if asked:
                        raise redis.ConnectionError("no answer to a ping")
                    await pubsub.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] == "subscribe":
                    delay = 0.05
                    on_subscribed()
                elif message["type"] == "message":
                    try:
                        on_message(message["data"])
                    except Exception:  # anybody may publish; durable events are read again
                        log.exception("a published message could not be handled")
        except CONNECTION_ERRORS as exc:
            log.warning("Pub/Sub connection lost (%s): subscribing again", exc or type(exc).__name__)
        finally:
            await pubsub.aclose()
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)
