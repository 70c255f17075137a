"""fair.py: in which order owners are served."""

from __future__ import annotations

from asrserver.inference.fair import FairQueue, KeyQueue, Shares
from asrserver.shares import Share


def test_items_of_one_cost_are_served_round_robin() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item, 0, item[0])
    assert queue.take(1, lambda one, other: False)[0] == ["a1"]
    queue.put("d1", 0, "d")
    queue.put("a4", 0, "a")
    assert queue.take(3, lambda one, other: True)[0] == ["b1", "c1", "d1"]
    assert queue.take(9, lambda one, other: other[0] == "a")[0] == ["a2", "a3", "a4"]
    assert list(queue) == ["b2"]
    for n in range(5000):  # owners without items are forgotten
        queue.put("x", 0, f"owner-{n}")
        queue.take(1, lambda one, other: False)
    assert len(queue._last) <= 1001


def test_items_of_different_costs_get_equal_shares() -> None:
    """Cheap items wait for the item in service, not for what others want; expensive items are still served."""
    queue = FairQueue[str]()

    def take() -> str:
        return queue.take(1, lambda one, other: False)[0][0]

    for owner in "abc":
        queue.put(owner, 0, owner, 24.0)
    assert take() == "a"
    for number in range(40):
        queue.put(f"d{number}", 0, "d", 1.0)
    taken = [take() for _ in range(42)]
    assert taken[:23] == [f"d{number}" for number in range(23)]
    assert sorted(taken[23:26]) == ["b", "c", "d23"]
    assert taken[26:] == [f"d{number}" for number in range(24, 40)]


def one(queue: KeyQueue[str]) -> str:
    return queue.take(1, lambda one, other: False)[0]


def entered(**sessions: Share) -> Shares:
    shares = Shares()
    for session, share in sessions.items():
        shares.enter(session, share)
    return shares


A, B, HEAVY = Share("a", 1.0), Share("b", 1.0), Share("h", 3.0)


def test_a_key_with_many_sessions_gets_no_more_than_another() -> None:
    """However many items wait, and whatever their priority; within the key they go by priority, then in turn."""
    queue = KeyQueue[str](entered(b1=B, **{f"a{n}": A for n in range(40)}))
    for number in range(40):
        for item in range(3):
            queue.put(f"a{number}.{item}", 0, f"a{number}")
    assert one(queue) == "a0.0"
    queue.put("urgent", -1, "a7")
    for item in range(3):
        queue.put(f"b{item}", 1, "b1")
    assert [one(queue) for _ in range(6)] == ["b0", "urgent", "b1", "a1.0", "b2", "a2.0"]
    queue.put("b3", 1, "b1")  # it had nothing waiting: that is no debt, and no credit
    assert [one(queue) for _ in range(2)] == ["b3", "a3.0"]
    assert len(queue) == len(list(queue)) == 40 * 3 - 4


def test_keys_are_served_by_weight_and_by_what_their_items_cost() -> None:
    queue = KeyQueue[str](entered(a=A, h=HEAVY))
    for _ in range(40):
        queue.put("a", 0, "a", 2.0)
        queue.put("h", 0, "h", 1.0)
    taken = [one(queue) for _ in range(35)]
    assert taken.count("a") == 5  # six times as many of the other's: three times the service
    shares = entered(a=A, h=Share("h", 1.0))
    assert shares.of("h").weight == 1.0
    shares.leave("h")
    assert shares.of("h") == Share("", 1.0)


def test_drafts_stand_back_behind_others_finals_but_not_for_ever() -> None:
    queue = KeyQueue[str](entered(a=A, b=B), lambda priority: 5.0 * priority)
    queue.put("draft", 1, "b")
    for number in range(9):
        queue.put(f"final{number}", 0, "a")
    taken = [one(queue) for _ in range(10)]
    assert taken.index("draft") in (5, 6)


def test_what_shares_a_call_is_charged_to_its_key() -> None:
    queue = KeyQueue[str](entered(a=A, b=B))
    for number in range(4):
        queue.put(f"a{number}", 0, "a")
    for number in range(6):
        queue.put(f"b{number}", 0, "b")
    assert queue.take(4, lambda one, other: one[0] == other[0] or other == "b0") == ["a0", "a1", "a2", "a3"]
    queue.put("a4", 0, "a")
    assert queue.take(2, lambda one, other: True) == ["b0", "b1"]
    assert [one(queue) for _ in range(3)] == ["b2", "b3", "a4"]
    assert queue.promote("b", 0, -1) == ["b4", "b5"]
    assert queue.promote("nobody", 0, -1) == []


def test_keys_that_are_gone_are_forgotten() -> None:
    shares = Shares()
    queue = KeyQueue[str](shares)
    for number in range(5000):
        shares.enter("s", Share(f"key-{number}", 1.0))
        queue.put("x", 0, "s")
        one(queue)
    assert len(queue._lines) <= 1001
