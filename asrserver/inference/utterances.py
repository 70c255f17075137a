"""Utterances: whole files and whole stretches of PCM, recognised in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND, Chunking
from asrserver.audio.pcm import PcmDecoder, Samples, joined
from asrserver.audio.selection import Selection
from asrserver.audio.stream import is_beginning
from asrserver.errors import AudioError
from asrserver.inference import vad
from asrserver.inference.audio_thread import AudioWork
from asrserver.inference.decoding import Request
from asrserver.inference.engine import DecodeJob
from asrserver.inference.features import FRAMES_PER_SECOND, Features, log_mel
from asrserver.inference.packing import Span, pack, spoken_spans, unpack
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segments import RecognisedSegment
from asrserver.inference.windows import FULL_WINDOW
from asrserver.telemetry.worker_traces import Call

#: The model's longest window; and the shortest rest of a segment that is still decoded: segments end in some silence.
WINDOW_SECONDS = FULL_WINDOW // FRAMES_PER_SECOND
MIN_REST_SECONDS = 0.5

#: Windows of one utterance that are processed at once; it bounds the memory that an hour of audio takes.
WINDOWS_AHEAD = 8

#: Seconds of PCM that are decoded at a time, and of audio in which speech is looked for: an hour of it must not hold up
#: other sessions. And bytes of a chunk of PCM that is decoded at once: a thread would take longer.
SLICE_SECONDS = 10
SMALL_BYTES = 1 << 16


@dataclass(slots=True)
class RecognisedFile:
    """What is in a file, or in an utterance without a header.

    Attributes:
        seconds: Of audio.
        segments: In the order in which they begin.
        channels: Channels that were recognised separately; 0 where they are mixed.
        damage: The error of what could not be decoded; None: all could.
    """

    seconds: float = 0.0
    segments: list[RecognisedSegment] = field(default_factory=list)
    channels: int = 0
    damage: AudioError | None = None

    @property
    def further(self) -> float:
        """Seconds of audio in the channels beside the first."""
        return self.seconds * max(0, self.channels - 1)

    def lies_in(self, index: int) -> None:
        """Note the chunk that contains the segments."""
        for segment in self.segments:
            segment.chunk_index = index


class UtteranceRecogniser:
    """Recognises the utterances of one session.

    Attributes:
        call: When the engine had the windows of the last one; None: there were none.
    """

    def __init__(self, recogniser: Recogniser, silence: float, selection: Selection) -> None:
        """Begin.

        Args:
            recogniser: What all sessions share.
            silence: Seconds of silence that end a segment.
            selection: What of a file is recognised.
        """
        self._recogniser = recogniser
        self._silence = silence
        self._selection = selection
        self.call: Call | None = None

    async def recognise_file(
        self, data: bytes, kind: str, request: Callable[[int | None], Request], label: str, alone: bool
    ) -> RecognisedFile:
        """Decode and recognise a whole file.

        Args:
            data: The file.
            kind: Its container.
            request: Says how to recognise a channel; None: all, mixed.
            label: "session entry", for crash attribution.
            alone: Run with nothing else in flight.

        Raises:
            AudioError: It cannot be decoded, or holds more audio than an utterance may.
        """
        async with self._recogniser.isolation.hold(alone):
            cost = min(len(data) / COMPRESSED_BYTES_PER_SECOND, SLICE_SECONDS)
            limit, apart = self._recogniser.max_seconds, self._recogniser.sandbox.decode
            work = files.decoding(data, kind, limit, self._selection, apart)
            samples, damage = await self._recogniser.run_in_turns(label, cost, work)
            found = await self._recognise(samples, request, label, alone)
            found.damage = damage
            return found

    async def recognise_pcm(
        self, data: bytes, chunking: Chunking, request: Callable[[int | None], Request], label: str, alone: bool
    ) -> RecognisedFile:
        """Recognise a chunk without a header; see `recognise_file`."""
        async with self._recogniser.isolation.hold(alone):
            return await self._recognise(await self._decode_pcm(data, chunking, label), request, label, alone)

    async def begins_stream(self, data: bytes, kind: str, label: str, alone: bool) -> bool:
        """Whether bytes that are not a whole file may be the beginning of a live stream; see `recognise_file`."""

        def work() -> AudioWork[bool]:
            yield []
            return is_beginning(kind, data, self._selection)

        async with self._recogniser.isolation.hold(alone):
            return await self._recogniser.audio_thread.run([label], work())

    async def _decode_pcm(self, data: bytes, chunking: Chunking, label: str) -> Samples:
        """Decode a chunk without a header."""
        separate = self._selection.separate
        decoder = PcmDecoder(chunking.codec, chunking.sample_rate, chunking.channels, separate)
        step = SLICE_SECONDS * decoder.bytes_per_second
        pieces: list[Samples] = []

        def decode(piece: bytes, last: bool) -> None:
            pieces.append(decoder.feed(piece))
            if last:
                pieces[:] = [joined([*pieces, decoder.flush()])]

        for begin in range(0, max(1, len(data)), step):
            piece, last = data[begin : begin + step], begin + step >= len(data)
            if len(data) <= SMALL_BYTES:
                decode(piece, last)
            else:
                await self._recogniser.run_blocking(label, len(piece) / decoder.bytes_per_second, decode, piece, last)
        return pieces[0]

    async def _recognise(
        self, samples: Samples, request: Callable[[int | None], Request], label: str, alone: bool
    ) -> RecognisedFile:
        seconds = len(samples) / SAMPLE_RATE
        self.call = None
        if not self._selection.separate:
            return RecognisedFile(seconds, await self._recognise_channel(samples, request(None), label, alone))
        channels: list[Samples] = list(np.ascontiguousarray(samples.T)) if samples.ndim == 2 else []
        found = []
        for number, channel in enumerate(channels):
            segments = await self._recognise_channel(channel, request(number), label, alone)
            found += [replace(segment, channel=number) for segment in segments]
        return RecognisedFile(seconds, sorted(found, key=lambda segment: segment.start), len(channels))

    async def _recognise_channel(
        self, samples: Samples, request: Request, label: str, alone: bool
    ) -> list[RecognisedSegment]:
        groups, first = await self._find_segments(samples, label)
        segments: list[RecognisedSegment] = []
        for begin in range(0, len(groups), WINDOWS_AHEAD):
            ahead = groups[begin : begin + WINDOWS_AHEAD]
            features = first
            if begin:
                seconds = sum(min(_seconds(group), WINDOW_SECONDS) for group in ahead)
                features = await self._recogniser.run_blocking(label, seconds, self._features, samples, ahead)
            try:
                async with asyncio.TaskGroup() as tasks:  # gather would let the others go on where one fails
                    reading = [
                        tasks.create_task(self._read(samples, group, item, request, label, alone))
                        for group, item in zip(ahead, features, strict=True)
                    ]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            for task in reading:
                segments += task.result()
        if not request.words:
            segments = [replace(segment, words=[]) for segment in segments]
        return segments

    async def _read(
        self, samples: Samples, group: list[Span], features: Features, request: Request, label: str, alone: bool
    ) -> list[RecognisedSegment]:
        """Recognise the segments of a group; one that is longer than a window from the end of each window's text on.

        Args:
            samples: The channel.
            group: See `packing.pack`.
            features: Of the first window.
            request: How to recognise it.
            label: See `recognise_file`.
            alone: Likewise.
        """
        session, profile = label.partition(" ")[0], self._recogniser.profile
        begin, end = group[0][0], group[-1][1]
        segments: list[RecognisedSegment] = []
        while True:
            upto = min(end, begin + WINDOW_SECONDS * SAMPLE_RATE)
            seconds = (upto - begin) / SAMPLE_RATE
            how = replace(
                request,
                timestamps=seconds >= profile.timestamps_from,
                goes_on=upto < end,
                words=request.words or len(group) > 1,
            )
            found = await self._recogniser.engine.recognise(
                DecodeJob(features, how, seconds, label, alone, session=session)
            )
            self.call = Call.of([self.call, found.call])
            if upto == end:
                return segments + unpack(group if len(group) > 1 else [(begin, end)], found)
            read = upto if found.read is None else begin + round(found.read * SAMPLE_RATE)
            segments += unpack([(begin, read)], found)
            if end - read < MIN_REST_SECONDS * SAMPLE_RATE:
                return segments
            if found.language_probability >= profile.sure_language:
                request = replace(request, language=found.language)
            begin = read
            [features] = await self._recogniser.run_blocking(label, seconds, self._features, samples, [[(begin, end)]])

    async def _find_segments(self, samples: Samples, label: str) -> tuple[list[list[Span]], list[Features]]:
        """The segments of an utterance, grouped by window, and the features of the first WINDOWS_AHEAD windows."""
        endpointer = vad.Endpointer(self._silence, look_back=self._recogniser.profile.look_back)
        events: list[vad.Event] = []
        first: list[Features] = []

        def detect(piece: Samples, last: bool) -> None:
            events.extend(endpointer.feed(piece) + (endpointer.flush() if last else []))
            if last:
                first.extend(self._features(samples, self._grouped(events)[:WINDOWS_AHEAD]))

        step = SLICE_SECONDS * SAMPLE_RATE
        for begin in range(0, max(1, len(samples)), step):
            piece = samples[begin : begin + step]
            await self._recogniser.run_blocking(
                label, len(piece) / SAMPLE_RATE, detect, piece, begin + step >= len(samples)
            )
        return self._grouped(events), first

    def _grouped(self, events: list[vad.Event]) -> list[list[Span]]:
        seconds = self._recogniser.profile.pack_seconds
        return pack(spoken_spans(events, together=seconds > 0), seconds)

    def _features(self, samples: Samples, groups: list[list[Span]]) -> list[Features]:
        """The features of each group, of a long one those of its first window."""
        window, n_mels = self._recogniser.window, self._recogniser.engine.model.n_mels
        return [log_mel(samples[group[0][0] : group[-1][1]], window(_seconds(group)), n_mels) for group in groups]


def _seconds(group: list[Span]) -> float:
    return (group[-1][1] - group[0][0]) / SAMPLE_RATE
