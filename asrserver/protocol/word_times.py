"""Times of words that the recogniser has not timed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from asrserver.protocol.events import Word


def spread(found: Sequence[str], start: float, end: float, confidences: Sequence[float]) -> list[Word]:
    """Words whose times are not known: each takes a part of the time, in seconds, as long as it is."""
    places = [0, *accumulate(map(len, found))]
    times = [round(start + (end - start) * place / max(1, places[-1]), 3) for place in places]
    return [Word(*one) for one in zip(found, times, times[1:], confidences, strict=False)]
