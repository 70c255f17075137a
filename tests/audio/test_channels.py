"""Channels that are kept apart, and tracks that are named: alike in every format, cut anywhere, resumed anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, sniff
from asrserver.audio.decoders import open_decoder, resume_decoder
from asrserver.audio.pcm import Samples
from asrserver.audio.selection import MAX_SEPARATE, Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from asrserver.protocol import options
from tests.audio.signals import encode, encode_file, frequency, s16, tone
from tests.audio.streams import AAC, FRAGMENTS, decoded, handed_on, sized, slices, tolerant
from tests.audio.test_time import two_tracks

SEPARATE = Selection(separate=True)

#: 440 Hz on the left, and 880 Hz on the right.
PARTIES = "-filter_complex [0:a]asplit[a][b];[b]asetrate=32000,aresample=16000,apad[c];[a][c]join=inputs=2"

STREAMED = {
    "wav": "-f wav",
    "wav-44k": "-ar 44100 -f wav",
    "wav-mulaw": "-c:a pcm_mulaw -ar 8000 -f wav",
    "webm": "-c:a libopus -f webm",
    "ogg": "-c:a libvorbis -f ogg",
    "flac": "-f flac",
    "mp3": "-c:a libmp3lame -joint_stereo 0 -f mp3",
    "aac": f"{AAC} -f adts",
    "mp4": f"{AAC} {FRAGMENTS} -frag_duration 500000 -f mp4",
}
WHOLE = {"aiff": "-f aiff", "mpegts": "-c:a aac -f mpegts", "alac": "-c:a alac -f mp4", "wma": "-c:a wmav2 -f asf"}


def parties(arguments: str, folder: Path) -> tuple[bytes, str]:
    data = encode_file(tone(4.0), f"{PARTIES} -t 4 {arguments}", folder)
    return data, sniff.container(data) or ""


def interleaved(rate: int = SAMPLE_RATE) -> Samples:
    """3 s; the channels are 440 Hz, and 880 Hz."""
    times = np.arange(3 * rate) / rate
    return (0.5 * np.sin(2 * np.pi * np.stack([440 * times, 880 * times], axis=1))).astype(np.float32)


def are_apart(samples: Samples) -> None:
    assert samples.shape == (len(samples), 2)
    middle = samples[SAMPLE_RATE // 2 : 3 * SAMPLE_RATE // 2]
    assert [frequency(one) for one in middle.T] == [pytest.approx(440, abs=2), pytest.approx(880, abs=2)]


@pytest.mark.parametrize("name", STREAMED)
def test_channels_of_a_stream_and_of_its_file(name: str, tmp_path: Path) -> None:
    data, kind = parties(STREAMED[name], tmp_path)
    whole = files.decode_file(data, kind, 60, SEPARATE).samples
    are_apart(whole)
    assert len(whole) == pytest.approx(4 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    decoder = StreamDecoder(kind, selection=SEPARATE)
    points, pieces, at = [], [], 0
    for piece in slices(data, 3, max(2000, len(data) // 12)):
        pieces.append(decoder.feed(piece))
        at += len(piece)
        points.append(handed_on(decoder.resume_point(decoder.position)))
    pieces.append(decoder.flush())
    streamed = np.concatenate([piece for piece in pieces if len(piece)])
    np.testing.assert_allclose(streamed, whole[: len(streamed)], atol=1e-4)
    for point in {point.offset: point for point in points}.values():
        resumed = StreamDecoder.resume(point, SEPARATE)
        rest = decoded(resumed, [data[point.offset :]])
        if len(rest):
            assert rest.shape[1] == 2
            wanted = streamed[point.sample :]
            np.testing.assert_allclose(rest[: len(wanted)], wanted[: len(rest)], atol=0.1)


@pytest.mark.parametrize("name", WHOLE)
def test_channels_of_a_file_that_is_no_stream(name: str, tmp_path: Path) -> None:
    data, kind = parties(WHOLE[name], tmp_path)
    are_apart(files.decode_file(data, kind, 60, SEPARATE).samples)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le"])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_channels_of_headerless_pcm(codec: str, rate: int) -> None:
    both = interleaved(rate)
    data = s16(both.reshape(-1)) if codec == "pcm_s16le" else both.tobytes()
    whole = decoded(open_decoder(codec, rate, 2, SEPARATE), [data])
    are_apart(whole)
    decoder = open_decoder(codec, rate, 2, SEPARATE)
    first = decoder.feed(data[: len(data) // 2 + 3])
    point = handed_on(decoder.resume_point(len(first) - 100))
    rest = decoded(resume_decoder(point, SEPARATE), slices(data[point.offset :], 4, 3000))
    np.testing.assert_allclose(rest, whole[point.sample :], atol=1e-6 if rate == SAMPLE_RATE else 1e-2)


def test_one_channel_is_one_channel(tmp_path: Path) -> None:
    data = encode_file(tone(1.0), "-f wav", tmp_path)
    assert files.decode_file(data, "wav", 60, SEPARATE).samples.shape == (SAMPLE_RATE, 1)


def test_a_recording_with_more_channels_follows_one_with_fewer() -> None:
    """A softphone's recorder is restarted when the second party joins."""
    data = sized(encode(tone(1.0), "-f wav")) + sized(encode(tone(1.0), "-ac 2 -f wav"))
    decoder = StreamDecoder("wav", selection=SEPARATE)
    assert [piece.shape for piece in decoder.pieces(data)] == [(SAMPLE_RATE, 1), (SAMPLE_RATE, 2)]


