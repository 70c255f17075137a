"""Brokers on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
import redis
import tornado.ioloop

from asrserver.broker.connection import BrokerConnection
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from tests.broker.support import Make

Broker = TypeVar("Broker", bound=BrokerConnection)


@pytest.fixture
def db(redis_url: str) -> Iterator[redis.Redis]:
    """A plain Redis client, to look at keys and to disturb."""
    client = redis.Redis.from_url(redis_url, decode_responses=True, protocol=2)
    yield client
    client.close()


@pytest.fixture
def g(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[GatewayBroker]:
    """A gateway's broker."""
    yield from opened(io_loop, GatewayBroker(redis_url, "g"))


@pytest.fixture
def w(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[WorkerBroker]:
    """A worker's broker."""
    yield from opened(io_loop, WorkerBroker(redis_url, "w"))


@pytest.fixture
def v(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[WorkerBroker]:
    """Another worker's broker."""
    yield from opened(io_loop, WorkerBroker(redis_url, "v"))


def opened(io_loop: tornado.ioloop.IOLoop, broker: Broker) -> Iterator[Broker]:
    io_loop.run_sync(broker.open)
    yield broker
    io_loop.run_sync(broker.close)


@pytest.fixture
def make_late(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Make]:
    """Return a function that makes other gateways' brokers inside a test, whose loop already runs."""
    made: list[GatewayBroker] = []

    def maker(name: str) -> GatewayBroker:
        made.append(GatewayBroker(redis_url, name))
        return made[-1]

    yield maker
    for broker in made:
        io_loop.run_sync(broker.close)
