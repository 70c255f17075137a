"""Sessions that start at once while Redis counts for their key: each id once, and no more than allowed."""

from __future__ import annotations

import asyncio

import pytest

from asrserver.errors import AsrError
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.protocol.options import Options, Start
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)


class Counting:
    """Redis that does not answer before `answer` is called; `asked` are the ids that it was asked to count."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._answers = asyncio.Event()
        self.answer = self._answers.set

    async def start(self, sid: str, owner: str) -> None:
        self.asked.append(sid)
        await self._answers.wait()


@pytest.fixture
def counting(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    monkeypatch.setattr(gateway.admission, "start", made.start)
    return made


def begin(gateway: Gateway, sid: str) -> asyncio.Task[Session]:
    asked = Start(session_id=sid, user_id="", options=Options(), resumable=False)
    return asyncio.ensure_future(gateway.start(asked, lambda event: None))


async def refused(start: asyncio.Task[Session]) -> str:
    with pytest.raises(AsrError) as error:
        await asyncio.wait_for(start, 5)
    return error.value.code


@pytest.mark.parametrize("given", [{}])
async def test_an_id_is_taken_from_the_first_moment_on(gateway: Gateway, counting: Counting) -> None:
    """Otherwise the second would replace the first, and its failure would end the first's session."""
    first, second = begin(gateway, "s"), begin(gateway, "s")
    assert await refused(second) == "session_exists"
    counting.answer()
    opened = await first
    assert gateway.sessions["s"] is opened
    assert await refused(begin(gateway, "s")) == "session_exists"


@pytest.mark.parametrize("given", [{"max_sessions": 2}])
async def test_those_that_are_being_started_count(
    gateway: Gateway, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of the gateway are asked once for each start."""
    check, asked = gateway.admission.limits.start, []
    monkeypatch.setattr(
        gateway.admission.limits,
        "start",
        lambda *used: (asked.append(used), check(*used)),  # type: ignore[func-returns-value]
    )
    starts = [begin(gateway, sid) for sid in "abc"]
    assert await refused(starts[2]) == "too_many_sessions"
    counting.answer()
    await asyncio.gather(*starts[:2])
    assert set(gateway.sessions) == {"a", "b"}
    assert [used[1] for used in asked] == [0, 1, 2]


@pytest.mark.parametrize("given", [{"max_sessions": 1}])
async def test_a_start_that_fails_leaves_its_place(
    gateway: Gateway, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(gateway, "a")
    await until(lambda: counting.asked == ["a"])
    first.cancel()
    await asyncio.wait([first])
    counting.answer()
    assert (await begin(gateway, "b")).id == "b"
