#!/usr/bin/env python3
"""Synthesise the demo model's corpora, training features and evaluation recordings, in shards with fixed seeds.

    python tools/model/generate.py --out build/model

The same seeds give the same shards for any number of processes. Requires espeak-ng, flite and festival
(docs/models.md).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: a thread a core in every process costs a factor of three

import grammar
import numpy as np
import voices
from mel import log_power

from asrserver.audio import SAMPLE_RATE

SEED = 20261124

#: Sentences a shard.
SHARD = 500

#: What training hears: by kind, how its sentences are drawn, and shards of each language.
KINDS: dict[str, tuple[grammar.Draw, dict[str, int]]] = {
    "train": (grammar.sentence, {"en": 56, "zh": 36}),
    "scrambled": (grammar.scrambled, {"en": 28, "zh": 18}),
    "dictated": (grammar.dictated, {"en": 12, "zh": 8}),
}

#: Sentences of each evaluation set that is drawn.
EVALUATION = {"heard": 400, "unheard": 200, "festival": 60}


def train_shard(task: tuple[Path, str, str, int]) -> float:
    """Features of one training shard: log10 power, [frames, mels] float16, and what is said when. Returns seconds."""
    out, kind, language, number = task
    rng = random.Random(f"{SEED} {kind} {language} {number}")
    draw, _ = KINDS[kind]
    pieces, records, frames = [], [], 0
    for _ in range(SHARD):
        text = grammar.draw(language, rng, evaluation=False, by=draw)
        speech = voices.speak(text, language, rng)
        features = log_power(speech.samples.astype(np.float32) / 32768).astype(np.float16)
        pieces.append(features)
        words = [(word, round(start, 3), round(end, 3)) for word, start, end in speech.words]
        records.append({"language": language, "words": words, "frames": len(features)})
        frames += len(features)
    np.savez(out / f"{kind}-{language}-{number:03}.npz", features=np.concatenate(pieces), records=json.dumps(records))
    return frames / 100


def evaluation_set(task: tuple[Path, str, str]) -> float:
    """Recordings of one evaluation set, as they are spoken. Returns seconds."""
    out, name, language = task
    rng = random.Random(f"{SEED} evaluation {name} {language}")
    if name == "fixed":
        texts = grammar.fixed(language) * 10
    else:
        texts = [grammar.draw(language, rng, evaluation=True) for _ in range(EVALUATION[name])]
    if name == "festival":
        spoken = voices.festival(texts)
    else:
        spoken = [voices.speak(text, language, rng, unheard=name == "unheard") for text in texts]
    records = [
        {"language": language, "voice": speech.voice, "words": speech.words, "samples": len(speech.samples)}
        for speech in spoken
    ]
    samples = np.concatenate([speech.samples for speech in spoken])
    np.savez(out / f"evaluation-{name}-{language}.npz", samples=samples, records=json.dumps(records))
    return len(samples) / SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/model"), help="directory of the corpora")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the training shards to make")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("heard", "unheard", "fixed")
    sets = [(options.out, name, language) for name in names for language in grammar.LANGUAGES]
    sets.append((options.out, "festival", "en"))
    shards = [
        (options.out, kind, language, number)
        for kind, (_, shards) in KINDS.items()
        for language in grammar.LANGUAGES
        for number in range(round(shards[language] * options.share))
    ]
    # Spawned, so that each process has its own synthesisers from the start.
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=8) as pool:
        evaluated = sum(pool.imap_unordered(evaluation_set, sets))
        trained = sum(pool.imap_unordered(train_shard, shards))
    print(f"training: {trained / 3600:.1f} h, evaluation: {evaluated / 3600:.2f} h of speech in {options.out}")


if __name__ == "__main__":
    main()
