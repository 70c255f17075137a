"""What is deleted by its age or for a user, and what is noted of who reads and deletes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from dataclasses import replace
from urllib.parse import quote

import psycopg2
import pytest
import redis

from asrserver.auth.access import Access
from asrserver.auth.keys import KeyLimits
from asrserver.broker.keys import session_key
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.retention import Retention
from tests.api_keys import Keys
from tests.fakes import FakeWorker
from tests.gateways import offer
from tests.handlers.api import Api, session, whole_session

pytestmark = pytest.mark.gen_test(timeout=60)


def age(database_url: str, sid: str, days: float, owner: str | None = None) -> None:
    """Make a stored session older than it is."""
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        change = "UPDATE asr_sessions SET created_at = now() - %s * interval '1 day', owner = %s WHERE id = %s"
        cursor.execute(change, (days, owner, sid))
        assert cursor.rowcount == 1
        connection.commit()


async def ids(api: Api) -> set[str]:
    return {record["session_id"] for record in (await api.call("/history"))[1]["records"]}


async def test_sessions_are_kept_for_as_long_as_the_setting_says(
    api: Api, gateway: Gateway, worker: FakeWorker, database_url: str, redis_url: str
) -> None:
    """The text, the row and what Redis has of it: nothing is left of an old session; a newer one stays."""
    for sid in ("old", "new"):
        await whole_session(gateway, worker, sid)
    age(database_url, "old", 31)
    age(database_url, "new", 29)
    await gateway.retention.tidy()  # the setting's default: nothing is deleted
    assert await ids(api) == {"old", "new"}
    await Retention(30, gateway.access, gateway.storage, gateway.delete).tidy()
    assert await ids(api) == {"new"}
    assert (await api.call("/session/old"))[0] == 404
    with closing(redis.Redis.from_url(redis_url)) as client:
        assert not client.exists(session_key("old"))


async def test_a_key_may_keep_its_sessions_longer_or_shorter(
    api: Api, gateway: Gateway, worker: FakeWorker, keys: Keys, database_url: str
) -> None:
    short = keys.file.create("short", KeyLimits(keep_days=2), False)[0].id
    long = keys.file.create("long", KeyLimits(keep_days=400), False)[0].id
    kept = {"short-1": (1, short), "long": (300, long), "new": (1, None)}
    for sid, (old, owner) in {**kept, "short-3": (3, short), "of-nobody": (300, None)}.items():
        await whole_session(gateway, worker, sid)
        age(database_url, sid, old, owner)
    await Retention(30, Access(str(keys.path)), gateway.storage, gateway.delete).tidy()
    assert await ids(api) == kept.keys()


async def test_an_open_session_is_not_deleted_by_its_age(
    api: Api, gateway: Gateway, worker: FakeWorker, database_url: str
) -> None:
    opened, _ = await session(gateway, "open")
    offer(gateway, opened, b"audio", 0)
    await worker.take("open")
    await worker.audio("open", 1)
    await worker.say("open", "chunk", "1-0", chunk_index=0, text="hello", duration=1.5, segments=[])
    while "open" not in await ids(api):
        await asyncio.sleep(0.02)
    age(database_url, "open", 300)
    await Retention(30, gateway.access, gateway.storage, gateway.delete).tidy()
    assert await ids(api) == {"open"}


async def test_all_sessions_of_a_user_are_deleted(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    for sid in ("a", "b"):
        await whole_session(gateway, worker, sid)  # of the user "somebody"
    await session(gateway, "c", user_id="somebody else/ä")
    status, body = await api.call("/users/somebody", "DELETE")
    assert (status, body) == (200, {"user_id": "somebody", "deleted": 2, "complete": True})
    assert await ids(api) <= {"c"}
    status, body = await api.call("/users/somebody", "DELETE")
    assert (status, body["deleted"]) == (200, 0)
    assert (await api.call("/users/" + quote("somebody else/ä", safe=""), "DELETE"))[0] == 200
    assert (await api.call("/users/" + "x" * 129, "DELETE"))[0] == 400
    assert (await api.call("/users/somebody"))[0] == 405


async def test_who_reads_and_deletes_is_logged_if_asked_for(
    api: Api, gateway: Gateway, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    await whole_session(gateway, worker, "s", text="a secret")
    with caplog.at_level(logging.INFO, "asrserver.audit"):
        await api.call("/session/s")
        assert caplog.messages == []
        gateway.settings = replace(gateway.settings, audit_log="on")
        await api.call("/session/s")
        await api.call("/history?user_id=somebody")
        await api.call("/session/s", "DELETE")
        await api.call("/users/somebody", "DELETE")
    audit = [record.getMessage() for record in caplog.records if record.name == "asrserver.audit"]
    assert audit == [
        'read key=- address=127.0.0.1 id="s"',
        'history key=- address=127.0.0.1 id="somebody"',
        'delete key=- address=127.0.0.1 id="s"',
        'erase key=- address=127.0.0.1 id="somebody"',
    ]
    assert "a secret" not in caplog.text
