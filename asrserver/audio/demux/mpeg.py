"""Streams that consist of frames only: MP3 (ISO 11172-3) with its tags, and AAC in ADTS (ISO 13818-7)."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import ClassVar

from asrserver.audio.demux.base import Demuxer, Packet, Track
from asrserver.audio.frame_headers import (
    ADTS_HEADER,
    MPEG_HEADER,
    adts_length,
    adts_signature,
    id3_bytes,
    mpeg_layer,
    mpeg_length,
    mpeg_signature,
)

#: Samples that every MP3 decoder adds to the delay that the encoder declares.
_DECODER_DELAY = 529


class _Frames(Demuxer):
    """A frame is accepted if another like it follows, or if it follows an accepted one."""

    #: What may be a frame's header, as far as its first bytes tell. What it lets through costs time: see `_spend`.
    _SYNC: ClassVar[re.Pattern[bytes]]

    #: Bytes of a frame's header.
    _header = MPEG_HEADER

    def __init__(self) -> None:
        super().__init__()
        self._like = b""  # the signature of the accepted frames; empty if there are none

    def _next(self) -> Track | Packet | None:
        if len(self._buffer) < 10:
            return None
        if self._buffer[0] != 0xFF and (tag := self._tag()):
            self._drop(tag)
            return None
        length = self._length(0)
        if not length:
            self._like = b""
            raise self._damaged("no frame begins here")
        like = self._signature(0)
        if like != self._like:
            other, self._like = self._like, b""
            if not self._confirmed(0, length):
                self._like = other
                return None
            if other:  # of another rate or version: two files were joined
                self.start, self.track = self.offset, None
        if len(self._buffer) < length:
            return None
        self._like = like
        if self.track is None:
            return self._begin(length)
        packet = Packet(bytes(self._buffer[:length]), self.offset)
        self._drop(length)
        return packet

    def _find(self) -> bool:
        at = self._candidate(0)
        while at >= 0 and len(self._buffer) - at >= 10:
            self._spend(1)
            length = self._length(at)
            if length and len(self._buffer) < at + length + self._header:
                break
            if length and self._signature(at) == self._signature(at + length) and self._length(at + length):
                self._drop(at)
                return True
            at = self._candidate(at + 1)
        self._drop(at if at >= 0 else max(0, len(self._buffer) - 1))
        return False

    def _candidate(self, at: int) -> int:
        """Where the next bytes are that may be a header; -1: nowhere, but perhaps in the last byte."""
        found = self._SYNC.search(self._buffer, at)
        return -1 if found is None else found.start()

    def _confirmed(self, at: int, length: int) -> bool:
        """Whether the following frame is like this one; False also while that cannot be known."""
        following = at + length
        if len(self._buffer) < following + self._header:
            return self._ended and len(self._buffer) == following
        if self._buffer[following : following + 3] in (bytearray(b"TAG"), bytearray(b"ID3")):
            return True
        if self._signature(at) != self._signature(following):
            raise self._damaged("no frame begins here")
        return True

    def _tag(self) -> int:
        """Bytes of the tag at the front; 0 if there is none."""
        data = self._buffer
        if size := id3_bytes(data):
            return size
        if data[:8] == b"APETAGEX" and len(data) >= 16:
            return 32 + int.from_bytes(data[12:16], "little")
        return 128 if data[:3] == b"TAG" else 0

    @abstractmethod
    def _length(self, at: int) -> int:
        """Bytes of the frame whose header is at an offset; 0 if there is none."""

    @abstractmethod
    def _signature(self, at: int) -> bytes:
        """The parts of a header that do not change from frame to frame."""

    @abstractmethod
    def _begin(self, length: int) -> Track:
        """Open the recording that the frame at the front begins."""


class Mp3(_Frames):
    """MPEG audio, layer III."""

    name = "MP3"
    _SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")

    def _length(self, at: int) -> int:
        head = self._buffer[at : at + MPEG_HEADER]
        return mpeg_length(head) if len(head) == MPEG_HEADER and mpeg_layer(head) == 3 else 0

    def _signature(self, at: int) -> bytes:
        return mpeg_signature(self._buffer[at : at + MPEG_HEADER])

    def _begin(self, length: int) -> Track:
        frame = bytes(self._buffer[:length])
        first, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
        at = 4 + ((17 if mono else 32) if first else (9 if mono else 17)) + 2 * (not frame[1] & 1)
        skip = 0
        if frame[at : at + 4] in (b"Xing", b"Info"):  # a frame without audio
            flags = frame[at + 7]
            lame = at + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
            if len(frame) >= lame + 24 and frame[lame : lame + 4].isalnum():
                skip = int.from_bytes(frame[lame + 21 : lame + 24], "big") >> 12
                skip += _DECODER_DELAY
            self._drop(length)
        self.track = Track("mp3", skip=skip)
        return self.track


class Adts(_Frames):
    """AAC whose frames have ADTS headers."""

    name = "AAC"
    _SYNC = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
    _header = ADTS_HEADER

    def _length(self, at: int) -> int:
        return adts_length(self._buffer[at : at + ADTS_HEADER])

    def _signature(self, at: int) -> bytes:
        return adts_signature(self._buffer[at : at + ADTS_HEADER])

    def _begin(self, length: int) -> Track:
        self.track = Track("aac")
        return self.track
