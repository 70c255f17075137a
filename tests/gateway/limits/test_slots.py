"""What one API key may take of the connections and sessions of a gateway, so that others still find some."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from asrserver.auth.keys import KeyLimits
from asrserver.gateway.gateway import Gateway
from asrserver.shares import leaves_room
from tests.gateway.limits.support import Keyed, connect, error, refusal
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


@contextlib.asynccontextmanager
async def as_many_as_possible(url: str, key: str) -> AsyncIterator[list[WsClient]]:
    """The connections that a key gets before it is refused."""
    async with contextlib.AsyncExitStack() as stack:
        held: list[WsClient] = []
        try:
            while True:
                held.append(await stack.enter_async_context(await connect(url, key)))
        except Exception:
            yield held


@pytest.mark.parametrize("shares", [KeyLimits()])
@pytest.mark.parametrize("given", [{"max_connections": 20}])
async def test_a_key_with_all_the_connections_it_gets_leaves_some(url: str, keyed: Keyed, gateway: Gateway) -> None:
    """It had all 20, and everybody else got 503."""
    async with as_many_as_possible(url, keyed.text) as held:
        assert len(held) == 18
        status, body = await refusal(url, keyed.text)
        assert (status, body["code"]) == (429, "too_many_connections")
        assert "18 connections are of this API key; the 2 that are free" in body["message"]
        async with await connect(url, keyed.free_text) as other, await connect(url, keyed.free_text):
            await other.start("bystander")
            status, body = await refusal(url, keyed.free_text)
            assert (status, body["code"]) == (503, "too_many_connections")
    await until(lambda: not gateway.connections)
    assert not gateway.admission._held


@pytest.mark.parametrize("shares", [KeyLimits()])
@pytest.mark.parametrize("given", [{"max_connections": 20}])
async def test_a_key_that_nobody_shares_with_gets_all(url: str, keyed: Keyed, gateway: Gateway) -> None:
    keyed.file.revoke(keyed.free.id)
    await until(lambda: gateway.access.count == 1)
    async with as_many_as_possible(url, keyed.text) as held:
        assert len(held) == 20


@pytest.mark.parametrize("given", [{"max_connections": 20}])
async def test_without_keys_addresses_are_the_limit(url: str) -> None:
    async with as_many_as_possible(url, "") as held:
        assert len(held) == 20


@pytest.mark.parametrize("shares", [KeyLimits(weight=0.5)])
@pytest.mark.parametrize("given", [{"max_sessions": 10}])
async def test_a_key_with_all_the_sessions_it_gets_leaves_some(url: str, keyed: Keyed) -> None:
    """By its weight; open sessions without audio cost nothing, so nothing else bounds them."""
    async with await connect(url, keyed.text) as greedy, await connect(url, keyed.free_text) as other:
        for number in range(8):
            await greedy.start(f"s{number}")
        await greedy.send({"action": "start", "session_id": "more"})
        refused = await error(greedy, "too_many_sessions")
        assert "8 sessions are of this API key; the 2 that are free" in refused["message"]
        await other.start("bystander")


def test_what_keys_get_one_after_another() -> None:
    """Each what it takes while nobody gives anything back."""
    free, got = 10_000, []
    for _ in range(4):
        held = 0
        while free and leaves_room(held, free, 1.0):
            held, free = held + 1, free - 1
        got.append(held)
    assert got == [8889, 988, 110, 12]
