"""Recordings on disk: the parts that gateways write during a session, and the one file that is assembled from them.

    DIR/incoming/<name>.<gateway>.part     a line of JSON, then for each chunk a record: index, length, bytes
    DIR/<2 of the hash>/<name>.<suffix>    the recording

All functions block. A name cannot lead out of the directory, whatever the id of its session is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import struct
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from asrserver.audio import wav
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.chunking import Chunking, Role

#: The header of each record in a part: the index of the chunk and its length in bytes.
RECORD = struct.Struct("<QI")

#: The media type of recordings by their suffix; there are no others.
MEDIA = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "webm": "audio/webm",
    "ogg": "audio/ogg",
    "mp4": "audio/mp4",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "ac3": "audio/ac3",
    "aiff": "audio/aiff",
    "amr": "audio/amr",
    "au": "audio/basic",
    "avi": "video/x-msvideo",
    "caf": "audio/x-caf",
    "flv": "video/x-flv",
    "mp2": "audio/mpeg",
    "mpg": "video/mpeg",
    "ts": "video/mp2t",
    "w64": "audio/x-w64",
    "wma": "audio/x-ms-wma",
    "wv": "audio/x-wavpack",
    "zip": "application/zip",
}

#: The suffix for a container, where it is not FFmpeg's name of it.
_SUFFIX = {
    "matroska": "webm",
    "mpegts": "ts",
    "mpeg": "mpg",
    "asf": "wma",
    "wavpack": "wv",
    "rf64": "wav",
    "rifx": "wav",
}

#: Bytes copied at a time.
_COPY_BYTES = 1 << 20

_INCOMING = "incoming"


@dataclass(frozen=True)
class Archived:
    """An assembled recording.

    Attributes:
        path: Its path below the directory.
        size: Its bytes.
        chunks: The number of chunks in it.
    """

    path: str
    size: int
    chunks: int


def name_of(sid: str) -> str:
    """Return the name of a session in the file system: the harmless characters of its id, and a hash of all of it."""
    digest = hashlib.sha256(sid.encode(errors="surrogatepass")).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '_', sid)[:40]}-{digest[:24]}"


def suffix_of(kind: str) -> str:
    """Return the suffix of a recording in a container."""
    return _SUFFIX.get(kind, kind)


def part_path(directory: Path, sid: str, gateway: str) -> Path:
    """Return the path of the part that a gateway writes of a session."""
    return directory / _INCOMING / f"{name_of(sid)}.{hashlib.sha256(gateway.encode()).hexdigest()[:16]}.part"


def find(directory: Path, sid: str) -> Path | None:
    """Return the path of a session's recording, if there is one."""
    stem = _stem(directory, sid)
    return next((path for suffix in MEDIA if (path := stem.with_suffix(f".{suffix}")).is_file()), None)


def abandoned(directory: Path, age: float, most: int) -> dict[str, float]:
    """Find sessions whose parts were not written to for `age` seconds.

    Returns:
        The ids of up to `most` sessions, with the seconds since the last write.
    """
    found: dict[str, float] = {}
    for path in sorted((directory / _INCOMING).glob("*.part")):
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            since = time.time() - os.fstat(file.fileno()).st_mtime
            if since > age and len(found) < most:
                sid = json.loads(file.readline(1 << 16))["sid"]
                found[sid] = min(since, found.get(sid, since))
    return found


def remove(directory: Path, sid: str, parts_only: bool = False) -> None:
    """Remove the parts of a session, and unless `parts_only`, its recording."""
    with _lock(directory):
        for path in _parts(directory, sid):
            path.unlink(missing_ok=True)
        if not parts_only:
            for suffix in MEDIA:
                _stem(directory, sid).with_suffix(f".{suffix}").unlink(missing_ok=True)


