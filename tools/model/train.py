#!/usr/bin/env python3
"""Train the demo model on a generated corpus.

    python tools/model/train.py --corpus build/model --out build/model/demo.pt

Three losses: the next token; CTC on the encoder's output, without which attention does not align for thousands of
steps; and the attention's weight on the frames of each word, which the synthesis knows: with it attention aligns within
hundreds of steps, and word times can be trusted.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from corpus import Corpus, Row
from mel import MELS
from network import Shape, Whisper
from torch import Tensor
from torch.nn import functional as F
from vocabulary import Vocabulary, build

SEED = 7
CTC_WEIGHT = 0.3
ATTENTION_WEIGHT = 0.3
LANGUAGE_WEIGHT = 0.2

#: Encoder steps around a word on which attention may lie: 60 ms.
SLACK = 3

#: Share of decoder inputs replaced by a random token, so that one error does not bring the next.
CONFUSION = 0.03

#: Steps to the highest rate, and the share of the time that has short rows alone.
WARM_UP = 300
FIRST = 0.1

#: Seconds: what a longer step took, the machine was asleep or busy with something else, and the rate waits for it.
LONGEST_STEP = 2.0

#: Of the running mean of the weights, which is what is kept.
DECAY = 0.999


class Batch:
    """Rows as tensors; inputs, targets and spans are of their readings, one after another."""

    def __init__(self, rows: list[Row], vocabulary: Vocabulary, rng: np.random.Generator) -> None:
        self.features = torch.from_numpy(np.stack([row.features for row in rows]))
        readings = [reading for row in rows for reading in row.readings]
        first = np.cumsum([0, *(len(row.readings) for row in rows)])[:-1]
        self.rows = torch.tensor([n for n, row in enumerate(rows) for _ in row.readings])
        self.places = torch.tensor([place for row in rows for place, _ in enumerate(row.readings)])
        length = max(len(reading.inputs) for reading in readings)
        count = len(readings)
        inputs = np.full((count, length), vocabulary.eot)
        targets = np.full((count, length), -1)
        spans = np.full((count, length, 2), -1.0, np.float32)
        for n, reading in enumerate(readings):
            inputs[n, : len(reading.inputs)] = reading.inputs
            targets[n, : len(reading.targets)] = reading.targets
            spans[n, : len(reading.spans)] = reading.spans
        confused = (rng.random(inputs.shape) < CONFUSION) & (inputs < vocabulary.eot)
        inputs[confused] = rng.integers(256, vocabulary.eot, int(confused.sum()))
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)
        self.spans = torch.from_numpy(spans)
        letters = {token: letter for letter, token in enumerate(vocabulary.alphabet)}
        texts = [row.readings[0].text for row in rows]
        self.texts = torch.tensor([letters[token] for text in texts for token in text], dtype=torch.long)
        self.lengths = torch.tensor([len(text) for text in texts])
        heard = [(n, row.hears, row.language) for n, row in zip(first, rows, strict=True) if row.hears >= 0]
        self.heard = torch.tensor(heard, dtype=torch.long).reshape(-1, 3)

    def to(self, device: torch.device) -> Batch:
        """Itself, with its tensors there."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self


def losses(model: Whisper, batch: Batch, vocabulary: Vocabulary) -> dict[str, Tensor]:
    states, ctc, weights = model(batch.features, batch.inputs, batch.rows)
    readings, positions = (batch.targets >= 0).nonzero(as_tuple=True)  # what is padding needs no logits
    logits = model.logits(states[readings, positions])
    missed = F.cross_entropy(logits, batch.targets[readings, positions], reduction="none")
    told = missed.new_zeros(len(states)).index_add(0, readings, -missed)
    # Any reading of a row will do: what counts is how likely one or another of them is.
    likely = told.new_full((len(batch.features), int(batch.places.max()) + 1), -math.inf)
    likely = likely.index_put((batch.rows, batch.places), told).logsumexp(1)
    token = -likely.sum() / (len(missed) * len(likely) / len(told))
    steps = torch.full((len(ctc),), ctc.shape[1], device=ctc.device)
    spoken = F.ctc_loss(
        ctc.log_softmax(-1).transpose(0, 1), batch.texts, steps, batch.lengths,
        blank=len(vocabulary.alphabet), reduction="sum", zero_infinity=True,
    ) / max(len(batch.texts), 1)  # fmt: skip
    time = torch.arange(ctc.shape[1], device=ctc.device)
    start, end = batch.spans[..., :1], batch.spans[..., 1:]
    within = (time >= start - SLACK) & (time <= end + SLACK) & (start >= 0)
    mass = (weights.mean(1) * within).sum(-1)[batch.spans[..., 0] >= 0]
    attention = -mass.clamp_min(1e-4).log().mean() if len(mass) else token.new_zeros(())
    languages = list(vocabulary.languages.values())
    language = token.new_zeros(())
    if len(batch.heard):
        rows, places, spoken_in = batch.heard.T
        language = F.cross_entropy(model.logits(states[rows, places])[:, languages], spoken_in - languages[0])
    return {"token": token, "ctc": spoken, "attention": attention, "language": language}


