"""Brokers on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
import tornado.ioloop

from asrserver.broker.broker import Broker
from tests.broker.support import Make


@pytest.fixture
def db(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client, to look and to disturb."""
    client = redis.Redis.from_url(redis_url, decode_responses=True, protocol=2)
    yield client
    client.close()


@pytest.fixture
def make(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Make]:
    """make("name"): a broker that is open."""
    made: list[Broker] = []

    def maker(name: str) -> Broker:
        async def opened() -> Broker:
            broker = Broker(redis_url, name)
            await broker.open()
            return broker

        made.append(io_loop.run_sync(opened))
        return made[-1]

    yield maker
    for broker in made:
        io_loop.run_sync(broker.close)


@pytest.fixture
def g(make: Make) -> Broker:
    """A gateway's."""
    return make("g")


@pytest.fixture
def w(make: Make) -> Broker:
    """A worker's."""
    return make("w")


@pytest.fixture
def v(make: Make) -> Broker:
    """Another worker's."""
    return make("v")


@pytest.fixture
def make_late(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Make]:
    """Brokers made inside a test, whose loop already runs."""
    made: list[Broker] = []

    def maker(name: str) -> Broker:
        made.append(Broker(redis_url, name))
        return made[-1]

    yield maker
    for broker in made:
        io_loop.run_sync(broker.close)
