"""Silero, the network that says how likely a frame is speech, for many recordings at once.

The weights are those of Silero VAD v6 for 16 kHz (data/silero/README.md), which is published as an ONNX graph. That
keeps the state of one recording, so onnxruntime can only be called recording by recording, and of a few frames at a
time it makes 60 to 120 µs of CPU a frame: nearly all of it in convolutions of four steps, a shape that it has no fast
way for. Here they are products of matrices, over the frames of all recordings together: 15 to 40 µs a frame
(tools/bench_vad.py). Tests compare the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from asrserver.audio.pcm import Samples
from asrserver.errors import ModelError

#: Samples of a frame, and of the audio before it that is heard with it.
FRAME = 512
CONTEXT = 64

#: Units of the network's state.
UNITS = 128

#: Steps of the spectrum in a frame, the samples from step to step, and those that a step looks at.
_STEPS = 4
_HOP = 128
_FFT = 256

#: Frames that go through the convolutions at once: their intermediate results stay in the processor's cache.
_TOGETHER = 64

_Array = np.ndarray[Any, np.dtype[np.float32]]


class Stretch:
    """Frames in a row of one recording, [frames, CONTEXT + FRAME] samples, and the state before them.

    Once it is heard, `probabilities` has a number for each frame, and `state` is the one after them.
    """

    __slots__ = ("frames", "probabilities", "state")

    def __init__(self, frames: Samples, state: _Array | None) -> None:
        self.frames = frames
        self.state = np.zeros(2 * UNITS, np.float32) if state is None else state
        self.probabilities = np.zeros(0, np.float32)


def hear(stretches: Sequence[Stretch]) -> None:
    """Fill in the probabilities and states of stretches; they have nothing to do with each other."""
    stretches = sorted((one for one in stretches if len(one.frames)), key=lambda one: -len(one.frames))
    if not stretches:
        return
    net = _network()
    heard = net.encode(np.concatenate([one.frames for one in stretches]))
    lengths = np.array([len(one.frames) for one in stretches])
    firsts = np.cumsum(lengths) - lengths
    state = np.stack([one.state for one in stretches])
    hidden, cell = state[:, :UNITS].copy(), state[:, UNITS:].copy()
    outputs = np.empty((len(heard), UNITS), np.float32)
    for step in range(lengths[0]):
        count = int(np.searchsorted(-lengths, -step))  # the longest come first: those that have such a frame
        rows = firsts[:count] + step
        net.step(heard[rows], hidden[:count], cell[:count])
        outputs[rows] = hidden[:count]
    probabilities = net.decode(outputs)
    for number, (one, first) in enumerate(zip(stretches, firsts.tolist(), strict=True)):
        one.probabilities = probabilities[first : first + len(one.frames)]
        one.state = np.concatenate([hidden[number], cell[number]])


class _Network:
    def __init__(self, weights: dict[str, _Array]) -> None:
        # Its spectrum is a convolution with cosines and sines under a window: an FFT takes a third of the time.
        # (Times its length, for norm="forward": see features.py.)
        self._window = _FFT * weights["window"]
        self._layers = [(_taps(weights[f"conv{n}.weight"]), weights[f"conv{n}.bias"]) for n in range(4)]
        # Of one step with padding on both sides only the middle tap of the last layer hears anything.
        last, bias = self._layers[3]
        self._layers[3] = last[64:128].copy(), bias
        # The gates are input, output, forget, cell (ONNX's LSTM); a half of each argument, for sigmoid by tanh.
        halves = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], np.float32), UNITS)[:, None]
        lstm = weights["lstm.input"], weights["lstm.recurrent"]
        self._input, self._recurrent = (np.ascontiguousarray((matrix * halves).T) for matrix in lstm)
        biases = weights["lstm.bias"]
        self._bias = (biases[: 4 * UNITS] + biases[4 * UNITS :]) * halves[:, 0]
        self._output = weights["output.weight"]
        self._output_bias = weights["output.bias"][0]

    def encode(self, frames: Samples) -> _Array:
        """What the state's gates get of each frame."""
        blocks = [self._encode(frames[at : at + _TOGETHER]) for at in range(0, len(frames), _TOGETHER)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _encode(self, frames: Samples) -> _Array:
        count = len(frames)
        padded = np.empty((count, CONTEXT + FRAME + 64), np.float32)
        padded[:, : CONTEXT + FRAME] = frames
        padded[:, CONTEXT + FRAME :] = frames[:, -2:-66:-1]  # reflected at the end
        steps = np.ndarray((count, _STEPS, _FFT), np.float32, padded, 0, (padded.strides[0], 4 * _HOP, 4))
        bins = _FFT // 2 + 1
        loudness = np.zeros((count, _STEPS + 2, bins), np.float32)  # with a step of padding on both sides
        np.abs(np.fft.rfft(steps * self._window, axis=2, norm="forward"), out=loudness[:, 1:-1])
        first = self._convolve(0, _windows(loudness.reshape(count, -1), 4, bins, 3 * bins))
        second = self._convolve(1, _windows(_surrounded(first, count, 4), 2, 2 * 128, 3 * 128))
        third = self._convolve(2, _windows(_surrounded(second, count, 2), 1, 0, 3 * 64))
        found: _Array = self._convolve(3, third) @ self._input
        found += self._bias
        return found

    def _convolve(self, layer: int, windows: _Array) -> _Array:
        weights, bias = self._layers[layer]
        found: _Array = windows @ weights
        found += bias
        return np.maximum(found, 0, out=found)

    def step(self, heard: _Array, hidden: _Array, cell: _Array) -> None:
        """One frame of each recording: its states are changed in place."""
        heard += hidden @ self._recurrent
        np.tanh(heard, out=heard)
        gates = heard[:, : 3 * UNITS]
        gates += 1
        gates *= 0.5
        cell *= gates[:, 2 * UNITS :]
        cell += gates[:, :UNITS] * heard[:, 3 * UNITS :]
        np.multiply(gates[:, UNITS : 2 * UNITS], np.tanh(cell), out=hidden)

    def decode(self, hidden: _Array) -> _Array:
        """The probabilities."""
        found: _Array = np.maximum(hidden, 0) @ self._output + self._output_bias
        np.exp(-found, out=found)
        found += 1
        return np.reciprocal(found, out=found)


def _taps(weight: _Array) -> _Array:
    """Of a convolution, [outputs, inputs, taps], the matrix that takes what all taps hear in a row."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))


def _windows(rows: _Array, count: int, hop: int, length: int) -> _Array:
    """`count` windows of each row, so far apart and so long, as one matrix."""
    shape, strides = (len(rows), count, length), (rows.strides[0], 4 * hop, 4)
    view = np.ndarray(shape, np.float32, rows, 0, strides)
    return view.reshape(len(rows) * count, length)


def _surrounded(layer: _Array, count: int, steps: int) -> _Array:
    """A layer's steps, a row for each frame, with a step of zeros before them and one after."""
    width = layer.shape[1]
    rows = np.zeros((count, (steps + 2) * width), np.float32)
    rows[:, width:-width] = layer.reshape(count, -1)
    return rows


@cache
def _network() -> _Network:
    path = Path(str(files("asrserver").joinpath("data", "silero", "silero-vad-v6.npz")))
    try:
        with path.open("rb") as file, np.load(file) as weights:
            return _Network(dict(weights))
    except (OSError, EOFError, LookupError, ValueError, BadZipFile) as exc:
        raise ModelError(f"the weights of Silero cannot be read: {path}: {exc!r}") from exc
