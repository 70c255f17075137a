#!/usr/bin/env python3
"""Measure how accurately a model is served, on a corpus of your own, beside faster-whisper with the same model.

    python tools/accuracy.py --in-process [--corpus DIR] [--model base] [--mode auto,stream,offline]

`--corpus` is a directory with recordings and a manifest.json (see tools/evaluation/corpus.py); without it the packaged
model's test utterances are used. `--in-process` recognises with the server's own code in this process, as fast as the
engine can.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.corpus import CorpusError, Take, load_corpus, load_utterances
from evaluation.inprocess import InProcess
from evaluation.offline import Offline
from evaluation.recognition import Recognise, judge
from evaluation.report import COLUMNS, line, total
from evaluation.scoring import Score

from asrserver.config import Settings, setting_rows
from asrserver.errors import ModelError
from asrserver.inference.worker import load_model

MODES = ("auto", "stream", "offline", "offline-vad")


def settings_of(options: argparse.Namespace) -> Settings:
    """The worker's settings: defaults, then the options."""
    rows = {row.key: row for row in setting_rows() if row.group == "worker"}
    given: dict[str, Any] = {}
    for item in options.set:
        name, _, value = item.partition("=")
        key = name.strip("-").replace("-", "_")
        if key not in rows:
            raise SystemExit(f"--set {item}: {name} is no setting of a worker")
        kind = type(rows[key].default)
        given[key] = kind(value)
    common = {"model": options.model, "device": "cpu", "threads": options.threads, "beam_size": options.beam}
    return replace(Settings(), **common, **given)


async def measure(takes: list[Take], modes: dict[str, Recognise], verbose: bool) -> list[dict[str, Any]]:
    """Recognise all takes in all modes, and print the table as it grows."""
    print(COLUMNS)
    rows = []
    for mode, recognise in modes.items():
        checked: list[Score] = []
        unchecked: list[Score] = []
        for take in takes:
            found = await recognise(take)
            score = judge(take, found)
            (checked if take.checked else unchecked).append(score)
            rows.append({"mode": mode, "name": take.name, "text": found.text, **score.asdict()})
            if verbose and (score.errors or score.noise_words or score.repeats or score.languages):
                said = " | ".join(one.text for one in take.said)
                print(f"  {mode} {take.name} {found.languages}\n    {said}\n    {found.text}", file=sys.stderr)
        print(line("clean", mode, total(checked)), flush=True)
        if unchecked:
            print(line("unchecked", mode, total(unchecked)), flush=True)
    return rows


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    settings = settings_of(options)
    given = options.language == "given"
    model = load_model(settings)
    compute_type = settings.compute_type
    if compute_type == "default":
        compute_type = model.profile.cpu_compute_type
    limit = options.limit
    takes = (
        load_corpus(options.corpus, options.files, limit) if options.corpus else load_utterances(options.files, limit)
    )
    takes = [take for take in takes if not take.language or take.language in model.languages]
    modes: dict[str, Recognise] = {}
    server = InProcess(model, settings, given)
    offline: Offline | None = None
    try:
        for mode in options.mode.split(","):
            if mode.startswith("offline") and offline is None:
                offline = Offline(options.model, compute_type, options.threads, options.beam, given)
            if mode == "offline":
                assert offline is not None
                modes[mode] = offline.plain
            elif mode == "offline-vad":
                assert offline is not None
                modes[mode] = offline.with_vad
            elif mode == "auto":
                modes[mode] = server.auto
            elif mode == "stream":
                modes[mode] = server.stream
            else:
                raise SystemExit(f"--mode {mode}: must be one of {', '.join(MODES)}")
        return await measure(takes, modes, options.verbose)
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="directory with recordings and manifest.json")
    parser.add_argument("--model", default="auto", help="as for asrserver --model")
    parser.add_argument("--mode", default="auto,stream,offline", help=f"of {', '.join(MODES)}, with commas")
    parser.add_argument("--in-process", action="store_true", help="without a server, as fast as the engine can")
    parser.add_argument("--beam", type=int, default=1, help="beam size, of the server and offline")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the engine, and offline")
    parser.add_argument("--language", choices=["given", "detect"], default="detect")
    parser.add_argument("--files", default="*", help="pattern of the names of files")
    parser.add_argument("--limit", type=int, help="most recordings of the corpus")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker")
    parser.add_argument("--verbose", action="store_true", help="print the texts that are not right")
    parser.add_argument("--json", type=Path, help="write the scores of each recording here")
    options = parser.parse_args()
    try:
        rows = asyncio.run(run(options))
    except (CorpusError, ModelError) as exc:
        raise SystemExit(str(exc)) from exc
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
