"""Containers that are decoded as whole files only."""

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
