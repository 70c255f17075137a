"""Samples as numbers: headerless PCM to 16 kHz mono float32, and the resampler that all decoders share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from asrserver.audio import SAMPLE_RATE, bounds, wav

#: Audio as all of the server passes it on: [samples], mono, SAMPLE_RATE unless said otherwise, full scale as ±1.
Samples = np.ndarray[Any, np.dtype[np.float32]]

#: Codecs whose bytes are numbers, so that none need be decoded, and the type of those; there is none of 24 bits.
CODECS: dict[str, np.dtype[Any]] = {
    "pcm_u8": np.dtype("u1"),
    "pcm_s16le": np.dtype("<i2"),
    "pcm_s24le": np.dtype("<i4"),
    "pcm_s32le": np.dtype("<i4"),
    "pcm_f32le": np.dtype("<f4"),
    "pcm_f64le": np.dtype("<f8"),
}

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


class PcmDecoder:
    """Headerless PCM of one format to 16 kHz mono; keeps what a cut inside a sample leaves over."""

    def __init__(self, codec: str, sample_rate: int, channels: int) -> None:
        """Args:
        codec: one of CODECS.
        sample_rate: samples/s of each channel.
        channels: interleaved; they become one.
        """
        bounds.check(channels, sample_rate)
        self._codec = codec
        self._channels = channels
        self._frame = wav.WIDTHS[codec] * channels
        self._resampler = Resampler(sample_rate)
        self.rest = b""  # of a sample whose other bytes are still to come

    @property
    def bytes_per_second(self) -> int:
        return self._frame * self._resampler.rate

    def feed(self, data: bytes) -> Samples:
        """The samples that these bytes complete."""
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % self._frame
        self.rest = data[whole:]
        return self._resampler.feed(samples(data, self._codec, self._channels))

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


def samples(data: bytes, codec: str, channels: int) -> Samples:
    """Interleaved PCM as samples within -1 and 1 at its own rate; its channels become their mean.

    Args:
        data: bytes; a frame that is cut at their end is left out.
        codec: one of CODECS.
    """
    count = len(data) // (wav.WIDTHS[codec] * channels) * channels
    if codec == "pcm_s24le":  # as the upper three bytes of four
        wide = np.zeros((count, 4), np.uint8)
        for byte, column in enumerate(np.frombuffer(data, np.uint8, 3 * count).reshape(-1, 3).T, 1):
            wide[:, byte] = column
        raw = wide.view("<i4").reshape(-1)
    else:
        raw = np.frombuffer(data, CODECS[codec], count)
    found: Samples
    if raw.dtype.kind == "f":
        found = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1).astype(np.float32)
    else:
        found = raw.astype(np.float32)
        if codec == "pcm_u8":
            found -= 128
        found *= np.float32(2.0 ** (1 - 8 * raw.dtype.itemsize))
    return found if channels == 1 else mean(found.reshape(-1, channels).T)


def mean(channels: Sequence[Samples] | Samples) -> Samples:
    """Channels as one. Added one by one: numpy's mean over so short an axis takes ten times as long."""
    total = channels[0] + channels[1]
    for channel in channels[2:]:
        total += channel
    total *= np.float32(1 / len(channels))
    return total


def _joined(frames: list[av.AudioFrame]) -> Samples:
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]) if frames else np.zeros(0, np.float32)