def assemble(directory: Path, sid: str, kind: str, chunks: int | None = None) -> Archived | None:
    """Assemble the recording of a session from its parts, which stay. To do so again gives the same file.

    A session that is one file becomes that file, byte by byte. PCM, and files of PCM in one format, become one WAV or
    FLAC; packets of Opus become an Ogg file. Anything else becomes a ZIP of its files in order.

    Args:
        directory: The directory of all recordings.
        sid: The id of the session.
        kind: wav or flac, for PCM.
        chunks: If given, the number of chunks that there must be at least.

    Returns:
        None if there are no parts, or too few chunks.

    Raises:
        OSError: The disk is full, or a part cannot be read.
    """
    with _lock(directory):
        source = _Source(_parts(directory, sid))
        try:
            if not source.chunks or (chunks is not None and len(source.chunks) < chunks):
                return None
            stem = _stem(directory, sid)
            stem.parent.mkdir(exist_ok=True, mode=0o700)
            temporary = stem.with_suffix(".tmp")
            suffix = _write(source, kind, temporary)
            os.replace(temporary, path := stem.with_suffix(f".{suffix}"))
            for other in MEDIA.keys() - {suffix}:
                stem.with_suffix(f".{other}").unlink(missing_ok=True)
            return Archived(str(path.relative_to(directory)), path.stat().st_size, len(source.chunks))
        finally:
            source.close()


# -- parts -----------------------------------------------------------------------------------------------------------


def _stem(directory: Path, sid: str) -> Path:
    name = name_of(sid)
    return directory / name[-24:-22] / name


