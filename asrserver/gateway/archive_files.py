"""Recordings on disk: the one file of a session, assembled from the parts that gateways wrote (archive_parts.py).

    DIR/incoming/<name>.<gateway>.part     a part
    DIR/<2 of the hash>/<name>.<suffix>    the recording

With a key of the operator's it is encrypted (encryption/). Its name stays the same: it says what is inside, and what is
in the database remains true when recordings are encrypted later.

All functions block. A name cannot lead out of the directory, whatever the id of its session is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from asrserver.audio import sniff, wav
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.chunking import Chunking, Role
from asrserver.encryption import is_encrypted
from asrserver.gateway.archive_parts import Chunk, Source, session_of

if TYPE_CHECKING:
    from asrserver.encryption.keys import KeyPair, Keyring

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
    "eac3": "audio/eac3",
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
    "bin": "application/octet-stream",
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
    "loas": "aac",
    sniff.NOT_AUDIO: "bin",
}

#: The directory of the parts, and of the locks.
INCOMING = "incoming"

#: What a recording is, in the header of its encryption.
_KIND = "recording"


@dataclass(frozen=True)
class Archived:
    """An assembled recording.

    Attributes:
        path: Its path below the directory.
        size: Its bytes, not counting what encryption adds.
        chunks: The number of chunks in it.
    """

    path: str
    size: int
    chunks: int


@dataclass(frozen=True)
class Opened:
    """A recording that is open to be read.

    Attributes:
        file: Its bytes, decrypted; `read` raises DecryptionError for a block that was changed.
        name: The name of the file; its suffix is in MEDIA.
        size: Its bytes.
        written: When it was written, in nanoseconds.
    """

    file: BinaryIO
    name: str
    size: int
    written: int


def name_of(sid: str) -> str:
    """Return the name of a session in the file system: the harmless characters of its id, and a hash of all of it."""
    digest = hashlib.sha256(sid.encode(errors="surrogatepass")).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '_', sid)[:40]}-{digest[:24]}"


def suffix_of(kind: str) -> str:
    """Return the suffix of a recording in a container."""
    return _SUFFIX.get(kind, kind)


def part_path(directory: Path, sid: str, gateway: str) -> Path:
    """Return the path of the part that a gateway writes of a session."""
    return directory / INCOMING / f"{name_of(sid)}.{hashlib.sha256(gateway.encode()).hexdigest()[:16]}.part"


def find(directory: Path, sid: str) -> Path | None:
    """Return the path of a session's recording, if there is one."""
    stem = _stem(directory, sid)
    return next((path for suffix in MEDIA if (path := stem.with_suffix(f".{suffix}")).is_file()), None)


def open_recording(path: Path, keys: Keyring | None) -> Opened:
    """Open a recording.

    Args:
        path: The file.
        keys: The operator's keys; None: there are none.

    Raises:
        FileNotFoundError: It was removed.
        DecryptionError: It is encrypted, and cannot be read.
    """
    file: BinaryIO = path.open("rb")
    try:
        status = os.fstat(file.fileno())
        size = status.st_size
        if is_encrypted(file):
            from asrserver.encryption.files import EncryptedReader
            from asrserver.encryption.keys import Keyring

            reader = EncryptedReader(file, keys or Keyring(""), _KIND, path.stem)
            file, size = cast(BinaryIO, reader), reader.size
    except BaseException:
        file.close()
        raise
    return Opened(file, path.name, size, status.st_mtime_ns)


