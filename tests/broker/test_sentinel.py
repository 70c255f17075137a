"""REDIS_URL names sentinels: connections go to the primary that these have chosen, also after a failover."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from asrserver.broker import keys, sentinel
from asrserver.broker.addresses import addresses, label
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.requirements import inspect
from asrserver.broker.sentinel import Sentinels, asyncio_client, blocking_client, is_refusal
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import SettingError, Unavailable
from tests.broker.support import append, event, ids, opened, taken
from tests.sentinels import Watched, watched
from tests.waiting import until


@pytest.fixture(scope="module")
def failing_over(real_servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched")) as made:
        yield made


def test_what_a_url_names() -> None:
    url = "rediss+sentinel://me:a%2Cb@s1:1,s2,[::3]:3/main/4?ssl_ca_certs=/ca.pem&sentinel_password=x"
    for options in (
        asyncio_client(url).connection_pool.connection_kwargs,
        blocking_client(url).connection_pool.connection_kwargs,
    ):
        asked = options["sentinels"]
        assert (asked.name, asked.places) == ("main", (("s1", 1), ("s2", 26379), ("::3", 3)))
        assert asked.options == {"password": "x", "ssl": True, "ssl_ca_certs": "/ca.pem"}
        assert (options["username"], options["password"], options["db"]) == ("me", "a,b", 4)
        assert options["ssl_ca_certs"] == "/ca.pem"
    plain = blocking_client("redis+sentinel://s1/main").connection_pool.connection_kwargs
    assert plain["sentinels"].options == {"ssl": False}
    assert "password" not in plain


def test_addresses_with_sentinels() -> None:
    """The commas between sentinels separate no shards."""
    several = "redis+sentinel://:p@a:1,b:2/one,rediss+sentinel://a:1,b:2/two/0, redis://c:3"
    assert addresses(several) == ["redis+sentinel://:p@a:1,b:2/one", "rediss+sentinel://a:1,b:2/two/0", "redis://c:3"]
    assert [label(url) for url in addresses(several)] == ["a:1,b:2/one", "a:1,b:2/two", "c:3"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis+sentinel://:s3cret@s1,s2", "s1,s2: it names no primary: redis\\+sentinel://HOST:26379/NAME"),
        ("redis+sentinel://:s3cret@,s2/main", "a sentinel has no host"),
        ("redis+sentinel://:s3cret@s1:x/main", "'x'"),
        ("redis://:s3cret@h:x/0", "'x'"),
        ("redis://:s3cret@h/0?db=x", "Invalid value for 'db'"),
        ("redis://:s3cret@h/0?nonsense=1", "there is no option 'nonsense'"),
        ("rediss://:s3cret@h/0?ssl_cert_reqs=nonsense", "Invalid SSL Certificate Requirements Flag: nonsense"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_password(url: str, told: str) -> None:
    for make in (asyncio_client, blocking_client):
        with pytest.raises(SettingError, match=f"^REDIS_URL, .*{told}") as refused:
            make(url)
        assert "s3cret" not in str(refused.value)


def test_the_last_failover_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentinel that was cut off does not know of it, and names the primary before it; one does not answer."""
    answers: list[Any] = [(1, ("old", 6379)), redis.ConnectionError("cut off"), (2, ("new", 6379)), (1, ("old", 6379))]
    monkeypatch.setattr(Sentinels, "_ask", lambda self, place: answers[place[1]])
    places = tuple(("s", number) for number in range(4))
    assert Sentinels("main", places, {}).primary() == ("new", 6379)
    with pytest.raises(redis.ConnectionError, match="no sentinel says where main is: cut off"):
        Sentinels("main", places[1:2], {}).primary()


