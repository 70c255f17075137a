#!/usr/bin/env python
"""Make the package's file of Silero's weights from the ONNX file that faster-whisper ships.

    tools/extract_silero.py                  asrserver/data/silero/silero-vad-v6.npz
    tools/extract_silero.py --reference      tests/data/silero-vad-v6.npz: onnxruntime's output for a recording

A new release of faster-whisper may contain another network, under the same or another name. The package's file then
stays as it is until the code is changed too: asrserver/inference/silero.py is written for this network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faster_whisper
import numpy as np

from asrserver.audio import files

ROOT = Path(__file__).resolve().parents[1]
ASSET = Path(faster_whisper.__file__).parent / "assets" / "silero_vad_v6.onnx"

#: The hash of the ONNX file in faster-whisper 1.2.1, the only one that this program can read.
SHA256 = "4cbf549b8326f60f80f2536d9eefeb450a9abe83365a098031c89719f1be17d2"

WEIGHTS = ROOT / "asrserver" / "data" / "silero" / "silero-vad-v6.npz"
REFERENCE = ROOT / "tests" / "data" / "silero-vad-v6.npz"

#: Samples of a frame, and of the audio before it that the network also gets (16 kHz).
FRAME = 512
CONTEXT = 64

#: Frames of the reference: two seconds.
FRAMES = 64


def known() -> bool:
    """Whether the installed faster-whisper contains this file."""
    return ASSET.is_file() and hashlib.sha256(ASSET.read_bytes()).hexdigest() == SHA256


def weights(model: bytes) -> dict[str, np.ndarray]:
    """Read the network's arrays from an ONNX file, under our names.

    window                     [256], before the spectrum
    conv0..3.weight, .bias     [outputs, inputs, taps], [outputs]
    lstm.input, .recurrent     [4 · 128, 128]; gates in ONNX's order: input, output, forget, cell
    lstm.bias                  [2 · 4 · 128], of input and recurrent
    output.weight, .bias       [128], [1]
    """
    found = tensors(model)
    # The spectrum is a convolution with cosines and sines under a window; the first cosine is 1 everywhere.
    arrays = {"window": found["encoder.feature_extractor.forward_basis_buffer"][0, 0]}
    for layer in range(4):
        for part in ("weight", "bias"):
            arrays[f"conv{layer}.{part}"] = found[f"encoder.conv_layers.{layer}.{part}"]
    for name, number in (("input", 209), ("recurrent", 210), ("bias", 211)):
        arrays[f"lstm.{name}"] = found[f"onnx::LSTM_{number}"][0]
    arrays["output.weight"] = found["decoder.conv1d.weight"][0, :, 0]
    arrays["output.bias"] = found["decoder.conv1d.bias"]
    return arrays


def tensors(model: bytes) -> dict[str, np.ndarray]:
    """The float tensors of an ONNX file by name.

    ModelProto.graph is field 7, GraphProto.initializer 5; of a TensorProto dims are 1, data_type 2 (1 is float),
    name 8, raw_data 9 (onnx.proto).
    """
    found = {}
    for graph in (value for field, value in _fields(model) if field == 7):
        for tensor in (value for field, value in _fields(graph) if field == 5):
            parts = list(_fields(tensor))
            entries = dict(parts)
            if entries.get(2) == 1 and 9 in entries:
                shape = [value for field, value in parts if field == 1]
                found[entries[8].decode()] = np.frombuffer(entries[9], "<f4").reshape(shape)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a protocol buffer; the value is an integer or, with a length, bytes."""
    at = 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = integer()
        if tag & 7 == 0:
            yield tag >> 3, integer()
            continue
        length = {1: 8, 5: 4}.get(tag & 7) or integer()
        yield tag >> 3, message[at : at + length]
        at += length


def reference() -> dict[str, np.ndarray]:
    """A recording with a pause, and onnxruntime's output for it: from the zero state, and from the state at its end.

    samples         [CONTEXT + FRAMES · FRAME], 16-bit
    probabilities   [2, FRAMES]
    states          [2, 2 · 128], after each: hidden, cell
    """
    from faster_whisper.vad import get_vad_model

    folder = ROOT / "tests" / "data" / "utterances"
    names = list(json.loads((folder / "transcripts.json").read_text()))[:2]
    said = [files.decode((folder / name).read_bytes(), "ogg", 60) for name in names]
    recording = np.concatenate([said[0][:16000], np.zeros(5000, np.float32), said[1]])
    samples = (recording[: CONTEXT + FRAMES * FRAME] * 32767).astype("<i2")
    frames = frames_of(samples)
    h = c = np.zeros((1, 1, 128), np.float32)
    probabilities, states = [], []
    for _ in range(2):
        found, h, c = get_vad_model().session.run(None, {"input": frames, "h": h, "c": c})
        probabilities.append(np.ravel(found))
        states.append(np.concatenate([h.ravel(), c.ravel()]))
    return {"samples": samples, "probabilities": np.stack(probabilities), "states": np.stack(states)}


def frames_of(samples: np.ndarray) -> np.ndarray:
    """Make the network's input, [frames, CONTEXT + FRAME], from 16-bit samples."""
    scaled = samples.astype(np.float32) / 32768
    return np.lib.stride_tricks.sliding_window_view(scaled, CONTEXT + FRAME)[::FRAME].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Extract Silero's weights from faster-whisper's ONNX file.")
    parser.add_argument("--reference", action="store_true", help="record onnxruntime's output, for the tests")
    arguments = parser.parse_args()
    if not known():
        parser.error(f"{ASSET} is not the file whose SHA-256 is {SHA256}")
    target = REFERENCE if arguments.reference else WEIGHTS
    arrays = reference() if arguments.reference else weights(ASSET.read_bytes())
    np.savez(target, allow_pickle=False, **arrays)
    print(f"{target.relative_to(ROOT)}: {', '.join(arrays)}")


if __name__ == "__main__":
    main()
