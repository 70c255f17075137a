"""Samples as numbers: headerless PCM to 16 kHz mono float32, and the resampler that all decoders share."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from asrserver.audio import SAMPLE_RATE

#: Audio as all of the server passes it on: [samples], mono, SAMPLE_RATE unless said otherwise, full scale as ±1.
Samples = np.ndarray[Any, np.dtype[np.float32]]


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
        return None if self._rate == SAMPLE_RATE else AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

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
