"""Packets to samples at the codec's own rate: FFmpeg's decoders without FFmpeg's demuxers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np

from asrserver.audio import bounds, pcm, wav
from asrserver.audio.demux.base import Track
from asrserver.audio.mixing import mix
from asrserver.audio.pcm import Samples, joined, plane, repaired
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

#: FFmpeg's names of decoders that are not those of the codec: `mp3` computes with integers, and takes twice as long.
_DECODERS = {"mp3": "mp3float"}

#: Packets in a row that cannot be decoded, and bytes of them, after which a decoder of AAC is opened anew. Damaged ones
#: may have made it believe in 43 channels, which no intact one corrects, and hold 30 MB for them: a claim takes bytes.
#: To open it takes 0.4 to 2 ms.
_SPOILT = 48
_SPOILT_BYTES = 1024

#: Gain of each loudspeaker's channel in the mono mix: the proportions of ITU-R BS.775, with left and right as their
#: mean. The bass effects (LFE) are left out; channels beside or behind the listener are half as loud as the centre.
_GAINS = {"FL": 0.5, "FR": 0.5, "FC": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0}
_SURROUND = 0.5**1.5


@dataclass(frozen=True, slots=True)
class PcmFrame:
    """What `Codec.decode` returns for PCM: its bytes. The fields are named as those of a frame of PyAV."""

    data: bytes
    samples: int
    sample_rate: int


class Codec:
    """Decodes the packets of one track.

    Attributes:
        memoryless: A packet's samples do not depend on the packets before it.
        kind: Grows whenever frames are unlike those before in sample format, rate or channels.
        width: Channels of the frames that were decoded last; 0: not known yet.
        channels: Channels of their samples: 1 if they are mixed; 0: not known yet.
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
        self.kind = 0
        self.width = 0
        self._format, self._rate = "", 0  # of the last frame
        self._frame = 0  # bytes of a sample of PCM
        self._failed = 0  # packets in a row, and their bytes
        self._failed_bytes = 0
        if track.codec in wav.WIDTHS:
            self._frame = wav.WIDTHS[track.codec] * track.channels
        else:
            try:
                self._context = _context(track)
            except (av.FFmpegError, ValueError):
                raise AudioError("undecodable_audio", f"the header of the {track.codec} audio is damaged") from None
        self.channels = 0 if selection.separate else 1

    def decode(self, data: bytes | None) -> Sequence[Any] | None:
        """Decode a packet.

        Args:
            data: The packet; None at the end of the track, for what the decoder still holds.

        Returns:
            Frames, which have `samples` (of each channel) and `sample_rate`; None if the packet cannot be decoded.
        """
        if data is not None and not data:
            return ()  # FFmpeg would take it for the end
        if self._frame:
            if data is None:
                return ()
            if not self.kind:
                self.kind, self.width = 1, self._track.channels
                self.channels = self.width if self._selection.separate else 1
            return (PcmFrame(data, len(data) // self._frame, self._track.rate),)
        try:
            frames: list[Any] = self._context.decode(data and av.Packet(data))
            for frame in frames:
                if (
                    frame.sample_rate != self._rate
                    or frame.layout.nb_channels != self.width
                    or frame.format.name != self._format
                ):
                    self._check(frame, frame is frames[0])
            self._failed = self._failed_bytes = 0
            return frames
        except av.EOFError:
            return ()
        except av.FFmpegError:
            self.reason = ""
        except AudioError as exc:
            self.reason = exc.message
        self._failed += 1
        self._failed_bytes += len(data or b"")
        if self._track.codec == "aac" and (self._failed >= _SPOILT or self._failed_bytes >= _SPOILT_BYTES):
            self._context, self._failed, self._failed_bytes = _context(self._track), 0, 0
        return None

    def samples(self, frames: Sequence[Any]) -> Samples:
        """The samples of frames of one kind, one after another, at their own rate."""
        if not self._frame:
            return samples_of(frames, self._selection)
        codec, channels, separate = self._track.codec, self._track.channels, self._selection.separate
        block = wav.block(codec, self._track.rate, channels)
        return joined([pcm.samples(frame.data, codec, channels, block, separate) for frame in frames])

    def _check(self, frame: av.AudioFrame, is_first: bool) -> None:
        """Note of which kind a frame is that is unlike the one before it.

        Raises:
            AudioError: It has too many channels, or a rate that cannot be, or is not the first of its packet.
        """
        check_frame(frame, self._selection)
        self._format, self._rate, self.width = frame.format.name, frame.sample_rate, frame.layout.nb_channels
        self.kind += 1
        self.channels = self.width if self._selection.separate else 1
        if not is_first:
            raise AudioError("undecodable_audio", "the audio changes within a packet")


def _context(track: Track) -> Any:
    context = av.CodecContext.create(_DECODERS.get(track.codec, track.codec), "r")
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


def check_frame(frame: av.AudioFrame, selection: Selection) -> None:
    """Raise AudioError if the number of channels or the sample rate of a frame is outside the limits."""
    bounds.check(frame.layout.nb_channels, frame.sample_rate)
    selection.check_channels(frame.layout.nb_channels)


def samples_of(frames: Sequence[av.AudioFrame], selection: Selection) -> Samples:
    """The samples of frames, one after another, with their channels mixed to mono or kept apart.

    Two channels, and those of no known layout, become their mean; those of more than two loudspeakers (5.1) their sum
    with the gains of `_GAINS`. It is decided for each frame how (mixing.py), so nothing depends on how many are
    converted together: for one alone, numpy's overhead is what it costs.

    Args:
        frames: One or more frames of the same format, rate and channels, which `check_frame` has checked.
        selection: Mixed, or apart.

    Returns:
        Samples at the frames' own rate.
    """
    name, layout = frames[0].format.name, frames[0].layout
    channels = layout.nb_channels
    with np.errstate(all="ignore"):  # damaged floats overflow: see pcm.repaired
        planes = _floats(frames, name, channels)
        if selection.separate:
            found = np.ascontiguousarray(planes.T)
        elif channels == 1:
            found = planes[0]
        else:
            sizes = [frame.samples for frame in frames]
            found = mix(planes, sizes, _gains(layout.name) if channels > 2 else None)
        return repaired(found) if name.startswith(("flt", "dbl")) else found


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


def _floats(frames: Sequence[av.AudioFrame], name: str, channels: int) -> Samples:
    """Copy frames as floats with full scale ±1: [channels, samples]."""
    dtype = _DTYPES[name.removesuffix("p")]
    if name.endswith("p"):
        parts = [plane(frame, number, dtype, frame.samples) for number in range(channels) for frame in frames]
        samples = np.concatenate(parts, dtype=np.float32, casting="unsafe").reshape(channels, -1)
    else:
        parts = [plane(frame, 0, dtype, frame.samples * channels) for frame in frames]
        samples = np.ascontiguousarray(np.concatenate(parts).reshape(-1, channels).T, np.float32)
    if dtype is np.uint8:
        samples -= np.float32(128)
        samples *= np.float32(1 / 128)
    elif name[0] == "s":
        samples *= np.float32(2.0 ** (1 - 8 * np.dtype(dtype).itemsize))
    return samples
