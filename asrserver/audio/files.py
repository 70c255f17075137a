"""From bytes to 16 kHz mono float32: what they are, and what they say."""

from __future__ import annotations

import io
import string
import wave
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from asrserver.errors import AudioError

#: Samples a second of everything behind this module.
RATE = 16000

Samples = np.ndarray[Any, np.dtype[np.float32]]

#: First bytes of things that clients send by mistake, and their names for the error.
_MISTAKES = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"#!AMR", "AMR audio"),
)

_PRINTABLE = frozenset(string.printable.encode())

#: Bytes that must all be printable before a chunk is called a text: PCM never is for that long.
_TEXT_PREFIX = 64


def container(data: bytes, first: bool = True) -> str | None:
    """The container that a chunk opens, as FFmpeg names it; None if it opens none.

    Weak magic (an MP3 frame, ADTS) counts only at a session's first chunk: PCM may look like it.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"OggS" and len(data) > 5 and data[5] & 0x02:  # the first-page flag
        return "ogg"
    if data[:4] == b"fLaC":
        return "flac"
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:3] == b"ID3":
        return "mp3"
    if first and len(data) > 4 and data[0] == 0xFF and _mpeg_frame(data):
        return "aac" if data[1] & 0xF6 == 0xF0 else "mp3"
    return None


def _mpeg_frame(data: bytes) -> bool:
    """Whether the bytes begin with an ADTS or MPEG audio frame header, no value forbidden (ISO 11172-3, 13818-7)."""
    if data[1] & 0xF6 == 0xF0:
        return (data[2] >> 2) & 0x0F < 13
    layer, bitrate, rate = (data[1] >> 1) & 3, data[2] >> 4, (data[2] >> 2) & 3
    return data[1] & 0xE0 == 0xE0 and layer == 1 and 0 < bitrate < 15 and rate < 3


def refuse_what_is_no_audio(data: bytes, first: bool = True) -> None:
    """Raise AudioError for bytes that open no container and are certainly no PCM, nor (not `first`) go on with one."""
    for magic, name in _MISTAKES if first else ():
        if data.startswith(magic):
            raise AudioError("not_audio", f"the chunk is {name}")
    if is_text(data):
        raise AudioError("not_audio", "the chunk is text")


def is_text(data: bytes) -> bool:
    """Whether the bytes are none of audio, coded or not."""
    head = data[:4096]
    return len(head) >= _TEXT_PREFIX and _PRINTABLE.issuperset(head)


def decode(data: bytes, kind: str, max_seconds: float) -> Samples:
    """All the audio of a whole file in memory; raises AudioError.

    A file cut short gives what it has. `kind` is what `container` said. Decoded samples are never handed to
    faster-whisper's own decoder: PyAV 19 removed an argument that it passes.
    """
    if kind == "wav" and (plain := _plain_wav(data, max_seconds)) is not None:
        return plain
    pieces: list[np.ndarray[Any, Any]] = []
    total, limit = 0, int(max_seconds * RATE)
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
    try:
        with av.open(io.BytesIO(data), mode="r", format=kind, metadata_errors="ignore") as source:
            if not source.streams.audio:
                raise AudioError("not_audio", f"the {kind} file has no audio track")
            try:
                for frame in source.decode(source.streams.audio[0]):
                    frame.pts = None  # gaps in time stamps are not audio, and the resampler refuses them
                    try:
                        resampled = resampler.resample(frame)
                    except ValueError:  # the stream changed its rate or channels on the way
                        resampled = resampler.resample(None)
                        resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
                        resampled += resampler.resample(frame)
                    for out in resampled:
                        pieces.append(out.to_ndarray()[0])
                        total += len(pieces[-1])
                    if total > limit:
                        raise _too_long(max_seconds)
            except av.FFmpegError:
                if not pieces:
                    raise
            for out in resampler.resample(None) if pieces else ():
                pieces.append(out.to_ndarray()[0])
    except av.FFmpegError as exc:
        raise AudioError("undecodable_audio", _reason(data, kind, exc)) from None
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _plain_wav(data: bytes, max_seconds: float) -> Samples | None:
    """The samples of 16-bit PCM WAV, by far the most frequent file; None for any other, which is FFmpeg's.

    Opening such a file with FFmpeg takes half the time of recognising it.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            frames, rate, channels = file.getnframes(), file.getframerate(), file.getnchannels()
            # A stream's header says 0 or the largest number: FFmpeg knows what to do.
            if file.getsampwidth() != 2 or channels not in (1, 2) or not 8000 <= rate <= 48000 or not frames:
                return None
            pcm = Pcm("pcm_s16le", rate, channels)
            raw = file.readframes(min(frames, int(max_seconds * rate) + rate))
    except (wave.Error, EOFError, RuntimeError):  # the last is its seek past the end
        return None
    if len(raw) > max_seconds * pcm.bytes_per_second:
        raise _too_long(max_seconds)
    return np.concatenate([pcm.feed(raw), pcm.flush()])


def _too_long(max_seconds: float) -> AudioError:
    return AudioError("utterance_too_long", f"the chunk holds more than {max_seconds:.0f} s of audio")


def _reason(data: bytes, kind: str, exc: Exception) -> str:
    if kind == "mp4" and b"moov" not in data:
        return "the MP4 file has no index (moov): it is cut short, or was never finished"
    return f"the {kind} data cannot be decoded: {getattr(exc, 'strerror', None) or exc}"


class Pcm:
    """Headerless PCM of one format to 16 kHz mono; keeps what a cut inside a sample leaves over, and the resampler."""

    def __init__(self, format: str, sample_rate: int, channels: int) -> None:
        self._dtype: Any = np.dtype("<f4") if format == "pcm_f32le" else np.dtype("<i2")
        self._channels = channels
        self._rate = sample_rate
        self.rest = b""  # of a sample whose other bytes are still to come
        self._resampler = self._new_resampler()

    @property
    def bytes_per_second(self) -> int:
        return int(self._dtype.itemsize * self._channels * self._rate)

    def _new_resampler(self) -> AudioResampler | None:
        return None if self._rate == RATE else AudioResampler(format="flt", layout="mono", rate=RATE)

    def feed(self, data: bytes) -> Samples:
        """The samples that these bytes complete."""
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self.rest = data[whole:]
        samples = mono(np.frombuffer(data, self._dtype, whole // self._dtype.itemsize), self._channels)
        if self._resampler is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = self._rate
        return _joined(self._resampler.resample(frame))

    def flush(self) -> Samples:
        """What the resampler still holds; the next bytes begin something new."""
        self.rest = b""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        tail = _joined(self._resampler.resample(None))
        self._resampler = self._new_resampler()
        return tail


def mono(raw: np.ndarray[Any, Any], channels: int) -> Samples:
    """Interleaved 16-bit or float samples as float32 within -1 and 1, their channels mixed."""
    if raw.dtype.kind == "i":
        samples = raw.astype(np.float32)
        samples *= np.float32(1 / 32768)
    else:
        samples = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1).astype(np.float32)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32) if channels > 1 else samples


def _joined(frames: list[av.AudioFrame]) -> Samples:
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]) if frames else np.zeros(0, np.float32)
