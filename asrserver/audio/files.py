"""Whole files: decoded to 16 kHz samples, and PCM encoded as FLAC.

A file is decoded as a stream that comes at once, so that all modes hear the same; what cannot be decoded as a stream is
left to FFmpeg (library.py): in this process, or where strangers send it in one of its own (sandbox.py).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import av
import numpy as np

from asrserver.audio import SAMPLE_RATE, bounds, demux, library, pcm, sniff, wav
from asrserver.audio.bounds import ImplausibleAudio, TooMuchWork
from asrserver.audio.look_ahead import LOOK_SECONDS, LOOK_TRACKS, earliest, onset
from asrserver.audio.pcm import Resampler, Samples, joined
from asrserver.audio.selection import MIXED, NOT_THERE, Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.audio.turns import finished
from asrserver.errors import AudioError

T = TypeVar("T")

#: First bytes of a file in which its header is checked.
_HEADER_BYTES = 1 << 16

#: Containers that consist of frames only.
_FRAMES = ("mp3", "aac")

#: Bytes of a file that are decoded at a time.
_STEP = 1 << 18

#: Bytes of a file on disk that are decoded at a time: few, so that little of the audio is in memory.
_DISK_STEP = 1 << 14

#: Work that yields where others may have their turn.
Work = Generator[None, None, T]

#: Pieces of a file as they are decoded, and at last what of it could not be. An empty one says that it goes on.
Pieces = Generator[Samples, None, AudioError | None]

_NOTHING: Samples = np.zeros(0, np.float32)


class Decoded(NamedTuple):
    """A decoded file: its samples, and what of it could not be decoded, if anything."""

    samples: Samples
    damage: AudioError | None


def by_library(data: bytes, kind: str, selection: Selection, max_seconds: float) -> Pieces:
    """Decode a file by FFmpeg; it may have more than `max_seconds` of audio.

    Raises:
        AudioError: It cannot be decoded, or not from here on.
    """
    try:
        data = wav.without_lists(data) if wav.is_riff(data) else data

        def opening() -> AbstractContextManager[Any]:
            return library.opened(io.BytesIO(data), kind)

        selection = yield from _with_track(opening, selection, max_seconds)
        with opening() as source:
            reader = library.Reader(source, selection)
            yield from _resampled(reader.frames())
    except av.FFmpegError as exc:
        raise AudioError("undecodable_audio", _reason(data, kind, exc)) from None
    if reader.damage is None:
        return None
    since, until = reader.damage
    return AudioError("undecodable_audio", f"the audio from {since:.2f} s to {until:.2f} s is damaged")


def decode(data: bytes, kind: str, max_seconds: float) -> Samples:
    """Decode a whole file in memory; see `decode_file`. What cannot be decoded of it is left out."""
    return decode_file(data, kind, max_seconds).samples


#: How a file is decoded that is no stream: as `by_library` does it, here or in another process.
ByLibrary = Callable[[bytes, str, Selection, float], Pieces]


def decode_file(
    data: bytes, kind: str, max_seconds: float, selection: Selection = MIXED, decode_whole: ByLibrary = by_library
) -> Decoded:
    """Decode a whole file in memory at once; see `decoding`."""
    return finished(decoding(data, kind, max_seconds, selection, decode_whole))


def decoding(
    data: bytes, kind: str, max_seconds: float, selection: Selection = MIXED, decode_whole: ByLibrary = by_library
) -> Work[Decoded]:
    """Decode a whole file in memory. A truncated file gives the samples that it has.

    Of several audio tracks of which none is named, the one is decoded that a stream's decoder chooses (look_ahead.py).

    Args:
        data: The file.
        kind: Its container, as `sniff.container` names it.
        max_seconds: Most seconds of audio, counting each channel that is decoded by itself.
        selection: What of it is decoded.
        decode_whole: Decodes what is no stream.

    Raises:
        AudioError: It cannot be decoded, has no audio or not what is selected, or has more than `max_seconds` of it.
    """
    if kind == "wav" and not selection.track:
        plain = yield from _plain_wav(data, max_seconds, selection)
        if plain is not None:
            return Decoded(plain, None)
    try:
        return (yield from _streamed(data, kind, max_seconds, selection))
    except AudioError as exc:
        if exc.code in ("utterance_too_long", *NOT_THERE) or isinstance(exc, ImplausibleAudio | TooMuchWork):
            raise
        if kind in _FRAMES:
            raise  # FFmpeg takes a few headers in noise for audio
    found = yield from _collected(decode_whole(data, kind, selection, max_seconds), max_seconds)
    if not len(found.samples):  # as of an RF64 file whose writer did not know its length: nothing is lost silently
        raise AudioError("undecodable_audio", f"the {kind} data holds no audio")
    return found


def _streamed(data: bytes, kind: str, max_seconds: float, selection: Selection) -> Work[Decoded]:
    """Decode a file by the streaming decoder."""
    decoder = StreamDecoder(kind, selection=selection)
    pieces: list[Samples] = []
    damage: list[AudioError] = []

    def take(found: Iterator[Samples]) -> Work[None]:
        for piece in found:
            pieces.append(piece)
            if decoder.position * _channels(piece) > max_seconds * SAMPLE_RATE:
                raise _too_long(max_seconds)
            yield

    for at in range(0, len(data), _STEP):
        try:
            yield from take(decoder.pieces(data[at : at + _STEP]))
        except AudioError as exc:
            if _ends(exc, decoder):
                raise
            damage.append(exc)
        yield
    yield from take(decoder.ending())
    if decoder.tail is not None:
        damage.append(decoder.tail)
    return Decoded(joined(pieces), _merged(damage))


def _ends(exc: AudioError, decoder: StreamDecoder) -> bool:
    """Whether nothing of a file is kept: what was decoded before bytes that take too much work is."""
    is_work = isinstance(exc, TooMuchWork) and not decoder.position
    return exc.code != "undecodable_audio" or isinstance(exc, ImplausibleAudio) or is_work


def _channels(samples: Samples) -> int:
    return samples.shape[1] if samples.ndim == 2 else 1


def _merged(damage: list[AudioError]) -> AudioError | None:
    if len(damage) < 2:
        return damage[0] if damage else None
    return AudioError("undecodable_audio", f"{damage[0].message}; and {len(damage) - 1} more places")


def _collected(found: Pieces, max_seconds: float) -> Work[Decoded]:
    """All pieces of a file. What comes before it cannot be decoded any further is kept."""
    pieces: list[Samples] = []
    count, left = 0, int(max_seconds * SAMPLE_RATE)
    with closing(found):
        try:
            while True:
                piece = next(found)
                pieces.append(piece)
                count += len(piece) * _channels(piece)
                if count > left:
                    raise _too_long(max_seconds)
                yield
        except StopIteration as end:
            return Decoded(joined(pieces), end.value)
        except AudioError as exc:
            if not count or exc.code != "undecodable_audio":
                raise
    message = f"the audio cannot be decoded from {sum(map(len, pieces)) / SAMPLE_RATE:.2f} s on"
    return Decoded(joined(pieces), AudioError("undecodable_audio", message))


def _with_track(
    opening: Callable[[], AbstractContextManager[Any]], selection: Selection, max_seconds: float
) -> Generator[Samples, None, Selection]:
    """Name the track to decode of a file that FFmpeg reads, by the rule of look_ahead.py."""
    with opening() as source:
        reader = library.Reader(source, selection)
        if selection.track is not None or reader.tracks == 1:
            return selection
        numbers = [reader.number, *(number for number in range(reader.tracks) if number != reader.number)][:LOOK_TRACKS]
        onsets = [(yield from _onset(reader, max_seconds))]
    for number in numbers[1:] if onsets[0] >= LOOK_SECONDS else ():
        onsets.append(math.inf)
        with suppress(AudioError), opening() as source:
            reader = library.Reader(source, replace(selection, track=number))
            onsets[-1] = yield from _onset(reader, max_seconds)
    return replace(selection, track=numbers[earliest(onsets)])


def _onset(reader: library.Reader, max_seconds: float) -> Generator[Samples, None, float]:
    """The seconds at which sound begins in a track; infinite if there is none."""
    at = 0.0
    with suppress(av.FFmpegError, ImplausibleAudio):
        for samples, rate, gap in reader.frames():
            at += gap
            if (loud := onset(samples)) is not None:
                return at + loud / rate
            at += len(samples) / rate
            if at > max_seconds:
                break
            yield _NOTHING
    return math.inf


def read_s16(path: Path, seconds: float, selection: Selection = MIXED) -> Iterator[bytes]:
    """Decode a file to 16-bit PCM at SAMPLE_RATE, in pieces of `seconds`, each when it is asked for.

    Where channels are kept apart they are interleaved, as many as `probe` says; later ones are left out.

    Raises:
        AudioError: The file cannot be decoded.
        OSError: It cannot be read.
    """
    channels = probe(path, selection).channels
    size = 2 * int(seconds * SAMPLE_RATE) * channels
    waiting = bytearray()
    for piece in _pieces(path, selection):
        if piece.ndim == 2 and piece.shape[1] != channels:
            piece = np.pad(piece, ((0, 0), (0, max(0, channels - piece.shape[1]))))[:, :channels]
        waiting += np.clip(np.rint(piece * 32768), -32768, 32767).astype("<i2").tobytes()
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


def _pieces(path: Path, selection: Selection) -> Iterator[Samples]:
    """Decode a file on disk as a server decodes its bytes; what cannot be decoded as a stream is left to FFmpeg."""
    with path.open("rb") as file:
        kind = sniff.of_file(file.read(sniff.HEAD_BYTES))
    streamed = _streamed_pieces(path, kind, selection) if kind in demux.CONTAINERS else iter(())
    first = None
    try:
        first = next(streamed, None)
    except AudioError as exc:
        if kind in _FRAMES or exc.code in NOT_THERE or isinstance(exc, ImplausibleAudio | TooMuchWork):
            raise
    if first is None:
        selection = yield from _with_track(partial(_opened, path), selection, math.inf)
        with _opened(path) as source:
            yield from _resampled(library.Reader(source, selection).frames())
    else:
        yield first
        yield from streamed


def _streamed_pieces(path: Path, kind: str, selection: Selection) -> Iterator[Samples]:
    """Decode a file on disk by the streaming decoder. Damaged audio is left out.

    Raises:
        AudioError: It cannot decode the file, or another recording that begins in it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        decoder = StreamDecoder(kind, selection=selection)
        while data := file.read(_DISK_STEP):
            try:
                yield from filter(len, decoder.pieces(data))
            except AudioError as exc:
                if _ends(exc, decoder):
                    raise
        yield from filter(len, decoder.ending())