def optimisers_for(model: Whisper) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices; AdamW for embeddings, convolutions, norms, biases and the
    CTC head.

    AdamW for all of them took 1.4 times as long to the same losses.
    """
    layers = [*model.encoder.parameters(), *model.decoder.parameters()]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    chosen = set(matrices)
    rest = [parameter for parameter in model.parameters() if parameter not in chosen]  # in order: a checkpoint keeps it
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def ahead(corpus: Corpus, vocabulary: Vocabulary, device: torch.device) -> Iterator[Batch]:
    """Batches made in a thread beside the training."""
    made: queue.Queue[Batch] = queue.Queue(4)
    rng = np.random.default_rng(SEED)

    def make() -> None:
        for rows in corpus.batches():
            made.put(Batch(rows, vocabulary, rng))

    threading.Thread(target=make, daemon=True).start()
    while True:
        yield made.get().to(device)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("build/model"))
    parser.add_argument("--out", type=Path, default=Path("build/model/demo.pt"))
    parser.add_argument("--minutes", type=float, default=100, help="duration; the learning rate falls to 0 by then")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    parser.add_argument("--resume", type=Path, help="checkpoint to continue from, with a new learning rate schedule")
    for name in ("width", "heads", "encoder_layers", "decoder_layers", "encoder_inner", "decoder_inner"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Shape, name))
    return parser.parse_args()


def resume(path: Path, model: Whisper, averaged: Whisper, optimisers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load a checkpoint; returns its number of steps and the weight of the CTC loss from there on."""
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["raw"])
    averaged.load_state_dict(state["model"])
    if "optimiser" not in state:  # restored: attention is in place, and an untrained CTC head would only disturb it
        return state["step"], 0.0
    if not isinstance(state["optimiser"], list):
        raise SystemExit(f"{path} is older than Muon here: restore.py makes a checkpoint to continue from")
    for optimiser, kept in zip(optimisers, state["optimiser"], strict=True):
        optimiser.load_state_dict(kept)
    return state["step"], CTC_WEIGHT


def main() -> None:
    options = parse_options()
    torch.set_flush_denormal(True)  # moments of rare tokens; before there are other threads, which take it over
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(SEED)
    vocabulary = Vocabulary(build())
    size = {name: getattr(options, name) for name in ("width", "heads", "encoder_layers", "decoder_layers")}
    inner = {name: getattr(options, name) for name in ("encoder_inner", "decoder_inner")}
    model = Whisper(Shape(MELS, vocabulary.size, len(vocabulary.alphabet), **size, **inner)).to(device)
    averaged = deepcopy(model)
    optimisers = optimisers_for(model)
    step = first = 0
    ctc_weight = CTC_WEIGHT
    if options.resume:
        step, ctc_weight = resume(options.resume, model, averaged, optimisers)
        first = step
    corpus = Corpus(options.corpus, vocabulary, SEED + step)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {vocabulary.size} tokens", flush=True)
    minutes, last, reported = 0.0, time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    for batch in ahead(corpus, vocabulary, device):
        now = time.monotonic()
        minutes += min(now - last, LONGEST_STEP) / 60
        last, done = now, minutes / options.minutes
        corpus.first = done < FIRST and not options.resume
        if done >= 1:
            break
        rate = options.rate * min((step - first + 1) / WARM_UP, 1) * (0.505 + 0.495 * math.cos(math.pi * done))
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        parts = losses(model, batch, vocabulary)
        loss = (
            parts["token"]
            + ctc_weight * parts["ctc"]
            + ATTENTION_WEIGHT * parts["attention"]
            + LANGUAGE_WEIGHT * parts["language"]
        )
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(DECAY, step / (step + 20))
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        step += 1
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        if step % 100 == 0:
            means = " ".join(f"{name} {total / 100:.3f}" for name, total in sums.items())
            print(f"{step} {minutes:.1f} min {(now - reported) * 10:.0f} ms/step {means}", flush=True)
            reported, sums = now, {}
        if step % 500 == 0:
            save(options.out, model, averaged, optimisers, step)
    save(options.out, model, averaged, optimisers, step)


def save(path: Path, model: Whisper, averaged: Whisper, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "shape": asdict(model.shape), "step": step,
        "model": averaged.state_dict(), "raw": model.state_dict(),
        "optimiser": [optimiser.state_dict() for optimiser in optimisers],
    }  # fmt: skip
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
