"""rate_limits.py: the decisions of each limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from asrserver.config import Settings
from asrserver.errors import Refused
from asrserver.gateway.rate_limits import Limits, RateMeter

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets time pass: clock(5.0) is five seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


def test_audio_against_the_clock(clock: Callable[[float], None]) -> None:
    meter = RateMeter(factor=2.0, burst=10.0)
    meter.record(10.0)
    assert meter.debt == 0
    meter.record(8.0)
    assert meter.debt == pytest.approx(4.0)
    clock(3.0)
    assert meter.debt == pytest.approx(1.0)
    assert meter.lead == pytest.approx(15.0)
    clock(1.0)
    assert meter.debt == 0
    endless = RateMeter(factor=0.0, burst=0.0)
    endless.record(1e9)
    assert endless.debt == 0


def test_connections_are_counted_for_as_long_as_they_last() -> None:
    limits = Limits(Settings(max_connections=3, max_address_connections=2))
    for address in ("2001:db8::1", "2001:db8::2"):
        limits.connect(address)
    with pytest.raises(Refused) as refused:
        limits.connect("2001:db8::3")
    assert (refused.value.status, refused.value.code) == (429, "too_many_connections")
    assert refused.value.message == "too many connections from 2001:db8::/64 (max_address_connections=2)"
    limits.connect("10.0.0.1")
    with pytest.raises(Refused) as refused:
        limits.connect("10.0.0.2")
    assert (refused.value.status, refused.value.code) == (503, "too_many_connections")
    assert refused.value.message == "connection limit reached (max_connections=3)"
    for address in ("10.0.0.1", "2001:db8::2", "2001:db8::1"):
        limits.disconnect(address)
    limits.connect("2001:db8::3")
    limits.disconnect("2001:db8::3")
    assert not limits._addresses


@pytest.mark.parametrize(
    ("given", "used", "expected"),
    [
        ({}, (99, 1999), None),
        ({}, (100, 0), (429, "too_many_sessions", "(max_connection_sessions=100)")),
        ({}, (0, 2000), (503, "too_many_sessions", "(max_sessions=2000)")),
        ({"max_connection_sessions": 0, "max_sessions": 0}, (10**6, 10**6), None),
    ],
)
def test_when_a_session_may_start(given: dict[str, Any], used: tuple[int, int], expected: Any) -> None:
    if expected is None:
        Limits(Settings(**given)).start(*used)
        return
    with pytest.raises(Refused) as refused:
        Limits(Settings(**given)).start(*used)
    status, code, setting = expected
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.message.endswith(setting)
    assert refused.value.details["retry_after"] > 0
