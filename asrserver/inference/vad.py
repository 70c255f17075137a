"""Where speech is: the Silero model that faster-whisper ships, behind a cheap energy gate."""

from __future__ import annotations

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from asrserver.inference.audio import RATE, Samples

#: RMS of a 32 ms frame below which nothing is heard: -60 dBFS. Silero costs 2–3 ms for each second of audio, as much as
#: recognising it, so quiet never reaches it.
QUIET = 1e-3

#: Longest stretch handed to the recogniser as one segment, in seconds: Whisper's window less a margin.
MAX_SEGMENT = 28.0

#: Audio kept before and after speech, in seconds, and the least speech that counts.
PAD = 0.2
MIN_SPEECH = 0.1


def segments(samples: Samples, silence: float) -> list[tuple[int, int]]:
    """(start, end) of each stretch of speech in samples, in order; `silence` seconds of quiet end one."""
    if not _loud(samples):
        return []
    options = VadOptions(
        min_speech_duration_ms=int(MIN_SPEECH * 1000),
        max_speech_duration_s=MAX_SEGMENT,
        min_silence_duration_ms=int(silence * 1000),
        speech_pad_ms=int(PAD * 1000),
    )
    return [(speech["start"], speech["end"]) for speech in get_speech_timestamps(samples, options, RATE)]


def _loud(samples: Samples) -> bool:
    whole = len(samples) - len(samples) % 512
    if not whole:
        return len(samples) > 0
    frames = samples[:whole].reshape(-1, 512)
    return bool(np.einsum("ij,ij->i", frames, frames).max() / 512 > QUIET * QUIET)