class Probe(NamedTuple):
    """What a file's header says: seconds of audio, 0 if it does not say; and the channels that `read_s16` gives."""

    seconds: float
    channels: int


def probe(path: Path, selection: Selection = MIXED) -> Probe:
    """Look at the header of a file. Raises AudioError, OSError."""
    with _opened(path) as source:
        seconds = float((source.duration or 0) / av.time_base)
        return Probe(seconds, library.Reader(source, selection).channels if selection != MIXED else 1)


def write_flac(file: BinaryIO, format: wav.Format, pieces: Iterable[bytes]) -> None:
    """Write PCM as a FLAC file: 16-bit samples without loss, floating-point samples as 16 bits.

    Args:
        file: The file; its first bytes are written again at the end.
        format: Format of the samples: pcm_s16le or pcm_f32le, one or two channels.
        pieces: Their bytes, cut anywhere; an incomplete frame at the end is dropped.
    """
    bounds.check(format.channels, format.rate)
    layout = {1: "mono", 2: "stereo"}[format.channels]
    done, rest = 0, b""
    with av.open(file, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=format.rate, layout=layout)
        for piece in pieces:
            data = rest + piece
            whole = len(data) // format.frame * format.frame
            data, rest = data[:whole], data[whole:]
            if not data:
                continue
            samples = np.frombuffer(data, pcm.CODECS[format.codec or ""])
            if samples.dtype.kind == "f":
                samples = (np.nan_to_num(samples).clip(-1, 1) * 32767).astype("<i2")
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts = format.rate, done
            done += frame.samples
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file as a container of PyAV, whose errors become AudioError."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        kind = sniff.of_file(header[: sniff.HEAD_BYTES])
        if kind in demux.CONTAINERS:
            _check_header(header, kind)
        file.seek(0)
        try:
            with library.opened(file, kind) as source:
                yield source
        except av.FFmpegError as exc:
            raise AudioError("undecodable_audio", f"the file cannot be decoded: {exc.strerror or exc}") from None


