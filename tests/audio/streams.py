"""Streams in every container, encoded by FFmpeg, and functions that decode them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import msgspec
import numpy as np

from asrserver.audio import files
from asrserver.audio.decoders import Decoder
from asrserver.audio.demux.base import Packet
from asrserver.audio.demux.ogg import Ogg
from asrserver.audio.pcm import Samples, joined
from asrserver.audio.recording import ResumePoint
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import encode
from tests.recordings import DATA

FRAGMENTS = "-movflags frag_keyframe+empty_moov"


#: Without noise substitution (ISO/IEC 14496-3, 4.6.13): every decoder draws that noise anew, and no two are alike.
AAC = "-c:a aac -aac_pns 0"


#: ffmpeg's arguments, what `container` says, and the correlation that a resumed decoder's first 0.1 s reaches at least.
STREAMS = {
    "wav": ("-f wav", "wav", 1.0),
    "wav-f32-48k": ("-c:a pcm_f32le -ar 48000 -f wav", "wav", 1.0),
    "wav-s24-44k-stereo": ("-c:a pcm_s24le -ar 44100 -ac 2 -f wav", "wav", 1.0),
    "wav-u8-8k": ("-c:a pcm_u8 -ar 8000 -f wav", "wav", 1.0),
    "wav-mulaw": ("-c:a pcm_mulaw -ar 8000 -f wav", "wav", 1.0),
    "wav-adpcm-ima": ("-c:a adpcm_ima_wav -f wav", "wav", 1.0),
    "wav-adpcm-ms-stereo": ("-c:a adpcm_ms -ar 44100 -ac 2 -f wav", "wav", 1.0),
    "webm": ("-c:a libopus -f webm", "matroska", 0.99),
    "webm-live-stereo": ("-c:a libopus -ac 2 -f webm -live 1", "matroska", 0.99),
    "webm-vorbis": ("-c:a libvorbis -f webm", "matroska", 0.99),
    "mkv-aac": (f"{AAC} -f matroska", "matroska", 0.99),
    "mkv-pcm": ("-c:a pcm_f32le -ar 48000 -f matroska", "matroska", 1.0),
    "ogg-opus": ("-c:a libopus -f ogg", "ogg", 0.99),
    "ogg-opus-pages": ("-c:a libopus -page_duration 20000 -f ogg", "ogg", 0.99),
    "ogg-vorbis": ("-c:a libvorbis -f ogg", "ogg", 0.99),
    "ogg-flac": ("-c:a flac -f ogg", "ogg", 1.0),
    "flac": ("-f flac", "flac", 1.0),
    "flac-44k-stereo": ("-ar 44100 -ac 2 -f flac", "flac", 1.0),
    "mp3": ("-c:a libmp3lame -f mp3", "mp3", 0.99),
    "mp3-vbr-44k": ("-c:a libmp3lame -ar 44100 -q:a 4 -f mp3", "mp3", 0.99),
    "mp3-bare": ("-c:a libmp3lame -id3v2_version 0 -write_xing 0 -f mp3", "mp3", 0.99),
    "aac": (f"{AAC} -f adts", "aac", 0.99),
    "aac-id3": (f"{AAC} -f adts -write_id3v2 1 -metadata title=speech", "aac", 0.99),
    "mp4": (f"{AAC} {FRAGMENTS} -frag_duration 500000 -f mp4", "mp4", 0.99),
    "mp4-moof-44k": (
        f"{AAC} -ar 44100 {FRAGMENTS}+default_base_moof+delay_moov -frag_duration 250000 -f mp4",
        "mp4",
        0.99,
    ),
    "mp4-opus": (f"-c:a libopus {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4", 0.99),
    "mp4-alac": (f"-c:a alac {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4", 1.0),
    "mp4-flac": (f"-c:a flac -strict -2 {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4", 1.0),
}

#: Files that are not decoded as streams: ffmpeg's arguments, and what `container` says.
WHOLE = {
    "aiff": ("-f aiff", "aiff"),
    "aifc": ("-c:a pcm_mulaw -f aiff", "aiff"),
    "caf": ("-f caf", "caf"),
    "au": ("-f au", "au"),
    "au-mulaw": ("-c:a pcm_mulaw -f au", "au"),
    "w64": ("-f w64", "w64"),
    "rf64": ("-rf64 always -f wav", "rf64"),
    "mpegts": ("-c:a aac -f mpegts", "mpegts"),
    "avi": ("-c:a libmp3lame -f avi", "avi"),
    "wma": ("-c:a wmav2 -f asf", "asf"),
    "flv": ("-c:a libmp3lame -ar 44100 -f flv", "flv"),
    "mp2": ("-c:a mp2 -f mp2", "mp2"),
    "mp2-24k": ("-c:a mp2 -ar 24000 -f mp2", "mp2"),
    "mpeg": ("-c:a mp2 -f mpeg", "mpeg"),
    "ac3": ("-c:a ac3 -ar 48000 -f ac3", "ac3"),
    "eac3": ("-c:a eac3 -ar 48000 -f eac3", "eac3"),
    "loas": ("-c:a aac -f latm", "loas"),
    "wavpack": ("-f wv", "wavpack"),
    "amr": ("-c:a libopencore_amrnb -ar 8000 -b:a 12.2k -f amr", "amr"),
}

#: Files of which only the codec is not decoded as a stream.
OTHER_CODECS = {
    "mov-ima4": ("-c:a adpcm_ima_qt -f mov", "mp4"),
    "3gp": ("-c:a libopencore_amrnb -ar 8000 -b:a 12.2k -f 3gp", "mp4"),
    "wav-mp3": ("-c:a libmp3lame -f wav", "wav"),
    "wav-g726": ("-c:a g726 -ar 8000 -f wav", "wav"),
}

#: Whole files in containers that are decoded as streams too.
INDEXED = {
    "m4a": (f"{AAC} -f mp4", "mp4"),
    "m4a-faststart": (f"{AAC} -movflags faststart -f mp4", "mp4"),
    "m4a-alac": ("-c:a alac -f mp4", "mp4"),
    "m4a-opus": ("-c:a libopus -f mp4", "mp4"),
    "mp4-mp3": ("-c:a libmp3lame -f mp4", "mp4"),
    "mp4-pcm": ("-c:a pcm_s24be -f mp4", "mp4"),
    "mov-alac-stereo": ("-c:a alac -ar 44100 -ac 2 -f mov", "mp4"),
    "mov-twos": ("-c:a pcm_s16be -f mov", "mp4"),
    "mov-sowt-stereo": ("-c:a pcm_s16le -ar 48000 -ac 2 -movflags faststart -f mov", "mp4"),
    "mov-s8": ("-c:a pcm_s8 -f mov", "mp4"),
    "mov-u8": ("-c:a pcm_u8 -f mov", "mp4"),
    "mov-in24": ("-c:a pcm_s24be -f mov", "mp4"),
    "mov-in24-little-stereo": ("-c:a pcm_s24le -ar 44100 -ac 2 -f mov", "mp4"),
    "mov-in32": ("-c:a pcm_s32be -f mov", "mp4"),
    "mov-fl32": ("-c:a pcm_f32be -f mov", "mp4"),
    "mov-fl64-little": ("-c:a pcm_f64le -f mov", "mp4"),
    "mov-ulaw": ("-c:a pcm_mulaw -ar 8000 -f mov", "mp4"),
    "mov-alaw": ("-c:a pcm_alaw -ar 8000 -f mov", "mp4"),
    "webm-file": ("-c:a libopus -f webm", "matroska"),
    "flac-file": ("-f flac", "flac"),
    "wav-file": ("-f wav", "wav"),
    "wav-adpcm-file": ("-c:a adpcm_ms -f wav", "wav"),
}

FILES = WHOLE | OTHER_CODECS | INDEXED

_TWO = "-map 0:a -map 0:a -af:a:0 volume=0 -af:a:1 volume=0:enable='lt(t,6)' -shortest"

#: Files of two tracks: the default one is silent, the other one for its first seconds.
TRACKS = {
    "webm-tracks": (f"{_TWO} -c:a libopus -f webm -live 1", "matroska"),
    "mp4-tracks": (f"{_TWO} {AAC} {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4"),
    "m4a-tracks": (f"{_TWO} {AAC} -f mp4", "mp4"),
    "ts-tracks": (f"{_TWO} -c:a mp2 -f mpegts", "mpegts"),
}


@functools.cache
def speech() -> Samples:
    """Some seconds of speech."""
    recordings = sorted((DATA / "utterances").glob("*.opus"))[:2]
    return np.concatenate([files.decode(file.read_bytes(), "ogg", 60) for file in recordings])


@functools.cache
def stream(name: str) -> bytes:
    return encode(speech(), STREAMS[name][0])


def packets_of(file: bytes) -> list[bytes]:
    """The packets of an Ogg file."""
    demuxer = Ogg()
    demuxer.push(file)
    demuxer.end()
    return [item.data for item in iter(demuxer.pull, None) if isinstance(item, Packet)]


def kind(name: str) -> str:
    return STREAMS[name][1]


def slices(data: bytes, seed: int, largest: int) -> Iterable[bytes]:
    random = np.random.default_rng(seed)
    at = 0
    while at < len(data):
        size = int(random.integers(1, largest + 1))
        yield data[at : at + size]
        at += size


def decoded(decoder: Decoder, pieces: Iterable[bytes]) -> Samples:
    samples = joined([*(decoder.feed(piece) for piece in pieces), decoder.flush()])
    assert samples.dtype == np.float32
    return samples


@functools.cache
def whole(name: str) -> Samples:
    return decoded(StreamDecoder(kind(name)), [stream(name)])


def tolerant(decoder: StreamDecoder, pieces: Iterable[bytes]) -> tuple[Samples, list[AudioError]]:
    """Decode all pieces; return the samples and the errors on the way."""
    found, errors = [], []
    for piece in pieces:
        try:
            found.append(decoder.feed(piece))
        except AudioError as exc:
            errors.append(exc)
    found.append(decoder.flush())
    return np.concatenate(found), errors


def correlation(one: Samples, other: Samples) -> float:
    if np.array_equal(one, other):
        return 1.0
    return float(np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other)))


def sized(wav: bytes) -> bytes:
    """A WAV file whose header has the right length."""
    at = wav.index(b"data")
    return wav[: at + 4] + (len(wav) - at - 8).to_bytes(4, "little") + wav[at + 8 :]


def handed_on(point: ResumePoint) -> ResumePoint:
    """A resume point as another worker receives it: through JSON."""
    return msgspec.json.decode(msgspec.json.encode(point), type=ResumePoint)
