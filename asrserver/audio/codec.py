"""Packets to mono samples at the codec's own rate: FFmpeg's decoders, without FFmpeg's demuxers."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from asrserver.audio.demux.base import Track
from asrserver.audio.pcm import Samples, mono
from asrserver.errors import AudioError

#: Of FFmpeg's sample formats, without the p of the planar ones.
_DTYPES = {"flt": np.float32, "dbl": np.float64, "s16": np.int16, "s32": np.int32, "u8": np.uint8}


class Codec:
    """Of one track; raises AudioError if its head is damaged. PCM as clients send it needs no decoder."""

    def __init__(self, track: Track) -> None:
        self.memoryless = track.codec.startswith("pcm") or track.codec == "flac"
        self._track = track
        self._dtype: Any = {"pcm_s16le": np.dtype("<i2"), "pcm_f32le": np.dtype("<f4")}.get(track.codec)
        self._context: Any = None
        if self._dtype is None:
            try:
                self._context = _context(track)
            except (av.FFmpegError, ValueError):
                raise AudioError("undecodable_audio", f"the head of the {track.codec} audio is damaged") from None

    def decode(self, data: bytes | None) -> list[tuple[Samples, int]] | None:
        """(samples, rate) of each frame of a packet, or (None) of what remains; None if it cannot be decoded."""
        if self._dtype is not None:
            raw = np.frombuffer(data or b"", self._dtype)
            return [(mono(raw, self._track.channels), self._track.rate)] if len(raw) else []
        if data is not None and not data:
            return []  # to FFmpeg that would be the end
        try:
            return [(_mixed(frame), frame.sample_rate) for frame in self._context.decode(data and av.Packet(data))]
        except av.EOFError:
            return []
        except av.FFmpegError:
            return None


def _context(track: Track) -> Any:
    context = av.CodecContext.create(track.codec, "r")
    context.thread_count = 1
    extradata = track.extradata
    if track.codec == "opus":
        if len(extradata) < 19:
            raise ValueError("OpusHead")
        extradata = (
            extradata[:10] + b"\0\0" + extradata[12:]
        )  # no pre-skip: who resumes has none, others skip it anyway
    if extradata:
        context.extradata = extradata
    if track.codec == "flac":
        context.options = {"err_detect": "crccheck+explode"}  # else it makes noise of damaged frames
    if track.codec.startswith("pcm"):
        context.sample_rate = track.rate
        context.layout = f"{track.channels}c"
    context.open()
    return context


def _mixed(frame: av.AudioFrame) -> Samples:
    """A frame's channels as one. By its planes: to_ndarray takes as long as decoding."""
    channels = frame.layout.nb_channels
    planar = frame.format.is_planar
    dtype = _DTYPES[frame.format.name.removesuffix("p")]
    count = frame.samples if planar else frame.samples * channels
    # Of 8 channels and more PyAV (18.1) finds more planes than there are: it looks for a null after the last. A damaged
    # AAC frame that claimed so many made the worker read anywhere and die; to_ndarray would do the same.
    own = frame.planes[: channels if planar else 1]
    planes = [_floats(np.frombuffer(plane, dtype, count)) for plane in own]
    if channels == 1:
        return planes[0]
    samples: Samples = (
        np.mean(planes, axis=0, dtype=np.float32)
        if planar
        else planes[0].reshape(-1, channels).mean(axis=1, dtype=np.float32)
    )
    return samples


def _floats(raw: np.ndarray[Any, Any]) -> Samples:
    """A copy, full scale as 1."""
    samples = raw.astype(np.float32)
    if raw.dtype == np.uint8:
        samples -= np.float32(128)
        samples *= np.float32(1 / 128)
    elif raw.dtype.kind == "i":
        samples *= np.float32(2.0 ** (1 - 8 * raw.dtype.itemsize))
    return samples