@contextmanager
def create_recording(
    path: Path, key: KeyPair | None, name: str, like: os.stat_result | None = None
) -> Iterator[BinaryIO]:
    """Create the file of a recording, to be written in the body. After an error in that it is not complete.

    Args:
        path: The file; what a crash left there is removed, and links are not followed.
        key: The operator's key to encrypt it with; None: it is not encrypted.
        name: The name of the session in the file system.
        like: Whose mode and times it gets, and for root, whose owner; it is on the disk then. None: it is a new one.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        if key is None:
            yield file
        else:
            from asrserver.encryption.files import EncryptedWriter

            writer = EncryptedWriter(file, key, _KIND, name)
            yield cast(BinaryIO, writer)
            writer.finish()
        if like is not None:
            file.flush()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            os.utime(file.fileno(), ns=(like.st_atime_ns, like.st_mtime_ns))
            os.fsync(file.fileno())


def abandoned(directory: Path, age: float, most: int) -> dict[str, float]:
    """Find sessions whose parts were not written to for `age` seconds.

    Returns:
        The ids of up to `most` sessions, with the seconds since the last write.
    """
    found: dict[str, float] = {}
    paths = list((directory / INCOMING).glob("*.part"))
    for path in random.sample(paths, len(paths)):  # many that wait for a key must not keep out the others
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            since = time.time() - os.fstat(file.fileno()).st_mtime
            if since > age and len(found) < most:
                sid = session_of(file)
                found[sid] = min(since, found.get(sid, since))
    return found


def remove(directory: Path, sid: str, parts_only: bool = False) -> None:
    """Remove the parts of a session, with what a crash left half written, and unless `parts_only`, its recording."""
    with locked(directory):
        for path in _parts(directory, sid):
            path.unlink(missing_ok=True)
        stem = _stem(directory, sid)
        for path in stem.parent.glob(f"{stem.name}.tmp" if parts_only else f"{stem.name}.*"):
            path.unlink(missing_ok=True)


def assemble(
    directory: Path, sid: str, kind: str, chunks: int | None = None, keys: Keyring | None = None
) -> Archived | None:
    """Assemble the recording of a session from its parts, which stay. To do so again gives the same file.

    A session that is one file becomes that file, byte by byte. PCM, and files of PCM in one format, become one WAV or
    FLAC; packets of Opus become an Ogg file. Anything else becomes a ZIP of its files in order.

    Args:
        directory: The directory of all recordings.
        sid: The id of the session.
        kind: wav or flac, for PCM.
        chunks: If given, the number of chunks that there must be at least.
        keys: The operator's keys; with one, the recording is encrypted.

    Returns:
        None if there are no parts, or too few chunks.

    Raises:
        OSError: The disk is full, or a part cannot be read.
        DecryptionError: A part is encrypted, and cannot be read.
    """
    stem = _stem(directory, sid)
    temporary = stem.with_suffix(".tmp")
    with locked(directory):
        source = Source(_parts(directory, sid), name_of(sid), keys)
        try:
            if not source.chunks or (chunks is not None and len(source.chunks) < chunks):
                return None
            stem.parent.mkdir(exist_ok=True, mode=0o700)
            with create_recording(temporary, keys.first if keys else None, stem.name) as file:
                suffix = _write(source, kind, file)
                size = file.seek(0, os.SEEK_END)
            os.replace(temporary, path := stem.with_suffix(f".{suffix}"))
            for other in MEDIA.keys() - {suffix}:
                stem.with_suffix(f".{other}").unlink(missing_ok=True)
            return Archived(str(path.relative_to(directory)), size, len(source.chunks))
        finally:
            source.close()
            temporary.unlink(missing_ok=True)


# -- parts -----------------------------------------------------------------------------------------------------------


def _stem(directory: Path, sid: str) -> Path:
    name = name_of(sid)
    return directory / name[-24:-22] / name


def _parts(directory: Path, sid: str) -> list[Path]:
    return sorted((directory / INCOMING).glob(f"{name_of(sid)}.*.part"))


@contextmanager
def locked(directory: Path, name: str = ".lock", wait: bool = True) -> Iterator[None]:
    """Exclude all other gateways, so that no part is removed while it is read; with another name, those that use it.

    Raises:
        BlockingIOError: Another one has the lock, and `wait` is false.
        OSError: The file of the lock cannot be opened.
    """
    lock = os.open(directory / INCOMING / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(lock)


# -- formats ---------------------------------------------------------------------------------------------------------


@dataclass
class _Clip:
    """Consecutive chunks that are one file, or headerless PCM where `kind` is None."""

    kind: str | None
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True)
class _Span:
    """Bytes of a chunk that go into the recording; `format` is None where they are no samples that can be joined."""

    format: wav.Format | None
    chunk: Chunk
    offset: int
    size: int


class _Appending:
    """A file that zipfile cannot seek in: what is encrypted cannot be changed later."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write
        self.flush = file.flush


