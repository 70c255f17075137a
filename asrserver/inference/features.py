"""Log-mel features as Whisper wants them, in float32 and without the temporaries.

The same numbers as OpenAI's and faster-whisper's extractors (a test compares), at a fraction of their time: a real FFT
over a strided view, and frames of pure padding are written, not computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from asrserver.audio.files import RATE, Samples

#: Samples between frames, and samples a frame looks at: 10 and 25 ms.
HOP = 160
FFT = 400
HALF = FFT // 2

#: Frames a second.
FRAMES = RATE // HOP

#: Frames that are computed at a time: what they take stays in the cache, and is so small that malloc keeps it. The
#: pages of larger arrays come from the system each time, and all at once takes twice as long.
BLOCK = 64

Features = np.ndarray[Any, np.dtype[np.float32]]


@cache
def _window() -> Samples:
    """Times FFT: numpy 2.4 computes in float32 only where it divides by that (norm="forward"), in half the time."""
    return (FFT * np.hanning(FFT + 1)[:-1]).astype(np.float32)


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
    padded[HALF : HALF + len(samples)] = samples
    padded[:HALF] = padded[FFT:HALF:-1]  # reflected at the start, as the reference does
    mel = np.empty((n_mels, frames), np.float32)
    log_power(padded, mel[:, :filled])
    return normalise(mel, filled)


#: Samples that wait until their frames are computed together: ten calls for a tenth of a second each cost three times
#: as much.
LAZY = RATE // 2


class GrowingLogMel:
    """The features of a stretch of audio that grows: its frames are computed once, whatever is asked of them how often,
    but for those of the last LAZY samples.

    What is kept is the logarithm before Whisper's normalisation, for that depends on the loudest frame of a window. One
    thread may feed it while another takes windows.
    """

    def __init__(self, n_mels: int) -> None:
        # Frames, how many of them are computed, and the samples from the left edge of the next one on: replaced
        # together, so that a reader in another thread sees three that belong to each other.
        self._state = (np.empty((n_mels, 4 * FRAMES), np.float32), 0, np.zeros(0, np.float32))
        self._begun = False
        self.samples = 0

    def feed(self, samples: Samples, last: bool = False) -> None:
        """Take the samples that follow; after the `last`, a window has little left to compute."""
        mel, frames, tail = self._state
        tail = np.concatenate([tail, samples])
        self.samples += len(samples)
        if not self._begun:
            if len(tail) <= HALF:
                self._state = (mel, 0, tail)
                return
            tail = np.concatenate([tail[HALF:0:-1], tail])
            self._begun = True
        new = max(0, (len(tail) - FFT) // HOP + 1) if last or len(tail) >= LAZY else 0
        if frames + new > mel.shape[1]:
            larger = np.empty((len(mel), max(frames + new, 2 * mel.shape[1])), np.float32)
            larger[:, :frames] = mel[:, :frames]
            mel = larger
        if new:
            log_power(tail, mel[:, frames : frames + new])
        self._state = (mel, frames + new, tail[new * HOP :])

    def window(self, frames: int, end: int | None = None) -> Features:
        """Features [n_mels, frames] of what there is, up to the sample `end`, padded with silence as `log_mel` pads."""
        mel, computed, tail = self._state
        end = self.samples if end is None else end
        filled = min(frames, end // HOP + 3)
        window = np.empty((len(mel), frames), np.float32)
        known = min(filled, computed)
        window[:, :known] = mel[:, :known]
        if known < filled:  # the last frames look past the audio that is there: at silence, and only for now
            padded = np.zeros((filled - known) * HOP + FFT, np.float32)
            if not self._begun:
                padded[HALF : HALF + len(tail)] = tail
                padded[:HALF] = padded[FFT:HALF:-1]
            else:
                padded[: len(tail)] = tail[: len(padded)]
            log_power(padded, window[:, known:filled])
        return normalise(window, filled)


def log_power(padded: Samples, mel: Features) -> None:
    """Fill `mel` with the logarithms of its frames' powers; the first frame begins where `padded` does."""
    count = mel.shape[1]
    view = np.lib.stride_tricks.as_strided(padded, (count, FFT), (HOP * 4, 4), writeable=False)
    for begin in range(0, count, BLOCK):
        spectrum = np.fft.rfft(view[begin : begin + BLOCK] * _window(), axis=1, norm="forward")
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        np.matmul(mel_filters(len(mel)), power.T, out=mel[:, begin : begin + BLOCK])
    np.maximum(mel, 1e-10, out=mel)
    np.log(mel, out=mel)  # numpy computes it in vectors, and log10 not
    mel *= np.float32(1 / np.log(10))


def normalise(mel: Features, filled: int) -> Features:
    """As Whisper wants them, in place: silence from `filled` on, 80 dB of range below the loudest."""
    mel[:, filled:] = -10.0
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel *= 0.25
    return mel
