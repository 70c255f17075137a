"""inbox.py: the entries between the consumer and a session's transcriber."""

from __future__ import annotations

from asrserver.broker.replies import Entry
from asrserver.inference.inbox import MAX_UNREAD_BYTES, Inbox


def test_entries_are_counted_until_they_are_taken_out() -> None:
    arrivals: list[int] = []
    inbox = Inbox("4-0", lambda: arrivals.append(1))
    assert not inbox
    assert (inbox.cursor, inbox.processed) == ("4-0", "4-0")
    inbox.put([Entry("5-0", b"abc", None), Entry("6-0", b"de", None)])
    inbox.put([Entry("7-0", b"f", None)])
    assert len(arrivals) == 2
    assert (inbox.cursor, inbox.processed, inbox.unread) == ("7-0", "4-0", 6)
    assert inbox.first.id == "5-0"
    assert [entry.id for entry in inbox.following(1)] == ["6-0"]
    assert [entry.id for entry in inbox.following(9)] == ["6-0", "7-0"]
    inbox.pop(2)
    assert (inbox.cursor, inbox.processed, inbox.unread) == ("7-0", "6-0", 1)
    assert not inbox.has_end
    inbox.put([Entry("7-1", None, "done")])
    assert inbox.has_end
    inbox.pop(2)
    assert (inbox.processed, inbox.unread, len(inbox)) == ("7-1", 0, 0)


def test_an_inbox_is_full_by_bytes() -> None:
    inbox = Inbox("0-1", lambda: None)
    inbox.put([Entry("1-0", bytes(MAX_UNREAD_BYTES - 1), None)])
    assert not inbox.is_full
    inbox.put([Entry("2-0", b"x", None)])
    assert inbox.is_full
    inbox.pop()
    assert not inbox.is_full


def test_the_largest_chunk_does_not_depend_on_how_many_share_an_entry() -> None:
    """Before the first one it is taken for as large as can be: large chunks are read one by one."""
    inbox = Inbox("0-1", lambda: None)
    assert inbox.largest_chunk == MAX_UNREAD_BYTES
    inbox.put([Entry("8-0", bytes(80_000), None, chunks=8), Entry("9-0", bytes(9_000), None)])
    assert inbox.largest_chunk == 10_000
    inbox.put([Entry("10-0", bytes(11_000), None)])
    assert inbox.largest_chunk == 11_000
    inbox.put([Entry("11-0", b"", None)])
    assert inbox.largest_chunk == 11_000
