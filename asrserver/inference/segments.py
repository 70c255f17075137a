"""Segments: a stretch of speech, the text so far while it grows, and its final text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.alignment import shifted
from asrserver.inference.decoding import Hypothesis
from asrserver.inference.features import GrowingLogMel
from asrserver.protocol.events import Word
from asrserver.telemetry.worker_traces import Call


@dataclass(slots=True)
class RecognisedSegment:
    """A segment with its text.

    Attributes:
        start: Seconds from the beginning of its utterance or live stream; once it is `shifted`, of the session.
        end: Likewise.
        text: Its text; never empty.
        language: Language code.
        language_probability: 0 to 1; 1 if the language was not detected.
        confidence: Mean probability of a token, 0 to 1.
        words: Its words, if the client asked for them, with times like its own.
        chunk_index: The chunk that contains it, where chunks are utterances of their own.
        channel: The channel that it was spoken on, where channels are recognised separately.
    """

    start: float
    end: float
    text: str
    language: str
    language_probability: float
    confidence: float
    words: list[Word] = field(default_factory=list)
    chunk_index: int | None = None
    channel: int | None = None

    @classmethod
    def of(cls, start: int, end: int, hypothesis: Hypothesis, channel: int | None = None) -> RecognisedSegment:
        """Make it from the hypothesis for samples `start` to `end`."""
        begin = start / SAMPLE_RATE
        return cls(
            round(begin, 3),
            round(end / SAMPLE_RATE, 3),
            hypothesis.text,
            hypothesis.language,
            hypothesis.language_probability,
            hypothesis.confidence,
            [shifted(word, begin) for word in hypothesis.words],
            channel=channel,
        )

    def shifted(self, seconds: float) -> RecognisedSegment:
        """The segment with all its times `seconds` later."""
        words = [shifted(word, seconds) for word in self.words]
        return replace(self, start=self.start + seconds, end=self.end + seconds, words=words)


@dataclass(slots=True)
class SpeechSegment:
    """A growing or ended segment of a recording.

    Attributes:
        start: First sample in the recording.
        end: Sample after the last; of a growing segment, as if it ended now.
        mel: Its features, which begin at `start`.
        cut: Whether it ended only because it reached the maximum length.
        ended_by: "session entry" of the entry with which it ended; empty while it grows.
    """

    start: int
    end: int
    mel: GrowingLogMel
    cut: bool = False
    ended_by: str = ""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class PartialHypothesis:
    """The text so far of a growing segment.

    Attributes:
        start: First sample in the recording.
        end: Sample after the last that was decoded.
        text: The whole text.
        stable: The beginning of `text` that will not change.
        language: Language code.
        channel: See RecognisedSegment.
    """

    start: int
    end: int
    text: str
    stable: str
    language: str
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentOutcome:
    """The result for an ended segment.

    Attributes:
        speech: The segment.
        recognised: The segment with its text; None if it has no words, or after an error.
        error: Why it could not be recognised.
        had_partials: Whether partial hypotheses of it were published.
        channel: See RecognisedSegment.
        call: When the engine decoded it; None after an error.
    """

    speech: SpeechSegment
    recognised: RecognisedSegment | None
    error: BaseException | None
    had_partials: bool
    channel: int | None = None
    call: Call | None = None