def _check_header(data: bytes, kind: str) -> None:
    """Raise ImplausibleAudio if the container's header claims it; other damage is left for FFmpeg to report."""
    header = demux.demuxer(kind)
    header.push(data[:_HEADER_BYTES])
    try:
        header.pull()
    except ImplausibleAudio:
        raise
    except AudioError:
        pass


def _resampled(frames: Iterable[tuple[Samples, int, float]]) -> Iterator[Samples]:
    """Resample frames to SAMPLE_RATE, in pieces of about a second. Their rate may change from frame to frame.

    Args:
        frames: (samples, samples per second, seconds of silence before them) of each.
    """
    resampler = Resampler(SAMPLE_RATE)
    waiting: list[Samples] = []
    count = 0
    shape: tuple[int, ...] = ()
    for samples, rate, gap in frames:
        if rate != resampler.rate or gap or samples.shape[1:] != shape:
            yield joined([resampler.feed(joined(waiting)), resampler.flush()])
            resampler, count, shape = Resampler(rate), 0, samples.shape[1:]
            waiting.clear()
        for begin in range(0, round(gap * SAMPLE_RATE), 10 * SAMPLE_RATE):
            yield np.zeros((min(10 * SAMPLE_RATE, round(gap * SAMPLE_RATE) - begin), *shape), np.float32)
        waiting.append(samples)
        count += len(samples)
        if count >= rate:
            yield resampler.feed(joined(waiting))
            waiting.clear()
            count = 0
    yield joined([resampler.feed(joined(waiting)), resampler.flush()])