def test_too_many_channels_are_refused_by_number(tmp_path: Path) -> None:
    assert options.MAX_CHANNELS == MAX_SEPARATE  # of which the protocol's layer knows nothing
    many = 2 * MAX_SEPARATE
    one = tone(0.5)
    wav, aiff = encode(one, f"-ac {many} -f wav"), encode_file(one, f"-ac {many} -f aiff", tmp_path)
    for data, kind in ((wav, "wav"), (aiff, "aiff")):
        with pytest.raises(AudioError, match=f"{many} channels; at most {MAX_SEPARATE}") as refused:
            files.decode_file(data, kind, 60, SEPARATE)
        assert refused.value.code == "too_many_channels"
        assert len(files.decode(data, kind, 60))
    decoder = StreamDecoder("wav", selection=SEPARATE)
    with pytest.raises(AudioError, match=f"{many} channels"):
        decoder.feed(wav)


def test_each_channel_counts(tmp_path: Path) -> None:
    """The limit of an utterance is on what is recognised."""
    for arguments in ("-f wav", "-f flac", "-f aiff"):
        data, kind = parties(arguments, tmp_path)
        assert len(files.decode_file(data, kind, 5).samples)
        with pytest.raises(AudioError) as refused:
            files.decode_file(data, kind, 5, SEPARATE)
        assert refused.value.code == "utterance_too_long"


@pytest.mark.parametrize("arguments", [f"{AAC} -f mp4", "-c:a libopus -f matroska", "-c:a aac -f mpegts"])
def test_a_named_track(arguments: str, tmp_path: Path) -> None:
    """It is decoded though it is silent; one that does not exist is refused with the number of those that do."""
    data = two_tracks(arguments, tmp_path, silent=0)
    kind = sniff.container(data) or ""
    assert np.abs(files.decode_file(data, kind, 60, Selection(0)).samples).max() < 0.01
    assert frequency(files.decode_file(data, kind, 60, Selection(1)).samples) == pytest.approx(440, abs=2)
    with pytest.raises(AudioError, match="no audio track 2: there are 2") as refused:
        files.decode_file(data, kind, 60, Selection(2))
    assert refused.value.code == "no_such_track"
    if kind != "mpegts":
        found, errors = tolerant(StreamDecoder(kind, selection=Selection(1)), slices(data, 1, 3000))
        assert frequency(found) == pytest.approx(440, abs=2)
        assert not errors
        decoder = StreamDecoder(kind, selection=Selection(2))
        found_errors = []
        for piece in slices(data, 1, 3000):
            try:
                assert not len(decoder.feed(piece))
            except AudioError as exc:
                found_errors.append((exc.code, exc.message))
        assert found_errors == [
            ("no_such_track", "there is no audio track 2: there are 2 audio tracks, numbered from 0")
        ]


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg", "flac", "pcm_s16le"])
def test_a_track_of_what_has_one(kind: str) -> None:
    codec = {"mp3": "-c:a libmp3lame", "ogg": "-c:a libopus"}.get(kind, "")
    data = s16(tone(1.0)) if kind == "pcm_s16le" else encode(tone(1.0), f"{codec} -f {kind}")
    assert len(decoded(open_decoder(kind, SAMPLE_RATE, 1, Selection(0)), [data]))
    with pytest.raises(AudioError, match="no audio track 1: there is 1 audio track"):
        open_decoder(kind, SAMPLE_RATE, 1, Selection(1)).feed(data)
