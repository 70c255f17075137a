"""What audio may say of itself before it reaches native code.

A WAV header of 44 bytes can claim 65,535 channels at 4 GHz. FFmpeg's resampler takes 64 channels, and what it does with
more depends on what lies in memory: PyAV 18.1 ended the process for some. So every number of channels and every rate,
a container's as well as a decoded frame's, goes through `check` before anything is made of it.
"""

from __future__ import annotations

from asrserver.errors import AudioError

#: Samples a second. Speech has been recorded with 8,000 and more for as long as there are files of it; studios use
#: 192,000, and 384,000 is the most that converters offer.
MIN_RATE = 4_000
MAX_RATE = 384_000

#: Mixing consoles and conference systems write files of 16 and 32 tracks. Above that there are no recordings of
#: speech, and FFmpeg's own bound of 64 is not far.
MAX_CHANNELS = 32


class ImplausibleAudio(AudioError):
    """Raised when audio claims what no recording has. Its code is undecodable_audio."""

    def __init__(self, message: str) -> None:
        super().__init__("undecodable_audio", message)


def check(channels: int, rate: int) -> None:
    """Raise ImplausibleAudio unless there can be such audio.

    Args:
        channels: the number of channels.
        rate: samples a second, of each channel.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise ImplausibleAudio(f"the audio claims {channels} channels; 1 to {MAX_CHANNELS} are accepted")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ImplausibleAudio(f"the audio claims {rate} samples/s; {MIN_RATE} to {MAX_RATE} are accepted")


def check_claim(channels: int, rate: int) -> None:
    """`check` for a header that may leave either to the codec, by a zero."""
    check(channels or 1, rate or MIN_RATE)
