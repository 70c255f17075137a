"""The load tester's users: a correct server passes, and every kind of error is found and named."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from asrserver.loadtest.plan import Plan
from asrserver.loadtest.processes import ProcessReport, work
from asrserver.loadtest.speech import FRAME_SECONDS, Scripts, load
from asrserver.loadtest.stats import FAILURES, Stats
from tests.loadtest.faulty_proxy import (
    Cut,
    Error,
    Fault,
    Hearer,
    Interrupted,
    Lost,
    LostChunks,
    NoAcknowledgement,
    OnlyTakes,
    Proxy,
    RefusesAtFirst,
    Rubbish,
    SwappedResults,
    SwappedTexts,
    TogetherTwice,
    Twice,
    WrongChunkText,
    WrongText,
)
from tests.program import System


async def judged(system: System, fault: Fault, **options: Any) -> Stats:
    """Run the load tester against the system through a fault; return its statistics."""
    server = HTTPServer(Application([("/ws/asr", Proxy, {"target": system.url, "fault": fault})]))
    [listener] = bind_sockets(0, "127.0.0.1")
    server.add_socket(listener)
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/asr"
    defaults: dict[str, Any] = {"connections": 4, "duration": 60, "sessions": 1, "ramp": 0, "realtime": False}
    plan = Plan((url,), **{**defaults, "talk_ratio": 1.0, **options})
    told = ProcessReport()
    await work(plan, Scripts(load(()), plan), range(plan.connections), time.monotonic(), told)
    server.stop()
    await server.close_all_connections()
    assert not told.error
    assert (told.stats.open, told.stats.active) == (0, 0)
    assert set(told.stats.failures) <= set(FAILURES)
    return told.stats


BOTH = ("stream", "chunk")


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("mode", BOTH)
async def test_a_server_that_does_right(shared: System, mode: str) -> None:
    fault = Fault()
    fault.together = True
    stats = await judged(shared, fault, protocol_mode=mode, partials=mode == "stream")
    assert (stats.sessions, stats.right, stats.failures, stats.examples) == (4, 4, {}, [])
    assert stats.words > 40
    assert stats.word_errors <= 0.05 * stats.words
    assert stats.audio_done == pytest.approx(stats.audio_sent)
    assert stats.audio_sent > 4 * 20
    for name in ("connect", "start", "first_result", "finalisation"):
        assert stats.times[name].count == 4
    assert stats.times["ack"].count == stats.chunks


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize(
    ("fault", "mode", "kind", "failed"),
    [
        *[(WrongText, mode, "wrong_text", 4) for mode in BOTH],
        (WrongChunkText, "chunk", "wrong_text", 4),
        *[(SwappedTexts, mode, "other_session", 4) for mode in BOTH],
        (SwappedResults, "chunk", "other_session", 1),
        (lambda: Lost("chunk_result"), "chunk", "missing_result", 1),
        (lambda: Lost("segment_result"), "stream", "missing_result", 1),
        (lambda: Lost("ack", chunk_index=2), "chunk", "missing_ack", 1),
        (LostChunks, "stream", "missing_audio", 4),
        (lambda: Twice("ack"), "chunk", "duplicate", 4),
        (NoAcknowledgement, "chunk", "missing_ack", 4),
        (lambda: TogetherTwice("ack"), "stream", "duplicate", 4),
        (lambda: Twice("chunk_result"), "chunk", "duplicate", 4),
        (lambda: Twice("segment_result"), "stream", "duplicate", 4),
        (lambda: Twice("final_result"), "stream", "duplicate", 4),
        (Rubbish, "stream", "protocol", 4),
        (Error, "stream", "error", 4),
        (Interrupted, "chunk", "interrupted", 4),
        (Cut, "stream", "lost_connection", 1),
    ],
)
async def test_every_way_to_do_wrong(
    shared: System, fault: Callable[[], Fault], mode: str, kind: str, failed: int
) -> None:
    """The fault is found in each session that it was applied to, beside whatever else is found."""
    stats = await judged(shared, fault(), protocol_mode=mode)
    assert stats.failures[kind] >= failed, stats.examples
    assert stats.sessions == 4
    assert stats.failed >= failed
    assert any(kind in example["failed"] for example in stats.examples) or kind == "duplicate"


@pytest.mark.gen_test(timeout=120)
async def test_no_send_is_a_success(shared: System) -> None:
    """A server accepts everything and answers nothing: no session is right, however much was sent."""
    stats = await judged(shared, OnlyTakes(), timeout=2.0)
    assert (stats.right, stats.sessions, stats.failures["timeout"]) == (0, 4, 4)
    assert stats.audio_sent > 0
    assert stats.audio_done == 0


@pytest.mark.gen_test(timeout=120)
async def test_refusals_are_no_failures(shared: System) -> None:
    """They are retried, not before the time that the server asked for, and counted separately."""
    fault = RefusesAtFirst()
    began = time.monotonic()
    stats = await judged(shared, fault)
    assert (stats.right, stats.failed, dict(stats.refusals)) == (4, 0, {"HTTP 503": 3})
    assert time.monotonic() - began >= 1


@pytest.mark.gen_test(timeout=120)
async def test_long_recordings_end_with_the_test(shared: System) -> None:
    """A recording of an hour is made while it is sent, and ends with a sentence when the time is over."""
    hearer = Hearer()
    stats = await judged(shared, hearer, mode="long", realtime=True, connections=2, duration=1)
    assert (stats.right, stats.sessions) == (2, 2)
    assert stats.times["late"].count == stats.chunks
    assert stats.audio_sent < 60
    assert sum(map(len, hearer.came.values())) == stats.chunks
    for sid, came in hearer.came.items():  # nothing is sent before it could have been spoken
        assert all(when - hearer.began[sid] >= count * FRAME_SECONDS for count, when in enumerate(came, 1))
