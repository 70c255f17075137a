"""storage/queries.py and search.py on a real PostgreSQL with ten thousand sessions: results, counts, use of indexes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
import tornado.ioloop
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.storage import queries
from asrserver.storage.queries import Filter
from asrserver.storage.search import tsquery
from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record
from tests.servers import Servers, drop_database

pytestmark = pytest.mark.gen_test(timeout=60)

COUNT = 10_000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

#: One session a minute; every tenth another user's, every hundredth has a rare word, every second a common one.
FILL = f"""
    INSERT INTO asr_sessions (id, user_id, status, owner, final_text, chunk_count, total_duration, created_at)
    SELECT 's' || n, 'user' || n % 10,
           CASE n % 50 WHEN 0 THEN 'error' WHEN 1 THEN 'interrupted' ELSE 'done' END, 'key' || n % 2,
           CASE n % 100 WHEN 0 THEN 'a zeppelin over the kitchen' WHEN 1 THEN '今天北京的天气预报'
           ELSE 'the kitchen light' END || ' number ' || n, 3, 1.5, timestamptz '2026-01-01' + n * interval '1 minute'
    FROM generate_series(0, {COUNT - 1}) AS n;
    INSERT INTO asr_chunks (session_id, chunk_index, text) SELECT 's' || n, 0, 'x'
    FROM generate_series(0, {COUNT - 1}) n;
    ANALYZE
"""


@pytest.fixture(scope="module")
def filled(servers: Servers) -> Iterator[str]:
    """The URL of a database with COUNT sessions, which tests do not change."""
    import asyncio

    name = f"history_{random.getrandbits(32)}"
    dsn = make_dsn(**{**parse_dsn(servers.postgres.dsn), "dbname": name})

    async def create() -> None:
        store = Storage(dsn, pool_size=1)
        await store.open()
        await store.close()

    asyncio.run(create())
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(FILL)
    yield dsn
    drop_database(servers, name)


@pytest.fixture
def many(io_loop: tornado.ioloop.IOLoop, filled: str) -> Iterator[Storage]:
    made = Storage(filled, pool_size=2)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)


@pytest.fixture
def store(io_loop: tornado.ioloop.IOLoop, database_url: str) -> Iterator[Storage]:
    """An empty storage."""
    made = Storage(database_url, pool_size=2)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)


def sql(dsn: str, statement: str, values: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def plan(dsn: str, which: Filter, **values: Any) -> str:
    """The planner's text for a page of the history."""
    values = {**which.values(), **values, "limit": 51}
    text, parameters = queries.history(frozenset(values) - {"limit"})
    return "\n".join(row[0] for row in sql(dsn, f"EXPLAIN {text}", {**parameters, **values}))


# -- plans


@pytest.mark.parametrize(
    ("which", "index"),
    [
        (Filter(), "asr_sessions_history"),
        (Filter(search="zeppelin"), "asr_sessions_search"),
        (Filter(search="天气预报"), "asr_sessions_search"),
        (Filter(search='"a zeppelin" -light', status="done"), "asr_sessions_search"),
        (Filter(search="nothing"), "asr_sessions_search"),
        (Filter(search="kitchen"), "asr_sessions_history"),  # half of all: the newest fifty are found sooner in order
        (Filter(user_id="user3"), "asr_sessions_user"),
        (Filter(user_id="nobody"), "asr_sessions_user"),
        (Filter(status="error"), "asr_sessions_status"),
        (Filter(since=BEGAN, until=BEGAN + timedelta(hours=1)), "asr_sessions_history"),
    ],
)
async def test_every_filter_has_its_index(filled: str, which: Filter, index: str) -> None:
    found = plan(filled, which)
    assert index in found
    assert "Seq Scan" not in found


async def test_a_page_far_down_reads_no_page_before_it(many: Storage, filled: str) -> None:
    place = queries.read_cursor((await many.history(9000)).cursor or "")
    found = plan(filled, Filter(), **place)
    assert "asr_sessions_history" in found
    assert "Index Cond: (ROW(created_at, id)" in found


# -- pages