def test_a_sentinel_that_hangs_delays_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def asked(self: Sentinels, place: tuple[str, int]) -> Any:
        if place[1] == 0:
            assert over.wait(60)
        return place[1], ("new", 6379)

    monkeypatch.setattr(Sentinels, "_ask", asked)
    monkeypatch.setattr(sentinel, "ROUND_SECONDS", 60.0)
    try:
        assert Sentinels("main", (("s", 0), ("s", 1), ("s", 2)), {}).primary() == ("new", 6379)
        assert not over.is_set()
        monkeypatch.setattr(sentinel, "ROUND_SECONDS", 0.05)
        with pytest.raises(redis.ConnectionError, match=r"no answer within 0\.05 s"):
            Sentinels("main", (("s", 0),), {}).primary()
    finally:
        over.set()


def test_what_an_operator_can_change_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [redis.ConnectionError("refused"), redis.AuthenticationError("wrong password")]
    monkeypatch.setattr(Sentinels, "_ask", lambda self, place: answers[place[1]])
    with pytest.raises(redis.ConnectionError, match="wrong password") as told:
        Sentinels("main", (("s", 0), ("s", 1)), {}).primary()
    assert is_refusal(told.value)


@pytest.mark.gen_test(timeout=20)
async def test_sentinels_that_do_not_know_the_name_or_refuse_are_told_at_once(
    failing_over: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = failing_over.url.replace("/asr?", "/nonsense?"), failing_over.url.replace("of-sentinels", "wrong")
    for url, told in zip(wrong, ("No such master", "invalid username-password"), strict=True):
        broker = GatewayBroker(url, "g")
        opening = asyncio.ensure_future(broker.open())
        await until(lambda told=told: told in caplog.text)
        assert "Redis cannot be used with this REDIS_URL: no sentinel says where" in caplog.text
        opening.cancel()
        broker.pipeline._task.cancel()  # type: ignore[union-attr]
        await broker._client.aclose()
        with pytest.raises(Unavailable, match=told):
            await inspect(url)
        caplog.clear()


@pytest.mark.gen_test(timeout=60)
async def test_all_connections_go_to_the_new_primary(failing_over: Watched) -> None:
    """Nothing that was acknowledged is missing there, and what was on its way arrives once."""
    url = failing_over.url
    g, w, renewer = GatewayBroker(url, "g"), WorkerBroker(url, "w"), LeaseRenewer(url, "w")
    heard: list[Any] = []
    listening = asyncio.ensure_future(g.subscribe(heard.append, lambda: heard.append("subscribed")))
    try:
        await g.open()
        await w.open()
        assert await opened(g)
        assert await append(g, 0) is None
        claim = await taken(w)
        assert renewer.renew([claim.task]) == {claim.task}
        await until(lambda: heard == ["subscribed"])
        with failing_over.client(1) as replica:
            await until(lambda: replica.xlen(keys.audio_key("s")) == 2)
            failing_over.kill(0)
            waiting = [asyncio.ensure_future(append(g, index)) for index in range(1, 4)]
            assert await asyncio.gather(*waiting) == [None] * 3
            assert failing_over.role(1) == "master"
            assert ids(replica, keys.audio_key("s")) == ["0-1", "1-0", "2-0", "3-0", "4-0"]
            assert renewed(renewer, claim) == {claim.task}
            assert await w.append_event(claim, event(claim, 1, 1), "0-1")
            await until(lambda: heard.count("subscribed") == 2)
        failing_over.start(0)  # it takes itself for the primary, until a sentinel tells it
        g.pipeline._connection.abort()  # type: ignore[union-attr]
        assert await append(g, 4) is None
        with failing_over.client(1) as primary:
            assert ids(primary, keys.audio_key("s"))[-1] == "5-0"
        await until(lambda: failing_over.role(0) == "slave", 30, "a sentinel tells it")
    finally:
        listening.cancel()
        renewer.close()
        await w.close()
        await g.close()


def renewed(renewer: LeaseRenewer, claim: Any) -> set[Any]:
    """What it renews; the first try finds that the connection is lost."""
    try:
        return set(renewer.renew([claim.task]))
    except Unavailable:
        return set(renewer.renew([claim.task]))
