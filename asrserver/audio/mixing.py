"""Channels mixed to one: they do not cancel each other, and silent channels do not make the others quieter.

This is decided for each block, so that it is right again after cables were changed in the middle of a recording. Blocks
are counted from the beginning of the recording, so that the result does not depend on how a stream is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np

#: As pcm.Samples.
Samples = np.ndarray[Any, np.dtype[np.float32]]

#: A channel that has so little of the power of the loudest one has no sound: a party that is not there, a dead cable.
#: As one of several in a mean it would only make the others quieter, and quiet speech is not found.
SILENT = 1e-6

#: Channels cancel each other if their mix has less than this share of the power that the mix of unrelated channels
#: would have.
CANCELLED = 1 / 8

_TINY = 1e-12


def mix(channels: Samples, sizes: Sequence[int], gains: Samples | None = None) -> Samples:
    """Mix channels to one.

    A microphone with one wire crossed, or a balanced line in a stereo jack, gives a channel that is another inverted:
    their mean is silence. So where channels cancel each other, those that oppose the loudest one are inverted.

    Args:
        channels: [channels, samples], contiguous, and not none.
        sizes: Samples of each of the blocks for which it is decided.
        gains: The gain of each channel; None: the mean of those that have sound.
    """
    powers = _powers(channels, sizes)
    weights = _means(powers) if gains is None else gains[:, None]
    spread = weights if weights.shape[1] == 1 else np.repeat(weights, sizes, axis=1)
    mixed: Samples = channels[0] * spread[0]
    scratch = np.empty_like(mixed)
    for channel, weight in zip(channels[1:], spread[1:], strict=True):
        mixed += np.multiply(channel, weight, out=scratch)
    expected = np.add.reduce(weights * weights * powers)
    cancelled = (_powers(mixed[np.newaxis], sizes)[0] < CANCELLED * expected - _TINY).nonzero()[0]
    if len(cancelled):
        ends, weights = list(accumulate(sizes)), np.broadcast_to(weights, powers.shape)
        for number in cancelled:
            here = slice(ends[number] - sizes[number], ends[number])
            mixed[here] = _inverted(channels[:, here], weights[:, number])
    return mixed


def _powers(channels: Samples, sizes: Sequence[int]) -> Samples:
    """[channels, blocks]: the power of each.

    By BLAS, which writes nothing for it; each by itself, so that it does not depend on how many come together.
    """
    found, begin = [], 0
    for size, alike in groupby(sizes):
        end = begin + size * len(list(alike))
        blocks = channels[:, begin:end].reshape(len(channels), -1, size)
        found.append(np.vecdot(blocks, blocks))
        begin = end
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def _means(powers: Samples) -> Samples:
    """The weight of each channel in each block, or in all of them."""
    heard = powers >= np.maximum.reduce(powers) * SILENT
    if np.logical_and.reduce(heard, axis=None):
        return np.full((len(powers), 1), 1 / len(powers), np.float32)
    heard |= ~np.logical_or.reduce(heard)  # of a block that is not finite
    weights: Samples = heard / heard.sum(axis=0, dtype=np.float32)
    return weights


def _inverted(channels: Samples, weights: Samples) -> Samples:
    """The mix of channels in which those that oppose the loudest one are inverted."""
    powers = [weight * weight * np.dot(part, part) for weight, part in zip(weights, channels, strict=True)]
    loudest = channels[int(np.argmax(powers))]
    signs = [-1 if np.dot(part, loudest) < 0 else 1 for part in channels]
    total: Samples = sum(weight * sign * part for weight, sign, part in zip(weights, signs, channels, strict=True))
    return total