def _parts(directory: Path, sid: str) -> list[Path]:
    return sorted((directory / _INCOMING).glob(f"{name_of(sid)}.*.part"))


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Exclude all other gateways, so that no part is removed while it is read."""
    with open(directory / _INCOMING / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class _Chunk:
    """Where a chunk is in a part."""

    file: IO[bytes]
    offset: int
    size: int

    def read(self, most: int = -1) -> bytes:
        self.file.seek(self.offset)
        return self.file.read(self.size if most < 0 else min(most, self.size))


class _Source:
    """The chunks of all parts, each once, by their indexes. A last record that a crash cut short is left out."""

    def __init__(self, parts: list[Path]) -> None:
        self.header: dict[str, Any] = {}
        self._files: list[IO[bytes]] = []
        found: dict[int, _Chunk] = {}
        for path in parts:
            file = path.open("rb")
            self._files.append(file)
            end = os.fstat(file.fileno()).st_size
            line = file.readline(1 << 16)
            if not line.endswith(b"\n"):
                continue
            self.header = self.header or json.loads(line)
            while len(head := file.read(RECORD.size)) == RECORD.size:
                index, size = RECORD.unpack(head)
                if file.tell() + size > end:
                    break
                found.setdefault(index, _Chunk(file, file.tell(), size))
                file.seek(size, os.SEEK_CUR)
        self.chunks = [found[index] for index in sorted(found)]

    def close(self) -> None:
        for file in self._files:
            file.close()


# -- formats ---------------------------------------------------------------------------------------------------------


@dataclass
class _Clip:
    """Consecutive chunks that are one file, or headerless PCM where `kind` is None."""

    kind: str | None
    chunks: list[_Chunk] = field(default_factory=list)


@dataclass(frozen=True)
class _Span:
    """Bytes of a chunk that go into the recording; `format` is None where they are no samples that can be joined."""

    format: wav.Format | None
    chunk: _Chunk
    offset: int
    size: int


def _write(source: _Source, kind: str, target: Path) -> str:
    """Write the recording, and return its suffix."""
    header = source.header
    chunking = Chunking(header["mode"], header["format"], header["rate"], header["channels"])
    clips = _clips(source, chunking)
    if clips[0].kind == "opus":  # it is the only one: such a session is a stream
        from asrserver.audio import ogg  # numpy, too: see below

        with target.open("wb") as file:
            file.writelines(ogg.opus_pages(chunk.read() for chunk in clips[0].chunks))
        return "ogg"
    if len(clips) == 1 and clips[0].kind is not None:
        with target.open("wb") as file:
            for chunk in clips[0].chunks:
                _copy(chunk, 0, chunk.size, file)
        return suffix_of(clips[0].kind)
    raw = chunking.headerless
    spans = [span for clip in clips for span in _spans(clip, raw)]
    if spans[0].format is not None and len({span.format for span in spans}) == 1:
        format = spans[0].format
        if kind == "flac" and format.channels <= 2 and format.codec in ("pcm_s16le", "pcm_f32le"):
            from asrserver.audio.files import write_flac  # numpy and PyAV: needed for FLAC alone

            write_flac(target, format, _bytes_of(spans))
            return "flac"
        with target.open("wb") as file:
            _write_wav(format, spans, file)
        return "wav"
    with zipfile.ZipFile(target, "w") as archive:
        for number, clip in enumerate(clips):
            name = "wav" if clip.kind is None else suffix_of(clip.kind)
            with archive.open(f"{number:05}.{name}", "w", force_zip64=True) as entry:
                if clip.kind is None:
                    _write_wav(raw, _spans(clip, raw), entry)
                for chunk in clip.chunks if clip.kind is not None else ():
                    _copy(chunk, 0, chunk.size, entry)
    return "zip"


def _clips(source: _Source, chunking: Chunking) -> list[_Clip]:
    clips: list[_Clip] = []
    for chunk in source.chunks:
        if clips and chunking.mode == "stream":  # one file, even where a recorder started again in it
            clips[-1].chunks.append(chunk)
            continue
        kind = chunking.container(chunk.read(4096), first=not clips)
        role = chunking.role(kind, chunk.size, in_container=bool(clips) and clips[-1].kind is not None)
        if not clips or role is Role.FILE or (role is Role.UTTERANCE and clips[-1].kind is not None):
            clips.append(_Clip(kind))
        clips[-1].chunks.append(chunk)
    return clips


def _spans(clip: _Clip, raw: wav.Format) -> list[_Span]:
    """Return the samples of a clip; headerless PCM has the format `raw`."""
    if clip.kind == "wav" and len(clip.chunks) == 1:
        return [_wav_samples(clip.chunks[0])]
    format = raw if clip.kind is None else None
    return [_Span(format, chunk, 0, chunk.size) for chunk in clip.chunks]


def _wav_samples(chunk: _Chunk) -> _Span:
    """Return the samples of a WAV file; or the whole file if they cannot be joined, or the header is implausible."""
    with suppress(ImplausibleAudio):
        header = wav.read_header(chunk.read(1 << 16))
        if header is not None and header.format.codec is not None:
            here = max(0, chunk.size - header.offset)
            size = here if header.size is None else min(header.size, here)
            return _Span(header.format, chunk, header.offset, size)
    return _Span(None, chunk, 0, chunk.size)


def _copy(chunk: _Chunk, offset: int, size: int, target: IO[bytes]) -> None:
    at, end = chunk.offset + offset, chunk.offset + offset + size
    while at < end:
        chunk.file.seek(at)
        data = chunk.file.read(min(_COPY_BYTES, end - at))
        if not data:
            raise OSError("a part became shorter")
        target.write(data)
        at += len(data)


def _write_wav(format: wav.Format, spans: list[_Span], target: IO[bytes]) -> None:
    size = rest = wav.fitting(format, sum(span.size for span in spans))
    target.write(wav.write_header(format, size))
    for span in spans:
        length = min(span.size, rest)
        _copy(span.chunk, span.offset, length, target)
        rest -= length
    target.write(wav.padding(size))


def _bytes_of(spans: list[_Span]) -> Iterator[bytes]:
    """Yield the bytes of the spans, at most _COPY_BYTES at a time."""
    for span in spans:
        for at in range(0, span.size, _COPY_BYTES):
            span.chunk.file.seek(span.chunk.offset + span.offset + at)
            yield span.chunk.file.read(min(_COPY_BYTES, span.size - at))
