"""Streaming demuxers: a container's bytes, cut anywhere, to its audio packets. No thread, no file, no waiting.

Bytes are pushed into a demuxer and items pulled from it: a `Track` whenever a recording begins (again when a recorder
was restarted on the same stream), then its `Packet`s. The items depend on the bytes alone, not on how they were cut,
except for PCM, whose packets are the samples at hand, and for packets that come without a container. After an
AudioError a demuxer looks for the next place where it can continue.
"""

from __future__ import annotations

from asrserver.audio import sniff, wav
from asrserver.audio.demux.base import Demuxer, Packet, Track
from asrserver.audio.demux.flac import Flac
from asrserver.audio.demux.mp4 import Mp4
from asrserver.audio.demux.mpeg import Adts, Mp3
from asrserver.audio.demux.ogg import Ogg
from asrserver.audio.demux.opus import OpusPackets
from asrserver.audio.demux.pcm import Pcm, Wav
from asrserver.audio.demux.webm import WebM
from asrserver.audio.demux.whole import NotAudio, Whole

__all__ = ["CONTAINERS", "Demuxer", "Packet", "Track", "demuxer"]

#: The containers that are decoded as streams.
CONTAINERS: dict[str, type[Demuxer]] = {
    "matroska": WebM,
    "ogg": Ogg,
    "mp4": Mp4,
    "mp3": Mp3,
    "aac": Adts,
    "flac": Flac,
    "wav": Wav,
    "opus": OpusPackets,
}


def demuxer(kind: str, sample_rate: int = 16000, channels: int = 1, track: int | None = None) -> Demuxer:
    """Make the demuxer of a stream.

    Args:
        kind: A container as `sniff.container` names it, or sniff.NOT_AUDIO; opus: each push is a packet; or a codec of
            wav.WIDTHS.
        sample_rate: Samples per second of headerless PCM.
        channels: Channels of headerless PCM.
        track: Number of the audio track to decode, from 0; None: the default one.
    """
    if kind in CONTAINERS:
        found = CONTAINERS[kind]()
        found.wanted = track
        return found
    if kind in wav.WIDTHS:
        return Pcm(kind, sample_rate, channels)
    return NotAudio() if kind == sniff.NOT_AUDIO else Whole(kind)
