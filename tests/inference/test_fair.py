"""fair.py: in which order owners are served."""

from __future__ import annotations

from asrserver.inference.fair import FairQueue


def test_items_of_one_cost_are_served_round_robin() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item, 0, item[0])
    assert queue.take(1, lambda one, other: False) == ["a1"]
    queue.put("d1", 0, "d")
    queue.put("a4", 0, "a")
    assert queue.take(3, lambda one, other: True) == ["b1", "c1", "d1"]
    assert queue.take(9, lambda one, other: other[0] == "a") == ["a2", "a3", "a4"]
    assert list(queue) == ["b2"]
    for n in range(5000):  # owners without items are forgotten
        queue.put("x", 0, f"owner-{n}")
        queue.take(1, lambda one, other: False)
    assert len(queue._last) <= 1001


def test_items_of_different_costs_get_equal_shares() -> None:
    """Cheap items wait for the item in service, not for what others want; expensive items are still served."""
    queue = FairQueue[str]()

    def take() -> str:
        return queue.take(1, lambda one, other: False)[0]

    for owner in "abc":
        queue.put(owner, 0, owner, 24.0)
    assert take() == "a"
    for number in range(40):
        queue.put(f"d{number}", 0, "d", 1.0)
    taken = [take() for _ in range(42)]
    assert taken[:23] == [f"d{number}" for number in range(23)]
    assert sorted(taken[23:26]) == ["b", "c", "d23"]
    assert taken[26:] == [f"d{number}" for number in range(24, 40)]
