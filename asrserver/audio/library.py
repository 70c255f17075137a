"""Whole files by FFmpeg, through PyAV: the containers and codecs that are not decoded as streams.

FFmpeg has hundreds of demuxers and decoders. Those for formats in which nobody records speech are disabled here: a
file's container must be one of FORMATS, its codec one of CODECS. FFmpeg is told so before it opens a file, because it
runs decoders even to find out what a file contains.

What strangers send is decoded by this in a process of its own (sandbox.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import av
import av.buffer

from asrserver.audio import bounds, mp4_claims
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.codec import check_frame, is_list, samples_of
from asrserver.audio.pcm import Samples
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.timeline import Timeline
from asrserver.errors import AudioError

#: Container, as sniff.container names it → FFmpeg's name of the demuxer where that is another.
_ALIASES = {"mp4": "mov", "mp2": "mp3", "rf64": "wav", "rifx": "wav", "wavpack": "wv"}

#: FFmpeg's names of the demuxers that may be used.
FORMATS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,flv,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,w64,wav,"
    "wv"
)

#: FFmpeg's names of the decoders that may be used, beside those of PCM.
CODECS = frozenset(
    (
        *("aac", "aac_latm", "alac", "flac", "opus", "vorbis", "speex", "wavpack"),
        *("mp1float", "mp1", "mp2float", "mp2", "mp3float", "mp3"),
        *("ac3", "eac3", "wmav1", "wmav2", "wmapro", "wmavoice", "amrnb", "amrwb", "gsm", "gsm_ms"),
        *("g722", "g726", "g726le", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_ms", "adpcm_swf", "adpcm_yamaha"),
        *("nellymoser", "pcm_mulaw", "pcm_alaw"),
        *(f"pcm_{kind}{end}" for kind in ("s16", "s24", "s32", "f32", "f64", "u16", "u24") for end in ("le", "be")),
        *("pcm_s8", "pcm_u8", "pcm_s64le", "pcm_s64be"),
    )
)

#: The demuxers whose containers have a clock. In others FFmpeg counts the samples, by the first rate that it finds.
_TIMED = frozenset(("asf", "avi", "flv", "matroska", "mov", "mpeg", "mpegts"))

#: Most bytes and seconds of a file that FFmpeg reads to find out what it contains.
_PROBE = {"probesize": str(4 << 20), "analyzeduration": "10000000", "max_streams": "64"}

#: Most bytes that FFmpeg allocates at once in this process, for streams too; by itself it allows 2 GiB. An entry of an
#: index has 24, and few bytes can claim any number of them: these are two days of AMR. A file's attachments have some
#: dozen megabytes.
MAX_ALLOCATION = 256 << 20

#: Samples that are converted together: a damaged index makes a frame of each sample.
_BATCH = 4096

#: Consecutive packets that cannot be decoded after which a file is given up: seven minutes of AAC, as a bad disk or a
#: download with holes leaves them.
_MAX_DAMAGED = 20_000


@contextmanager
def opened(file: IO[bytes], kind: str | None = None) -> Iterator[Any]:
    """Open a file as a container of PyAV.

    Args:
        file: The file.
        kind: Its container; None: FFmpeg finds it.

    Raises:
        av.FFmpegError: FFmpeg cannot read it, or is not allowed to.
        TooMuchWork: Its index claims more than its bytes can hold.
    """
    if kind == "mp4":
        mp4_claims.check(file)
    options = {"format_whitelist": FORMATS, "codec_whitelist": ",".join(sorted(CODECS)), **_PROBE}
    name = _ALIASES.get(kind, kind) if kind is not None else None
    with av.open(file, mode="r", format=name, options=options, metadata_errors="ignore") as source:
        yield source


class Reader:
    """Decodes an audio track of a container.

    Attributes:
        damage: From when to when packets could not be decoded, in seconds of the container's clock; None: all could.
        number: The number of the track among the audio tracks, from 0.
        tracks: The number of audio tracks.
        channels: The number of channels of the samples, as the header says.
    """

    def __init__(self, source: Any, selection: Selection = MIXED) -> None:
        """Choose a track.

        Args:
            source: A container of PyAV.
            selection: What of it is decoded.

        Raises:
            AudioError: There is no such track, or none that may be decoded, or it has too many channels.
        """
        self.damage: tuple[float, float] | None = None
        self._source = source
        audio = source.streams.audio
        self.tracks = len(audio)
        if not audio:
            raise AudioError("not_audio", f"the {source.format.name} file has no audio track")
        self._selection = selection
        selection.check_track(self.tracks)
        if selection.track is None:
            self._track = next((one for one in audio if one.disposition & one.disposition.default), audio[0])
        else:
            self._track = audio[selection.track]
        self.number = audio.index(self._track)
        context = self._track.codec_context
        if context is None:
            raise AudioError("undecodable_audio", f"no decoder for the audio track of the {source.format.name} file")
        if context.codec.name not in CODECS:
            raise AudioError("undecodable_audio", f"audio of the codec {context.codec.name} is not accepted")
        layout = context.layout
        bounds.check_claim(layout.nb_channels, context.sample_rate)
        selection.check_channels(layout.nb_channels)
        if layout.nb_channels:
            # FFmpeg allocates a list for a layout that is not one of its own (an MP4's `chan` can say right before
            # left). PyAV (18.1) shares it between objects that each free it, frame by frame, until the process dies.
            # Reading the layout here made this object its owner; the decoder gets a layout without a list.
            context.layout = f"{layout.nb_channels}C" if is_list(layout.name) else layout.name
        context.thread_count = 1
        self.channels = max(1, layout.nb_channels) if selection.separate else 1

    def frames(self) -> Iterator[tuple[Samples, int, float]]:
        """(samples, samples per second, seconds of silence before them), of one or more frames at a time.

        A packet that cannot be decoded costs no other.

        Raises:
            av.FFmpegError: The container cannot be read any further.
        """
        batch: list[Any] = []
        count, before = 0, 0.0
        try:
            for frame, gap in self._frames():
                if batch and (gap or count >= _BATCH or _kind(frame) != _kind(batch[0])):
                    yield samples_of(batch, self._selection), batch[0].sample_rate, before
                    batch, count = [], 0
                if not batch:
                    before = gap
                batch.append(frame)
                count += frame.samples
        except (av.FFmpegError, AudioError):
            if batch:
                yield samples_of(batch, self._selection), batch[0].sample_rate, before
            raise
        if batch:
            yield samples_of(batch, self._selection), batch[0].sample_rate, before

    def _frames(self) -> Iterator[tuple[Any, float]]:
        """(frame, seconds of silence before it) of the track."""
        timeline, spoiled = Timeline(), 0
        timed = not _TIMED.isdisjoint(self._source.format.name.split(","))
        for packet in self._packets():
            try:
                frames = [frame for frame in packet.decode() if frame.samples]
                for frame in frames:
                    check_frame(frame, self._selection)
            except (av.InvalidDataError, ImplausibleAudio):
                spoiled += 1
                self._note(packet)
                if spoiled > _MAX_DAMAGED:
                    raise
                continue
            spoiled = 0
            for frame in frames:
                yield frame, timeline.gap(frame.time if timed else None)
                timeline.advance(frame.samples / frame.sample_rate)

    def _packets(self) -> Iterator[Any]:
        """The track's packets, and an empty one at the end."""
        with suppress(IndexError):  # PyAV (18.1) at last flushes tracks that FFmpeg found on the way and it has not
            yield from self._source.demux(self._track)

    def _note(self, packet: Any) -> None:
        """Note that a packet is damaged."""
        base = float(packet.time_base or 0)
        begin = (packet.pts or 0) * base
        end = begin + (packet.duration or 0) * base
        self.damage = (begin if self.damage is None else self.damage[0], end)


def _kind(frame: av.AudioFrame) -> tuple[str, int, str]:
    return frame.format.name, frame.sample_rate, frame.layout.name


def _bound_allocations() -> None:
    """Set FFmpeg's own limit of an allocation, for which PyAV has no function: its modules are linked with the library.

    A build in which they are not, but contain it, goes without.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(av.buffer.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION))


_bound_allocations()
