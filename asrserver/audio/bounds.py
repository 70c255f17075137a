"""Limits on what audio may claim before it reaches native code.

A WAV header of 44 bytes can claim 65,535 channels at 4 GHz. FFmpeg's resampler takes 64 channels, and its behaviour
with more depends on what lies in memory: PyAV 18.1 ended the process for some numbers. So every number of channels and
every sample rate, a container's as well as a decoded frame's, must pass `check` before it is used.
"""

from __future__ import annotations

from asrserver.errors import AudioError

#: Samples per second. Files of speech have 8,000 or more; studios use 192,000, and 384,000 is the most that converters
#: offer.
MIN_RATE = 4_000
MAX_RATE = 384_000

#: Mixing consoles and conference systems write files of 16 and 32 channels. No recordings of speech have more, and
#: FFmpeg's own limit of 64 is not far.
MAX_CHANNELS = 32


class ImplausibleAudio(AudioError):
    """Raised when audio claims properties that no recording has. Its code is undecodable_audio."""

    def __init__(self, message: str) -> None:
        super().__init__("undecodable_audio", message)


class TooMuchWork(AudioError):
    """Raised when bytes take more time than the audio in them could be worth. Its code is undecodable_audio."""

    def __init__(self, message: str) -> None:
        super().__init__("undecodable_audio", message)


def check(channels: int, rate: int) -> None:
    """Check the number of channels and the sample rate of audio.

    Args:
        channels: Number of channels.
        rate: Samples per second of each channel.

    Raises:
        ImplausibleAudio: One of them is outside the limits.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise ImplausibleAudio(f"the audio claims {channels} channels; 1 to {MAX_CHANNELS} are accepted")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ImplausibleAudio(f"the audio claims {rate} samples/s; {MIN_RATE} to {MAX_RATE} are accepted")


def check_claim(channels: int, rate: int) -> None:
    """Like `check`, for a header in which 0 leaves the value to the codec."""
    check(channels or 1, rate or MIN_RATE)
