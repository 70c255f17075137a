"""Finds sessions by what was said in them, newest first and within a bound of time.

The index knows which words a text has, not where: for a phrase, PostgreSQL would parse every text that has its words
before it sorts the first, and a long one takes milliseconds. It also believes that a match of single words has to be
parsed, and rather walks through the history. So the index is asked for the words alone, what it finds is sorted, and
phrases are looked for in these texts from the newest on, until the page is full or its time is over. The next page goes
on there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiopg.sa import SAConnection

from asrserver.storage import queries
from asrserver.storage.search import pattern, required

#: Seconds after which a page with phrases has what it has.
SEARCH_SECONDS = 1.5

#: Texts that are looked at together: at first, and twice as many after each time that fewer than one in RARE matched.
FIRST_TEXTS = 64
MAX_TEXTS = 512
RARE = 8

#: Matches from which on the planner decides: it walks through the history, where words so common come soon.
MAX_MATCHES = 100_000

#: Matches of the words of a phrase that one page may look at: in its time, more cannot be.
MAX_TRIED = 10_000


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        ids: Ids of sessions, newest first.
        stopped: The last session that was looked at, if there was no time for more; for `queries.make_cursor`.
    """

    ids: list[str]
    stopped: dict[str, Any] | None


async def search(conn: SAConnection, text: str, values: Mapping[str, Any], limit: int) -> Found | None:
    """Find the newest sessions that match.

    Args:
        conn: A connection.
        text: What the user searches for.
        values: The parameters of the filter and of the cursor; among them `search`, the tsquery.
        limit: How many are wanted.

    Returns:
        They; None if the words are so common that the history itself is the best index.
    """
    exact = words = str(await conn.scalar(_PARSED, values))
    if not exact:
        return Found([], None)
    if has_phrase := "<" in exact:  # an operator: no word of the parser has this character
        loose = str(await conn.scalar(_PARSED, {"search": required(text)}))
        words = loose.replace("<->", "&")
    if words and await _estimate(conn, words) > MAX_MATCHES:
        return None
    names = frozenset(values) - {"search"} | ({"words"} if words else set())
    wanted = MAX_TRIED if has_phrase else limit
    found = await queries.fetch(conn, queries.candidates(names), **values, words=words, limit=wanted)
    if not has_phrase:
        return Found([row["session_id"] for row in found], None)
    return await _with_phrases(conn, found, values["search"], pattern(text), limit)


async def _with_phrases(conn: SAConnection, found: list[dict[str, Any]], query: str, pattern: str, limit: int) -> Found:
    """Those sessions of `found` that match the whole query, as many as there is time for."""
    until, place, size, ids = time.monotonic() + SEARCH_SECONDS, 0, FIRST_TEXTS, list[str]()
    while place < len(found) and len(ids) < limit:
        if place and time.monotonic() > until:
            return Found(ids, found[place - 1])
        part = [row["session_id"] for row in found[place : place + size]]
        rows = await queries.fetch(conn, queries.MATCHING, ids=part, search=query, pattern=pattern)
        matching = {row["id"] for row in rows}
        ids += [sid for sid in part if sid in matching]
        place += size
        if pattern and RARE * len(matching) < size:
            size = min(2 * size, MAX_TEXTS)
    more = len(found) == MAX_TRIED and len(ids) < limit
    return Found(ids[:limit], found[-1] if more else None)


async def _estimate(conn: SAConnection, words: str) -> float:
    """How many sessions have these words, as the planner believes."""
    [plan] = await conn.scalar(_PLANNED, {"words": words})
    return float(plan["Plan"]["Plan Rows"])


_PARSED = "SELECT to_tsquery('simple', %(search)s)::text"
_PLANNED = "EXPLAIN (FORMAT JSON) SELECT 1 FROM asr_sessions WHERE asr_words(final_text) @@ %(words)s::tsquery"
