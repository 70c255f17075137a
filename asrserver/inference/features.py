"""Log-mel features as Whisper expects them, computed in float32 and without large temporaries.

The numbers are those of OpenAI's and faster-whisper's extractors (a test compares them) at a fraction of their time: a
real FFT over a strided view, and frames that are pure padding are written, not computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples

#: Samples between the starts of two frames (10 ms), and samples of a frame (25 ms).
HOP = 160
FFT = 400
HALF = FFT // 2

FRAMES_PER_SECOND = SAMPLE_RATE // HOP

#: Frames computed at a time: their arrays stay in the cache, and are so small that malloc keeps them. The pages of
#: larger arrays come from the system each time, and computing all frames at once takes twice as long.
BLOCK_FRAMES = 64

#: Log-mel features, float32 [n_mels, frames].
Features = np.ndarray[Any, np.dtype[np.float32]]


@cache
def _window() -> Samples:
    """Hann window [FFT], multiplied by FFT: numpy 2.4 computes in float32, in half the time, only with norm="forward",
    which divides by FFT."""
    return (FFT * np.hanning(FFT + 1)[:-1]).astype(np.float32)


@cache
def mel_filters(n_mels: int) -> Features:
    """Slaney's mel filter bank for 16 kHz, float32 [n_mels, FFT / 2 + 1] (Auditory Toolbox, 1998; as in librosa)."""
    log_step = np.log(6.4) / 27.0
    mels = np.linspace(0.0, 15.0 + np.log(SAMPLE_RATE / 2 / 1000.0) / log_step, n_mels + 2)
    hertz = np.where(mels < 15.0, mels * 200.0 / 3, 1000.0 * np.exp(log_step * (mels - 15.0)))
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
    slopes = (hertz[:, None] - bins[None, :]) / np.diff(hertz, append=np.inf)[:, None]
    rising = -slopes[:-2]
    falling = (hertz[2:, None] - bins[None, :]) / np.diff(hertz)[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling))
    weights *= (2.0 / (hertz[2:] - hertz[:-2]))[:, None]
    result: Features = weights.astype(np.float32)
    return result


def log_mel(samples: Samples, frames: int, n_mels: int) -> Features:
    """Compute the features of a whole stretch of audio.

    Args:
        samples: 16 kHz mono.
        frames: Length of the result; the audio is padded with silence, or cut, to it.
        n_mels: Mel bands of the model.

    Returns:
        Features [n_mels, frames].
    """
    samples = samples[: frames * HOP]
    # A frame is centred on every hop; two more frames than the audio has hops still overlap it.
    filled = min(frames, len(samples) // HOP + 3)
    padded = np.zeros(filled * HOP + FFT, np.float32)
    padded[HALF : HALF + len(samples)] = samples
    padded[:HALF] = padded[FFT:HALF:-1]  # reflected at the start, as in the reference
    mel = np.empty((n_mels, frames), np.float32)
    log_power(padded, mel[:, :filled])
    return normalise(mel, filled)


def padded(features: Features, frames: int) -> Features:
    """Features with silence behind them, [n_mels, frames]; they must not be longer than that."""
    if features.shape[1] == frames:
        return features
    longer = np.full((features.shape[0], frames), features.min(), np.float32)
    longer[:, : features.shape[1]] = features
    return longer


#: Samples that wait until their frames are computed together: ten calls for a tenth of a second each cost three times
#: as much as one call for a second.
MIN_COMPUTE_SAMPLES = SAMPLE_RATE // 2


class GrowingLogMel:
    """The features of growing audio. Each frame is computed once, except those of the last MIN_COMPUTE_SAMPLES samples.

    It keeps the logarithms before Whisper's normalisation, because the normalisation depends on the loudest frame of a
    window. One thread may feed it while another takes windows.

    Attributes:
        samples: Samples fed so far.
    """

    def __init__(self, n_mels: int) -> None:
        # (log-mel frames, number of them that are computed, samples from the left edge of the next frame on): replaced
        # as one tuple, so that a reader in another thread sees a consistent state.
        self._state = (np.empty((n_mels, 4 * FRAMES_PER_SECOND), np.float32), 0, np.zeros(0, np.float32))
        self._begun = False
        self.samples = 0

    def feed(self, samples: Samples, last: bool = False) -> None:
        """Append samples. With `last`, compute all their frames now, so that `window` has little left to do."""
        mel, frames, tail = self._state
        tail = np.concatenate([tail, samples])
        self.samples += len(samples)
        if not self._begun:
            if len(tail) <= HALF:
                self._state = (mel, 0, tail)
                return
            tail = np.concatenate([tail[HALF:0:-1], tail])
            self._begun = True
        new = max(0, (len(tail) - FFT) // HOP + 1) if last or len(tail) >= MIN_COMPUTE_SAMPLES else 0
        if frames + new > mel.shape[1]:
            larger = np.empty((len(mel), max(frames + new, 2 * mel.shape[1])), np.float32)
            larger[:, :frames] = mel[:, :frames]
            mel = larger
        if new:
            log_power(tail, mel[:, frames : frames + new])
        self._state = (mel, frames + new, tail[new * HOP :])

    def window(self, frames: int, end: int | None = None) -> Features:
        """Return the features of the audio so far.

        Args:
            frames: Length of the result, padded with silence as `log_mel` pads.
            end: Sample at which to stop; by default all samples.

        Returns:
            Features [n_mels, frames].
        """
        mel, computed, tail = self._state
        end = self.samples if end is None else end
        filled = min(frames, end // HOP + 3)
        window = np.empty((len(mel), frames), np.float32)
        known = min(filled, computed)
        window[:, :known] = mel[:, :known]
        if known < filled:  # the last frames extend past the audio: as silence, and for this window only
            padded = np.zeros((filled - known) * HOP + FFT, np.float32)
            if not self._begun:
                padded[HALF : HALF + len(tail)] = tail
                padded[:HALF] = padded[FFT:HALF:-1]
            else:
                padded[: len(tail)] = tail[: len(padded)]
            log_power(padded, window[:, known:filled])
        return normalise(window, filled)


def log_power(padded: Samples, mel: Features) -> None:
    """Compute log10 mel power spectra.

    Args:
        padded: Samples; the first frame begins at the first of them.
        mel: Filled in place, [n_mels, frames]; `padded` must hold all its frames.
    """
    count = mel.shape[1]
    view = np.lib.stride_tricks.as_strided(padded, (count, FFT), (HOP * 4, 4), writeable=False)
    for begin in range(0, count, BLOCK_FRAMES):
        spectrum = np.fft.rfft(view[begin : begin + BLOCK_FRAMES] * _window(), axis=1, norm="forward")
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        np.matmul(mel_filters(len(mel)), power.T, out=mel[:, begin : begin + BLOCK_FRAMES])
    np.maximum(mel, 1e-10, out=mel)
    np.log(mel, out=mel)  # vectorised in numpy; log10 is not
    mel *= np.float32(1 / np.log(10))


def normalise(mel: Features, filled: int) -> Features:
    """Normalise log10 powers as Whisper does, in place: silence from frame `filled` on, a range of 80 dB below the
    loudest value, scaled to about -1 to 1."""
    mel[:, filled:] = -10.0
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel *= 0.25
    return mel
