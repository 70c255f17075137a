"""intake.py: which audio of a client is taken: order, limits, and when more of it may be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from asrserver.auth.access import Access
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.quota import Quota
from asrserver.config import Settings
from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.gateway.admission import Admission
from asrserver.gateway.archive import Recordings
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.gateway.intake import ACCEPTED, SUSPICIOUS_COPIES, Intake
from asrserver.gateway.room import RoomGate
from asrserver.gateway.session import Session
from asrserver.gateway.sessions import Sessions
from asrserver.protocol.events import Received, SessionEvent
from asrserver.protocol.options import Options
from asrserver.shares import COMMON

#: A tenth of a second of headerless audio.
PIECE = bytes(3200)

STREAM = Options(mode="stream", format="pcm_s16le")


@dataclass
class FakeBroker:
    """Keeps what is appended; `done` reports that Redis has it, or an error."""

    appended: list[tuple[int, int | None, list[bytes]]] = field(default_factory=list)
    replies: list[Callable[[Exception | None], None]] = field(default_factory=list)

    def append(
        self,
        sid: str,
        index: int,
        before: int | None,
        pieces: list[bytes],
        joinable: bool,
        done: Callable[[Exception | None], None],
    ) -> None:
        self.appended.append((index, before, pieces))
        self.replies.append(done)

    def done(self, error: Exception | None = None) -> None:
        replies, self.replies = self.replies, []
        for reply in replies:
            reply(error)


@dataclass
class FakeSessions:
    """Keeps which sessions are ended, which fail, and what is saved of missing audio."""

    backlog: Backlog = field(default_factory=Backlog)
    ended: list[tuple[Session, str]] = field(default_factory=list)
    failed: list[tuple[Session, int, Exception]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)

    def end(self, session: Session, status: str) -> None:
        self.ended.append((session, status))
        session.state = "finishing"

    def save_missing(self, sessions: Collection[Session]) -> None:
        self.saved += [str(session.order.missing) for session in sessions]

    def give_up(self, session: Session, index: int, error: Exception) -> None:
        self.failed.append((session, index, error))


@dataclass
class FakeRecordings:
    """Keeps the indexes of recorded chunks."""

    indexes: list[int] = field(default_factory=list)

    def record(self, sid: str, index: int, pieces: list[bytes], options: Options) -> None:
        self.indexes += range(index, index + len(pieces))


class FakeGate:
    """There is room unless `full`."""

    def __init__(self) -> None:
        self.full = False

    def check_large(self, owner: str, size: int) -> None:
        pass

    def for_audio(self, session: Session) -> Awaitable[bool] | None:
        return asyncio.sleep(0, True) if self.full else None


class Harness:
    """An intake, and a session whose client keeps its events."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self.broker, self.recordings, self.sessions, self.gate = (
            FakeBroker(),
            FakeRecordings(),
            FakeSessions(),
            FakeGate(),
        )
        self.got: list[SessionEvent] = []
        self.session = Session("s", "", options, self.got.append)
        self.intake = Intake(
            cast(GatewayBroker, self.broker),
            cast(Recordings, self.recordings),
            Admission(settings, Access(), cast(Quota, None), "gateway"),
            cast(Sessions, self.sessions),
            cast(RoomGate, self.gate),
            HeldBytes(1 << 30, lambda owner: COMMON),
        )

    def code(self, data: bytes, index: Any = None) -> tuple[str, dict[str, Any]]:
        """The code with which a chunk is refused, and the details."""
        with pytest.raises(AsrError) as refused:
            self.intake.offer(self.session, data, index)
        return refused.value.code, refused.value.details

    def acks(self) -> list[int]:
        return [event.chunk_index for event in self.got if isinstance(event, Received)]


@pytest.fixture
def settings() -> Settings:
    return Settings(max_chunk=100_000)


@pytest.fixture
def harness(settings: Settings) -> Harness:
    return Harness(settings, Options())


@pytest.fixture
def stream(settings: Settings) -> Harness:
    return Harness(settings, STREAM)


def test_chunks_in_order(harness: Harness) -> None:
    """Each is appended after the one before it, and acknowledged and recorded when Redis has it."""
    for index in (5, None, 7):
        assert harness.intake.offer(harness.session, PIECE, index) is ACCEPTED
    assert harness.broker.appended == [(5, None, [PIECE]), (6, 5, [PIECE]), (7, 6, [PIECE])]
    assert harness.acks() == harness.recordings.indexes == []
    harness.broker.done()
    assert harness.acks() == harness.recordings.indexes == [5, 6, 7]


@pytest.mark.parametrize(
    ("data", "index", "code", "details"),
    [
        (PIECE, 3, "chunk_gap", {"session_id": "s", "chunk_index": 3, "expected": 1}),
        (PIECE, "1", "bad_index", {"session_id": "s"}),
        (b"", 1, "empty_chunk", {"session_id": "s", "chunk_index": 1}),
        (b"", {}, "empty_chunk", {"session_id": "s"}),
        (bytes(100_001), None, "chunk_too_large", {"session_id": "s", "chunk_index": 1}),
    ],
)
def test_what_is_refused_changes_nothing(
    harness: Harness, data: bytes, index: Any, code: str, details: dict[str, Any]
) -> None:
    harness.intake.offer(harness.session, PIECE, 0)
    assert harness.code(data, index) == (code, details)
    assert len(harness.broker.appended) == 1
    assert harness.session.order.next_index == 1