async def test_pages_have_every_session_once(many: Storage) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        total, records, cursor = await many.history(1000, cursor=cursor)
        assert total == COUNT
        seen += [record["session_id"] for record in records]
        if cursor is None:
            break
    assert seen == [f"s{n}" for n in reversed(range(COUNT))]


async def test_what_comes_and_goes_moves_no_page(store: Storage) -> None:
    """Sessions of the same moment are ordered by id; new and deleted sessions do not shift later pages."""
    await store.save([Record({"id": name, "created_at": 1.7e9}) for name in "abcdef"])
    _, first, cursor = await store.history(2)
    await store.save([Record({"id": "z", "created_at": 1.8e9})])
    await store.delete("e")
    _, second, cursor = await store.history(2, cursor=cursor)
    _, third, cursor = await store.history(2, cursor=cursor)
    assert [[record["session_id"] for record in page] for page in (first, second, third)] == [
        list("fe"),
        list("dc"),
        list("ba"),
    ]
    assert cursor is None


@pytest.mark.parametrize("cursor", ["", "1", "1-", "x-61", "1-6", "1-zz", "-1-61", "1-61 ", "9" * 17 + "-61", "²-61"])
async def test_what_is_no_cursor(many: Storage, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await many.history(1, cursor=cursor)


@pytest.mark.parametrize("cursor", ["0-00", "9999999999999999-ff", "1767225600000000-ff00fe"])
async def test_every_place_of_the_form_is_one(many: Storage, cursor: str) -> None:
    await many.history(1, cursor=cursor)


async def test_filters(many: Storage) -> None:
    async def found(**which: Any) -> tuple[int | None, list[str]]:
        page = await many.history(3, Filter(**which))
        return page.total, [record["session_id"] for record in page.records]

    assert await found(user_id="user3") == (1000, ["s9993", "s9983", "s9973"])
    assert await found(status="error") == (200, ["s9950", "s9900", "s9850"])
    assert await found(owner="key1") == (5000, ["s9999", "s9997", "s9995"])
    assert await found(owner="key1", status="interrupted") == (200, ["s9951", "s9901", "s9851"])
    assert await found(since=BEGAN, until=BEGAN + timedelta(minutes=2)) == (2, ["s1", "s0"])
    assert await found(search="zeppelin", status="done") == (0, [])
    assert await found(search="zeppelin", status="error") == (None, ["s9900", "s9800", "s9700"])
    assert await found(search="北京", user_id="user1") == (None, ["s9901", "s9801", "s9701"])
    assert await found(user_id="x\x00", search="\x00") == (0, [])


async def test_of_others_nothing_is_seen(many: Storage) -> None:
    assert (await many.session("s1", owner="key1") or {})["session_id"] == "s1"
    assert await many.session("s1", owner="key0") is None
    assert not await many.delete("s1", owner="key0")
    assert await many.session("s1")
    assert await many.stats(owner="nobody") == {}


# -- the tally


async def test_the_tally_is_what_counting_finds(store: Storage, database_url: str) -> None:
    """After any storing, changing and deleting, and any number of additions."""
    dice = random.Random(5)

    async def check() -> None:
        counted = sql(
            database_url,
            "SELECT status, count(*), sum(round(total_duration * 1000))::bigint, coalesce(sum(audio_bytes), 0)::bigint"
            " FROM asr_sessions GROUP BY status",
        )
        tally = await store.stats()
        alive = {status: values for status, values in tally.items() if values["sessions"]}
        assert alive == {s: {"sessions": n, "audio_ms": ms, "audio_bytes": b} for s, n, ms, b in counted}
        assert (await store.history(1)).total == sum(n for _, n, _, _ in counted)

    for _ in range(12):
        batch = [
            Record(
                {
                    "id": f"s{dice.randrange(30)}",
                    "status": dice.choice(["recording", "done", "error"]),
                    "total_duration": dice.random() * 10,
                    "owner": dice.choice([None, "a", "b"]),
                    "audio_bytes": dice.choice([None, 5]),
                }
            )
            for _ in range(20)
        ]
        await store.save(batch)
        await store.delete(f"s{dice.randrange(30)}")
        if dice.random() < 0.3:
            await store.add_up()
        await check()
    await store.add_up()
    assert sql(database_url, "SELECT count(*) < 10 FROM asr_tally") == [(True,)]


async def test_tables_that_were_there_are_counted(store: Storage, database_url: str) -> None:
    """A database from before the counters, and one whose counters were deleted."""
    await store.save([Record({"id": "a"}), Record({"id": "b"})])
    sql(database_url, "DROP TABLE asr_tally; DROP FUNCTION asr_count CASCADE; DROP INDEX asr_sessions_search")
    await store.open()
    assert (await store.history(1)).total == 2
    await store.save([Record({"id": "c"})])
    assert (await store.history(1)).total == 3


# -- search

TEXTS = {
    "en": "Turn on the kitchen light, please; it's 5 o'clock",
    "en2": "the light of the kitchen isn't on",
    "zh": "今天北京的天气预报：晴，最高温度25度。",
    "mixed": "请打开iPhone手机",
    "ja": "東京の天気は晴れです",
    "ko": "오늘 서울의 날씨는 맑습니다",
    "th": "วันนี้อากาศดี",
    "my": "မင်္ဂလာပါ",
    "ru": "Погода в Москве",
    "fr": "la météo à Paris",
}


SEARCHES = [
    ("kitchen", "en en2"), ("KITCHEN Light", "en en2"), ('"kitchen light"', "en"), ("kitchen -turn", "en2"),
    ("turn or météo", "en fr"), ("kitch", ""), ("o'clock", "en"), ("it's", "en"), ("iphone", "mixed"),
    ("天气", "zh"), ("天气预报", "zh"), ("天", "zh ja"), ("气天", ""), ("天 气", "zh"), ("北京 天气", "zh"),
    ("晴", "zh ja"), ("预报：晴", "zh"), ("25度", "zh"), ("iPhone手机", "mixed"), ("手机 -iphone", ""),
        ('"天气预报" or "météo à paris"', "zh fr"), ("天气 -北京", ""), ("天气 -上海", "zh"), ("東京の天気", "ja"),
    ("서울의 날씨", "ko"), ("서울", "ko"), ("อากาศ", "th"), ("မင်္ဂ", "my"), ("москве", "ru"),
    ("", ""), ("!!!", ""), ("-", ""), ('"', ""), ("or", ""), ("or kitchen or", "en en2"), ("'", ""), ("\\", ""),
    ("a & b | !c:*", ""), ("') OR 1=1 --", ""), ("%s %(x)s", ""), ("kitchen\\' light", "en en2"), ("<->", ""),
    ("，。", ""),
]  # fmt: skip


async def test_search(store: Storage) -> None:
    """Words, phrases, not, or; in languages with spaces and without. No query is an error."""
    await store.save([Record({"id": name, "status": "done", "final_text": text}) for name, text in TEXTS.items()])
    for query, wanted in SEARCHES:
        page = await store.history(100, Filter(search=query))
        assert {record["session_id"] for record in page.records} == set(wanted.split()), query
        assert page.total == len(page.records)


async def test_any_text_can_be_looked_for_and_stored(store: Storage) -> None:
    """Random text finds itself; the longest transcripts with the most different characters are not refused."""
    dice = random.Random(7)
    signs = "aB9 -'\"\\&|!():*<>%,.，。「」￥·…’天气北京の데อา\u0301\U00020000é\u00ad\u200b"
    texts = ["".join(dice.choices(signs, k=dice.randrange(1, 30))) for _ in range(150)]
    texts += ["".join(chr(0x4E00 + n % 20000) for n in range(200_000)), "".join(map(chr, range(0x20000, 0x2A6DF))) * 3]
    texts += ["".join(f"{n:x} " for n in range(400_000)), "x" * 3_000_000]
    assert await store.save([Record({"id": f"t{n}", "final_text": text}) for n, text in enumerate(texts)]) == []
    looked_for = 0
    for n, text in enumerate(texts[:150]):
        plain = text.replace("-", " ").replace('"', " ")
        if tsquery(plain) and any(map(str.isalnum, plain)) and " or " not in plain.lower():
            found = await store.history(1000, Filter(search=plain))
            assert f"t{n}" in {record["session_id"] for record in found.records}, text
            looked_for += 1
    assert looked_for > 75
