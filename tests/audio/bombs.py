"""Bytes made to cost memory or time: `python -m tests.audio.bombs` decodes them and prints what they cost."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from asrserver.audio import files
from asrserver.audio.frame_headers import ADTS_HEADER, adts_length
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import encode, tone
from tests.audio.streams import FRAGMENTS

T = TypeVar("T")


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def element(ident: int, body: bytes) -> bytes:
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + (len(body) | 1 << 56).to_bytes(8, "big") + body


def fragmented() -> bytes:
    """The beginning of a fragmented MP4 file, up to its index."""
    data = encode(tone(0.5), f"-c:a aac {FRAGMENTS} -f mp4")
    return data[: data.index(b"moof") - 4]


def moof(truns: bytes, number: int = 1) -> bytes:
    tfhd = box(b"tfhd", struct.pack(">IIII", 0x20018, number, 1024, 1))
    return box(b"moof", box(b"mfhd", bytes(8)) + box(b"traf", tfhd + truns))


def many_samples() -> bytes:
    """2 kB of runs that claim half a million samples each."""
    return fragmented() + moof(box(b"trun", struct.pack(">II", 0, 500_000)) * 130)


def many_small_fragments() -> bytes:
    return fragmented() + moof(box(b"trun", struct.pack(">II", 0, 90_000))) * 50_000


def many_runs() -> bytes:
    """8 MB of runs without samples."""
    return fragmented() + moof(box(b"trun", bytes(8)) * 60_000) * 8


def many_boxes() -> bytes:
    """An index of 8 MB that consists of empty boxes."""
    return box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", b"\0\0\0\x08free" * 1_000_000)


def sample_table() -> bytes:
    """An index whose chunks are all of one sample and have a run of their own."""
    count = 400_000
    stsc = struct.pack(">II", 0, count) + b"".join(struct.pack(">III", n + 1, 1, 1) for n in range(count))
    stsd = fragmented()
    at = stsd.index(b"stsd") - 4
    entry = stsd[at : at + int.from_bytes(stsd[at : at + 4], "big")]
    stbl = entry + box(b"stsc", stsc) + box(b"stsz", struct.pack(">III", 0, 1, count))
    stbl += box(b"stco", struct.pack(">II", 0, count) + bytes(4 * count)) + box(
        b"stts", struct.pack(">4I", 0, 1, count, 1)
    )
    hdlr = box(b"hdlr", bytes(8) + b"soun" + bytes(13))
    mdhd = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 16000, 0, 0))
    trak = box(b"tkhd", struct.pack(">6I", 0, 0, 0, 1, 0, 0))
    trak += box(b"mdia", mdhd + hdlr + box(b"minf", box(b"stbl", stbl)))
    return box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", box(b"trak", trak)) + box(b"mdat", bytes(1000))


def webm(head: bytes) -> bytes:
    return b"\x1aE\xdf\xa3\x80\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" + head


def amr(count: int, tracks: int, size: int = 32) -> bytes:
    """The beginning of a file with AMR, which FFmpeg reads.

    Args:
        count: The samples that each track claims; 0: those of fragments follow.
        tracks: The number of tracks.
        size: Bytes of each sample.
    """
    entry = bytes(6) + struct.pack(">H8xHHIHH", 1, 2, 16, 0, 8000, 0) + box(b"damr", b"FFMP\0\x81\xff\0\1")
    stbl = box(b"stsd", struct.pack(">II", 0, 1) + box(b"samr", entry)) + box(
        b"stsc", struct.pack(">5I", 0, 1, 1, count, 1)
    )
    stbl += box(b"stsz", struct.pack(">III", 0, size, count)) + box(b"stco", struct.pack(">III", 0, 1, 2000))
    stbl += box(b"stts", struct.pack(">4I", 0, 1, count, 160))
    mdhd = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 8000, 0, 0))
    mdia = box(b"mdia", mdhd + box(b"hdlr", bytes(8) + b"soun" + bytes(13)) + box(b"minf", box(b"stbl", stbl)))
    traks = [box(b"trak", box(b"tkhd", struct.pack(">4I68x", 1, 0, 0, n)) + mdia) for n in range(1, tracks + 1)]
    trex = box(b"mvex", box(b"trex", struct.pack(">6I", 0, 1, 1, 160, size, 0)))
    mvhd = box(b"mvhd", struct.pack(">4I84x", 0, 0, 0, 1000))
    return box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", mvhd + b"".join(traks) + (b"" if count else trex))


def amr_samples() -> bytes:
    return amr(80_000_000, 1) + box(b"mdat", bytes(1000))


def amr_tracks() -> bytes:
    """No track claims more than hours."""
    return amr(600_000, 40) + box(b"mdat", bytes(1000))


def amr_fragments() -> bytes:
    return amr(0, 1) + moof(box(b"trun", struct.pack(">II", 0, 1_000_000)) * 100) + box(b"mdat", bytes(1000))


def track_number() -> bytes:
    """A track whose number is negative with FFmpeg, which then counts for a second at each fragment of the other."""
    head = amr(0, 2).replace(
        b"tkhd" + struct.pack(">4I", 1, 0, 0, 2), b"tkhd" + struct.pack(">4I", 1, 0, 0, 0x90000000)
    )
    return head + moof(box(b"trun", struct.pack(">II", 0, 1))) * 20 + box(b"mdat", bytes(1000))


def claiming(edits: list[bytes], size: int, offset: int = 0) -> bytes:
    """The beginning of an MP4 file with tracks that claim half a million samples of a size each.

    Args:
        edits: The edit list of each track, or nothing.
        size: Bytes of each sample.
        offset: Where they begin.
    """
    head = fragmented()
    at = head.index(b"stsd") - 4
    entry = head[at : at + int.from_bytes(head[at : at + 4], "big")]
    count = 500_000
    stbl = entry + box(b"stsc", struct.pack(">5I", 0, 1, 1, count, 1))
    stbl += box(b"stsz", struct.pack(">III", 0, size, count))
    stbl += box(b"stco", struct.pack(">III", 0, 1, offset)) + box(b"stts", struct.pack(">4I", 0, 1, count, 1024))
    mdhd = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 16000, 0, 0))
    mdia = box(b"mdia", mdhd + box(b"hdlr", bytes(8) + b"soun" + bytes(13)) + box(b"minf", box(b"stbl", stbl)))
    traks = [
        box(b"trak", box(b"tkhd", struct.pack(">6I", 1, 0, 0, number, 0, 0)) + one + mdia)
        for number, one in enumerate(edits, 1)
    ]
    ftyp, mvhd = box(b"ftyp", b"isom" + bytes(4)), box(b"mvhd", struct.pack(">6I", 0, 0, 0, 1, 0, 0))
    return ftyp + box(b"moov", mvhd + b"".join(traks))


def track_tables() -> bytes:
    """Indexes of 64 tracks, of which only the first can be decoded."""
    repeated = struct.pack(">II", 0, 2) + struct.pack(">IiI", 1, 1000, 0x10000) * 2
    return claiming([b""] + [box(b"edts", box(b"elst", repeated))] * 63, 1) * 8


def adts(frame: bytes) -> bytes:
    """A frame of AAC with its header."""
    length = 7 + len(frame)
    return struct.pack(">IHB", 0xFFF15080 | length >> 11, length << 5 & 0xFFFF | 0x1F, 0xFC) + frame


def joined_indexes(tracks: int = 1, count: int = 30) -> bytes:
    """Recordings of some hundred bytes that claim hours, and have one frame each."""
    frame = adts_frame()
    at = len(claiming([b""] * tracks, 1)) + 8
    return (claiming([b""] * tracks, len(frame), at) + box(b"mdat", frame)) * count


def joined_tracks() -> bytes:
    """The same with six tracks, all of which are looked at."""
    return joined_indexes(6, 10)


def adts_frame() -> bytes:
    """A frame of AAC without its header."""
    data = encode(tone(0.5), "-c:a aac -f adts")
    first = adts_length(data[:ADTS_HEADER])
    return data[first + ADTS_HEADER : first + adts_length(data[first : first + ADTS_HEADER])]


def small_frames() -> bytes:
    """Frames of AAC of a byte, which cannot be decoded."""
    return adts(b"\x12") * 20_000


def empty_frames() -> bytes:
    """Frames of AAC of a byte, which says that they end."""
    return adts(b"\xe0") * 40_000


def small_samples() -> bytes:
    """Fragments of 10,000 samples of a byte, which cannot be decoded."""
    head = moof(box(b"trun", struct.pack(">IIi", 1, 10_000, 0)))
    head = moof(box(b"trun", struct.pack(">IIi", 1, 10_000, len(head) + 8)))
    return fragmented() + (head + box(b"mdat", b"\x12" * 10_000)) * 2


def small_adpcm() -> bytes:
    """ADPCM of a sample a block, at the highest rate."""
    body = b"WAVEfmt " + struct.pack("<IHHIIHHHH", 20, 0x11, 1, 384_000, 384_000, 5, 4, 2, 1) + b"data\xff\xff\xff\xff"
    return b"RIFF\xff\xff\xff\xff" + body + bytes(100_000)


def small_blocks() -> bytes:
    """WebM of Vorbis whose packets have a byte."""
    data = encode(tone(0.5), "-c:a libvorbis -f webm")
    head = data[: data.index(b"\x1fC\xb6u")] + b"\x1fC\xb6u\xff"
    return head + bytes((0xA3, 0x85, 0x81, 0, 0, 0x80, 0x01)) * 40_000


def tracks() -> bytes:
    """A list of tracks of 1 MiB that consists of empty elements."""
    return webm(element(0x1654AE6B, b"\xae\x80" * ((1 << 19) - 20)))


def one_track() -> bytes:
    return webm(element(0x1654AE6B, element(0xAE, b"\xd7\x80" * ((1 << 19) - 20))))


def voids() -> bytes:
    """Elements of two bytes."""
    return webm(b"\xec\x80" * 5_000_000)


def flac_marks() -> bytes:
    """10 MB of what may be the beginning of a frame."""
    return encode(tone(0.5), "-f flac") + b"\xff\xf8" * 5_000_000


def flac_headers() -> bytes:
    """10 MB of headers with wrong checksums."""
    return encode(tone(0.5), "-f flac") + b"\xff\xf8\xc9\x08\x00\x01" * 1_700_000


def mp3_marks() -> bytes:
    return encode(tone(0.5), "-c:a libmp3lame -f mp3") + b"\xff\xfb\x90\x00" * 2_500_000


def adts_marks() -> bytes:
    return encode(tone(0.5), "-c:a aac -f adts") + b"\xff\xf1\x50\x80" * 2_500_000


def wav_chunks() -> bytes:
    return b"RIFF\xff\xff\xff\x7fWAVE" + b"JUNK\0\0\0\0" * 1_250_000


def ogg_pages() -> bytes:
    page = b"OggS\0\0" + bytes(8) + b"\x01\x02\x03\x04" + bytes(8) + b"\0"
    return encode(tone(0.5), "-c:a libopus -f ogg") + page * 370_000


def opus_silence() -> bytes:
    """120 kB that claim half an hour: packets of 120 ms in three bytes."""
    data = encode(tone(0.5), "-c:a libopus -f webm")
    head = data[: data.index(b"\x1fC\xb6u")] + b"\x1fC\xb6u\xff"
    return head + bytes((0xA3, 0x86, 0x81, 0, 0, 0x80, 0x1B, 0x02)) * 15_000


def gaps() -> bytes:
    """Blocks whose time stamps are half an hour apart."""
    data = encode(tone(0.5), "-c:a libopus -f webm")
    at = data.index(b"\x1fC\xb6u")
    block = bytes((0xA3, 0x86, 0x81, 0, 0, 0x80, 0x1B, 0x02))
    clusters = [b"\x1fC\xb6u\xff" + element(0xE7, (n * 1_800_000).to_bytes(6, "big")) + block for n in range(5000)]
    return data[:at] + b"".join(clusters)


def flac_rate() -> bytes:
    """FLAC whose head claims 655 kHz."""
    data = bytearray(encode(tone(60.0), "-f flac"))
    at = data.index(b"fLaC") + 18
    data[at : at + 3] = (655_350 << 4 | data[at + 2] & 0x0F).to_bytes(3, "big")
    return bytes(data)


def wav_rate() -> bytes:
    """A WAV file that claims 134 MHz."""
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 134_217_728, 0, 2, 16) + b"data" + struct.pack("<I", 8 << 20)
    return b"RIFF" + struct.pack("<I", len(body)) + body + bytes(8 << 20)


def wav_names() -> bytes:
    """2 kB of WAV with a codec that FFmpeg reads, and with a name that claims 1.4 GB."""
    names = b"LIST" + struct.pack("<I", 0x58000000) + b"INFOISFT" + struct.pack("<I", 0x57000000)
    body = b"WAVEfmt " + struct.pack("<IHHIIHHH", 18, 0x45, 1, 8000, 4000, 1, 4, 0) + names + bytes(2000)
    return b"RIFF" + struct.pack("<I", len(body)) + body


#: Name → (bytes, their container).
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "many_samples": (many_samples, "mp4"),
    "many_small_fragments": (many_small_fragments, "mp4"),
    "many_runs": (many_runs, "mp4"),
    "many_boxes": (many_boxes, "mp4"),
    "sample_table": (sample_table, "mp4"),
    "track_tables": (track_tables, "mp4"),
    "amr_samples": (amr_samples, "mp4"),
    "amr_tracks": (amr_tracks, "mp4"),
    "amr_fragments": (amr_fragments, "mp4"),
    "track_number": (track_number, "mp4"),
    "joined_indexes": (joined_indexes, "mp4"),
    "joined_tracks": (joined_tracks, "mp4"),
    "small_samples": (small_samples, "mp4"),
    "small_frames": (small_frames, "aac"),
    "empty_frames": (empty_frames, "aac"),
    "small_blocks": (small_blocks, "matroska"),
    "small_adpcm": (small_adpcm, "wav"),
    "tracks": (tracks, "matroska"),
    "one_track": (one_track, "matroska"),
    "voids": (voids, "matroska"),
    "flac_marks": (flac_marks, "flac"),
    "flac_headers": (flac_headers, "flac"),
    "flac_rate": (flac_rate, "flac"),
    "mp3_marks": (mp3_marks, "mp3"),
    "adts_marks": (adts_marks, "aac"),
    "wav_chunks": (wav_chunks, "wav"),
    "wav_rate": (wav_rate, "wav"),
    "wav_names": (wav_names, "wav"),
    "ogg_pages": (ogg_pages, "ogg"),
    "opus_silence": (opus_silence, "matroska"),
    "gaps": (gaps, "matroska"),
}


def streamed(data: bytes, kind: str) -> tuple[float, str]:
    """(seconds of audio, code of the first error) of a stream; the samples are dropped as a worker drops them."""
    decoder, code = StreamDecoder(kind), ""
    for at in range(0, len(data), 1 << 20):
        try:
            for _ in decoder.pieces(data[at : at + (1 << 20)]):
                pass
        except AudioError as exc:
            code = code or exc.code
    try:
        decoder.flush()
    except AudioError as exc:
        code = code or exc.code
    return decoder.position / 16000, code or (decoder.tail.code if decoder.tail else "")


def whole(data: bytes, kind: str) -> tuple[float, str]:
    try:
        found = files.decode_file(data, kind, 600)
    except AudioError as exc:
        return 0.0, exc.code
    return len(found.samples) / 16000, found.damage.code if found.damage else ""


def memory(field: str) -> float:
    """Resident memory of the process in MB: VmRSS, or VmHWM, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def cost(work: Callable[[], T]) -> tuple[T, float, float]:
    """Do some work; return (its result, its seconds of CPU, MB by which the process grew meanwhile at most)."""
    forget_peak()
    before, cpu = memory("VmRSS"), time.process_time()
    result = work()
    return result, time.process_time() - cpu, memory("VmHWM") - before


def main() -> None:
    """Decode the bombs that the command line names, or all, and print what each cost as a line of JSON."""
    streamed(encode(tone(0.5), "-c:a libopus -f webm"), "matroska")  # what is loaded once
    for name in sys.argv[1:] or BOMBS:
        make, kind = BOMBS[name]
        data = make()
        for way in (streamed, whole):
            (seconds, code), cpu, grown = cost(partial(way, data, kind))
            row = {"name": name, "way": way.__name__, "seconds": seconds, "code": code, "cpu": cpu, "memory": grown}
            print(json.dumps(row))


if __name__ == "__main__":
    main()
