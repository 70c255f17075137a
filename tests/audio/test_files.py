"""files.py, pcm.py and features.py: whole files, PCM, and the features that the model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from asrserver.audio import SAMPLE_RATE, files, sniff
from asrserver.audio.pcm import PcmDecoder
from asrserver.audio.selection import MIXED
from asrserver.errors import AudioError
from asrserver.inference.features import HOP, log_mel
from asrserver.inference.windows import FULL_WINDOW, WINDOWS, window_for
from tests.audio.signals import encode, frequency, s16, tone
from tests.recordings import Utterance

#: The containers that clients send: ffmpeg's arguments, and what `container` says.
CONTAINERS = {
    "wav": ("-f wav", "wav"),
    "wav-f32-48k-stereo": ("-c:a pcm_f32le -ar 48000 -ac 2 -f wav", "wav"),
    "wav-u8-8k": ("-c:a pcm_u8 -ar 8000 -f wav", "wav"),
    "wav-24k-stereo": ("-ar 24000 -ac 2 -f wav", "wav"),
    "wav-mulaw": ("-c:a pcm_mulaw -ar 8000 -f wav", "wav"),
    "webm": ("-c:a libopus -f webm", "matroska"),
    "ogg-opus": ("-c:a libopus -f ogg", "ogg"),
    "ogg-vorbis": ("-c:a libvorbis -f ogg", "ogg"),
    "flac": ("-f flac", "flac"),
    "mp3": ("-c:a libmp3lame -f mp3", "mp3"),
    "mp3-bare": ("-c:a libmp3lame -id3v2_version 0 -write_xing 0 -f mp3", "mp3"),
    "aac": ("-c:a aac -f adts", "aac"),
    "mp4": ("-c:a aac -movflags frag_keyframe+empty_moov -f mp4", "mp4"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_known_and_decoded(name: str) -> None:
    arguments, kind = CONTAINERS[name]
    data = encode(tone(2.0), arguments)
    assert sniff.container(data) == kind
    samples = files.decode(data, kind, 10)
    assert samples.dtype == np.float32
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
    assert frequency(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.43, abs=0.15)  # stereo may cost 3 dB


@pytest.mark.parametrize("name", ["wav", "webm", "ogg-opus", "flac", "mp3", "mp4"])
def test_a_file_cut_short_gives_what_it_has(name: str) -> None:
    arguments, kind = CONTAINERS[name]
    data = encode(tone(4.0), arguments)
    samples = files.decode(data[: len(data) * 3 // 4], kind, 10)
    assert 1.0 < len(samples) / SAMPLE_RATE < 4.0


@pytest.mark.parametrize("name", CONTAINERS)
def test_too_long_is_an_error(name: str) -> None:
    arguments, kind = CONTAINERS[name]
    with pytest.raises(AudioError) as caught:
        files.decode(encode(tone(3.0), arguments), kind, 2)
    assert caught.value.code == "utterance_too_long"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF\x24\x00\x00\x00WAVE", "wav"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(200), "wav"),
        (b"\x1aE\xdf\xa3" + bytes(1000), "matroska"),
        (b"OggS\x00\x02" + bytes(1000), "ogg"),
        (b"fLaC" + bytes(1000), "flac"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(1000), "mp4"),
        (b"ID3" + bytes(1000), "mp3"),
    ],
)
def test_what_only_begins_like_a_container(data: bytes, kind: str) -> None:
    """It gives an error with a reason."""
    assert sniff.container(data) == kind
    with pytest.raises(AudioError) as caught:
        files.decode(data, kind, 10)
    assert caught.value.code in ("undecodable_audio", "not_audio")


def test_damaged_files_are_decoded_or_refused() -> None:
    """Random bytes are overwritten: the result is audio or AudioError, never another exception."""
    random = np.random.default_rng(7)
    for arguments, kind in CONTAINERS.values():
        data = np.frombuffer(encode(tone(0.5), arguments), np.uint8)
        for _ in range(15):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 20)] = random.integers(0, 256, 20)
            try:
                samples = files.decode(damaged.tobytes(), kind, 60)
            except AudioError:
                continue
            assert samples.ndim == 1


@pytest.mark.parametrize("format", ["pcm_s16le", "pcm_f32le"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("size", [13, 1001, 10**6])
def test_pcm_cut_anywhere(format: str, channels: int, rate: int, size: int) -> None:
    """The samples are the same for any slicing of the bytes."""
    samples = np.repeat(tone(0.3, rate), channels)
    data = s16(samples) if format == "pcm_s16le" else samples.astype("<f4").tobytes()
    pcm = PcmDecoder(format, rate, channels)
    assert pcm.bytes_per_second == len(data) / 0.3
    pieces = [pcm.feed(data[start : start + size]) for start in range(0, len(data), size)]
    found = np.concatenate([*pieces, pcm.flush()])
    assert len(found) / SAMPLE_RATE == pytest.approx(0.3, abs=0.01)
    assert frequency(found) == pytest.approx(440, abs=5)
    whole = np.concatenate([pcm.feed(data), pcm.flush()])
    np.testing.assert_allclose(found, whole, atol=1e-4)


def test_pcm_that_is_no_number() -> None:
    decoder = PcmDecoder("pcm_f32le", SAMPLE_RATE, 1)
    decoder.feed(np.array([np.nan, np.inf, -np.inf, 5, 0.5], "<f4").tobytes())
    samples = decoder.flush()
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1
    assert samples[-1] == 0.5


# -- features


@pytest.mark.parametrize("n_mels", [64, 80, 128])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.3, 30.0])
def test_features_are_the_reference_s(n_mels: int, seconds: float, utterances: list[Utterance]) -> None:
    """They equal faster-whisper's for speech, in the fitting window and in the full one."""
    speech = np.frombuffer(b"".join(one.pcm for one in utterances[:20]), "<i2").astype(np.float32) / np.float32(32768)
    samples = speech[: int(seconds * SAMPLE_RATE)]
    reference = FeatureExtractor(feature_size=n_mels)
    for frames in {window_for(seconds, "fit"), FULL_WINDOW}:
        padded = np.zeros(frames * HOP, np.float32)
        padded[: len(samples)] = samples[: frames * HOP]
        wanted = reference(padded)[:, :frames]
        assert log_mel(samples, frames, n_mels).shape == (n_mels, frames)
        inner = slice(0, frames - 2 if len(samples) >= frames * HOP else frames)  # its end is reflected, ours is silent
        np.testing.assert_allclose(log_mel(samples, frames, n_mels)[:, inner], wanted[:, inner], atol=2e-3)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(1, np.float32), np.ones(10, np.float32)])
