"""The transcript of a session: what was said so far, and in which language, on each channel.

A channel is None where channels are mixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from asrserver.broker.replies import Claim
from asrserver.inference.checkpoint import SessionState
from asrserver.inference.segments import RecognisedSegment
from asrserver.protocol.events import Segment
from asrserver.protocol.options import Options
from asrserver.text.words import join

#: Probability from which a detected language counts, and seconds of speech in it from which a session keeps it: digits
#: and single words of English are taken for Chinese or Japanese, with certainty now and then.
MIN_LANGUAGE_PROBABILITY = 0.8
MIN_LANGUAGE_SECONDS = 3.0


class _Said(NamedTuple):
    """The text of a segment. Where it starts and ends is not known when Redis no longer has its event."""

    text: str
    language: str
    start: float = 0.0
    end: float = 0.0
    channel: int | None = None

    @classmethod
    def of(cls, segment: Segment) -> _Said:
        return cls(segment.text, segment.language, segment.start, segment.end, segment.channel)


class Transcript:
    """The texts of a session's segments, and its languages. Its length is the number of segments."""

    def __init__(self, claim: Claim, state: SessionState, options: Options) -> None:
        """Begin with what earlier owners have recognised.

        Args:
            claim: The session, with the texts of its segments, and its events.
            state: Has the languages that were detected.
            options: The session's options.
        """
        self._separate = options.separate
        self._requested = options.language
        self._detected: dict[int | None, str | None] = dict(enumerate(state.languages))
        if not self._separate:
            self._detected = {None: state.language}
        self._heard: defaultdict[tuple[int | None, str], float] = defaultdict(float)  # seconds, by detected language
        self._said = [_Said(*said) for said in claim.transcript]
        for segment in (segment for event in claim.events for segment in event.segments):
            if segment.number < len(self._said):
                self._said[segment.number] = _Said.of(segment)
        self._last = {said.channel: said for said in self._said}

    def __len__(self) -> int:
        return len(self._said)

    @property
    def language(self) -> str | None:
        """The session's language code: that of the first channel whose language is known; None: not known yet."""
        return self._requested or next(filter(None, self._detected.values()), None)

    @property
    def last_language(self) -> str | None:
        """The language code of the last segment; None: there is none."""
        return self._said[-1].language if self._said else None

    def language_of(self, channel: int | None) -> str | None:
        """The language code of a channel; None: not known yet."""
        return self._requested or self._detected.get(channel)

    def languages(self, channels: int) -> list[str | None]:
        """The languages that were detected on this number of channels; none where channels are mixed."""
        return [self._detected.get(number) for number in range(channels)] if self._separate else []

    def previous(self, channel: int | None) -> tuple[str, float]:
        """The text of a channel's last segment, empty if it is in another language; and its end, in seconds."""
        said = self._last.get(channel)
        if said is None:
            return "", 0.0
        return said.text if said.language == self.language_of(channel) else "", said.end

    def detect(self, segments: Sequence[RecognisedSegment]) -> None:
        """Note the languages of segments. The first one that is detected in enough speech becomes the channel's."""
        for segment in segments:
            if segment.language_probability >= MIN_LANGUAGE_PROBABILITY:
                channel, heard = segment.channel, (segment.channel, segment.language)
                self._heard[heard] += segment.end - segment.start
                if self.language_of(channel) is None and self._heard[heard] >= MIN_LANGUAGE_SECONDS:
                    self._detected[channel] = segment.language

    def add(self, segments: Sequence[Segment]) -> None:
        """Add segments that have become final."""
        for segment in segments:
            self._said.append(_Said.of(segment))
            self._last[segment.channel] = self._said[-1]

    def text(self) -> str:
        """The whole text; that of several channels in the order in which segments began."""
        said = sorted(self._said, key=lambda one: one.start) if self._separate else self._said
        return join([(one.text, one.language) for one in said])
