"""From a container's bytes, cut anywhere, to its audio packets. No thread, no file, no waiting: bytes in, packets out.

Every demuxer is pushed bytes and pulled items: a `Track` whenever a recording begins (a second one when the recorder
was started again on the same stream), then its `Packet`s. What it returns depends on the bytes alone, never on how they
were cut (but for PCM, whose packets are what is at hand). After an AudioError it looks for the next place to go on at.
"""

from __future__ import annotations

from asrserver.audio.demux.base import Demuxer, Packet, Track
from asrserver.audio.demux.flac import Flac
from asrserver.audio.demux.mp4 import Mp4
from asrserver.audio.demux.mpeg import Adts, Mp3
from asrserver.audio.demux.ogg import Ogg
from asrserver.audio.demux.pcm import Pcm, Wav
from asrserver.audio.demux.webm import WebM

__all__ = ["Demuxer", "Packet", "Track", "demuxer"]

_CONTAINERS: dict[str, type[Demuxer]] = {
    "matroska": WebM,
    "ogg": Ogg,
    "mp4": Mp4,
    "mp3": Mp3,
    "aac": Adts,
    "flac": Flac,
    "wav": Wav,
}


def demuxer(kind: str, sample_rate: int = 16000, channels: int = 1) -> Demuxer:
    """For what `sniff.container` calls `kind`, or pcm_s16le and pcm_f32le, of which the rate and channels are given."""
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]()
    return Pcm(kind, sample_rate, channels)
