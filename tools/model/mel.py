"""The server's features in two steps, so that rows can be combined and noise added between the steps."""

from __future__ import annotations

import numpy as np

from asrserver.inference import features
from asrserver.inference.features import FFT, HALF, HOP

#: Bands. Whisper's is 80; 64 are as good for these voices and cheaper in the first convolution.
MELS = 64
FLOOR = 1e-10


def log_power(samples: np.ndarray) -> np.ndarray:
    """log10 of mel power, [frames, MELS] float32, of 16 kHz float32 samples; a frame each 10 ms."""
    frames = -(-len(samples) // HOP)
    padded = np.zeros(frames * HOP + FFT, np.float32)
    padded[HALF : HALF + len(samples)] = samples
    mel = np.empty((MELS, frames), np.float32)
    features.log_power(padded, mel)
    return np.ascontiguousarray(mel.T)


def normalised(power: np.ndarray, frames: int) -> np.ndarray:
    """Features [MELS, frames] of linear mel power [n, MELS], padded with silence, as the server computes them."""
    filled = min(frames, len(power))
    mel = np.empty((MELS, frames), np.float32)
    mel[:, :filled] = np.log10(np.maximum(power[:filled], FLOOR)).T
    return features.normalise(mel, filled)
