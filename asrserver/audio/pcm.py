"""Samples as numbers: headerless PCM to 16 kHz mono float32, and the resampler that all decoders share."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from asrserver.audio import SAMPLE_RATE, bounds

#: Audio as all of the server passes it on: [samples], mono, SAMPLE_RATE unless said otherwise, full scale as ±1.
Samples = np.ndarray[Any, np.dtype[np.float32]]

#: What a decoder may return at the loudest: lossy codecs exceed full scale a little, recorders of floats by 18 dB.
_LOUDEST = np.float32(8.0)


class Resampler:
    """Mono samples of one rate to SAMPLE_RATE; how they are cut changes nothing. FFmpeg's (swresample).

    All that is resampled here goes through this class, as one channel of floats. A resampler that is given frames as
    they come builds its filters from channel layouts that a file chose, and PyAV 18.1's reads freed or missing memory
    when it is used again after it has refused one.
    """

    def __init__(self, rate: int) -> None:
        """Args:
        rate: samples/s of what comes; raises ImplausibleAudio if there is no such audio.
        """
        bounds.check(1, rate)
        self.rate = rate
        self._inner = self._new()

    def _new(self) -> AudioResampler | None:
        return None if self.rate == SAMPLE_RATE else AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def feed(self, samples: Samples) -> Samples:
        """What can be had by now; the rest follows with the next samples, or by `flush`."""
        if self._inner is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = self.rate
        return _joined(self._inner.resample(frame))

    def flush(self) -> Samples:
        """The rest; the next samples begin something new."""
        if self._inner is None:
            return np.zeros(0, np.float32)
        tail = _joined(self._inner.resample(None))
        self._inner = self._new()
        return tail


class Pcm:
    """Headerless PCM of one format to 16 kHz mono; keeps what a cut inside a sample leaves over."""

    def __init__(self, format: str, sample_rate: int, channels: int) -> None:
        bounds.check(channels, sample_rate)
        self._dtype: Any = np.dtype("<f4") if format == "pcm_f32le" else np.dtype("<i2")
        self._channels = channels
        self._resampler = Resampler(sample_rate)
        self.rest = b""  # of a sample whose other bytes are still to come

    @property
    def bytes_per_second(self) -> int:
        return int(self._dtype.itemsize * self._channels * self._resampler.rate)

    def feed(self, data: bytes) -> Samples:
        """The samples that these bytes complete."""
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self.rest = data[whole:]
        return self._resampler.feed(
            mono(np.frombuffer(data, self._dtype, whole // self._dtype.itemsize), self._channels)
        )

    def flush(self) -> Samples:
        """What the resampler still holds; the next bytes begin something new."""
        self.rest = b""
        return self._resampler.flush()


def repaired(samples: Samples) -> Samples:
    """Samples of a decoder that a resampler may get: numbers that are none, or far beyond full scale, are damage.

    A resampler would spread them, and features overflow.
    """
    with np.errstate(all="ignore"):
        if not len(samples) or (samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST):
            return samples
    return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)


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
