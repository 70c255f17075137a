"""Headerless PCM to 16 kHz mono float32 samples, and the resampler that all decoders share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from av.audio.resampler import AudioResampler

from asrserver.audio import SAMPLE_RATE, bounds, wav
from asrserver.audio.mixing import mix

#: Audio as the server passes it on: float32 [samples], mono, at SAMPLE_RATE unless said otherwise, full scale ±1. Where
#: channels are kept apart (selection.py) it is [samples, channels].
Samples = np.ndarray[Any, np.dtype[np.float32]]

#: Codecs whose bytes are numbers and need no decoder → the type of the numbers. For 24 bits numpy has none: see
#: `samples`.
CODECS: dict[str, np.dtype[Any]] = {
    "pcm_u8": np.dtype("u1"),
    "pcm_s16le": np.dtype("<i2"),
    "pcm_s24le": np.dtype("<i4"),
    "pcm_s32le": np.dtype("<i4"),
    "pcm_f32le": np.dtype("<f4"),
    "pcm_f64le": np.dtype("<f8"),
}


def _mulaw() -> Samples:
    """The sample of each byte of µ-law (ITU-T G.711, table 2a): its bits are inverted."""
    byte = 255 - np.arange(256)
    size = ((byte & 15) * 8 + 132 << (byte >> 4 & 7)) - 132
    return (np.where(byte & 128, -size, size) / 32768).astype(np.float32)


def _alaw() -> Samples:
    """The sample of each byte of A-law (ITU-T G.711, table 1a): every second bit is inverted."""
    byte = np.arange(256) ^ 0x55
    part, step = byte >> 4 & 7, (byte & 15) * 16 + 8
    size = np.where(part, step + 256 << np.maximum(part, 1) - 1, step)
    return (np.where(byte & 128, size, -size) / 32768).astype(np.float32)


#: Codecs of telephony, one byte for a sample → the sample of each byte.
TABLES: dict[str, Samples] = {"pcm_mulaw": _mulaw(), "pcm_alaw": _alaw()}

#: Bytes of an integer sample → what makes its full scale ±1.
_SCALES = {width: np.float32(2.0 ** (1 - 8 * width)) for width in (1, 2, 4)}

#: Samples that are resampled at a time: FFmpeg may not allocate as much at once as half an hour takes (library.py).
_FRAME = 1 << 18

#: Loudest sample that a decoder may return: lossy codecs exceed full scale a little, floating-point recorders by 18 dB.
_LOUDEST = np.float32(8.0)


class Resampler:
    """Converts samples of one rate to SAMPLE_RATE, with FFmpeg's swresample. Slicing does not change the result.

    Everything that is resampled goes through this class, each channel of floats by itself. A resampler that gets
    decoded frames directly builds its filters from channel layouts that a file chose, and PyAV 18.1's reads freed or
    missing memory when it is used again after it has rejected one.
    """

    def __init__(self, rate: int) -> None:
        """Convert from `rate` samples per second.

        Raises:
            ImplausibleAudio: The rate is outside the limits.
        """
        bounds.check(1, rate)
        self.rate = rate
        self._inner: list[AudioResampler] = []  # of each channel, once samples have come
        self._separate = False

    def feed(self, samples: Samples) -> Samples:
        """Return the samples available so far; the rest comes with the next samples, or with `flush`.

        All samples until then must have the same number of channels.
        """
        if self.rate == SAMPLE_RATE or not len(samples):
            return samples
        self._separate = samples.ndim == 2
        channels = samples.T if self._separate else samples[np.newaxis]
        if not self._inner:
            self._inner = [AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE) for _ in channels]
        return self._merged(
            [_resampled(inner, one, self.rate) for inner, one in zip(self._inner, channels, strict=True)]
        )

    def flush(self) -> Samples:
        """Return the rest. The next samples begin a new recording."""
        inner, self._inner = self._inner, []
        return self._merged([_converted(one.resample(None)) for one in inner])

    def _merged(self, channels: list[Samples]) -> Samples:
        if not channels:
            return np.zeros(0, np.float32)
        return np.stack(channels, axis=1) if self._separate else channels[0]


class PcmDecoder:
    """Converts headerless PCM of one format to 16 kHz mono. It keeps incomplete samples for the next call."""

    def __init__(self, codec: str, sample_rate: int, channels: int, separate: bool = False) -> None:
        """Convert from a format.

        Args:
            codec: One of CODECS or TABLES.
            sample_rate: Samples per second of each channel.
            channels: Number of interleaved channels.
            separate: Keep them apart; otherwise they are mixed to one.

        Raises:
            ImplausibleAudio: The rate or the channels are outside the limits.
        """
        bounds.check(channels, sample_rate)
        self._codec = codec
        self._channels = channels
        self._separate = separate
        self._frame = wav.WIDTHS[codec] * channels
        self._block = self._frame * wav.block(codec, sample_rate, channels)
        self._resampler = Resampler(sample_rate)
        self.rest = b""  # of a sample, or of a block of two channels, whose remaining bytes have not come

    @property
    def bytes_per_second(self) -> int:
        """Bytes of a second of the input."""
        return self._frame * self._resampler.rate

    def feed(self, data: bytes) -> Samples:
        """Return the samples that these bytes complete."""
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % self._block
        data, self.rest = data[:whole], data[whole:]
        return self._resampler.feed(self._samples(data))

    def flush(self) -> Samples:
        """Return what is still held; an incomplete sample is dropped. A new recording may follow."""
        last, self.rest = self._resampler.feed(self._samples(self.rest)), b""
        tail = self._resampler.flush()
        return joined([last, tail])

    def _samples(self, data: bytes) -> Samples:
        return samples(data, self._codec, self._channels, self._block // self._frame, self._separate)


def repaired(samples: Samples) -> Samples:
    """Repair a decoder's samples if some are not finite or far beyond full scale.

    Such samples come from damaged data. A resampler would spread them, and features would overflow.
    """
    if np.vdot(samples, samples) <= _LOUDEST**2:  # what most pieces of speech have, and quick to compute
        return samples
    if samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST:
        return samples
    return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)


def samples(data: bytes, codec: str, channels: int, block: int = 1, separate: bool = False) -> Samples:
    """Convert interleaved PCM to samples within ±1 at its own rate.

    Args:
        data: The bytes; an incomplete frame at their end is ignored.
        codec: One of CODECS or TABLES.
        channels: Number of channels, which are mixed (mixing.py).
        block: Samples of each channel for which `mix` and `divided` decide.
        separate: Keep the channels apart: [samples, channels].
    """
    count = len(data) // (wav.WIDTHS[codec] * channels) * channels
    if codec in TABLES:
        found: Samples = TABLES[codec][np.frombuffer(data, np.uint8, count)]
        return found.reshape(-1, channels) if separate else _mono(found, channels, block)
    if codec == "pcm_s24le":  # to the upper three bytes of 32 bits
        wide = np.zeros((count, 4), np.uint8)
        for byte, column in enumerate(np.frombuffer(data, np.uint8, 3 * count).reshape(-1, 3).T, 1):
            wide[:, byte] = column
        raw = wide.view("<i4").reshape(-1)
    else:
        raw = np.frombuffer(data, CODECS[codec], count)
    if raw.dtype.kind == "f":
        if not _is_plain(raw):
            raw = divided(np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0), channels * block).clip(-1, 1)
        found = raw.astype(np.float32)
    else:
        found = raw.astype(np.float32)
        if codec == "pcm_u8":
            found -= 128
        found *= _SCALES[raw.dtype.itemsize]
    return found.reshape(-1, channels) if separate else _mono(found, channels, block)


def _is_plain(found: np.ndarray[Any, Any]) -> bool:
    """Whether all samples are numbers within full scale."""
    return not len(found) or bool(found.min() >= -1 and found.max() <= 1)


def divided(found: np.ndarray[Any, Any], block: int) -> np.ndarray[Any, Any]:
    """Divide floating-point samples that are 16-bit integers which nobody divided: full scale is ±1, not ±32768.

    Args:
        found: The samples of all channels.
        block: How many of them are judged together: by their loudest one, or if it might be either, by being integers
            all of them.
    """
    starts = np.arange(0, len(found), max(1, block))
    loudest = np.maximum.reduceat(np.abs(found), starts)
    whole = np.logical_and.reduceat(found == np.rint(found), starts)
    undivided = (loudest > _LOUDEST) & (loudest <= 65536) | (loudest > 1) & (loudest <= _LOUDEST) & whole
    scale = np.repeat(np.where(undivided, 1 / 32768, 1.0), np.diff(np.append(starts, len(found))))
    scaled: np.ndarray[Any, Any] = found * scale.astype(found.dtype)
    return scaled


def _mono(found: Samples, channels: int, block: int) -> Samples:
    if channels == 1 or not len(found):
        return found
    whole, rest = divmod(len(found) // channels, block)
    return mix(np.ascontiguousarray(found.reshape(-1, channels).T), [block] * whole + [rest] * bool(rest))


def joined(pieces: Sequence[Samples]) -> Samples:
    """Pieces of audio as one. Those with fewer channels than others are silent in the rest."""
    if len(pieces) == 1:
        return pieces[0]
    found = [piece for piece in pieces if len(piece)]
    if len(found) < 2:
        return found[0] if found else np.zeros(0, np.float32)
    if found[0].ndim == 2 and len({piece.shape[1] for piece in found}) > 1:
        channels = max(piece.shape[1] for piece in found)
        found = [np.pad(piece, ((0, 0), (0, channels - piece.shape[1]))) for piece in found]
    return np.concatenate(found)


def plane(frame: av.AudioFrame, number: int, dtype: Any, count: int) -> np.ndarray[Any, Any]:
    """The first numbers of a plane of a frame, whose memory they are.

    It is read directly: frame.to_ndarray takes as long as decoding, and frame.planes (PyAV 18.1) counts planes up to a
    null pointer behind the last, which is missing for 8 planes and more.
    """
    found: Any = AudioPlane(frame, number)
    return np.frombuffer(found, dtype, count)


def _resampled(resampler: AudioResampler, samples: Samples, rate: int) -> Samples:
    found = []
    for at in range(0, len(samples), _FRAME):
        piece = samples[at : at + _FRAME]
        frame = av.AudioFrame("flt", "mono", len(piece))
        buffer: Any = AudioPlane(frame, 0)
        buffer.update(np.ascontiguousarray(piece))
        frame.sample_rate = rate
        found.append(_converted(resampler.resample(frame)))
    return joined(found)


def _converted(frames: list[av.AudioFrame]) -> Samples:
    return joined([plane(frame, 0, np.float32, frame.samples) for frame in frames])
