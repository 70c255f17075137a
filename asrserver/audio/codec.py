"""Packets to samples at the codec's own rate: FFmpeg's decoders without FFmpeg's demuxers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane

from asrserver.audio import bounds, pcm, wav
from asrserver.audio.demux.base import Track
from asrserver.audio.mixing import mix
from asrserver.audio.pcm import Samples
from asrserver.audio.selection import MIXED, Selection
from asrserver.errors import AudioError

#: FFmpeg's sample formats, without the p of the planar ones.
_DTYPES: dict[str, Any] = {
    "flt": np.float32,
    "dbl": np.float64,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "u8": np.uint8,
}

#: Gain of each loudspeaker's channel in the mono mix: the proportions of ITU-R BS.775, with left and right as their
#: mean. The bass effects (LFE) are left out; channels beside or behind the listener are half as loud as the centre.
_GAINS = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0}
_SURROUND = 0.5**1.5


class Codec:
    """Decodes the packets of one track.

    Attributes:
        memoryless: A packet's samples do not depend on the packets before it.
        reason: Why the last packet could not be decoded; empty if that is not known.
    """

    def __init__(self, track: Track, selection: Selection = MIXED) -> None:
        """Open a decoder; PCM needs none.

        Raises:
            AudioError: The track's header is damaged, or it has too many channels.
        """
        selection.check_channels(track.channels)
        self.memoryless = track.codec.startswith(("pcm", "adpcm")) or track.codec in ("flac", "alac")
        self.reason = ""
        self._track = track
        self._selection = selection
        self._context: Any = None
        if track.codec not in wav.WIDTHS:
            try:
                self._context = _context(track)
            except (av.FFmpegError, ValueError):
                raise AudioError("undecodable_audio", f"the header of the {track.codec} audio is damaged") from None

    def decode(self, data: bytes | None) -> list[tuple[Samples, int]] | None:
        """Decode a packet.

        Args:
            data: The packet; None at the end of the track, for what the decoder still holds.

        Returns:
            (samples, samples per second) of each frame; None if the packet cannot be decoded.
        """
        if self._context is None:
            block = wav.block(self._track.codec, self._track.rate, self._track.channels)
            channels, separate = self._track.channels, self._selection.separate
            samples = pcm.samples(data or b"", self._track.codec, channels, block, separate)
            return [(samples, self._track.rate)] if len(samples) else []
        if data is not None and not data:
            return []  # FFmpeg would take it for the end
        try:
            frames = self._context.decode(data and av.Packet(data))
            return [(samples_of(frame, self._selection), frame.sample_rate) for frame in frames]
        except av.EOFError:
            return []
        except av.FFmpegError:
            self.reason = ""
        except AudioError as exc:
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
        )  # without pre-skip: a resumed stream has none, and at the beginning of others the caller skips it
    if extradata:
        context.extradata = extradata
    if track.codec == "flac":
        context.options = {"err_detect": "crccheck+explode"}  # else damaged frames become noise
    if track.codec.startswith("adpcm"):
        context.options = {"bits_per_coded_sample": "4"}
    if track.codec.startswith(("pcm", "adpcm")):
        context.sample_rate = track.rate
        context.layout = f"{track.channels}C"
    context.open()
    return context


def samples_of(frame: av.AudioFrame, selection: Selection) -> Samples:
    """The samples of a frame, with its channels mixed to mono or kept apart.

    Two channels, and those of no known layout, become their mean; those of more than two loudspeakers (5.1) their sum
    with the gains of `_GAINS`.

    Returns:
        Samples at the frame's own rate.

    Raises:
        AudioError: The number of channels or the sample rate is outside the limits.
    """
    layout = frame.layout
    channels = layout.nb_channels
    bounds.check(channels, frame.sample_rate)
    selection.check_channels(channels)
    with np.errstate(all="ignore"):  # damaged floats overflow: see pcm.repaired
        if frame.format.is_planar:
            planes = [_floats(frame, number, frame.samples) for number in range(channels)]
        else:
            planes = list(_floats(frame, 0, frame.samples * channels).reshape(-1, channels).T)
        if selection.separate:
            return np.stack(planes, axis=1)
        if channels == 1:
            return planes[0]
        return mix(planes, len(planes[0]), None if channels == 2 else _gains(layout.name))


def is_list(layout: str) -> bool:
    """Whether a layout is a list of channels ("2 channels (FR+FL)"), and not one of FFmpeg's own ("5.1(side)")."""
    return "+" in layout or " channels" in layout


@lru_cache(maxsize=64)
def _gains(layout: str) -> Samples | None:
    """The gain of each channel of a layout of loudspeakers; None if the layout is not known to be one."""
    if is_list(layout):
        return None
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    known = "FL" in names and "FR" in names
    return np.array([_GAINS.get(name, _SURROUND) for name in names], np.float32) if known else None


def _floats(frame: av.AudioFrame, number: int, count: int) -> Samples:
    """Copy one plane of a frame as floats with full scale ±1.

    It reads the plane directly: frame.to_ndarray takes as long as decoding, and frame.planes (PyAV 18.1) counts planes
    up to a null pointer behind the last, which is missing for 8 planes and more.
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
