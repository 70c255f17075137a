"""Whole files to 16 kHz mono samples."""

from __future__ import annotations

import io
import wave
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Pcm, Samples
from asrserver.errors import AudioError


def decode(data: bytes, kind: str, max_seconds: float) -> Samples:
    """All the audio of a whole file in memory; raises AudioError.

    A file cut short gives what it has. `kind` is what `sniff.container` said. Decoded samples are never handed to
    faster-whisper's own decoder: PyAV 19 removed an argument that it passes.
    """
    if kind == "wav" and (plain := _plain_wav(data, max_seconds)) is not None:
        return plain
    pieces: list[np.ndarray[Any, Any]] = []
    total, limit = 0, int(max_seconds * SAMPLE_RATE)
    resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
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
                        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
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
