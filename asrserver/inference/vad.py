"""Streaming endpointing: Silero voice activity detection behind a cheap energy gate.

    endpointer = Endpointer(silence=0.4)
    for event in endpointer.feed(samples):        # the slicing of the audio never changes the events
        match event:
            case SegmentStarted(at): ...           # a segment begins at this sample: see endpointer.open
            case SegmentEnded(start, end): ...    # the segment is recording[start:end]
    endpointer.flush()                            # the recording is over

All positions are sample numbers in the recording (16 kHz). Segments come in order, never overlap, and contain every
spoken sample. No later segment contains a sample before `endpointer.needed`, so earlier audio can be dropped.

Another process can continue an endpointer: it makes `Endpointer(silence, start=…, floor=needed)` and feeds it from
sample `start`, which should be at least `CONTEXT_SAMPLES` before `needed` (with a decoder: the resume point's sample).

`feed` does three steps: `push`, one call of the network, `pull`. A caller with many recordings does the steps itself
and calls the network once for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.inference import silero
from asrserver.inference.highpass import HighPass
from asrserver.inference.silero import FRAME, FRAME_CONTEXT, FrameRun

#: Energy gate: frames with a lower RMS (-60 dBFS) count as silence without asking the network. Silero costs as much
#: CPU as recognition, so quiet audio must not reach it.
QUIET_RMS = 1e-3

#: Quiet frames after sound that Silero still sees, so that it judges a pause as it would without the gate.
_GATE_HOLD_FRAMES = 8

#: Frames before sound that Silero is shown first when the gate opens. A longer quiet resets the network's state: what
#: came before it no longer matters.
_WARM_UP_FRAMES = 3

#: Longest segment in seconds: Whisper's 30 s window less a margin.
MAX_SEGMENT_SECONDS = 28.0

#: Seconds of audio kept before and after speech.
PAD_SECONDS = 0.2

#: What Silero misses before speech that it finds: over a telephone it gives whole words a probability of 0.1. Sound in
#: the gap before a segment is part of it if it has this share of the power of the segment's first words, and if there
#: is silence in the gap too, at most this share of their power: steady noise has none.
LOUD_SHARE = 0.25
QUIET_SHARE = 0.03

#: Shorter speech, in seconds, is no segment.
MIN_SPEECH_SECONDS = 0.1

#: A segment with little speech, or whose sentence is not finished, ends only after this many times the silence that
#: ends others: a word or two are mostly the beginning of a sentence, and recognised badly without the rest.
HOLD_FACTOR = 1.5

#: Probability at which speech begins, and how far below it the probability must fall for speech to end: Silero's own
#: defaults.
SPEECH_THRESHOLD = 0.5
_HYSTERESIS = 0.15

#: Samples before `needed` at which a continuing endpointer should start: Silero's memory is about a second.
CONTEXT_SAMPLES = SAMPLE_RATE

#: Frames over which scores are smoothed when an overlong segment is cut at its best pause, and the least share of it
#: before the cut: more text before a word helps. In a reading without long pauses base made 44 errors with a half.
_CUT_SMOOTHING_FRAMES = 5
_CUT_FROM = 0.75


@dataclass(frozen=True, slots=True)
class SegmentStarted:
    """Enough speech was found for a segment.

    Attributes:
        at: First sample of the segment, padding included.
    """

    at: int


@dataclass(frozen=True, slots=True)
class SegmentEnded:
    """A segment is complete.

    Attributes:
        start: First sample.
        end: Sample after the last.
        cut: The segment ended because it reached the maximum length, not by silence.
    """

    start: int
    end: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """The growing segment, as it would be if it ended now.

    Attributes:
        start: First sample.
        end: Sample after the last.
        paused: Samples of silence since its last speech.
    """

    start: int
    end: int
    paused: int


Event = SegmentStarted | SegmentEnded


def segments(samples: Samples, silence: float) -> list[tuple[int, int]]:
    """Find the segments of a whole recording.

    Args:
        samples: The recording, 16 kHz mono.
        silence: Seconds of silence that end a segment.

    Returns:
        (start, end) sample numbers of each segment, in order.
    """
    endpointer = Endpointer(silence)
    events = endpointer.feed(samples) + endpointer.flush()
    return [(event.start, event.end) for event in events if isinstance(event, SegmentEnded)]


class Endpointer:
    """Finds the segments of one recording as its audio arrives. It keeps only the last 0.1 s of audio.

    Feeding it whole seconds blocks for about 1 ms per second of sound; feeding it 0.1 s at a time costs three times
    that (tools/bench_vad.py), because one call of the network costs as much as five frames. Quiet costs almost nothing.
    """

    def __init__(
        self,
        silence: float,
        *,
        start: int = 0,
        floor: int = 0,
        threshold: float = SPEECH_THRESHOLD,
        pad: float = PAD_SECONDS,
        max_seconds: float = MAX_SEGMENT_SECONDS,
        hold: float = 0.0,
        look_back: float = 0.0,
    ) -> None:
        """Start at a sample of a recording.

        Args:
            silence: Seconds of silence that end a segment.
            start: Number of the first sample that will be fed.
            floor: No segment begins before this sample.
            threshold: Probability of speech at which speech begins.
            pad: Seconds of audio kept before and after speech.
            max_seconds: A segment that reaches this length is cut at its best pause.
            hold: A segment with less speech than this, in seconds, ends after HOLD_FACTOR times the silence.
            look_back: Seconds before speech in which sound as loud as it counts as speech, see LOUD_SHARE.
        """
        self._silence = int(silence * SAMPLE_RATE)
        self._hold = int(hold * SAMPLE_RATE)
        self._threshold = threshold
        self._pad = int(pad * SAMPLE_RATE)
        self._max_length = int(max_seconds * SAMPLE_RATE)
        self._frames = _FrameScorer(start)
        self._floor = max(start, floor)
        self._at = self._frames.at  # first sample of the next frame
        self._onset: int | None = None  # where speech began, without padding
        self._quiet: int | None = None  # where speech paused, while it does
        self._started = False  # the speech is long enough to be a segment
        self._goes_on = False  # so does the sentence, where speech paused
        self._scores: list[tuple[float, float]] = []  # (probability, energy) of the frames since the onset
        self._look_back = int(look_back * SAMPLE_RATE) // FRAME * FRAME
        self._passed = deque[float](maxlen=self._look_back // FRAME)  # energies of the frames before the onset
        self._missed = 0  # samples between the first sound that belongs to the segment and the onset

    def feed(self, samples: Samples) -> list[Event]:
        """Take the next samples and return the events in them."""
        silero.score(self.push(samples))
        return self.pull()

    def push(self, samples: Samples) -> list[FrameRun]:
        """Take the next samples and return the frames that the network must score before `pull`."""
        return self._frames.push(samples)

    def pull(self) -> list[Event]:
        """Return the events in the samples pushed, once the network has scored their frames."""
        probabilities, energies = self._frames.pull()
        if self._onset is None and (not len(probabilities) or float(probabilities.max()) < self._threshold):
            self._passed.extend(energies[max(0, self._floor - self._at) // FRAME :].tolist())
            self._at += len(probabilities) * FRAME
            return []
        frames = zip(probabilities.tolist(), energies.tolist(), strict=True)
        return [event for frame in frames for event in self._step(*frame)]

    def flush(self) -> list[Event]:
        """End the recording and return the last events."""
        position = self.position
        events = self.feed(np.zeros(self._frames.missing, np.float32))  # the last frame is filled up with silence
        self._frames.position = position
        if self._onset is not None:
            spoken = min(self._at if self._quiet is None else self._quiet, self.position)
            if self._started or spoken - self._onset >= MIN_SPEECH_SECONDS * SAMPLE_RATE:
                start, end = self._start(), min(spoken + self._pad, self.position)
                events += [] if self._started else [SegmentStarted(start)]
                events.append(SegmentEnded(start, end))
            self._forget()
            self._floor = self.position
        return events

    @property
    def position(self) -> int:
        """Number of the next sample."""
        return self._frames.position

    @property
    def open(self) -> OpenSegment | None:
        """The growing segment, if there is one."""
        if not self._started:
            return None
        quiet = self._at if self._quiet is None else self._quiet
        return OpenSegment(self._start(), min(quiet + self._pad, self.position), self._at - quiet)

    def expect_more(self, expected: bool) -> None:
        """Say whether the growing segment's sentence is likely to go on after the pause in which it is."""
        self._goes_on = expected and self._started and self._quiet is not None

    @property
    def needed(self) -> int:
        """First sample that a later segment may contain."""
        if self._started:
            return self._start()
        onset = self._at if self._onset is None else self._onset
        return max(self._floor, onset - self._look_back - self._pad)

    # -- frame by frame ------------------------------------------------------------------------------------------

    def _step(self, probability: float, energy: float) -> Iterator[Event]:
        at, self._at = self._at, self._at + FRAME
        if self._onset is None:
            if self._at <= self._floor:
                return
            if probability < self._threshold:
                self._passed.append(energy)
                return
            self._onset = at
        self._scores.append((probability, energy))
        if probability >= self._threshold:
            self._quiet, self._goes_on = None, False
        elif probability < self._threshold - _HYSTERESIS and self._quiet is None:
            self._quiet = at
        spoken = self._at if self._quiet is None else self._quiet
        if not self._started and spoken - self._onset >= MIN_SPEECH_SECONDS * SAMPLE_RATE:
            self._started = True
            self._missed = self._missed_before()
            yield SegmentStarted(self._start())
        held = self._goes_on or spoken - self._onset < self._hold
        if self._at - spoken >= self._silence * (HOLD_FACTOR if held else 1):
            if self._started:
                yield self._ended(min(spoken + self._pad, self._at))
            self._forget()
        elif self._at - self._start() >= self._max_length:
            yield from self._cut()

    def _start(self) -> int:
        assert self._onset is not None
        return max(self._floor, self._onset - self._missed - self._pad)

    def _missed_before(self) -> int:
        """Samples before the onset from which on there is sound that was missed, see LOUD_SHARE."""
        spoken = [energy for probability, energy in self._scores if probability >= self._threshold]
        power = sum(spoken) / len(spoken)
        loud = [number for number, energy in enumerate(self._passed) if energy >= LOUD_SHARE * power]
        if not loud or min(self._passed) > QUIET_SHARE * power:
            return 0
        return (len(self._passed) - loud[0]) * FRAME

    def _ended(self, end: int, cut: bool = False) -> SegmentEnded:
        event = SegmentEnded(self._start(), end, cut)
        self._floor = end
        return event

    def _forget(self) -> None:
        """Wait for the next speech. The frames behind the end of a segment may be part of the next one."""
        assert self._onset is not None
        if self._started:
            del self._scores[: max(0, self._floor - self._onset) // FRAME]
            self._passed.clear()
        self._passed.extend(energy for _, energy in self._scores)
        self._onset, self._quiet, self._started, self._goes_on, self._missed = None, None, False, False, 0
        self._scores = []

    def _cut(self) -> Iterator[Event]:
        """End an overlong segment at the best pause of its last quarter; the frames after the cut are judged again."""
        assert self._onset is not None
        frames = self._scores
        first = round(len(frames) * _CUT_FROM)
        later = np.array(frames[first:])
        levels = 10 * np.log10(later[:, 1] + 1e-10)
        levels = (levels - levels.min()) / max(1e-9, float(np.ptp(levels)))
        scores = np.convolve(later[:, 0] + levels, np.ones(_CUT_SMOOTHING_FRAMES), "valid")
        place = first + _CUT_SMOOTHING_FRAMES // 2 + int(np.argmin(scores))
        cut = self._onset + place * FRAME + FRAME // 2
        spoken = max((n for n in range(place + 1) if frames[n][0] >= self._threshold - _HYSTERESIS), default=place)
        if self._started:
            yield self._ended(min(cut, self._onset + (spoken + 1) * FRAME + self._pad), cut=True)
        self._floor = max(self._floor, cut)
        self._at = self._onset + (place + 1) * FRAME
        rest = frames[place + 1 :]
        self._scores = []
        self._forget()
        for frame in rest:
            yield from self._step(*frame)


class _FrameScorer:
    """Cuts samples into frames and scores each: (probability of speech, energy).

    Frames begin at multiples of FRAME in the recording, wherever the scorer started.
    """

    def __init__(self, start: int) -> None:
        self.position = start
        self.at = -(-start // FRAME) * FRAME  # first sample of the next frame
        self._ahead = self.at - start  # samples to skip: they belong to a frame that began before `start`
        self._kept = np.zeros(_WARM_UP_FRAMES * FRAME + FRAME_CONTEXT, np.float32)  # the audio before the next frame
        self._rest = np.zeros(0, np.float32)  # the beginning of the next frame, not filtered yet
        self._high_pass = HighPass()
        self._hold = 0  # frames for which the gate stays open
        self._closed = True
        self._state: Samples | None = None  # the network's
        # Of the frames pushed and not yet pulled: energies, and those that the network scores.
        self._energies = np.zeros(0, np.float32)
        self._runs: list[tuple[int, int, FrameRun]] = []

    @property
    def missing(self) -> int:
        """Samples that the next frame lacks, if any of it has come."""
        return -len(self._rest) % FRAME

    def push(self, samples: Samples) -> list[FrameRun]:
        """Take samples and return the runs of frames, completed by them, that the network must score."""
        self.position += len(samples)
        skipped = min(self._ahead, len(samples))
        self._ahead -= skipped
        samples = np.concatenate([self._rest, samples[skipped:]])
        count = len(samples) // FRAME
        self._rest = samples[count * FRAME :].copy()
        heard = self._high_pass.filter(samples[: count * FRAME])
        frames = heard.reshape(count, FRAME)
        self._energies = np.vecdot(frames, frames) / FRAME
        audio = np.concatenate([self._kept, heard])
        self._runs = self._loud_runs(audio)
        self._kept = audio[len(heard) :].copy()
        self.at += count * FRAME
        return [run for _, _, run in self._runs]

    def pull(self) -> tuple[Samples, Samples]:
        """Return the scores of the frames pushed.

        Returns:
            (probabilities, energies), both [frames]. The probabilities are the network's where the gate was open and
            0 elsewhere; an energy is the mean square of a frame's samples.
        """
        probabilities = np.zeros(len(self._energies), np.float32)
        for begin, warm_up, run in self._runs:
            scores = run.probabilities[warm_up:]
            probabilities[begin : begin + len(scores)] = scores
        if self._runs:
            self._state = self._runs[-1][2].state
        energies, self._energies, self._runs = self._energies, np.zeros(0, np.float32), []
        return probabilities, energies

    def _loud_runs(self, audio: Samples) -> list[tuple[int, int, FrameRun]]:
        """(first frame, warm-up frames, run) of each run of frames during which the gate is open."""
        loud = self._energies > QUIET_RMS * QUIET_RMS
        if self._closed and not loud.any():
            return []
        runs = []
        opened: int | None = None if self._closed else 0  # the frame at which the gate opened
        for number, is_loud in enumerate(loud.tolist()):
            if is_loud:
                self._hold = _GATE_HOLD_FRAMES
                opened = number if opened is None else opened
            elif self._hold:
                self._hold -= 1
            elif opened is not None:
                runs += self._run(audio, opened, number)
                opened, self._closed = None, True
        if opened is not None:
            runs += self._run(audio, opened, len(loud))
        return runs

    def _run(self, audio: Samples, begin: int, end: int) -> list[tuple[int, int, FrameRun]]:
        """The run of frames `begin` to `end`, warm-up included. `audio` begins `len(_kept)` samples before frame 0."""
        if begin == end:
            return []
        state, warm_up = self._state, 0
        if self._closed:
            state, self._closed, warm_up = None, False, _WARM_UP_FRAMES
        first = (begin - warm_up + _WARM_UP_FRAMES) * FRAME
        shape = (end - begin + warm_up, FRAME_CONTEXT + FRAME)
        frames: Samples = np.ndarray(shape, np.float32, audio, 4 * first, (4 * FRAME, 4))
        return [(begin, warm_up, FrameRun(frames, state))]
