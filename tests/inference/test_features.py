"""features.py: incrementally computed features equal those of the whole audio."""

from __future__ import annotations

import numpy as np
import pytest

from asrserver.inference.features import GrowingLogMel, log_mel


@pytest.mark.parametrize("step", [1, 37, 160, 1600, 50000])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_of_growing_audio_equal_those_of_the_whole(step: int, n_mels: int) -> None:
    """At every length, however the audio was sliced."""
    length = 1000 if step == 1 else 7 * 16000
    audio = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    audio[length // 2 :] *= 0.01
    growing = GrowingLogMel(n_mels)
    for at in range(0, length, step):
        growing.feed(audio[at : at + step])
        known = min(at + step, length)
        assert growing.samples == known
        if known in (1, 2, 199, 200, 201, 400) or at % 13 == 0:
            frames = known // 160 + 50
            np.testing.assert_allclose(growing.window(frames), log_mel(audio[:known], frames, n_mels), atol=1e-4)


def test_a_window_can_end_before_the_last_sample() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    growing = GrowingLogMel(80)
    growing.feed(audio)
    window = growing.window(400, 32000)
    np.testing.assert_allclose(window[:, :199], log_mel(audio[:32000], 400, 80)[:, :199], atol=1e-4)
    assert np.ptp(window[:, 203:]) == 0