def test_a_copy_is_acknowledged_with_its_chunk_or_at_once(harness: Harness) -> None:
    for index in (0, 0):
        assert harness.intake.offer(harness.session, PIECE, index) is ACCEPTED
    assert harness.acks() == []
    harness.broker.done()
    assert harness.acks() == [0, 0]
    harness.intake.offer(harness.session, PIECE, 0)
    assert harness.acks() == [0, 0, 0]
    assert len(harness.broker.appended) == 1


def test_a_client_that_gives_all_chunks_one_index_is_told_of_in_the_log(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; and not a client that sends each chunk again, for example after a resume."""
    for index in range(2 * SUSPICIOUS_COPIES):
        harness.intake.offer(harness.session, PIECE, index)
    for index in range(2 * SUSPICIOUS_COPIES):
        harness.intake.offer(harness.session, PIECE, index)
    assert caplog.messages == []
    for _ in range(3 * SUSPICIOUS_COPIES):
        harness.intake.offer(harness.session, PIECE, 0)
    [told] = caplog.messages
    assert f"session=s chunk=0 came {SUSPICIOUS_COPIES} times" in told


def test_a_session_that_is_too_long_is_ended(settings: Settings) -> None:
    harness = Harness(replace(settings, max_session=0.25), Options())
    for _ in range(3):
        harness.intake.offer(harness.session, PIECE)
    assert harness.code(PIECE) == ("session_too_long", {"session_id": "s", "chunk_index": 3})
    assert harness.sessions.ended == [(harness.session, "interrupted")]
    assert harness.code(PIECE)[0] == "session_finished"


def test_a_chunk_that_cannot_be_written_fails_its_session(harness: Harness) -> None:
    harness.intake.offer(harness.session, PIECE, 4)
    error = Unavailable("broker_full", "no room")
    harness.broker.done(error)
    assert harness.sessions.failed == [(harness.session, 4, error)]
    assert harness.acks() == harness.recordings.indexes == []


async def _awaited(wait: Awaitable[bool]) -> bool:
    return await wait


def test_audio_is_taken_before_it_is_waited_for_room(harness: Harness) -> None:
    harness.gate.full = True
    accepted = harness.intake.offer(harness.session, PIECE)
    assert len(harness.broker.appended) == 1
    assert accepted.wait is not None
    assert asyncio.run(_awaited(accepted.wait)) is True


# -- several chunks at once


def test_a_run_is_one_entry(stream: Harness) -> None:
    assert stream.intake.offer_run(stream.session, [PIECE] * 3, 0) is ACCEPTED
    assert stream.intake.offer_run(stream.session, [PIECE] * 2) is ACCEPTED
    assert stream.broker.appended == [(0, None, [PIECE] * 3), (3, 2, [PIECE] * 2)]
    stream.broker.done()
    assert stream.acks() == stream.recordings.indexes == [0, 1, 2, 3, 4]


def test_a_run_that_is_not_all_right_is_not_taken(stream: Harness, settings: Settings) -> None:
    """No chunk of it is taken or refused: they have to be offered one by one."""
    stream.intake.offer(stream.session, PIECE, 0)
    for pieces, index in (([PIECE, b""], 1), ([PIECE] * 2, 2), ([PIECE] * 2, 0), ([PIECE, bytes(100_001)], 1)):
        assert stream.intake.offer_run(stream.session, pieces, index) is None
    stream.session.order.refuse()  # the next may be this one, or the one after it
    assert stream.intake.offer_run(stream.session, [PIECE] * 2) is None
    assert len(stream.broker.appended) == 1
    short = Harness(replace(settings, max_session=0.25), STREAM)
    assert short.intake.offer_run(short.session, [PIECE] * 4) is None
    assert short.sessions.ended == []
    assert short.intake.offer_run(short.session, [PIECE] * 2) is ACCEPTED
    short.session.state = "finishing"
    assert short.intake.offer_run(short.session, [PIECE]) is None


def test_a_run_too_fast_is_not_taken(settings: Settings) -> None:
    """Each chunk is refused by itself, and nothing is written."""
    fast = Harness(replace(settings, max_speed=1.0, speed_burst=0.0, max_chunk=1 << 20), STREAM)
    fast.intake.offer(fast.session, bytes(32000 * 10))
    assert fast.intake.offer_run(fast.session, [PIECE] * 2) is None
    assert fast.code(PIECE)[0] == "too_fast"
    assert len(fast.broker.appended) == 1


def test_both_kinds_of_refusal(harness: Harness) -> None:
    """Errors of the client, and errors after which it may try again."""
    harness.intake.offer(harness.session, PIECE, 0)
    with pytest.raises(BadRequest):
        harness.intake.offer(harness.session, PIECE, 9)
    with pytest.raises(Refused):
        harness.intake.offer(harness.session, bytes(100_001), 1)