def test_features_of_next_to_nothing(samples: Any) -> None:
    assert np.isfinite(log_mel(samples, 200, 80)).all()


def test_no_window_is_taken_for_raw_features() -> None:
    """CTranslate2 encodes an input a second time if it has n_mels steps: 160 frames with 80 bands, 256 with 128."""
    assert not {2 * n_mels for n_mels in (64, 80, 128)} & set(WINDOWS)
    for seconds in np.arange(0, 40, 0.01):
        assert window_for(float(seconds), "fit") in WINDOWS
        assert window_for(float(seconds), "full") == FULL_WINDOW
    assert window_for(3.0, "fit") == 400


@pytest.mark.parametrize("head", [b"", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10), b"\xff\xfb\x90\x00", b"\xff\xf1\x50\x80"])
def test_noise_is_not_heard_as_mp3(head: bytes, tmp_path: Path) -> None:
    """FFmpeg finds some frames in it, and silence or clicks in these."""
    data = head + np.random.default_rng(6).bytes(200_000)
    path = tmp_path / "file.mp3"
    path.write_bytes(data)
    with pytest.raises(AudioError):
        list(files.read_s16(path, 0.5))
    for kind in ("mp3", "aac"):
        with pytest.raises(AudioError, match="before any audio"):
            files.decode(data, kind, 3600)


def test_a_tag_may_precede_flac() -> None:
    plain = encode(tone(2.0), "-f flac")
    tag = b"ID3\x04\0\0\0\0\x10\x0a" + b"TIT2" + bytes(2054)
    assert sniff.container(tag + plain) == "flac"
    np.testing.assert_array_equal(files.decode(tag + plain, "flac", 60), files.decode(plain, "flac", 60))


def test_a_file_of_no_samples_is_an_error() -> None:
    data = encode(tone(1.0), "-rf64 always -f wav")
    at = data.index(b"ds64") + 8
    with pytest.raises(AudioError, match="holds no audio"):
        files.decode(data[:at] + bytes(24) + data[at + 24 :], "rf64", 60)


def test_a_recorder_s_first_slice_is_left_to_nobody_else() -> None:
    """Most sessions of browsers begin with a header: it is worth no process. FFmpeg would find nothing in it."""

    def never(*_arguments: object) -> files.Pieces:
        raise AssertionError("FFmpeg is asked")

    data = encode(tone(), "-c:a libopus -f webm -live 1")
    found = files.decode_file(data[: data.index(b"\x1fC\xb6u")], "matroska", 60, MIXED, never)
    assert not len(found.samples)
    assert found.damage is None


def test_why_a_file_cannot_be_decoded_is_said_once() -> None:
    data = encode(tone(), "-c:a libopus -f webm")
    with pytest.raises(AudioError) as caught:
        files.decode_file(data[:200], "matroska", 60)
    assert caught.value.message == "the matroska data cannot be decoded: End of file"
