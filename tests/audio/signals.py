"""Tones and encoded files for the tests of audio."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE) -> Samples:
    """440 Hz at half of full scale."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def s16(samples: Samples) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def encode(samples: Samples, arguments: str) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    return subprocess.run(
        [*command, *arguments.split(), "-"], input=s16(samples), stdout=subprocess.PIPE, check=True
    ).stdout


def encode_file(samples: Samples, arguments: str, folder: Path) -> bytes:
    """As `encode`, for files in which ffmpeg must be able to seek; a folder takes the file."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "s16le",
        "-ar",
        "16000",
        "-ac",
        "1",
        "-i",
        "-",
    ]
    path = folder / "file"
    subprocess.run([*command, *arguments.split(), str(path)], input=s16(samples), check=True)
    return path.read_bytes()


def decoded_by_ffmpeg(data: bytes | Path, container: str) -> Samples:
    """A file decoded by the ffmpeg program to mono at 16 kHz. Stereo comes out 3 dB louder than its mean."""
    source, given = (str(data), None) if isinstance(data, Path) else ("-", data)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", container, "-i", source]
    command += ["-ac", "1", "-ar", "16000", "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout, "<f4")


def frequency(samples: Samples) -> float:
    """The strongest frequency, in hertz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * SAMPLE_RATE / len(samples))
