"""Whisper's features in two steps, so that rows can be put together and noise added between them.

The server's own extractor does both at once (asrserver.inference.features, in OpenAI's normalisation).
"""

from __future__ import annotations

import numpy as np

from asrserver.inference.features import FFT, HOP, mel_filters

#: Bands. Whisper's is 80; 64 are as good for these voices and cheaper in the first convolution.
MELS = 64
FLOOR = 1e-10


def log_power(samples: np.ndarray) -> np.ndarray:
    """log10 of mel power, [frames, MELS] float32, of 16 kHz float32 samples; a frame each 10 ms."""
    frames = -(-len(samples) // HOP)
    padded = np.zeros(frames * HOP + FFT, np.float32)
    padded[FFT // 2 : FFT // 2 + len(samples)] = samples
    view = np.lib.stride_tricks.as_strided(padded, (frames, FFT), (HOP * 4, 4), writeable=False)
    spectrum = np.fft.rfft(view * np.hanning(FFT + 1)[:-1].astype(np.float32), axis=1)
    power = np.square(np.abs(spectrum)) @ mel_filters(MELS).T
    return np.log10(np.maximum(power, FLOOR)).astype(np.float32)


def normalised(power: np.ndarray, frames: int) -> np.ndarray:
    """Features [MELS, frames] of linear mel power [n, MELS], padded with silence, as the server computes them."""
    features = np.full((frames, power.shape[1]), -10.0, np.float32)
    features[: len(power)] = np.log10(np.maximum(power[:frames], FLOOR))
    np.maximum(features, features.max() - 8.0, out=features)
    return np.ascontiguousarray(((features + 4.0) / 4.0).T)
