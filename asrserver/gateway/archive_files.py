"""A session's recording on disk: the parts that gateways write while it lasts, and the one file that they become.

    DIR/incoming/<name>.<gateway>.part     a line of JSON, then records of index, length and bytes of a chunk
    DIR/<2 of the hash>/<name>.<suffix>    the recording

Everything here blocks. What a name is made of cannot lead out of the directory, whatever the session is called.
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

#: Before each chunk in a part: its index and its length in bytes.
RECORD = struct.Struct("<QI")

#: Media types by suffix; there are no other recordings.
MEDIA = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "webm": "audio/webm",
    "ogg": "audio/ogg",
    "mp4": "audio/mp4",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "zip": "application/zip",
}

#: The suffix of a container, by FFmpeg's name for it.
_SUFFIX = {"matroska": "webm"}

#: Bytes copied at a time.
_STEP = 1 << 20

_INCOMING = "incoming"


@dataclass(frozen=True)
class Made:
    """A recording: where it is in the directory, its bytes, of how many chunks."""

    path: str
    size: int
    chunks: int


def name_of(sid: str) -> str:
    """The session's name in the file system: its id as far as it is harmless, and a hash of all of it."""
    digest = hashlib.sha256(sid.encode(errors="surrogatepass")).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '_', sid)[:40]}-{digest[:24]}"


def part_path(directory: Path, sid: str, gateway: str) -> Path:
    """Where a gateway writes what it gets of the session."""
    return directory / _INCOMING / f"{name_of(sid)}.{hashlib.sha256(gateway.encode()).hexdigest()[:16]}.part"


def find(directory: Path, sid: str) -> Path | None:
    """The session's recording, if there is one."""
    stem = _stem(directory, sid)
    return next((path for suffix in MEDIA if (path := stem.with_suffix(f".{suffix}")).is_file()), None)


def left(directory: Path, age: float, most: int) -> dict[str, float]:
    """Sessions with parts that nobody has written to for `age` seconds, with the seconds since somebody did."""
    found: dict[str, float] = {}
    for path in sorted((directory / _INCOMING).glob("*.part")):
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            since = time.time() - os.fstat(file.fileno()).st_mtime
            if since > age and len(found) < most:
                sid = json.loads(file.readline(1 << 16))["sid"]
                found[sid] = min(since, found.get(sid, since))
    return found


def remove(directory: Path, sid: str, parts_only: bool = False) -> None:
    """Remove the session's parts, and its recording."""
    with _lock(directory):
        for path in _parts(directory, sid):
            path.unlink(missing_ok=True)
        if not parts_only:
            for suffix in MEDIA:
                _stem(directory, sid).with_suffix(f".{suffix}").unlink(missing_ok=True)


def assemble(directory: Path, sid: str, kind: str, chunks: int | None = None) -> Made | None:
    """Make the recording of all parts there are; they stay. None if there are none, or fewer than `chunks` chunks.

    A session that is one file is that file, byte by byte; PCM, and files of PCM in one format, are one WAV or FLAC as
    `kind` says; anything else is a ZIP of its files in order. Again gives the same. Raises OSError.
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
            return Made(str(path.relative_to(directory)), path.stat().st_size, len(source.chunks))
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
    """One at a time, of all gateways: parts are not to be taken away from under who reads them."""
    with open(directory / _INCOMING / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class _Chunk:
    file: IO[bytes]
    offset: int
    size: int

    def read(self, most: int = -1) -> bytes:
        self.file.seek(self.offset)
        return self.file.read(self.size if most < 0 else min(most, self.size))


class _Source:
    """The chunks of all parts, each once, in their order; a last record that a crash cut short is none."""

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
class _Item:
    """Chunks that are one file, or one stretch of PCM (`kind` None)."""

    kind: str | None
    chunks: list[_Chunk] = field(default_factory=list)


@dataclass(frozen=True)
class _Span:
    """Bytes of a chunk that go into the recording, and what samples they are; None if they cannot be joined."""

    format: wav.Format | None
    chunk: _Chunk
    offset: int
    size: int


def _write(source: _Source, kind: str, target: Path) -> str:
    """Write the recording; its suffix."""
    header = source.header
    chunking = Chunking(header["mode"], header["format"], header["rate"], header["channels"])
    items = _items(source, chunking)
    if len(items) == 1 and items[0].kind is not None:
        with target.open("wb") as file:
            for chunk in items[0].chunks:
                _copy(chunk, 0, chunk.size, file)
        return _SUFFIX.get(items[0].kind, items[0].kind)
    raw = chunking.headerless
    spans = [span for item in items for span in _spans(item, raw)]
    if spans[0].format is not None and len({span.format for span in spans}) == 1:
        format = spans[0].format
        if kind == "flac" and format.channels <= 2 and format.codec in ("pcm_s16le", "pcm_f32le"):
            from asrserver.audio.files import write_flac  # numpy and PyAV: only who records so needs them

            write_flac(target, format, _bytes_of(spans))
            return "flac"
        with target.open("wb") as file:
            _write_wav(format, spans, file)
        return "wav"
    with zipfile.ZipFile(target, "w") as archive:
        for number, item in enumerate(items):
            suffix = "wav" if item.kind is None else _SUFFIX.get(item.kind, item.kind)
            with archive.open(f"{number:05}.{suffix}", "w", force_zip64=True) as entry:
                if item.kind is None:
                    _write_wav(raw, _spans(item, raw), entry)
                for chunk in item.chunks if item.kind is not None else ():
                    _copy(chunk, 0, chunk.size, entry)
    return "zip"


def _items(source: _Source, chunking: Chunking) -> list[_Item]:
    items: list[_Item] = []
    for chunk in source.chunks:
        if items and chunking.mode == "stream":  # one file, even if its recorder began again
            items[-1].chunks.append(chunk)
            continue
        kind = chunking.container(chunk.read(4096), first=not items)
        role = chunking.role(kind, chunk.size, in_container=bool(items) and items[-1].kind is not None)
        if not items or role is Role.FILE or (role is Role.UTTERANCE and items[-1].kind is not None):
            items.append(_Item(kind))
        items[-1].chunks.append(chunk)
    return items


def _spans(item: _Item, raw: wav.Format) -> list[_Span]:
    """The item's samples; those of PCM without a header are `raw`."""
    if item.kind == "wav" and len(item.chunks) == 1:
        return [_wav_samples(item.chunks[0])]
    format = raw if item.kind is None else None
    return [_Span(format, chunk, 0, chunk.size) for chunk in item.chunks]


def _wav_samples(chunk: _Chunk) -> _Span:
    """A WAV file's samples; all of the file if they are none that can be joined, or claim what cannot be."""
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
        data = chunk.file.read(min(_STEP, end - at))
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
    """The spans' bytes, _STEP at most at a time."""
    for span in spans:
        for at in range(0, span.size, _STEP):
            span.chunk.file.seek(span.chunk.offset + span.offset + at)
            yield span.chunk.file.read(min(_STEP, span.size - at))
