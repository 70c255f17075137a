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

`feed` is `hear`, the network, and `judge`: who has many recordings asks the network once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrserver.audio.files import RATE, Samples
from asrserver.inference import silero
from asrserver.inference.silero import CONTEXT as _CONTEXT
from asrserver.inference.silero import FRAME, Stretch

#: RMS of a frame below which nothing is heard: -60 dBFS. Silero costs as much as recognition does, so quiet never
#: reaches it.
QUIET = 1e-3

#: Frames of quiet after sound that Silero still sees, so that a pause is heard as it would be; and frames before sound
#: that it is shown first. Longer quiet resets its state: what came before does not matter then.
_HOLD = 8
_WARM_UP = 3

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

    It blocks for about 1 ms for each second of sound if fed by the second, three times that by 0.1 s
    (tools/bench_vad.py): a call of the network costs as much as five of its frames. Quiet costs next to nothing.
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
        silero.hear(self.hear(samples))
        return self.judge()

    def hear(self, samples: Samples) -> list[Stretch]:
        """What of these samples, and of those before them, the network must hear before `judge`."""
        return self._probabilities.hear(samples)

    def judge(self) -> list[Event]:
        """What happens in the samples that were heard."""
        probabilities, energies = self._probabilities.found()
        if self._onset is None and (not len(probabilities) or float(probabilities.max()) < self._threshold):
            self._at += len(probabilities) * FRAME
            return []
        frames = zip(probabilities.tolist(), energies.tolist(), strict=True)
        return [event for frame in frames for event in self._step(*frame)]

    def flush(self) -> list[Event]:
        """What the end of the recording ends."""
        position = self.position
        events = self.feed(np.zeros(self._probabilities.missing, np.float32))  # the last frame, filled up with silence
        self._probabilities.position = position
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
        self._state: Samples | None = None
        # Of what is heard and not yet judged; and what the network hears of it.
        self._energies = np.zeros(0, np.float32)
        self._stretches: list[tuple[int, int, Stretch]] = []

    @property
    def missing(self) -> int:
        """Samples that the next frame lacks, if it has any."""
        return -len(self._rest) % FRAME

    def hear(self, samples: Samples) -> list[Stretch]:
        """What the network must hear of the frames that these samples complete."""
        self.position += len(samples)
        skipped = min(self._ahead, len(samples))
        self._ahead -= skipped
        audio = np.concatenate([self._kept, self._rest, samples[skipped:]])
        before = len(self._kept)
        count = (len(audio) - before) // FRAME
        end = before + count * FRAME
        frames = audio[before:end].reshape(count, FRAME)
        self._energies = np.vecdot(frames, frames) / FRAME
        self._stretches = self._loud(audio)
        self._kept, self._rest = audio[end - before : end].copy(), audio[end:].copy()
        self.at += count * FRAME
        return [stretch for _, _, stretch in self._stretches]

    def found(self) -> tuple[Samples, Samples]:
        """(probabilities, energies) of the frames that were heard: the network's word where the gate was open;
        elsewhere there is no speech."""
        probabilities = np.zeros(len(self._energies), np.float32)
        for begin, warm_up, stretch in self._stretches:
            found = stretch.probabilities[warm_up:]
            probabilities[begin : begin + len(found)] = found
        if self._stretches:
            self._state = self._stretches[-1][2].state
        energies, self._energies, self._stretches = self._energies, np.zeros(0, np.float32), []
        return probabilities, energies

    def _loud(self, audio: Samples) -> list[tuple[int, int, Stretch]]:
        """(first frame, frames of warm-up, stretch) of each run of frames at which the gate is open."""
        loud = self._energies > QUIET * QUIET
        if self._closed and not loud.any():
            return []
        stretches = []
        opened: int | None = None if self._closed else 0  # the frame from which on the gate is open
        for number, is_loud in enumerate(loud.tolist()):
            if is_loud:
                self._hold = _HOLD
                opened = number if opened is None else opened
            elif self._hold:
                self._hold -= 1
            elif opened is not None:
                stretches += self._stretch(audio, opened, number)
                opened, self._closed = None, True
        if opened is not None:
            stretches += self._stretch(audio, opened, len(loud))
        return stretches

    def _stretch(self, audio: Samples, begin: int, end: int) -> list[tuple[int, int, Stretch]]:
        """Of frames in a row; `audio` begins `_kept` samples before frame 0."""
        if begin == end:
            return []
        state, warm_up = self._state, 0
        if self._closed:
            state, self._closed, warm_up = None, False, _WARM_UP
        first = (begin - warm_up + _WARM_UP) * FRAME
        shape = (end - begin + warm_up, _CONTEXT + FRAME)
        frames: Samples = np.ndarray(shape, np.float32, audio, 4 * first, (4 * FRAME, 4))
        return [(begin, warm_up, Stretch(frames, state))]
