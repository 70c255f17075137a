"""Whole files: decoded to 16 kHz mono samples, and PCM encoded as FLAC."""

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

#: First bytes of a file in which its header is checked.
_HEADER_BYTES = 1 << 16


def decode(data: bytes, kind: str, max_seconds: float) -> Samples:
    """Decode a whole file in memory. A truncated file gives the samples that it has.

    faster-whisper's own decoder is not used: PyAV 19 removed an argument that it passes.

    Args:
        data: The file.
        kind: Its container, as `sniff.container` names it.
        max_seconds: Most seconds of audio.

    Raises:
        AudioError: It cannot be decoded, has no audio, or has more than `max_seconds` of it.
    """
    if kind == "wav" and (plain := _plain_wav(data, max_seconds)) is not None:
        return plain
    _check_header(data, kind)
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
    """Decode a file to 16-bit mono PCM at SAMPLE_RATE, in pieces of `seconds`, each when it is asked for.

    Raises:
        AudioError: The file cannot be decoded.
        OSError: It cannot be read.
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
    """Seconds of audio in a file as its header says; 0 if it does not say. Raises AudioError, OSError."""
    with _opened(path) as source:
        return float((source.duration or 0) / av.time_base)


def write_flac(path: Path, format: wav.Format, pieces: Iterable[bytes]) -> None:
    """Write PCM as a FLAC file: 16-bit samples without loss, floating-point samples as 16 bits.

    Args:
        path: The file.
        format: Format of the samples: pcm_s16le or pcm_f32le, one or two channels.
        pieces: Their bytes, cut anywhere; an incomplete frame at the end is dropped.
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
    """Open a file as a container of PyAV, whose errors become AudioError."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        kind = sniff.container(header)
        if kind is not None:
            _check_header(header, kind)
        file.seek(0)
        try:
            with av.open(file, mode="r", metadata_errors="ignore") as source:
                yield source
        except av.FFmpegError as exc:
            raise AudioError("undecodable_audio", f"the file cannot be decoded: {exc.strerror or exc}") from None


def _check_header(data: bytes, kind: str) -> None:
    """Raise ImplausibleAudio if the container's header claims it; other damage is left for FFmpeg to report."""
    header = demuxer(kind)
    header.push(data[:_HEADER_BYTES])
    try:
        header.pull()
    except ImplausibleAudio:
        raise
    except AudioError:
        pass


def _frames(source: Any) -> Iterator[tuple[Samples, int]]:
    """(mono samples, samples per second) of each frame of a container's first audio track."""
    if not source.streams.audio:
        raise AudioError("not_audio", f"the {source.format.name} file has no audio track")
    track = source.streams.audio[0]
    context = track.codec_context
    if context is None:
        raise AudioError("undecodable_audio", f"no decoder for the audio track of the {source.format.name} file")
    layout = context.layout
    bounds.check_claim(layout.nb_channels, context.sample_rate)
    if layout.nb_channels:
        # FFmpeg allocates a list for a layout that is not one of its own (an MP4's `chan` can say right before left).
        # PyAV (18.1) shares it between objects that each free it, frame by frame, until the process dies. Reading the
        # layout here made this object its owner; the decoder gets a layout without a list.
        context.layout = f"{layout.nb_channels}C" if "(" in layout.name else layout.name
    for packet in source.demux(track):
        for frame in packet.decode():
            yield mixed(frame), frame.sample_rate


def _resampled(frames: Iterable[tuple[Samples, int]]) -> Iterator[Samples]:
    """Resample frames to SAMPLE_RATE, in pieces of about a second. Their rate may change from frame to frame."""
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
    """Decode a WAV file of PCM, by far the most frequent kind of file; None for any other, which FFmpeg decodes.

    Opening such a file with FFmpeg would take half as long as recognising it.
    """
    header = wav.read_header(data)
    if header is None or header.format.codec not in pcm.CODECS:
        return None
    format, begin = header.format, header.offset
    end = len(data) if header.size is None else min(len(data), begin + header.size)
    if end - begin > max_seconds * format.bytes_per_second:
        raise _too_long(max_seconds)
    decoder = pcm.PcmDecoder(header.format.codec, format.rate, format.channels)
    step = (
        format.bytes_per_second
    )  # all at once would take three times as long, because each step then needs new memory
    pieces = [decoder.feed(data[at : min(at + step, end)]) for at in range(begin, end, step)]
    return np.concatenate([*pieces, decoder.flush()])


def _too_long(max_seconds: float) -> AudioError:
    return AudioError("utterance_too_long", f"the chunk holds more than {max_seconds:.0f} s of audio")


def _reason(data: bytes, kind: str, exc: Exception) -> str:
    if kind == "mp4" and b"moov" not in data:
        return "the MP4 file has no index (moov): it is truncated or was never finished"
    return f"the {kind} data cannot be decoded: {getattr(exc, 'strerror', None) or exc}"
