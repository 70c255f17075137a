"""shares.py: who must leave room for others."""

from __future__ import annotations

import pytest

from asrserver.shares import Share, keys_at_share

A, B, HEAVY = Share("a", 1.0), Share("b", 1.0), Share("heavy", 3.0)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ({}, set()),
        ({A: 99.0}, set()),
        ({A: 100.0}, {"a"}),  # alone it may use all, and no more
        ({A: 60.0, B: 39.0}, set()),
        ({A: 95.0, B: 5.0}, {"a"}),
        ({A: 99.0, B: 49.0}, {"a"}),  # what is more than the limit is the other's share
        ({A: 70.0, B: 50.0}, {"a", "b"}),
        ({A: 30.0, HEAVY: 70.0}, {"a"}),
        ({A: 24.0, HEAVY: 76.0}, {"heavy"}),
        ({A: 100.0, B: 0.0}, {"a"}),  # who uses nothing takes no part
    ],
)
def test_who_has_more_than_its_share_makes_room(used: dict[Share, float], expected: set[str]) -> None:
    assert keys_at_share(used, 100.0) == expected
