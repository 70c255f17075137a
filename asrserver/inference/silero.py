"""Silero VAD: the network that says how probable speech is in a frame, for many recordings in one call.

The weights are those of Silero VAD v6 for 16 kHz (data/silero/README.md), which is published as an ONNX graph. That
graph holds the state of one recording, so onnxruntime must be called for each recording, and with a few frames per call
it takes 60 to 120 µs of CPU a frame: nearly all of it in convolutions of four steps, a shape for which it has no fast
path. Here the convolutions are matrix products over the frames of all recordings together: 15 to 40 µs a frame
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

#: Samples of a frame.
FRAME = 512

#: Samples before a frame that the network gets with it.
FRAME_CONTEXT = 64

#: Units of the network's LSTM.
UNITS = 128

#: Steps of a frame's spectrum, samples between the starts of two steps, and samples of a step.
_STEPS = 4
_HOP = 128
_FFT = 256

#: Frames that go through the convolutions at once: their intermediate results stay in the processor's cache.
_BLOCK_FRAMES = 64

_Array = np.ndarray[Any, np.dtype[np.float32]]


class FrameRun:
    """Consecutive frames of one recording.

    Attributes:
        frames: float32 [frames, FRAME_CONTEXT + FRAME].
        state: The network's state, float32 [2 × UNITS] (hidden, cell): before the frames; once scored, after them.
        probabilities: Once scored, the probability of speech in each frame, float32 [frames].
    """

    __slots__ = ("frames", "probabilities", "state")

    def __init__(self, frames: Samples, state: _Array | None) -> None:
        """Take frames, and the state before them; None: the recording begins here."""
        self.frames = frames
        self.state = np.zeros(2 * UNITS, np.float32) if state is None else state
        self.probabilities = np.zeros(0, np.float32)


def score(runs: Sequence[FrameRun]) -> None:
    """Compute the probabilities and new states of runs, each of a different recording, in place.

    Raises:
        ModelError: The weights cannot be read.
    """
    runs = sorted((run for run in runs if len(run.frames)), key=lambda run: -len(run.frames))
    if not runs:
        return
    net = _network()
    inputs = net.encode(np.concatenate([run.frames for run in runs]))
    lengths = np.array([len(run.frames) for run in runs])
    firsts = np.cumsum(lengths) - lengths
    state = np.stack([run.state for run in runs])
    hidden, cell = state[:, :UNITS].copy(), state[:, UNITS:].copy()
    outputs = np.empty((len(inputs), UNITS), np.float32)
    for step in range(lengths[0]):
        count = int(np.searchsorted(-lengths, -step))  # runs that have this frame: the longest come first
        rows = firsts[:count] + step
        net.step(inputs[rows], hidden[:count], cell[:count])
        outputs[rows] = hidden[:count]
    probabilities = net.decode(outputs)
    for number, (run, first) in enumerate(zip(runs, firsts.tolist(), strict=True)):
        run.probabilities = probabilities[first : first + len(run.frames)]
        run.state = np.concatenate([hidden[number], cell[number]])


class _Network:
    """Spectrum, four convolutions and an LSTM. All arrays are float32."""

    def __init__(self, weights: dict[str, _Array]) -> None:
        # The graph's spectrum is a convolution with windowed cosines and sines: an FFT takes a third of the time. (The
        # window is multiplied by the FFT's length for norm="forward": see features.py.)
        self._window = _FFT * weights["window"]
        self._layers = [(_taps(weights[f"conv{n}.weight"]), weights[f"conv{n}.bias"]) for n in range(4)]
        # The last layer sees one step, padded on both sides: only its middle tap has an effect.
        last, bias = self._layers[3]
        self._layers[3] = last[64:128].copy(), bias
        # The gates are input, output, forget, cell (ONNX's LSTM). The arguments of the first three are halved, because
        # sigmoid(x) = (tanh(x / 2) + 1) / 2.
        halves = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], np.float32), UNITS)[:, None]
        lstm = weights["lstm.input"], weights["lstm.recurrent"]
        self._input, self._recurrent = (np.ascontiguousarray((matrix * halves).T) for matrix in lstm)
        biases = weights["lstm.bias"]
        self._bias = (biases[: 4 * UNITS] + biases[4 * UNITS :]) * halves[:, 0]
        self._output = weights["output.weight"]
        self._output_bias = weights["output.bias"][0]

    def encode(self, frames: Samples) -> _Array:
        """[frames, FRAME_CONTEXT + FRAME] samples → the frames' share of the gates' arguments, [frames, 4 × UNITS]."""
        blocks = [self._encode(frames[at : at + _BLOCK_FRAMES]) for at in range(0, len(frames), _BLOCK_FRAMES)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _encode(self, frames: Samples) -> _Array:
        count = len(frames)
        padded = np.empty((count, FRAME_CONTEXT + FRAME + 64), np.float32)
        padded[:, : FRAME_CONTEXT + FRAME] = frames
        padded[:, FRAME_CONTEXT + FRAME :] = frames[:, -2:-66:-1]  # reflected at the end
        steps = np.ndarray((count, _STEPS, _FFT), np.float32, padded, 0, (padded.strides[0], 4 * _HOP, 4))
        bins = _FFT // 2 + 1
        magnitudes = np.zeros((count, _STEPS + 2, bins), np.float32)  # a step of padding on both sides
        np.abs(np.fft.rfft(steps * self._window, axis=2, norm="forward"), out=magnitudes[:, 1:-1])
        first = self._convolve(0, _windows(magnitudes.reshape(count, -1), 4, bins, 3 * bins))
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

    def step(self, gates: _Array, hidden: _Array, cell: _Array) -> None:
        """One LSTM step for one frame of each recording. All arguments are changed in place.

        Args:
            gates: The frames' share of the gates' arguments, [recordings, 4 × UNITS].
            hidden: Hidden states, [recordings, UNITS].
            cell: Cell states, [recordings, UNITS].
        """
        gates += hidden @ self._recurrent
        np.tanh(gates, out=gates)
        sigmoids = gates[:, : 3 * UNITS]
        sigmoids += 1
        sigmoids *= 0.5
        cell *= sigmoids[:, 2 * UNITS :]
        cell += sigmoids[:, :UNITS] * gates[:, 3 * UNITS :]
        np.multiply(sigmoids[:, UNITS : 2 * UNITS], np.tanh(cell), out=hidden)

    def decode(self, hidden: _Array) -> _Array:
        """Hidden states [frames, UNITS] → probabilities [frames]."""
        found: _Array = np.maximum(hidden, 0) @ self._output + self._output_bias
        np.exp(-found, out=found)
        found += 1
        return np.reciprocal(found, out=found)


def _taps(weight: _Array) -> _Array:
    """A convolution's weights [outputs, inputs, taps] as the matrix [taps × inputs, outputs]."""
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))


def _windows(rows: _Array, count: int, hop: int, length: int) -> _Array:
    """`count` windows of each row, `hop` numbers apart and `length` long, as a matrix [rows × count, length]."""
    shape, strides = (len(rows), count, length), (rows.strides[0], 4 * hop, 4)
    view = np.ndarray(shape, np.float32, rows, 0, strides)
    return view.reshape(len(rows) * count, length)


def _surrounded(layer: _Array, count: int, steps: int) -> _Array:
    """A layer's output [frames × steps, width] as rows [frames, (steps + 2) × width]: with a step of zeros before and
    after each frame's steps."""
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
        raise ModelError(f"Silero's weights cannot be read: {path}: {exc!r}") from exc