def _write(source: Source, kind: str, file: BinaryIO) -> str:
    """Write the recording, and return its suffix."""
    header = source.header
    chunking = Chunking(header["mode"], header["format"], header["rate"], header["channels"])
    clips = _clips(source, chunking)
    if clips[0].kind == "opus":  # it is the only one: such a session is a stream
        from asrserver.audio import ogg  # numpy, too: see below

        file.writelines(ogg.opus_pages(chunk.read() for chunk in clips[0].chunks))
        return "ogg"
    if len(clips) == 1 and clips[0].kind is not None:
        for chunk in clips[0].chunks:
            file.writelines(chunk.pieces(0, chunk.size))
        return suffix_of(clips[0].kind)
    raw = chunking.headerless
    spans = [span for clip in clips for span in _spans(clip, raw)]
    if spans[0].format is not None and len({span.format for span in spans}) == 1:
        format = spans[0].format
        if kind == "flac" and format.channels <= 2 and format.codec in ("pcm_s16le", "pcm_f32le"):
            from asrserver.audio.files import write_flac  # numpy and PyAV: needed for FLAC alone

            write_flac(file, format, _bytes_of(spans))
            return "flac"
        _write_wav(format, spans, file)
        return "wav"
    with zipfile.ZipFile(cast(BinaryIO, _Appending(file)), "w") as archive:
        for number, clip in enumerate(clips):
            name = "wav" if clip.kind is None else suffix_of(clip.kind)
            with archive.open(f"{number:05}.{name}", "w", force_zip64=True) as entry:
                if clip.kind is None:
                    _write_wav(raw, _spans(clip, raw), entry)
                for chunk in clip.chunks if clip.kind is not None else ():
                    entry.writelines(chunk.pieces(0, chunk.size))
    return "zip"


def _clips(source: Source, chunking: Chunking) -> list[_Clip]:
    clips: list[_Clip] = []
    for chunk in source.chunks:
        if clips and chunking.mode == "stream":  # one file, even where a recorder started again in it
            clips[-1].chunks.append(chunk)
            continue
        kind = chunking.container(chunk.read(most=sniff.HEAD_BYTES), first=not clips)
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


def _wav_samples(chunk: Chunk) -> _Span:
    """Return the samples of a WAV file; or the whole file if they cannot be joined, or the header is implausible."""
    with suppress(ImplausibleAudio):
        header = wav.read_header(chunk.read(most=1 << 16))
        if header is not None and header.format.codec is not None:
            here = max(0, chunk.size - header.offset)
            size = here if header.size is None else min(header.size, here)
            return _Span(header.format, chunk, header.offset, size)
    return _Span(None, chunk, 0, chunk.size)


def _write_wav(format: wav.Format, spans: list[_Span], target: IO[bytes]) -> None:
    size = rest = wav.fitting(format, sum(span.size for span in spans))
    target.write(wav.write_header(format, size))
    for span in spans:
        length = min(span.size, rest)
        target.writelines(span.chunk.pieces(span.offset, length))
        rest -= length
    target.write(wav.padding(size))


def _bytes_of(spans: list[_Span]) -> Iterator[bytes]:
    """Yield the bytes of the spans, in pieces."""
    for span in spans:
        yield from span.chunk.pieces(span.offset, span.size)
