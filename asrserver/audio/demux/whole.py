"""Streams that are refused: containers that are decoded as whole files only, and what is no audio."""

from __future__ import annotations

from asrserver.audio import sniff
from asrserver.audio.demux.base import Demuxer, Packet, Track


class Whole(Demuxer):
    """Refuses its bytes, once, with the name of the container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.name = sniff.title(kind)

    def _next(self) -> Track | Packet | None:
        self._drop(len(self._buffer))
        if self._refused:
            return None
        raise self._unsupported("send the whole file as one chunk in chunk or auto mode")


class NotAudio(Demuxer):
    """Refuses its bytes, once, for what they are instead of audio."""

    name = sniff.NOT_AUDIO

    def _next(self) -> Track | Packet | None:
        head = bytes(self._buffer[: sniff.HEAD_BYTES])
        self._drop(len(self._buffer))
        if not self._refused:
            self.track, self._refused = None, True
            sniff.reject_non_audio(head)  # nothing is known of them where another worker has refused their beginning
        return None