def _plain_wav(data: bytes, max_seconds: float, selection: Selection) -> Work[Samples | None]:
    """Decode a WAV file of PCM, by far the most frequent kind of file; None for any other.

    Opening such a file with FFmpeg would take half as long as recognising it.
    """
    header = wav.read_header(data)
    if header is None or header.format.codec not in pcm.CODECS:
        return None
    format, begin = header.format, header.offset
    end = len(data) if header.size is None else min(len(data), begin + header.size)
    if data.find(b"RIFF", end, end + _STEP) >= 0:
        return None  # another file follows
    selection.check_channels(format.channels)
    if (end - begin) * (format.channels if selection.separate else 1) > max_seconds * format.bytes_per_second:
        raise _too_long(max_seconds)
    decoder = pcm.PcmDecoder(header.format.codec, format.rate, format.channels, selection.separate)
    step = format.bytes_per_second
    if (format.codec, format.rate, format.channels) == ("pcm_s16le", SAMPLE_RATE, 1):
        step = max(1, end - begin)  # the only memory that it takes is the result
    pieces = []
    for at in range(begin, end, step):
        pieces.append(decoder.feed(data[at : min(at + step, end)]))
        yield
    return joined([*pieces, decoder.flush()])


def _too_long(max_seconds: float) -> AudioError:
    return AudioError("utterance_too_long", f"the chunk holds more than {max_seconds:.0f} s of audio")


def _reason(data: bytes, kind: str, exc: Exception) -> str:
    if kind == "mp4" and b"moov" not in data:
        return "the MP4 file has no index (moov): it is truncated or was never finished"
    return f"the {kind} data cannot be decoded: {getattr(exc, 'strerror', None) or exc}"
