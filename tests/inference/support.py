"""Recordings as the packaged model takes them."""

from __future__ import annotations

import itertools

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.chunking import Chunking
from asrserver.audio.pcm import PcmDecoder, Samples
from asrserver.inference.windows import window_for
from tests.recordings import Utterance

#: Mel bands of the packaged model.
MELS = 64

#: The form of chunks that are samples, as they are.
AS_SAMPLES = Chunking("chunk", "pcm_f32le", SAMPLE_RATE, 1)


def samples(utterance: Utterance) -> Samples:
    return PcmDecoder("pcm_s16le", SAMPLE_RATE, 1).feed(utterance.pcm)


def same_length(utterances: list[Utterance], count: int) -> list[Utterance]:
    """`count` utterances whose window is the same."""
    windows = itertools.groupby(
        sorted(utterances, key=lambda one: len(one.pcm)), lambda one: window_for(len(one.pcm) / 32000, "fit")
    )
    return next(found for _, group in windows if len(found := list(group)) >= count)[:count]
