"""Channels mixed to one, which neither cancel each other nor are made quiet by those without sound.

It is decided by blocks, so that a recording whose cables are changed in the middle is right after it too; and by blocks
of the recording, so that it does not depend on how a stream is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: As pcm.Samples.
Samples = np.ndarray[Any, np.dtype[np.float32]]

#: A channel that has so little of the power of the loudest one has no sound: a party that is not there, a dead cable.
#: As one of several in a mean it would only make the others quieter, and quiet speech is not found.
SILENT = 1e-6

#: Channels cancel each other if their mix has less than this share of the power that they would have if they were
#: different.
CANCELLED = 1 / 8

_TINY = 1e-12


def mix(channels: Sequence[Samples] | Samples, block: int, gains: Samples | None = None) -> Samples:
    """Mix channels to one.

    A microphone with one wire crossed, or a balanced line in a stereo jack, gives a channel that is another inverted:
    their mean is silence. So where channels cancel each other, those that oppose the loudest one are inverted.

    Args:
        channels: The samples of each; as many of each.
        block: Samples for which it is decided. The last may be fewer.
        gains: The gain of each channel; None: the mean of those that have sound.
    """
    count = len(channels[0])
    if count <= block:  # a frame of a codec, of which there are many: numpy's overhead is what it costs
        return _mix_block(channels, gains)
    starts = np.arange(0, count, max(1, block))
    powers = np.stack([np.add.reduceat(channel * channel, starts) for channel in channels])
    weights = _means(powers) if gains is None else np.repeat(gains[:, None], len(starts), axis=1)
    sizes = np.diff(np.append(starts, count))
    mixed = np.zeros(count, np.float32)
    for channel, weight in zip(channels, weights, strict=True):
        mixed += channel * (weight[0] if weight[0] == weight.min() == weight.max() else np.repeat(weight, sizes))
    expected = (weights * weights * powers).sum(axis=0)
    cancelled = np.add.reduceat(mixed * mixed, starts) < CANCELLED * expected - _TINY
    for number in np.flatnonzero(cancelled):
        here = slice(starts[number], starts[number] + sizes[number])
        mixed[here] = _inverted([channel[here] for channel in channels], weights[:, number])
    return mixed


def _mix_block(channels: Sequence[Samples] | Samples, gains: Samples | None) -> Samples:
    powers = [float(np.dot(channel, channel)) for channel in channels]
    if gains is None:
        least = max(powers) * SILENT
        heard = [power > least for power in powers]
        weights = [one / max(1, sum(heard)) for one in heard]
    else:
        weights = gains.tolist()
    mixed = channels[0] * np.float32(weights[0])
    for channel, weight in zip(channels[1:], weights[1:], strict=True):
        if weight:
            mixed += channel * np.float32(weight)
    expected = sum(weight * weight * power for weight, power in zip(weights, powers, strict=True))
    if np.dot(mixed, mixed) < CANCELLED * expected - _TINY:
        return _inverted(channels, np.array(weights, np.float32))
    return mixed


def _inverted(channels: Sequence[Samples] | Samples, weights: Samples) -> Samples:
    """The mix of channels in which those that oppose the loudest one are inverted."""
    powers = [weight * weight * np.dot(part, part) for weight, part in zip(weights, channels, strict=True)]
    loudest = channels[int(np.argmax(powers))]
    signs = [-1 if np.dot(part, loudest) < 0 else 1 for part in channels]
    total: Samples = sum(weight * sign * part for weight, sign, part in zip(weights, signs, channels, strict=True))
    return total


def _means(powers: Samples) -> Samples:
    """The weight of each channel in each block."""
    heard = powers > powers.max(axis=0) * SILENT
    heard |= ~heard.any(axis=0)
    weights: Samples = heard / heard.sum(axis=0, dtype=np.float32)
    return weights.astype(np.float32)
