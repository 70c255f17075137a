"""Where speech is: Silero (the model that faster-whisper ships) behind a cheap energy gate, as the audio comes.

    endpointer = Endpointer(silence=0.4)
    for event in endpointer.feed(samples):        # whatever the slicing, the same events at the same samples
        match event:
            case SpeechStarted(at): ...           # a segment grows from this sample on: endpointer.open
            case SegmentEnded(start, end): ...    # it is recording[start:end]
    endpointer.flush()                            # the recording is over

All numbers are samples of the recording. Segments follow one another, never overlap, and hold every spoken sample.
Nothing before `endpointer.needed` will be in a later segment: audio before it can be let go of, and it is all that
another process must know to go on: make `Endpointer(silence, start=…, floor=needed)` and feed it from `start`, which
should be `CONTEXT` before `needed`, or more (with a decoder's border: `start=border.sample`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_whisper.vad import get_vad_model

from asrserver.inference.audio import RATE, Samples

#: Samples of a frame, and of the audio before it that Silero (v6, 16 kHz) wants with it.
FRAME = 512
_CONTEXT = 64

#: RMS of a frame below which nothing is heard: -60 dBFS. Silero costs 2–3 ms for each second of audio, as much as
#: recognising it, so quiet never reaches it.
QUIET = 1e-3

#: Frames of quiet after sound that Silero still sees, so that a pause is heard as it would be; and frames before sound
#: that it is shown first. Longer quiet resets its state: what came before does not matter then.
_HOLD = 8
_WARM_UP = 3

#: Frames a call of the network at most.
_ROWS = 1024

#: Longest stretch handed to the recogniser as one segment, in seconds: Whisper's window less a margin.
MAX_SEGMENT = 28.0

#: Audio kept before and after speech, in seconds, and the least speech that counts.
PAD = 0.2
MIN_SPEECH = 0.1

#: Probability at which speech begins, and how far below it must fall to end: Silero's own defaults.
THRESHOLD = 0.5
_HYSTERESIS = 0.15

#: Samples before `needed` from which on a new endpointer should hear the recording: Silero's memory is about a second.
CONTEXT = RATE

#: Frames over which a pause is looked for in a segment that became too long.
_SMOOTH = 5


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Enough speech was heard for a segment; it begins `at` (padding included)."""

    at: int


@dataclass(frozen=True, slots=True)
class SegmentEnded:
    """A segment is whole. `cut`: not by silence but because it became too long."""

    start: int
    end: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """The segment that grows, as it would be if it ended now; `paused`: the samples of silence since its speech."""

    start: int
    end: int
    paused: int


Event = SpeechStarted | SegmentEnded


def segments(samples: Samples, silence: float) -> list[tuple[int, int]]:
    """(start, end) of each stretch of speech in samples, in order; `silence` seconds of quiet end one."""
    endpointer = Endpointer(silence)
    events = endpointer.feed(samples) + endpointer.flush()
    return [(event.start, event.end) for event in events if isinstance(event, SegmentEnded)]


class Endpointer:
    """Of one recording. It holds no audio but the last 0.1 s.

    It blocks for about 2 ms for each second of sound if fed by the second, twice that by 0.1 s, three times by 20 ms
    (tools/bench_vad.py): a call of the network costs as much as two of its frames. Quiet costs next to nothing.
    """

    def __init__(
        self,
        silence: float,
        *,
        start: int = 0,
        floor: int = 0,
        threshold: float = THRESHOLD,
        pad: float = PAD,
        longest: float = MAX_SEGMENT,
    ) -> None:
        """`silence` seconds end a segment, at `longest` it is cut at its best pause; `pad` is kept around its speech.

        `start` is the number of the first sample that will be fed; no segment begins before `floor`.
        """
        self._silence = int(silence * RATE)
        self._threshold = threshold
        self._pad = int(pad * RATE)
        self._longest = int(longest * RATE)
        self._probabilities = _Probabilities(start)
        self._floor = max(start, floor)
        self._at = self._probabilities.at  # of the next frame
        self._onset: int | None = None  # where speech began, as yet without padding
        self._quiet: int | None = None  # where it ended, if it goes on no more
        self._started = False  # it is long enough to count
        self._heard: list[tuple[float, float]] = []  # (probability, energy) of the frames since the onset

    def feed(self, samples: Samples) -> list[Event]:
        """What happens in these samples."""
        return [
            event
            for probability, energy in self._probabilities.feed(samples)
            for event in self._step(probability, energy)
        ]

    def flush(self) -> list[Event]:
        """What the end of the recording ends."""
        events = [event for frame in self._probabilities.flush() for event in self._step(*frame)]
        if self._onset is not None:
            spoken = min(self._at if self._quiet is None else self._quiet, self.position)
            if self._started or spoken - self._onset >= MIN_SPEECH * RATE:
                start, end = self._start(), min(spoken + self._pad, self.position)
                events += [] if self._started else [SpeechStarted(start)]
                events.append(SegmentEnded(start, end))
            self._forget()
            self._floor = self.position
        return events

    @property
    def position(self) -> int:
        """The number of the sample that comes next."""
        return self._probabilities.position

    @property
    def open(self) -> OpenSegment | None:
        """The segment that grows, if one does."""
        if not self._started:
            return None
        quiet = self._at if self._quiet is None else self._quiet
        return OpenSegment(self._start(), min(quiet + self._pad, self.position), self._at - quiet)

    @property
    def needed(self) -> int:
        """The first sample that can still be in a segment."""
        return self._start() if self._onset is not None else max(self._floor, self._at - self._pad)

    # -- frame by frame ------------------------------------------------------------------------------------------

    def _step(self, probability: float, energy: float) -> Iterator[Event]:
        at, self._at = self._at, self._at + FRAME
        if self._onset is None:
            if probability < self._threshold or self._at <= self._floor:
                return
            self._onset = at
        self._heard.append((probability, energy))
        if probability >= self._threshold:
            self._quiet = None
        elif probability < self._threshold - _HYSTERESIS and self._quiet is None:
            self._quiet = at
        spoken = self._at if self._quiet is None else self._quiet
        if not self._started and spoken - self._onset >= MIN_SPEECH * RATE:
            self._started = True
            yield SpeechStarted(self._start())
        if self._at - spoken >= self._silence:
            if self._started:
                yield self._ended(min(spoken + self._pad, self._at))
            self._forget()
        elif self._at - self._start() >= self._longest:
            yield from self._cut()

    def _start(self) -> int:
        assert self._onset is not None
        return max(self._floor, self._onset - self._pad)

    def _ended(self, end: int, cut: bool = False) -> SegmentEnded:
        event = SegmentEnded(self._start(), end, cut)
        self._floor = end
        return event

    def _forget(self) -> None:
        self._onset, self._quiet, self._started = None, None, False
        self._heard = []

    def _cut(self) -> Iterator[Event]:
        """End a segment that is too long, in the quietest place of its later half; what is behind is heard again."""
        assert self._onset is not None
        heard = self._heard
        half = len(heard) // 2
        later = np.array(heard[half:])
        levels = 10 * np.log10(later[:, 1] + 1e-10)
        levels = (levels - levels.min()) / max(1e-9, float(np.ptp(levels)))
        scores = np.convolve(later[:, 0] + levels, np.ones(_SMOOTH), "valid")
        place = half + _SMOOTH // 2 + int(np.argmin(scores))
        cut = self._onset + place * FRAME + FRAME // 2
        spoken = max((n for n in range(place + 1) if heard[n][0] >= self._threshold - _HYSTERESIS), default=place)
        if self._started:
            yield self._ended(min(cut, self._onset + (spoken + 1) * FRAME + self._pad), cut=True)
        self._floor = max(self._floor, cut)
        self._at = self._onset + (place + 1) * FRAME
        self._forget()
        for frame in heard[place + 1 :]:
            yield from self._step(*frame)


