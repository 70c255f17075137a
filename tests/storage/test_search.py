"""Searching what was said, in a real PostgreSQL: what is found, and that no search takes long."""

from __future__ import annotations

import pytest

from asrserver.storage import text_search
from asrserver.storage.queries import Filter
from asrserver.storage.search import _GAP, pattern, required, tsquery
from asrserver.storage.storage import Storage
from tests.storage.postgres import Postgres
from tests.storage.records import record

pytestmark = pytest.mark.gen_test(timeout=60)

TEXTS = [
    "the moon landing was long ago",
    "landing on the moon",
    "Moon-landing, they said",
    "the MOON... Landing!",
    "moon <b>landing</b> of 3.5 moons &amp; more",
    "don't ask about e-mail",
    "don t ask",
    "今天北京的天气预报",
    "moon 天气 landing",
    "Bäume stehen im Wald",
    "baume im wald",
    "moon\u2014landing",
    "moons landing",
]

QUERIES = [
    '"moon landing"', '"the moon"', "moon landing", '-"moon landing"', 'moon -"moon landing"',
    '"moon landing" or 天气预报', '"moon 天气"', "天气",
    "don't", "e-mail", '"3.5 moons"', '"im wald"', '"bäume stehen"',
    '"landing of"', "or", "!!!", '"" x', "-moon", '"moon landing" "long ago"', "landing or -the", "'",
    '"moon & landing"',
]  # fmt: skip


async def fill(store: Storage) -> None:
    await store.save(
        [record(f"s{n:02}", created_at=1.7e9 + n, status="done", final_text=text) for n, text in enumerate(TEXTS)]
    )


async def test_what_is_found_is_what_postgresql_finds_in_each_text(
    store: Storage, postgres: Postgres, database: str
) -> None:
    await fill(store)
    for query in QUERIES:
        expected = postgres.execute(
            database,
            "SELECT id FROM asr_sessions WHERE asr_words(final_text) @@ to_tsquery('simple', %s) ORDER BY id DESC",
            tsquery(query),
        )
        page = await store.history(50, Filter(search=query))
        assert [(each["session_id"],) for each in page.records] == expected, query
        assert (page.total, page.cursor) == (len(expected), None)


async def test_pages_of_a_search_go_on_where_its_time_was_over(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may then have nothing, and a cursor; nothing is left out, or found twice."""
    monkeypatch.setattr(text_search, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(text_search, "FIRST_TEXTS", 1)
    await fill(store)
    for limit in (1, 50):
        pages: list[list[str]] = []
        cursor = None
        while not pages or cursor is not None:
            page = await store.history(limit, Filter(search='"moon landing"'), cursor)
            assert page.total is None or page.cursor is None
            pages.append([each["session_id"] for each in page.records])
            cursor = page.cursor
        assert [sid for page in pages for sid in page] == ["s11", "s04", "s03", "s02", "s00"]
        assert [] in pages


async def test_filters_and_searches_together(store: Storage) -> None:
    await store.save(
        [
            record(f"s{n}", created_at=1.7e9 + n, status="done", final_text="a red moon", owner="o" if n % 2 else "p",
                   user_id=f"u{n % 3}")
            for n in range(12)
        ]
    )  # fmt: skip
    for query in ("moon", '"red moon"', '-"blue moon"'):
        page = await store.history(2, Filter(search=query, owner="o", user_id="u1"))
        assert [each["session_id"] for each in page.records] == ["s7", "s1"], query
        page = await store.history(1, Filter(search=query, owner="o"))
        assert [each["session_id"] for each in page.records] == ["s11"]
        page = await store.history(9, Filter(search=query, owner="o"), page.cursor)
        assert [each["session_id"] for each in page.records] == ["s9", "s7", "s5", "s3", "s1"]


@pytest.mark.parametrize("query", ['"moon landing"', "moon"])
async def test_a_search_does_not_parse_every_text(
    store: Storage, postgres: Postgres, database: str, query: str
) -> None:
    """A phrase of two common words ran into the statement timeout in 20,000 long sessions."""
    texts = ["moon landing", *["moon and landing"] * 200]
    await store.save(
        [record(f"s{n}", created_at=1.7e9 + n, status="done", final_text=text) for n, text in enumerate(texts)]
    )
    [(body,)] = postgres.execute(database, "SELECT prosrc FROM pg_proc WHERE proname = 'asr_words'")
    slow = f"$$SELECT pg_sleep(0.05); {body}$$"  # as with a text of hours
    postgres.execute(
        database, f"CREATE OR REPLACE FUNCTION asr_words(text) RETURNS tsvector LANGUAGE sql IMMUTABLE STRICT AS {slow}"
    )
    found = await store.history(5, Filter(search=query))
    assert [each["session_id"] for each in found.records][-1] == ("s196" if query == "moon" else "s0")


async def test_words_so_common_that_the_history_is_the_index(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_search, "MAX_MATCHES", -1)
    await fill(store)
    found = await store.history(50, Filter(search='"moon landing"'))
    assert [each["session_id"] for each in found.records] == ["s11", "s04", "s03", "s02", "s00"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"the moon"', "the{gap}moon"),
        ('foo "the red moon" "a b"', "the{gap}red{gap}moon"),
        ("don't", "don{gap}t"),
        ("moon landing", ""),
        ('-"the moon"', ""),
        ('"the moon" or foo', ""),
        ('"moon 天气"', ""),
        ('"ba\u0301ume im wald"', ""),
        ("!!!", ""),
    ],
)
def test_the_pattern_that_every_match_has(query: str, expected: str) -> None:
    assert pattern(query) == expected.format(gap=_GAP)


def test_what_every_match_has() -> None:
    assert required('a -b or "c d"') == "('a') | ('c d')"
    assert required("-a") == required("a or -b") == ""
