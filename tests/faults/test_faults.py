"""The short half of the fault harness, and that its account finds what may not be. `make faults` is the long half."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.account import Account, Rows, check_sessions
from tests.faults.book import Book, Talk
from tests.faults.catalogue import BY_NAME, FAULTS
from tests.faults.harness import Options, run
from tests.faults.report import page
from tests.faults.schedule import scheduled
from tests.recordings import Utterance

#: Those that need neither root nor much time, each once.
SHORT = (
    "kill worker",
    "connections are cut",
    "Redis is cut off",
    "kill redis",
    "PostgreSQL refuses",
    "kill gateway",
    "Redis is full",
    "Redis is emptied",
    "a clock is stepped",
)


@pytest.mark.usefixtures("processes")
def test_a_short_run(utterances: list[Utterance], tmp_path: Path) -> None:
    """Every acknowledged chunk has one result and one row, every text is right, and nothing is left."""
    faults = [BY_NAME[name] for name in SHORT]
    options = Options(
        seed=2,
        seconds=26,
        clients=12,
        pause=1.0,
        longest=3.0,
        resume_timeout=5.0,
        hurry=True,
        between=1.2,
        faults=faults,
    )
    made = asyncio.run(run(options, utterances))
    assert made.account.is_clean, page(made)
    assert {one.name for one in made.happened} == set(SHORT), page(made)
    assert not any("could not be injected" in one.what for one in made.happened), page(made)
    assert made.account.counts["results"] > 50, page(made)


def test_the_seed_decides() -> None:
    """The same seed gives the same schedule, another one another; every fault comes."""
    one, again, other = ([(item.at, item.fault.name) for item in scheduled(seed, 600)] for seed in (1, 1, 2))
    assert one == again != other
    assert {name for _, name in one} == {fault.name for fault in FAULTS}


# -- the account -----------------------------------------------------------------------------------------------------


def talk(book: Book, texts: list[str | None]) -> tuple[Talk, Rows]:
    """A session that went as it should, and its rows."""
    made = book.open("s", live=False, resumes=True)
    for index, text in enumerate(texts):
        made.send(text)
        made.heard({"type": "ack", "status": "received", "chunk_index": index})
        answer = {"type": "error", "code": "audio_rejected"} if text is None else {"type": "chunk_result", "text": text}
        made.got({**answer, "chunk_index": index, "seq": index + 1})
    made.finishing = time.monotonic()
    text = " ".join(text for text in texts if text)
    made.got({"type": "final_result", "text": text, "status": "done", "chunk_count": len(texts), "seq": len(texts) + 1})
    rows = {index: (text, None if text is not None else "audio_rejected") for index, text in enumerate(texts)}
    return made, Rows(("done", text, len(texts), 1.0), rows, [])


def lose_a_result(made: Talk, rows: Rows) -> None:
    made.chunks[1].answers.clear()


def double_a_result(made: Talk, rows: Rows) -> None:
    made.got({"type": "chunk_result", "chunk_index": 1, "text": "two", "seq": 2})


def change_a_text(made: Talk, rows: Rows) -> None:
    made.chunks[1].answers[0][1]["text"] = "too"


def lose_a_row(made: Talk, rows: Rows) -> None:
    del rows.chunks[1]


def change_a_row(made: Talk, rows: Rows) -> None:
    rows.chunks[1] = ("too", None)


def leave_it_open(made: Talk, rows: Rows) -> None:
    rows.session = ("recording", None, 2, 1.0)


def lose_the_end(made: Talk, rows: Rows) -> None:
    made.finals.clear()


def give_up(made: Talk, rows: Rows) -> None:
    made.finals.clear()
    made.failure = "internal_error: it broke"


def forget_a_chunk(made: Talk, rows: Rows) -> None:
    made.finals[0]["chunk_count"] = 1


def refuse_what_is_harmless(made: Talk, rows: Rows) -> None:
    made.chunks[1].answers[0] = (0.0, {"type": "error", "code": "audio_rejected"})


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lose_a_result, "lost"),
        (double_a_result, "duplicated"),
        (change_a_text, "wrong"),
        (lose_a_row, "rows missing"),
        (change_a_row, "wrong"),
        (leave_it_open, "rows missing"),
        (lose_the_end, "failed"),
        (give_up, "failed"),
        (forget_a_chunk, "lost"),
        (refuse_what_is_harmless, "wrong"),
    ],
)
def test_the_account_finds_it(damage: Callable[[Talk, Rows], None], kind: str) -> None:
    book, account = Book(), Account()
    made, rows = talk(book, ["one", "two"])
    damage(made, rows)
    check_sessions(account, book, {"s": rows})
    assert account.wrong[kind] >= 1, account.problems


def test_the_account_of_what_is_right() -> None:
    """Also of a deadly chunk, and of a session that Redis lost when it was emptied."""
    book, account = Book(), Account()
    _, rows = talk(book, ["one", None])
    lost = book.open("lost", live=False, resumes=True)
    lost.send("three")
    lost.chunks[0].acknowledged = True
    lost.failure = "session_gone: the session is over"
    book.emptied.add("lost")
    check_sessions(account, book, {"s": rows})
    assert account.is_clean, account.problems
    assert account.counts["sessions lost when Redis was emptied"] == 1


def test_a_chunk_that_was_refused_has_no_answer() -> None:
    """It was not taken, for want of room: neither its text nor a result is missing. But the session is not done."""
    book, account = Book(), Account()
    made, rows = talk(book, ["one"])
    made.send("two")
    made.got({"type": "error", "code": "overloaded", "chunk_index": 1})
    made.heard({"type": "ack", "status": "received", "chunk_index": 1, "through": True})
    check_sessions(account, book, {"s": rows})
    assert dict(account.wrong) == {"lost": 1}, account.problems
    account = Account()
    made.finals[0]["status"] = "interrupted"
    rows.session = ("interrupted", "one", 1, 1.0)
    check_sessions(account, book, {"s": rows})
    assert account.is_clean, account.problems
