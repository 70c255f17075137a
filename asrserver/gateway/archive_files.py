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

from asrserver.audio import bounds, sniff
from asrserver.audio.bounds import ImplausibleAudio

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
class _Pcm:
    """A format: WAVE's format tag (1 is whole numbers, 3 is floating point), channels, hertz, bits a sample."""

    tag: int
    channels: int
    rate: int
    bits: int


def _write(source: _Source, kind: str, target: Path) -> str:
    """Write the recording; its suffix."""
    header = source.header
    items = _items(source)
    if len(items) == 1 and items[0].kind is not None:
        with target.open("wb") as file:
            for chunk in items[0].chunks:
                _copy(chunk, 0, chunk.size, file)
        return _SUFFIX.get(items[0].kind, items[0].kind)
    raw = _Pcm(3, header["channels"], header["rate"], 32) if header["format"] == "pcm_f32le" else None
    raw = raw or _Pcm(1, header["channels"], header["rate"], 16)
    stretches = [stretch for item in items for stretch in _stretches(item, raw)]
    formats = {pcm for pcm, *_ in stretches}
    if len(formats) == 1 and None not in formats:
        pcm: Any = formats.pop()
        spans = [(chunk, offset, size) for _, chunk, offset, size in stretches]
        if kind == "flac" and pcm.channels <= 2 and (pcm.tag, pcm.bits) in ((1, 16), (3, 32)):
            _write_flac(pcm, spans, target)
            return "flac"
        with target.open("wb") as file:
            _write_wav(pcm, spans, file)
        return "wav"
    with zipfile.ZipFile(target, "w") as archive:
        for number, item in enumerate(items):
            suffix = "wav" if item.kind is None else _SUFFIX.get(item.kind, item.kind)
            with archive.open(f"{number:05}.{suffix}", "w", force_zip64=True) as entry:
                if item.kind is None:
                    _write_wav(raw, [(chunk, 0, chunk.size) for chunk in item.chunks], entry)
                for chunk in item.chunks if item.kind is not None else ():
                    _copy(chunk, 0, chunk.size, entry)
    return "zip"


def _items(source: _Source) -> list[_Item]:
    mode, automatic = source.header["mode"], source.header["format"] == "auto"
    items: list[_Item] = []
    for chunk in source.chunks:
        first = not items or mode == "chunk"
        kind = sniff.container(chunk.read(4096), first) if automatic and (first or mode != "stream") else None
        if kind is not None or first or (mode == "chunk" and items[-1].kind is not None):
            if kind is None and items and items[-1].kind is None:
                items[-1].chunks.append(chunk)
                continue
            items.append(_Item(kind))
        items[-1].chunks.append(chunk)
    return items


def _stretches(item: _Item, raw: _Pcm) -> list[tuple[_Pcm | None, _Chunk, int, int]]:
    """The item's samples as (format, chunk, offset, bytes); the format is None if it has none that can be joined."""
    if item.kind is None:
        return [(raw, chunk, 0, chunk.size) for chunk in item.chunks]
    if item.kind == "wav" and len(item.chunks) == 1:
        return [_riff(item.chunks[0])]
    return [(None, chunk, 0, chunk.size) for chunk in item.chunks]


def _riff(chunk: _Chunk) -> tuple[_Pcm | None, _Chunk, int, int]:
    """A WAV file's samples; RIFF is chunks of four letters and a length, padded to even."""
    head = chunk.read(1 << 16)
    pcm, at = None, 12
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt " and size >= 16 and at + 24 <= len(head):
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
            try:
                bounds.check(channels, rate)
            except ImplausibleAudio:
                break
            pcm = _Pcm(tag, channels, rate, bits) if tag in (1, 3) else None
        elif name == b"data":
            return pcm, chunk, at + 8, min(size, chunk.size - at - 8)
        at += 8 + size + size % 2
    return None, chunk, 0, chunk.size


def _copy(chunk: _Chunk, offset: int, size: int, target: IO[bytes]) -> None:
    at, end = chunk.offset + offset, chunk.offset + offset + size
    while at < end:
        chunk.file.seek(at)
        data = chunk.file.read(min(_STEP, end - at))
        if not data:
            raise OSError("a part became shorter")
        target.write(data)
        at += len(data)


def _write_wav(pcm: _Pcm, spans: list[tuple[_Chunk, int, int]], target: IO[bytes]) -> None:
    block = pcm.channels * pcm.bits // 8
    size = min(sum(length for _, _, length in spans) // block * block, 0xFFFFFFFF - 36)
    head = (
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        pcm.tag,
        pcm.channels,
        pcm.rate,
        pcm.rate * block,
        block,
        pcm.bits,
    )
    target.write(struct.pack("<4sI4s4sIHHIIHH4sI", *head, b"data", size))
    rest = size
    for chunk, offset, length in spans:
        length = min(length, rest)
        _copy(chunk, offset, length, target)
        rest -= length


def _write_flac(pcm: _Pcm, spans: list[tuple[_Chunk, int, int]], target: Path) -> None:
    """Lossless for 16-bit samples; floating point becomes 16 bits."""
    import av
    import numpy as np

    block = pcm.channels * pcm.bits // 8
    layout = "mono" if pcm.channels == 1 else "stereo"
    done, rest = 0, b""
    with av.open(str(target), "w", format="flac") as output:
        stream = output.add_stream("flac", rate=pcm.rate, layout=layout)
        for chunk, offset, length in spans:
            for at in range(offset, offset + length, _STEP):
                chunk.file.seek(chunk.offset + at)
                data = rest + chunk.file.read(min(_STEP, offset + length - at))
                whole = len(data) // block * block
                data, rest = data[:whole], data[whole:]
                samples = np.frombuffer(data, "<f4" if pcm.tag == 3 else "<i2")
                if pcm.tag == 3:
                    samples = (np.nan_to_num(samples).clip(-1, 1) * 32767).astype("<i2")
                if not len(samples):
                    continue
                frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
                frame.sample_rate, frame.pts = pcm.rate, done
                done += frame.samples
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
