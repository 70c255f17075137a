#!/usr/bin/env python3
"""Convert a trained checkpoint to a CTranslate2 directory with int8 weights.

python tools/model/convert.py --checkpoint build/model/demo.pt --out asrserver/data/demo-model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from network import Shape
from vocabulary import Vocabulary, build

State = dict[str, torch.Tensor]


def convert(state: State, shape: Shape, vocabulary: Vocabulary, out: Path) -> None:
    """Write model.bin, config.json, vocabulary.json, tokenizer.json and preprocessor_config.json."""
    spec = ctranslate2.specs.WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    weights = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in state.items()}

    def linear(target: Any, *names: str) -> None:
        """One linear layer, or several side by side; a missing bias is zero (Whisper's keys have none)."""
        parts = [weights[f"{name}.weight"] for name in names]
        biases = [weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"]), np.float32)) for name in names]
        target.weight, target.bias = np.concatenate(parts), np.concatenate(biases)

    def norm(target: Any, name: str) -> None:
        target.gamma, target.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def block(target: Any, name: str) -> None:
        norm(target.self_attention.layer_norm, f"{name}.attention_norm")
        linear(target.self_attention.linear[0], *(f"{name}.attention.{part}" for part in ("query", "key", "value")))
        linear(target.self_attention.linear[1], f"{name}.attention.out")
        norm(target.ffn.layer_norm, f"{name}.mlp_norm")
        linear(target.ffn.linear_0, f"{name}.rise")
        linear(target.ffn.linear_1, f"{name}.fall")

    encoder, decoder = spec.encoder, spec.decoder
    for name in ("conv1", "conv2"):
        linear(getattr(encoder, name), name)
    encoder.position_encodings.encodings = weights["positions"]
    norm(encoder.layer_norm, "encoder_norm")
    for number, target in enumerate(encoder.layer):
        block(target, f"encoder.{number}")
    decoder.embeddings.weight = decoder.projection.weight = weights["tokens.weight"]
    decoder.position_encodings.encodings = weights["text_positions"]
    decoder.scale_embeddings = False
    norm(decoder.layer_norm, "decoder_norm")
    for number, target in enumerate(decoder.layer):
        name = f"decoder.{number}"
        block(target, name)
        norm(target.attention.layer_norm, f"{name}.cross_norm")
        linear(target.attention.linear[0], f"{name}.cross.query")
        linear(target.attention.linear[1], f"{name}.cross.key", f"{name}.cross.value")
        linear(target.attention.linear[2], f"{name}.cross.out")

    spec.register_vocabulary(vocabulary.tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [vocabulary.eot]
    spec.config.lang_ids = list(vocabulary.languages.values())
    # The heads that training taught to look at the word being written.
    spec.config.alignment_heads = [[shape.decoder_layers - 1, head] for head in range(shape.heads)]
    spec.validate()
    spec.optimize(quantization="int8")
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))
    vocabulary.tokenizer.save(str(out / "tokenizer.json"))
    preprocessor = {
        "chunk_length": 30, "feature_size": shape.mels, "hop_length": 160, "n_fft": 400, "sampling_rate": 16000
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/model/demo.pt"))
    parser.add_argument("--out", type=Path, default=Path("asrserver/data/demo-model"))
    options = parser.parse_args()
    saved = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    convert(saved["model"], Shape(**saved["shape"]), Vocabulary(build()), options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
