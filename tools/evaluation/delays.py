"""The delays of live streams, how often partial results come, and how steady they are.

When speech begins and ends is what faster-whisper's voice activity detection says of the recording, without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from live import percentile

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.agreement import common_prefix
from asrserver.text.words import words
from evaluation.corpus import Take

#: Seconds by which a segment may begin after, or end before, speech that belongs to it.
SLACK = 0.25

#: Shortest pause between two stretches of speech, in milliseconds.
PAUSE_MS = 100

Messages = Sequence[tuple[float, dict[str, Any]]]

#: First and last second of a stretch of speech.
Stretch = tuple[float, float]


@dataclass
class Delays:
    """Seconds, and words, of one or more live streams.

    Attributes:
        first: From the beginning of speech to the first partial result of its segment.
        gaps: Between two partial results of a segment, while speech goes on.
        final: From the end of speech to its segment's result.
        shown: Words in partial results.
        stable: Those of them that were called stable.
        settled: Words that were called stable in the last partial result of a segment.
        revised: Those of them that the segment's result contradicts.
    """

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    shown: int = 0
    stable: int = 0
    settled: int = 0
    revised: int = 0

    def add(self, other: Delays) -> None:
        """Add those of other streams."""
        self.first += other.first
        self.gaps += other.gaps
        self.final += other.final
        self.shown += other.shown
        self.stable += other.stable
        self.settled += other.settled
        self.revised += other.revised

    def asdict(self) -> dict[str, Any]:
        """The figures: percentiles in seconds, shares from 0 to 1."""
        both = {"first": self.first, "gaps": self.gaps, "final": self.final}
        return {
            **{f"{name}_p50": percentile(values, 0.5) for name, values in both.items()},
            **{f"{name}_p95": percentile(values, 0.95) for name, values in both.items()},
            "segments": len(self.final),
            "partials": len(self.first) + len(self.gaps),
            "stable_share": self.stable / self.shown if self.shown else float("nan"),
            "settled": self.settled,
            "revised": self.revised,
        }


def speech_of(take: Take) -> list[Stretch]:
    """The stretches of speech in a recording."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(min_silence_duration_ms=PAUSE_MS, speech_pad_ms=0)
    found = get_speech_timestamps(take.samples, options)
    return [(one["start"] / SAMPLE_RATE, one["end"] / SAMPLE_RATE) for one in found]


def delays_of(messages: Messages, speech: Sequence[Stretch]) -> Delays:
    """The delays of one live stream.

    Args:
        messages: The server's, with the seconds since the first sample.
        speech: The stretches of speech.
    """
    result = Delays()
    partials: list[tuple[float, dict[str, Any]]] = []  # since the last segment
    for when, message in messages:
        if message["type"] == "partial_result" and message["text"]:
            partials.append((when, message))
        elif message["type"] == "segment_result":
            own = [one for one in partials if one[1]["start"] < message["end"]]
            partials = [one for one in partials if one[1]["start"] >= message["end"]]
            inside = [one for one in speech if message["start"] - SLACK <= one[0] and one[1] <= message["end"] + SLACK]
            if inside:
                result.final.append(when - inside[-1][1])
                _partials_of(result, own, inside)
            _words_of(result, own, message)
    return result


def _partials_of(result: Delays, own: Messages, inside: Sequence[Stretch]) -> None:
    if own:
        result.first.append(own[0][0] - inside[0][0])
    times = [when for when, _ in own if when <= inside[-1][1]]
    result.gaps += [after - before for before, after in pairwise(times)]


def _words_of(result: Delays, own: Messages, segment: dict[str, Any]) -> None:
    last: dict[float, dict[str, Any]] = {}
    for _, partial in own:
        result.shown += len(words(partial["text"], partial["language"]))
        result.stable += len(words(partial["stable"], partial["language"]))
        last[partial["start"]] = partial
    settled = [word for partial in last.values() for word in words(partial["stable"], partial["language"])]
    result.settled += len(settled)
    result.revised += len(settled) - common_prefix(settled, words(segment["text"], segment["language"]))


def total_delays(found: Iterable[Delays]) -> Delays:
    """Those of several streams together."""
    result = Delays()
    for one in found:
        result.add(one)
    return result
