"""Scheduling of partial results: growing segments are decoded as often as asked, or as often as the device can afford.

A *draft* is a decoding of a segment that is still growing; a *final* is the decoding of one that has ended.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from asrserver.inference.profiles import DEMO

#: Share that drafts keep, however much time the finals take.
MIN_DRAFT_SHARE = 0.05

#: Drafts are at least this many times as far apart as the delay of audio on its way to its text: a worker that is late
#: with finals has no time for drafts.
DELAY_FACTOR = 10.0

#: Part of the target share that finals may take while segments still wait for the rest of their sentence. Above it the
#: wait would be added to the time for which they wait for the engine: with 12 streams of Whisper base on two cores that
#: made the p95 of segments 2.5 s instead of 1.8 s.
MAX_WAITING_SHARE = 0.6

#: Seconds over which the finals' share and waits are measured.
SPAN_SECONDS = 5.0

#: Weight of a new measurement in a moving average.
SMOOTHING = 0.1

#: Seconds between reads of a live stream above which no segment is decoded before its end is certain: a third of those
#: decodings are for nothing.
MAX_SPECULATION_INTERVAL = 0.15

#: Share of the decoding that segments may take which were decoded in a pause and went on, seconds of it that are always
#: allowed, and seconds of decoding after which what was counts half. A reading with a breath in each sentence was
#: decoded anew at each: half of the engine's time was for nothing. That holds where the engine has nothing else to do,
#: too: its cores, or its device, serve others than its queue, and it would cost such a reading twice the processor
#: time to have the finals of one hesitant speaker earlier by a decoding. Who pauses at ends only does not notice.
MAX_SPECULATION_WASTE = 0.04
FREE_SPECULATION_SECONDS = 1.0
MEMORY_SECONDS = 120.0

#: Part of those seconds that one stream may take: it spends no more than that and the share of its own decoding, so
#: that a hesitant speaker leaves others what theirs allows.
STREAM_PART = 0.5


@dataclass(slots=True)
class SpeculationBudget:
    """What decodings in pauses may cost, of a worker or of one stream.

    Attributes:
        free: Seconds that are always allowed.
        decoded: Seconds of all decodings, what is long ago halved.
        went_on: Those of decodings in a pause that did not last, likewise.
    """

    free: float = STREAM_PART * FREE_SPECULATION_SECONDS
    decoded: float = 0.0
    went_on: float = 0.0

    @property
    def is_left(self) -> bool:
        """Whether a segment may be decoded in a pause."""
        return self.went_on <= self.free + MAX_SPECULATION_WASTE * self.decoded

    def decode(self, seconds: float) -> None:
        """Account for decoding, whatever it was for."""
        self.decoded += seconds
        if self.decoded > MEMORY_SECONDS:
            self.decoded, self.went_on = self.decoded / 2, self.went_on / 2


class PartialScheduler:
    """Makes drafts rarer before finals become slow: all growing segments share what finals leave of the engine's time.

    One scheduler serves all sessions of a worker. The consumer, the audio thread and the engine report to it; the
    segment recognisers ask it. All do so in the event loop, except the audio thread, which reports its own delay only.

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
        """A session has a growing segment that gets drafts."""
        self._growing.add(session)

    def closed(self, session: str) -> None:
        """The session's segment no longer grows. Safe to call for a session without one."""
        self._growing.discard(session)

    def read_every(self, seconds: float) -> None:
        """Each live stream is now read this often."""
        self._read_interval = seconds

    def may_speculate(self, stream: SpeculationBudget) -> bool:
        """Whether a segment of a stream may be decoded in a pause, before its end is certain.

        It gains time if streams are read often, and it must not have been for nothing too often.
        """
        return self._read_interval < MAX_SPECULATION_INTERVAL and stream.is_left and self._budget.is_left

    def went_on(self, stream: SpeculationBudget, seconds: float) -> None:
        """A segment of a stream was decoded in a pause, which took `seconds` of the engine, and speech went on."""
        stream.went_on += seconds
        self._budget.went_on += seconds

    @property
    def may_wait(self) -> bool:
        """Whether finals leave the engine so much time that a segment may wait for the rest of its sentence."""
        share, _ = self._recent_finals()
        return share < MAX_WAITING_SHARE * self._target_share

    def call_ended(self, draft_seconds: float, drafts: int, seconds: float, waited: float = 0.0) -> None:
        """Account for a call of the engine.

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
        """Audio waited this long to be read from its stream, or for voice activity detection."""
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
