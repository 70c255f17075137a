"""packing.py: segments of a file share windows, and the text of a window is divided among them."""

from __future__ import annotations

from asrserver.inference.decoding import Hypothesis
from asrserver.inference.packing import pack, spoken_spans, unpack
from asrserver.inference.vad import SegmentEnded, SegmentStarted
from asrserver.protocol.events import Word

SECOND = 16000


def seconds(*spans: tuple[float, float]) -> list[tuple[int, int]]:
    return [(int(start * SECOND), int(end * SECOND)) for start, end in spans]


def test_segments_share_windows_of_a_length() -> None:
    """Not across a long silence, and none longer than asked for."""
    spans = seconds((0, 5), (6, 10), (11, 27), (28, 30), (36, 40))
    assert pack(spans, 28) == [spans[:3], spans[3:4], spans[4:]]
    assert pack(spans, 0) == [[span] for span in spans]
    assert pack([], 28) == []


def test_what_was_cut_only_because_it_was_long_is_one_segment() -> None:
    ends = [SegmentEnded(0, 5), SegmentEnded(6, 30, cut=True), SegmentEnded(30, 55, cut=True), SegmentEnded(56, 60)]
    events = [event for end in ends for event in (SegmentStarted(end.start), end)]
    assert spoken_spans(events, together=True) == [(0, 5), (6, 60)]
    assert spoken_spans(events, together=False) == [(0, 5), (6, 30), (30, 55), (56, 60)]
    assert pack(seconds((0, 5), (6, 60), (61, 62)), 28) == [[span] for span in seconds((0, 5), (6, 60), (61, 62))]


def test_what_comes_long_after_a_cut_is_another_segment() -> None:
    """The speaker stopped just where the segment was cut: the silence behind it is in no segment."""
    spans = seconds((0, 27), (29, 50), (54, 57))
    events = [SegmentEnded(start, end, cut=True) for start, end in spans]
    assert spoken_spans(events, together=True) == [(spans[0][0], spans[1][1]), spans[2]]


def test_the_text_of_a_window_is_divided_by_its_words_times() -> None:
    words = [
        Word("Ask", 0.1, 0.4, 0.8),
        Word("not.", 0.5, 0.9, 0.6),
        Word("What", 1.8, 2.2, 0.9),  # aligned a little too early
        Word("now?", 2.3, 9.9, 0.7),  # and the last one much too long
    ]
    found = Hypothesis("Ask not. What now?", "en", 0.99, 0.9, words)
    first, second = unpack(seconds((10, 11), (12, 13)), found)
    assert (first.text, first.start, first.end, first.confidence) == ("Ask not.", 10.0, 11.0, 0.7)
    assert (second.text, second.start, second.end, second.confidence) == ("What now?", 12.0, 13.0, 0.8)
    assert [(word.start, word.end) for word in second.words] == [(12.0, 12.2), (12.3, 13.0)]
    assert {segment.language for segment in (first, second)} == {"en"}


def test_a_segment_without_words_has_no_text() -> None:
    found = Hypothesis("Hello.", "en", 1.0, 0.9, [Word("Hello.", 2.1, 2.5, 0.9)])
    [only] = unpack(seconds((0, 1), (2, 3)), found)
    assert (only.text, only.start) == ("Hello.", 2.0)


def test_a_segment_alone_is_what_was_recognised() -> None:
    found = Hypothesis("Hello.", "en", 1.0, 0.9)
    assert [(one.text, one.start, one.end) for one in unpack(seconds((1, 2)), found)] == [("Hello.", 1.0, 2.0)]
    assert unpack(seconds((1, 2)), Hypothesis("", "en", 1.0, 0.0)) == []
