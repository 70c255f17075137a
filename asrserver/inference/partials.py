"""Scheduling of partial results: growing segments are decoded as often as asked, or as often as the device can afford.

The kinds of decodings (draft, final, speculation) are explained in segment_recogniser.py.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from asrserver.inference.profiles import DEMO

#: Share that drafts keep, however much time the finals take.
MIN_DRAFT_SHARE = 0.05

#: The interval between drafts is at least this many times the delay between audio and its text: a worker that is late
#: with finals has no time for drafts.
DELAY_FACTOR = 10.0

#: While finals take less than this part of the target share, segments may wait for the rest of their sentence. Above it
#: that wait comes on top of the wait for the engine: with 12 streams of Whisper base on two cores it made the p95 of
#: segments 2.5 s instead of 1.8 s.
MAX_WAITING_SHARE = 0.6

#: Seconds over which the finals' share and waits are measured.
SPAN_SECONDS = 5.0

#: Weight of a new measurement in a moving average.
SMOOTHING = 0.1

#: Seconds between reads of a live stream above which there is no speculation: it would gain little time, and a third of
#: it is for nothing.
MAX_SPECULATION_INTERVAL = 0.15

#: The share of all decoding that speculations may waste, seconds of waste that are always allowed, and seconds of
#: decoding after which the past counts half. Without this, a reading with a breath in each sentence was decoded again
#: at each breath, and half of the engine's time was wasted. It holds while the engine is idle, too: other programs use
#: the cores or the device, and one hesitant speaker would cost twice the processor time to get finals somewhat earlier.
#: It costs nothing to those who pause only where their sentences end.
MAX_SPECULATION_WASTE = 0.04
FREE_SPECULATION_SECONDS = 1.0
MEMORY_SECONDS = 120.0

#: Part of those seconds that one stream may waste. Together with the share of its own decoding that is its limit, so
#: that a hesitant speaker takes nothing from others.
STREAM_PART = 0.5


@dataclass(slots=True)
class SpeculationBudget:
    """What speculations may waste, of a worker or of one stream.

    Attributes:
        free: Seconds that are always allowed.
        decoded: Seconds of all decodings; the distant past counts half.
        wasted: Seconds of speculations that were for nothing, likewise.
    """

    free: float = STREAM_PART * FREE_SPECULATION_SECONDS
    decoded: float = 0.0
    wasted: float = 0.0

    @property
    def is_left(self) -> bool:
        """Whether there may be another speculation."""
        return self.wasted <= self.free + MAX_SPECULATION_WASTE * self.decoded

    def decode(self, seconds: float) -> None:
        """Count a decoding of any kind."""
        self.decoded += seconds
        if self.decoded > MEMORY_SECONDS:
            self.decoded, self.wasted = self.decoded / 2, self.wasted / 2


class PartialScheduler:
    """Makes drafts rarer before finals become slow: all growing segments share the engine's time that finals leave.

    One scheduler serves all sessions of a worker. The consumer, the audio thread and the engine report to it, and the
    segment recognisers ask it, all in the event loop, except for the audio thread, which only reports its own delay.

    Attributes:
        drafts: Drafts decoded so far.
    """

    def __init__(self, target_share: float = DEMO.draft_share) -> None:
        """`target_share` of the engine's time is for drafts and finals together; see `Profile.draft_share`."""
        self.drafts = 0
        self._target_share = target_share
        self._growing: set[str] = set()  # sessions with a growing segment that gets drafts
        self._draft_seconds = 0.0  # that one draft takes, a moving average
        self._read_interval = 0.0
        self._budget = SpeculationBudget(FREE_SPECULATION_SECONDS)
        self._delays = {"read": 0.0, "vad": 0.0}  # seconds, moving averages
        self._finals = deque[tuple[float, float, float]]()  # (when, seconds, waited) of the calls with finals

    def opened(self, session: str) -> None:
        """Count a session: it has a growing segment that gets drafts."""
        self._growing.add(session)

    def closed(self, session: str) -> None:
        """Count a session no more: its segment has ended. It need not have been counted."""
        self._growing.discard(session)

    def read_every(self, seconds: float) -> None:
        """Note the seconds between two reads of a live stream."""
        self._read_interval = seconds

    def may_speculate(self, stream: SpeculationBudget) -> bool:
        """Whether a segment of a stream may be decoded before its end is certain.

        Streams must be read so often that this gains time, and it must not have been for nothing too often.
        """
        return self._read_interval < MAX_SPECULATION_INTERVAL and stream.is_left and self._budget.is_left

    def charge_waste(self, stream: SpeculationBudget, seconds: float) -> None:
        """Count a speculation of a stream that was for nothing, and took this much of the engine's time."""
        stream.wasted += seconds
        self._budget.wasted += seconds

    @property
    def may_wait(self) -> bool:
        """Whether the engine is idle enough for a segment to wait for the rest of its sentence."""
        share, _ = self._recent_finals()
        return share < MAX_WAITING_SHARE * self._target_share

    def call_ended(self, draft_seconds: float, drafts: int, seconds: float, waited: float = 0.0) -> None:
        """Count a call of the engine.

        Args:
            draft_seconds: Part of the call's time that went into drafts.
            drafts: Drafts in the call.
            seconds: Duration of the call.
            waited: Longest wait, in seconds, of a final in the call.
        """
        now = time.monotonic()
        self._budget.decode(seconds)
        if drafts:
            self.drafts += drafts
            each = draft_seconds / drafts
            self._draft_seconds = (
                each if not self._draft_seconds else self._draft_seconds + SMOOTHING * (each - self._draft_seconds)
            )
        if seconds > draft_seconds:
            self._finals.append((now, seconds - draft_seconds, waited))
        while self._finals and self._finals[0][0] < now - SPAN_SECONDS:
            self._finals.popleft()

    def delayed(self, stage: Literal["read", "vad"], seconds: float) -> None:
        """Count a delay of audio: before it was read from its stream, or before voice activity detection."""
        self._delays[stage] += SMOOTHING * (seconds - self._delays[stage])

    def interval(self, requested: float) -> float:
        """Seconds between drafts of one segment, for a client that requested `requested` seconds."""
        share, waited = self._recent_finals()
        share = max(MIN_DRAFT_SHARE, self._target_share - share)
        delay = sum(self._delays.values()) + waited
        return max(requested, len(self._growing) * self._draft_seconds / share, DELAY_FACTOR * delay)

    def _recent_finals(self) -> tuple[float, float]:
        """(share of the engine's time that finals took in the last SPAN_SECONDS, their mean wait in seconds)."""
        since = time.monotonic() - SPAN_SECONDS
        finals = [(seconds, waited) for when, seconds, waited in list(self._finals) if when > since]
        waited = sum(waited for _, waited in finals) / max(1, len(finals))
        return sum(seconds for seconds, _ in finals) / SPAN_SECONDS, waited
