"""Packing: the segments of a recording are decoded together in long windows, as the model was trained.

Nobody waits for the first segment of a file. In a window with its neighbours a short segment has context, and its
sentence is not cut at a breath. The text of a window is divided among its segments by the times of its words. Speech
that is longer than a window is one segment, which is read from the end of one window's text on (`utterances.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.decoding import Hypothesis
from asrserver.inference.segments import RecognisedSegment
from asrserver.inference.vad import Event, SegmentEnded
from asrserver.protocol.events import Word
from asrserver.text.words import glue

#: First sample of a segment, and the sample after its last.
Span = tuple[int, int]

#: Seconds of silence across which segments are neither packed nor joined: encoding them costs more than the context
#: gains, and in a window of silence Whisper invents text.
MAX_GAP_SECONDS = 3.0

#: Seconds by which a word may begin before the segment to which it belongs: alignment is that inexact.
TOLERANCE_SECONDS = 0.25


def spoken_spans(events: Iterable[Event], together: bool) -> list[Span]:
    """The segments of a recording.

    Args:
        events: What an endpointer found in it.
        together: Join segments that were cut only because they were long. Speech may have stopped just where it was
            cut: what comes long after that is another segment.
    """
    spans: list[Span] = []
    goes_on = False
    for event in events:
        if isinstance(event, SegmentEnded):
            goes_on = goes_on and event.start - spans[-1][1] <= MAX_GAP_SECONDS * SAMPLE_RATE
            spans.append((spans.pop()[0] if goes_on else event.start, event.end))
            goes_on = together and event.cut
    return spans


def pack(spans: list[Span], seconds: float) -> list[list[Span]]:
    """Group the segments of a recording.

    Args:
        spans: The segments, in order.
        seconds: Longest group of several, silence between them included; 0: each segment is a group.

    Returns:
        The groups, in order.
    """
    groups: list[list[Span]] = []
    for start, end in spans:
        group = groups[-1] if groups else None
        if (
            group
            and end - group[0][0] <= seconds * SAMPLE_RATE
            and start - group[-1][1] <= MAX_GAP_SECONDS * SAMPLE_RATE
        ):
            group.append((start, end))
        else:
            groups.append([(start, end)])
    return groups


def unpack(group: list[Span], found: Hypothesis) -> list[RecognisedSegment]:
    """Divide what was recognised in a group among its segments.

    Args:
        group: The segments; the window began with the first of them.
        found: Its text, with timed words if there are several segments.

    Returns:
        The segments that have a text, with their words.
    """
    if not found.text:
        return []
    if len(group) == 1 or not found.words:
        return [RecognisedSegment.of(group[0][0], group[-1][1], found)]
    shares: list[list[Word]] = [[] for _ in group]
    begin = group[0][0]
    place = 0
    for word in found.words:
        while place + 1 < len(group) and word.start + TOLERANCE_SECONDS >= (group[place + 1][0] - begin) / SAMPLE_RATE:
            place += 1
        shares[place].append(word)
    return [_share(span, begin, words, found) for span, words in zip(group, shares, strict=True) if words]


def _share(span: Span, begin: int, words: list[Word], found: Hypothesis) -> RecognisedSegment:
    offset = begin / SAMPLE_RATE
    start, end = span[0] / SAMPLE_RATE, span[1] / SAMPLE_RATE

    def inside(seconds: float) -> float:
        return round(min(max(seconds + offset, start), end), 3)

    return RecognisedSegment(
        round(start, 3),
        round(end, 3),
        glue([word.word for word in words], found.language),
        found.language,
        found.language_probability,
        round(sum(word.confidence for word in words) / len(words), 4),
        [Word(word.word, inside(word.start), inside(word.end), word.confidence) for word in words],
    )
