"""Log-mel features as Whisper wants them, in float32 and without the temporaries.

The same numbers as OpenAI's and faster-whisper's extractors (a test compares), at a fraction of their time: a real FFT
over a strided view, and frames of pure padding are written, not computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from asrserver.inference.audio import RATE, Samples

#: Samples between frames, and samples a frame looks at: 10 and 25 ms.
HOP = 160
FFT = 400

#: Frames a second.
FRAMES = RATE // HOP

Features = np.ndarray[Any, np.dtype[np.float32]]


@cache
def _window() -> Samples:
    return np.hanning(FFT + 1)[:-1].astype(np.float32)


@cache
def mel_filters(n_mels: int) -> Features:
    """Slaney's mel filter bank for 16 kHz, [n_mels, FFT / 2 + 1] (Slaney, Auditory Toolbox, 1998; as in librosa)."""
    log_step = np.log(6.4) / 27.0
    mels = np.linspace(0.0, 15.0 + np.log(RATE / 2 / 1000.0) / log_step, n_mels + 2)
    hertz = np.where(mels < 15.0, mels * 200.0 / 3, 1000.0 * np.exp(log_step * (mels - 15.0)))
    bins = np.fft.rfftfreq(FFT, 1 / RATE)
    slopes = (hertz[:, None] - bins[None, :]) / np.diff(hertz, append=np.inf)[:, None]
    rising = -slopes[:-2]
    falling = (hertz[2:, None] - bins[None, :]) / np.diff(hertz)[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling))
    weights *= (2.0 / (hertz[2:] - hertz[:-2]))[:, None]
    result: Features = weights.astype(np.float32)
    return result


def log_mel(samples: Samples, frames: int, n_mels: int) -> Features:
    """Features [n_mels, frames] of 16 kHz samples, padded with silence (or cut) to `frames`."""
    samples = samples[: frames * HOP]
    # One frame is centred on every hop; two more than there is audio for still touch it.
    filled = min(frames, len(samples) // HOP + 3)
    padded = np.zeros(filled * HOP + FFT, np.float32)
    half = FFT // 2
    padded[half : half + len(samples)] = samples
    padded[:half] = padded[FFT:half:-1]  # reflected at the start, as the reference does
    view = np.lib.stride_tricks.as_strided(padded, (filled, FFT), (HOP * 4, 4), writeable=False)
    spectrum = np.fft.rfft(view * _window(), axis=1)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    mel = np.empty((n_mels, frames), np.float32)
    np.matmul(mel_filters(n_mels), power.T, out=mel[:, :filled])
    computed = mel[:, :filled]
    np.maximum(computed, 1e-10, out=computed)
    np.log10(computed, out=computed)
    mel[:, filled:] = -10.0
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel *= 0.25
    return mel
