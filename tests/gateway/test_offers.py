"""offers.py: which models sessions may name, and which model they will get, from the heartbeats of real brokers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import tornado.ioloop

from asrserver.broker import keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import BadRequest
from asrserver.gateway.offers import OFFERED_FOR, Offers
from asrserver.protocol.options import Options

LANGUAGES = {"base": ["de", "en", "zh"], "tiny.en": ["en"]}


class Fleet:
    """Workers that send heartbeats, and what a gateway knows of them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._gateway = GatewayBroker(url, "g")
        self._brokers: list[WorkerBroker] = []
        self.offers = Offers(self._gateway.status)

    async def worker(self, name: str, *models: str, **state: Any) -> WorkerBroker:
        broker = WorkerBroker(self._url, name, models)
        self._brokers.append(broker)
        await broker.open()
        described = [
            {
                "name": model,
                "loaded": not number,
                "compute_type": None if number else "int8_float32",
                "size_bytes": 7,
                "languages": LANGUAGES[model],
                "sessions": 2,
            }
            for number, model in enumerate(models)
        ]
        first = {"model": models[0], "languages": LANGUAGES[models[0]]} if models else {}
        broker.heartbeat({"models": described, **first, **state})
        await broker.pipeline.drain()
        return broker

    async def close(self) -> None:
        for broker in (*self._brokers, self._gateway):
            await broker.close()


@pytest.fixture
def fleet(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Fleet]:
    made = Fleet(redis_url)
    yield made
    io_loop.run_sync(made.close)


async def refused(offers: Offers, **options: Any) -> BadRequest:
    with pytest.raises(BadRequest) as error:
        await offers.check(Options(**options))
    return error.value


@pytest.mark.gen_test
async def test_a_session_may_name_what_a_living_worker_offers(fleet: Fleet) -> None:
    """What a worker has begun to offer is found at once; a language must be one of the model's."""
    error = await refused(fleet.offers, model="base")
    assert (error.code, error.message) == ("unknown_model", "no worker offers the model 'base' (offered: none)")
    await fleet.worker("w", "base", "tiny.en")
    for options in (
        Options(),
        Options(model="base"),
        Options(model="tiny.en", language="en"),
        Options(language="de"),
    ):
        await fleet.offers.check(options)
    error = await refused(fleet.offers, model="large")
    assert error.message == "no worker offers the model 'large' (offered: base, tiny.en)"
    assert error.details == {"option": "model"}
    for unknown in ({"model": "tiny.en", "language": "de"}, {"language": "fr"}):
        error = await refused(fleet.offers, **unknown)
        assert (error.code, error.details) == ("bad_option", {"option": "language"})


@pytest.mark.gen_test
async def test_the_model_of_a_session_is_known_where_all_workers_agree(fleet: Fleet) -> None:
    """A worker of the last release says its model, and offers none by name."""
    assert fleet.offers.expected(Options()) is None
    await fleet.worker("old", model="base", languages=LANGUAGES["base"])
    await fleet.worker("new", "base", "tiny.en")
    await fleet.offers.refresh()
    assert fleet.offers.expected(Options()) == "base"
    assert fleet.offers.expected(Options(model="tiny.en")) == "tiny.en"
    assert fleet.offers.models["base"] == {
        "name": "base",
        "workers": 1,
        "loaded": 1,
        "default": 1,
        "compute_types": ["int8_float32"],
        "size_bytes": 7,
        "languages": LANGUAGES["base"],
        "sessions": 2,
    }
    assert (fleet.offers.models["tiny.en"]["loaded"], fleet.offers.models["tiny.en"]["compute_types"]) == (0, [])
    await fleet.worker("other", "tiny.en")
    await fleet.offers.refresh()
    assert fleet.offers.expected(Options()) is None
    assert fleet.offers.models["tiny.en"]["workers"] == 2


@pytest.mark.gen_test
async def test_a_model_whose_workers_are_away_is_waited_for(fleet: Fleet, redis_url: str) -> None:
    """For OFFERED_FOR; a language cannot be checked meanwhile."""
    worker = await fleet.worker("w", "tiny.en")
    await worker.deregister()
    await fleet.offers.check(Options(model="tiny.en", language="en"))
    assert fleet.offers.models == {}
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(keys.OFFERED, {"tiny.en": time.time() - OFFERED_FOR - 1})
    await fleet.offers.refresh()
    assert (await refused(fleet.offers, model="tiny.en")).code == "unknown_model"