class _Probabilities:
    """Samples to (probability of speech, energy) of each frame. Frames begin at multiples of FRAME in the recording."""

    def __init__(self, start: int) -> None:
        self.position = start
        self.at = -(-start // FRAME) * FRAME  # of the next frame
        self._ahead = self.at - start  # samples before it, which only a frame begun earlier would hold
        self._kept = np.zeros(_WARM_UP * FRAME + _CONTEXT, np.float32)  # before the next frame
        self._rest = np.zeros(0, np.float32)
        self._hold = 0  # frames for which the gate stays open
        self._closed = True
        self._state = _silence()

    def feed(self, samples: Samples) -> list[tuple[float, float]]:
        self.position += len(samples)
        skipped = min(self._ahead, len(samples))
        self._ahead -= skipped
        samples = samples[skipped:]
        count = (len(self._rest) + len(samples)) // FRAME
        if not count:
            self._rest = np.concatenate([self._rest, samples])
            return []
        audio = np.concatenate([self._kept, self._rest, samples])
        end = len(self._kept) + count * FRAME
        frames = audio[len(self._kept) : end].reshape(count, FRAME)
        energies = np.vecdot(frames, frames) / FRAME
        probabilities = self._heard(audio, energies)
        self._kept, self._rest = audio[end - len(self._kept) : end].copy(), audio[end:].copy()
        self.at += count * FRAME
        return list(zip(probabilities.tolist(), energies.tolist(), strict=True))

    def flush(self) -> list[tuple[float, float]]:
        """The last frame, filled up with silence."""
        position = self.position
        last = self.feed(np.zeros(-len(self._rest) % FRAME, np.float32)) if len(self._rest) else []
        self.position = position
        return last

    def _heard(self, audio: Samples, energies: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The network's word where the gate is open; elsewhere there is no speech."""
        probabilities = np.zeros(len(energies), np.float32)
        opened: int | None = None if self._closed else 0  # the frame from which on the gate is open
        for number, loud in enumerate((energies > QUIET * QUIET).tolist()):
            if loud:
                self._hold = _HOLD
                opened = number if opened is None else opened
            elif self._hold:
                self._hold -= 1
            elif opened is not None:
                probabilities[opened:number] = self._run(audio, opened, number)
                opened, self._closed = None, True
        if opened is not None and opened < len(energies):
            probabilities[opened:] = self._run(audio, opened, len(energies))
        return probabilities

    def _run(self, audio: Samples, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Of frames in a row; `audio` begins `_kept` samples before frame 0."""
        if begin == end:
            return np.zeros(0, np.float32)
        warm_up = 0
        if self._closed:
            self._state, self._closed, warm_up = _silence(), False, _WARM_UP
        count = end - begin + warm_up
        first = (begin - warm_up + _WARM_UP) * FRAME
        rows = np.empty((count, _CONTEXT + FRAME), np.float32)
        rows[:, :_CONTEXT] = audio[first : first + count * FRAME].reshape(count, FRAME)[:, :_CONTEXT]
        rows[:, _CONTEXT:] = audio[first + _CONTEXT : first + _CONTEXT + count * FRAME].reshape(count, FRAME)
        found = []
        for row in range(0, len(rows), _ROWS):
            h, c = self._state
            inputs = {"input": rows[row : row + _ROWS], "h": h, "c": c}
            probability, h, c = get_vad_model().session.run(None, inputs)
            self._state = h, c
            found.append(probability)
        return np.concatenate(found)[warm_up:]


def _silence() -> tuple[Samples, Samples]:
    """The network's state before the first frame."""
    return np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
