"""Whole files: to 16 kHz mono samples, and PCM to FLAC."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from asrserver.audio import SAMPLE_RATE, bounds, pcm, sniff, wav
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.codec import mixed
from asrserver.audio.demux import demuxer
from asrserver.audio.pcm import Resampler, Samples, repaired
from asrserver.errors import AudioError

#: Bytes of a file in which its head is looked for.
_HEAD = 1 << 16


def decode(data: bytes, kind: str, max_seconds: float) -> Samples:
    """All the audio of a whole file in memory; raises AudioError.

    A file cut short gives what it has. Decoded samples are never handed to faster-whisper's own decoder: PyAV 19
    removed an argument that it passes.

    Args:
        kind: what `sniff.container` said.
        max_seconds: of audio; a file with more is an error.
    """
    if kind == "wav" and (plain := _plain_wav(data, max_seconds)) is not None:
        return plain
    _check_head(data, kind)
    pieces: list[Samples] = []
    left = int(max_seconds * SAMPLE_RATE)
    try:
        with av.open(io.BytesIO(data), mode="r", format=kind, metadata_errors="ignore") as source:
            try:
                for piece in _resampled(_frames(source)):
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        raise _too_long(max_seconds)
            except (av.FFmpegError, ImplausibleAudio):
                if not pieces:
                    raise
    except av.FFmpegError as exc:
        raise AudioError("undecodable_audio", _reason(data, kind, exc)) from None
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def read_s16(path: Path, seconds: float) -> Iterator[bytes]:
    """A file's audio as 16-bit PCM at SAMPLE_RATE, in pieces of so many seconds, decoded as they are asked for.

    Raises AudioError, OSError.
    """
    size = 2 * int(seconds * SAMPLE_RATE)
    waiting = bytearray()
    with _opened(path) as source:
        for piece in _resampled(_frames(source)):
            waiting += np.clip(np.rint(piece * 32768), -32768, 32767).astype("<i2").tobytes()
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
    if waiting:
        yield bytes(waiting)


def duration(path: Path) -> float:
    """Seconds of audio in a file, as it says itself; 0 if it does not. Raises AudioError, OSError."""
    with _opened(path) as source:
        return float((source.duration or 0) / av.time_base)


def write_flac(path: Path, format: wav.Format, pieces: Iterable[bytes]) -> None:
    """Write PCM as a FLAC file: lossless for 16-bit samples, while floating point becomes 16 bits.

    Args:
        format: of the samples: pcm_s16le or pcm_f32le, one or two channels.
        pieces: their bytes, cut anywhere; what is left over of a frame at the end is dropped.
    """
    bounds.check(format.channels, format.rate)
    layout = {1: "mono", 2: "stereo"}[format.channels]
    done, rest = 0, b""
    with av.open(str(path), "w", format="flac") as output:
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
    """The file as a container of PyAV's, whatever it is; what that raises becomes AudioError."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        kind = sniff.container(head)
        if kind is not None:
            _check_head(head, kind)
        file.seek(0)
        try:
            with av.open(file, mode="r", metadata_errors="ignore") as source:
                yield source
        except av.FFmpegError as exc:
            raise AudioError("undecodable_audio", f"the file cannot be decoded: {exc.strerror or exc}") from None


def _check_head(data: bytes, kind: str) -> None:
    """Raise ImplausibleAudio if the container's head claims what cannot be. What else is wrong is FFmpeg's to say."""
    head = demuxer(kind)
    head.push(data[:_HEAD])
    try:
        head.pull()
    except ImplausibleAudio:
        raise
    except AudioError:
        pass


def _frames(source: Any) -> Iterator[tuple[Samples, int]]:
    """(mono samples, samples/s) of each frame of a container's first audio track."""
    if not source.streams.audio:
        raise AudioError("not_audio", f"the {source.format.name} file has no audio track")
    track = source.streams.audio[0]
    context = track.codec_context
    if context is None:
        raise AudioError(
            "undecodable_audio", f"there is no decoder for the audio track of the {source.format.name} file"
        )
    layout = context.layout
    bounds.check_claim(layout.nb_channels, context.sample_rate)
    if layout.nb_channels:
        # FFmpeg allocates the list of a layout that is not one of its own (an MP4's `chan` can say right before left).
        # PyAV (18.1) shares it between objects that free it each, frame by frame, until the process dies. This one owns
        # it now; the decoder gets a layout without a list.
        context.layout = f"{layout.nb_channels}C" if "(" in layout.name else layout.name
    for packet in source.demux(track):
        for frame in packet.decode():
            yield mixed(frame), frame.sample_rate


def _resampled(frames: Iterable[tuple[Samples, int]]) -> Iterator[Samples]:
    """Frames at SAMPLE_RATE, in pieces of about a second; their rate may change on the way."""
    resampler = Resampler(SAMPLE_RATE)
    waiting: list[Samples] = []
    count = 0
    for samples, rate in frames:
        if rate != resampler.rate:
            yield np.concatenate([resampler.feed(_joined(waiting)), resampler.flush()])
            resampler, count = Resampler(rate), 0
            waiting.clear()
        waiting.append(samples)
        count += len(samples)
        if count >= rate:
            yield resampler.feed(_joined(waiting))
            waiting.clear()
            count = 0
    yield np.concatenate([resampler.feed(_joined(waiting)), resampler.flush()])


def _joined(pieces: list[Samples]) -> Samples:
    return repaired(np.concatenate(pieces)) if pieces else np.zeros(0, np.float32)


def _plain_wav(data: bytes, max_seconds: float) -> Samples | None:
    """The samples of PCM in WAV, by far the most frequent file; None for any other, which is FFmpeg's.

    Opening such a file with FFmpeg takes half the time of recognising it.
    """
    header = wav.read_header(data)
    if header is None or header.format.codec not in pcm.CODECS:
        return None
    format, begin = header.format, header.offset
    end = len(data) if header.size is None else min(len(data), begin + header.size)
    if end - begin > max_seconds * format.bytes_per_second:
        raise _too_long(max_seconds)
    decoder = pcm.PcmDecoder(header.format.codec, format.rate, format.channels)
    step = format.bytes_per_second  # all at once takes three times as long: memory that is new at each step
    pieces = [decoder.feed(data[at : min(at + step, end)]) for at in range(begin, end, step)]
    return np.concatenate([*pieces, decoder.flush()])


def _too_long(max_seconds: float) -> AudioError:
    return AudioError("utterance_too_long", f"the chunk holds more than {max_seconds:.0f} s of audio")


def _reason(data: bytes, kind: str, exc: Exception) -> str:
    if kind == "mp4" and b"moov" not in data:
        return "the MP4 file has no index (moov): it is cut short, or was never finished"
    return f"the {kind} data cannot be decoded: {getattr(exc, 'strerror', None) or exc}"
