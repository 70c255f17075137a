#!/usr/bin/env python3
"""Make a checkpoint for further training from a converted model: the inverse of convert.py, as exact as int8 allows.

    python tools/model/restore.py --model asrserver/data/demo-model --out build/model/demo.pt

The CTC head is missing, because a converted model has none: `train.py --resume` then trains without its loss.
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from mel import MELS
from network import Shape, Whisper
from vocabulary import Vocabulary, build

#: Types of a model.bin's variables by their number (ctranslate2/specs/model_spec.py).
TYPES = ("<f4", "i1", "<i2", "<i4", "<f2")


def variables(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a model.bin by name; int8 weights are dequantised."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        at += struct.calcsize(kind)
        return int(struct.unpack_from(kind, data, at - struct.calcsize(kind))[0])

    def text() -> str:
        nonlocal at
        length = number("<H")
        at += length
        return data[at - length : at - 1].decode()

    number("<I"), text(), number("<I")  # version of the format, kind of model, its revision
    found = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        kind, size = TYPES[number("<B")], number("<I")
        found[name] = np.frombuffer(data[at : at + size], kind).reshape(shape)
        at += size
    for name in [name for name in found if name.endswith("_scale")]:
        scale, weight = found.pop(name), name.removesuffix("_scale")
        found[weight] = found[weight].astype(np.float32) / scale.reshape(-1, *[1] * (found[weight].ndim - 1))
    return found


def state_of(found: dict[str, np.ndarray], shape: Shape) -> dict[str, torch.Tensor]:
    """The network's weights by the names that they have there, but for the CTC head's."""
    state: dict[str, np.ndarray] = {}

    def linear(source: str, *names: str, keys: tuple[str, ...] = ()) -> None:
        weights, biases = (np.split(found[f"{source}/{part}"], len(names)) for part in ("weight", "bias"))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            state[f"{name}.weight"] = weight
            if name not in keys:
                state[f"{name}.bias"] = bias

    def norm(source: str, name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = found[f"{source}/gamma"], found[f"{source}/beta"]

    def block(source: str, name: str) -> None:
        norm(f"{source}/self_attention/layer_norm", f"{name}.attention_norm")
        parts = [f"{name}.attention.{part}" for part in ("query", "key", "value")]
        linear(f"{source}/self_attention/linear_0", *parts, keys=(parts[1],))
        linear(f"{source}/self_attention/linear_1", f"{name}.attention.out")
        norm(f"{source}/ffn/layer_norm", f"{name}.mlp_norm")
        linear(f"{source}/ffn/linear_0", f"{name}.rise")
        linear(f"{source}/ffn/linear_1", f"{name}.fall")

    for name in ("conv1", "conv2"):
        linear(f"encoder/{name}", name)
    state["positions"] = found["encoder/position_encodings/encodings"]
    norm("encoder/layer_norm", "encoder_norm")
    for number in range(shape.encoder_layers):
        block(f"encoder/layer_{number}", f"encoder.{number}")
    state["tokens.weight"] = found["decoder/embeddings/weight"]
    state["text_positions"] = found["decoder/position_encodings/encodings"]
    norm("decoder/layer_norm", "decoder_norm")
    for number in range(shape.decoder_layers):
        source, name = f"decoder/layer_{number}", f"decoder.{number}"
        block(source, name)
        norm(f"{source}/attention/layer_norm", f"{name}.cross_norm")
        linear(f"{source}/attention/linear_0", f"{name}.cross.query")
        linear(f"{source}/attention/linear_1", f"{name}.cross.key", f"{name}.cross.value", keys=(f"{name}.cross.key",))
        linear(f"{source}/attention/linear_2", f"{name}.cross.out")
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("asrserver/data/demo-model"))
    parser.add_argument("--out", type=Path, default=Path("build/model/demo.pt"))
    options = parser.parse_args()
    vocabulary = Vocabulary(build())
    shape = Shape(MELS, vocabulary.size, len(vocabulary.alphabet))
    network = Whisper(shape)
    missing, unknown = network.load_state_dict(state_of(variables(options.model / "model.bin"), shape), strict=False)
    if set(missing) != {"ctc.weight", "ctc.bias"} or unknown:
        raise SystemExit(f"{options.model} is not of this shape: {missing} are missing, {unknown} unknown")
    state = network.state_dict()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"shape": asdict(shape), "step": 0, "model": state, "raw": state}, options.out)


if __name__ == "__main__":
    main()
