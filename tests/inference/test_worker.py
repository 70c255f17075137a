"""worker.py: what is in hand."""

from __future__ import annotations

import pytest

from asrserver.inference.worker import Hands

pytestmark = pytest.mark.gen_test(timeout=60)


def test_what_is_in_hand_is_told_and_timed() -> None:
    """A native call that hangs, in whatever place, is seen by how long it is in hand."""
    told: list[bytes] = []
    hands = Hands(told.append)
    assert hands.longest == 0.0
    hands.hold("engine", ["one 1-0", "two 3-0"])
    hands.hold("prepare", ["three 1-0"])
    assert told[-1] == b"one 1-0\ntwo 3-0\nthree 1-0"
    assert hands.longest > 0.0
    hands.hold("engine", [])
    assert told[-1] == b"three 1-0"
    hands.hold("prepare", [])
    assert told[-1] == b""
    assert hands.longest == 0.0
