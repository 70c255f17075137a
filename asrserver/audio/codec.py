"""Packets to mono samples at the codec's own rate: FFmpeg's decoders, without FFmpeg's demuxers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane

from asrserver.audio import bounds, pcm
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.demux.base import Track
from asrserver.audio.pcm import Samples
from asrserver.errors import AudioError

#: Of FFmpeg's sample formats, without the p of the planar ones.
_DTYPES: dict[str, Any] = {
    "flt": np.float32,
    "dbl": np.float64,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "u8": np.uint8,
}

#: How loud each loudspeaker's channel is in one channel: ITU-R BS.775's proportions, left and right as their mean. The
#: bass effects (LFE) are left out; whatever stands beside or behind the listener is half as loud as the centre.
_GAINS = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0}
_SURROUND = 0.5**1.5


class Codec:
    """Of one track; raises AudioError if its head is damaged. PCM needs no decoder."""

    def __init__(self, track: Track) -> None:
        self.memoryless = track.codec.startswith("pcm") or track.codec == "flac"
        self.reason = ""  # why the last packet could not be decoded, if that is known
        self._track = track
        self._context: Any = None
        if track.codec not in pcm.CODECS:
            try:
                self._context = _context(track)
            except (av.FFmpegError, ValueError):
                raise AudioError("undecodable_audio", f"the head of the {track.codec} audio is damaged") from None

    def decode(self, data: bytes | None) -> list[tuple[Samples, int]] | None:
        """(samples, rate) of each frame of a packet, or (None) of what remains; None if it cannot be decoded."""
        if self._context is None:
            samples = pcm.samples(data or b"", self._track.codec, self._track.channels)
            return [(samples, self._track.rate)] if len(samples) else []
        if data is not None and not data:
            return []  # to FFmpeg that would be the end
        try:
            return [(mixed(frame), frame.sample_rate) for frame in self._context.decode(data and av.Packet(data))]
        except av.EOFError:
            return []
        except av.FFmpegError:
            self.reason = ""
        except ImplausibleAudio as exc:
            self.reason = exc.message
        return None


def _context(track: Track) -> Any:
    context = av.CodecContext.create(track.codec, "r")
    context.thread_count = 1
    extradata = track.extradata
    if track.codec == "opus":
        if len(extradata) < 19:
            raise ValueError("OpusHead")
        bounds.check(extradata[9], 48000)
        extradata = (
            extradata[:10] + b"\0\0" + extradata[12:]
        )  # no pre-skip: who resumes has none, others skip it anyway
    if extradata:
        context.extradata = extradata
    if track.codec == "flac":
        context.options = {"err_detect": "crccheck+explode"}  # else it makes noise of damaged frames
    if track.codec.startswith("pcm"):
        context.sample_rate = track.rate
        context.layout = f"{track.channels}C"
    context.open()
    return context


def mixed(frame: av.AudioFrame) -> Samples:
    """A frame's channels as one, at the frame's own rate; raises ImplausibleAudio.

    The mean of all channels; of more than two that are loudspeakers' (5.1) the sum, by `_GAINS`.
    """
    layout = frame.layout
    channels = layout.nb_channels
    bounds.check(channels, frame.sample_rate)
    with np.errstate(all="ignore"):  # damaged floats overflow: see pcm.repaired
        if frame.format.is_planar:
            planes = [_floats(frame, number, frame.samples) for number in range(channels)]
        else:
            planes = list(_floats(frame, 0, frame.samples * channels).reshape(-1, channels).T)
        if channels == 1:
            return planes[0]
        gains = _gains(layout.name) if channels > 2 else None
        return pcm.mean(planes) if gains is None else _weighed(gains, planes)


def _weighed(gains: Samples, planes: Sequence[Samples]) -> Samples:
    """The sum of channels, each by its gain."""
    total = np.zeros(len(planes[0]), np.float32)
    for gain, plane in zip(gains, planes, strict=True):
        total += gain * plane
    return total


@lru_cache(maxsize=64)
def _gains(layout: str) -> Samples | None:
    """Of each channel of a layout with left and right loudspeakers, by its name; None if it is not known to be one."""
    if "(" in layout:  # not one of FFmpeg's, but a list of channels
        return None
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    known = "FL" in names and "FR" in names
    return np.array([_GAINS.get(name, _SURROUND) for name in names], np.float32) if known else None


def _floats(frame: av.AudioFrame, number: int, count: int) -> Samples:
    """A copy of one plane, full scale as 1.

    By the plane alone: frame.to_ndarray takes as long as decoding, and frame.planes (PyAV 18.1) counts planes up to a
    null behind the last, which of 8 and more is not there.
    """
    plane: Any = AudioPlane(frame, number)
    raw = np.frombuffer(plane, _DTYPES[frame.format.name.removesuffix("p")], count)
    samples = raw.astype(np.float32)
    if raw.dtype == np.uint8:
        samples -= np.float32(128)
        samples *= np.float32(1 / 128)
    elif raw.dtype.kind == "i":
        samples *= np.float32(2.0 ** (1 - 8 * raw.dtype.itemsize))
    return samples
