#!/usr/bin/env python3
"""Measure how accurately a model is served, on a corpus of your own, beside faster-whisper with the same model.

    python tools/accuracy.py --corpus DIR --model base                      # a server, in real time
    python tools/accuracy.py --corpus DIR --model base --in-process         # the same texts, in less time
    python tools/accuracy.py --corpus DIR --model base --capacity 1,2,4,8   # streams carried

A corpus is a directory with recordings and a manifest.json: tools/evaluation/corpus.py says what is in it. Without one
the packaged model's test utterances are used. The corpus is recognised in several conditions, which are made of it:
with its own recordings of the condition `none` as noise, with echoes, as over a telephone, joined to long recordings.

`auto` sends a recording as one file, `stream` in pieces of 100 ms; `offline` and `offline-vad` are faster-whisper's
`transcribe`, without and with its voice activity detection. Recordings in another language than most are scored apart,
and so are those whose transcripts nobody has checked. CPU/s is CPU time per second of audio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.capacity import Load, capacity_table, load_of, offline_scores, recordings
from evaluation.conditions import CONDITIONS, JOINED_MINUTES
from evaluation.corpus import CorpusError, Take, load_corpus, load_utterances, spoken_language
from evaluation.delays import delays_of, speech_of, total_delays
from evaluation.inprocess import InProcess
from evaluation.limits import broken_limits, broken_waste
from evaluation.offline import Offline
from evaluation.recognition import Mode, Recognition, judge
from evaluation.report import SCORES, delay_rows, score_row, total, wasted_row
from evaluation.scoring import Score
from evaluation.served import MAX_CHUNK, Served, served

from asrserver.config import Settings, setting_rows
from asrserver.errors import ModelError
from asrserver.inference.profiles import profile_of
from asrserver.inference.worker import load_model
from asrserver.models import find_model

MODES = ("auto", "stream", "offline", "offline-vad")

Rows = list[dict[str, Any]]


def listed(allowed: Sequence[str], what: str) -> Any:
    """A type for argparse: names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{what} {name!r} must be one of {', '.join(allowed)}")
        return names

    return parse


def worker_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given for the worker."""
    rows = {row.key: row for row in setting_rows() if row.group == "worker"}
    given: dict[str, Any] = {"model": options.model, "beam_size": options.beam}
    if options.threads:
        given["threads"] = options.threads
    for item in options.set:
        name, _, value = item.partition("=")
        key = name.strip("-").replace("-", "_")
        if key not in rows:
            raise CorpusError(f"--set {item}: {name!r} is no setting of a worker")
        given[key] = type(rows[key].default)(value)
    return given


def server_arguments(options: argparse.Namespace) -> list[str]:
    """The options of the server, with room for long files."""
    given = [f"--{key.replace('_', '-')}={value}" for key, value in worker_settings(options).items()]
    return [*given, f"--max-message={2 * MAX_CHUNK}", f"--max-chunk={MAX_CHUNK}"]


def offline_of(options: argparse.Namespace) -> Offline:
    """faster-whisper with the model, on all cores, with the compute type that the worker has on a CPU."""
    compute_type = worker_settings(options).get("compute_type", "default")
    if compute_type == "default":
        compute_type = profile_of(find_model(options.model).name).cpu_compute_type
    threads = options.threads or os.cpu_count() or 1
    return Offline(options.model, compute_type, threads, options.beam, options.language == "given")


def modes_of(options: argparse.Namespace, stack: ExitStack) -> dict[str, Mode]:
    """The modes that were asked for; what they start is stopped with the stack."""
    modes: dict[str, Mode] = {}
    server: InProcess | Served
    if {"auto", "stream"} & set(options.mode):
        given = options.language == "given"
        if options.in_process:
            settings = replace(Settings(), **{"threads": os.cpu_count() or 1, **worker_settings(options)}, device="cpu")
            server = InProcess(load_model(settings), settings, given, bool(options.partials))
            stack.callback(server.close)
            spent = server.decoding
            modes |= {"auto": Mode(server.auto, decoding=spent), "stream": Mode(server.stream, decoding=spent)}
        else:
            server = stack.enter_context(
                served(server_arguments(options), given, options.speed, options.partials is not False)
            )
            cpu = server.cpu_seconds
            modes |= {
                "auto": Mode(server.auto, cpu, options.streams, server.decoding),
                "stream": Mode(server.stream, cpu, options.streams, server.decoding),
            }
    if {"offline", "offline-vad"} & set(options.mode):
        offline = offline_of(options)
        modes |= {"offline": Mode(offline.plain), "offline-vad": Mode(offline.with_vad)}
    return {mode: modes[mode] for mode in options.mode}


def corpus_of(options: argparse.Namespace) -> list[Take]:
    """The recordings that were asked for, without those in languages that an English-only model does not know."""
    if options.corpus:
        takes = load_corpus(options.corpus, options.files, options.limit)
    else:
        takes = load_utterances(options.files, options.limit)
    if options.model.endswith(".en"):
        takes = [take for take in takes if take.language in ("", "en")]
    return takes


def group_of(take: Take, condition: str, language: str) -> str:
    """The rows of the table that a recording belongs to."""
    if not take.checked:
        return f"{condition} unchecked"
    return f"{condition} {take.language}" if take.language not in ("", language) else condition


def report(condition: str, mode: str, takes: list[Take], found: list[Recognition], cost: float, main: str) -> Rows:
    """Score recordings in one condition and mode, and print the rows; returns one row for each recording."""
    groups: defaultdict[str, list[Score]] = defaultdict(list)
    rows: Rows = []
    seconds = sum(take.seconds for take in takes)
    for take, one in zip(takes, found, strict=True):
        score = judge(take, one)
        score.cost = cost * take.seconds / seconds
        group = group_of(take, condition, main)
        groups[group].append(score)
        row = {"condition": condition, "group": group, "mode": mode, "name": take.name, "checked": take.checked}
        said = [spoken.text for spoken in take.said]
        rows.append({**row, "said": said, "text": one.text, "languages": one.languages, **score.asdict()})
    for group, scores in groups.items():
        print(score_row(group, mode, total(scores)), flush=True)
    if any(one.messages for one in found):
        delays = total_delays(delays_of(one.messages, speech_of(take)) for take, one in zip(takes, found, strict=True))
        if delays.final:
            print(*(f"    {line}" for line in delay_rows(condition, delays)), sep="\n", flush=True)
            rows.append({"condition": condition, "mode": mode, "delays": delays.asdict()})
    return rows


def scores_of(rows: Rows) -> dict[tuple[str, str], Score]:
    """The score of each group of recordings with a checked transcript, by group and mode."""
    found: defaultdict[tuple[str, str], Score] = defaultdict(Score)
    for row in rows:
        if row.get("checked"):
            found[row["group"], row["mode"]] += Score.of(row)
    return dict(found)


def print_wrong(rows: Rows) -> None:
    """Print the texts that are not right."""
    for row in rows:
        if "said" in row and ((Score.of(row).errors and row["words"]) or row["noise_words"] or row["wrong_languages"]):
            lines = [f"{row['name']} {row['languages']}", " | ".join(row["said"]), row["text"]]
            print("    ", "\n      ".join(lines), sep="", flush=True)


def earlier(options: argparse.Namespace, rows: Rows) -> Rows:
    """The offline rows of an earlier run for recordings that were recognised in this one, printed too.

    Raises:
        CorpusError: The file cannot be read.
    """
    try:
        old = json.loads(options.baseline.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise CorpusError(f"{options.baseline}: {exc}") from exc
    now = {(row["condition"], row["name"], *row["said"]) for row in rows if "said" in row}
    found = [
        row
        for row in old
        if "said" in row and row["mode"] == "offline" and (row["condition"], row["name"], *row["said"]) in now
    ]
    for (group, mode), score in scores_of(found).items():
        print(score_row(group, mode, score))
    return found


async def measure(options: argparse.Namespace, corpus: list[Take]) -> Rows:
    """Recognise the corpus in all conditions and modes, and print the table as it grows."""
    rows: Rows = []
    main = spoken_language(corpus)
    with ExitStack() as stack:
        modes = modes_of(options, stack)
        print(SCORES)
        for condition in options.conditions:
            takes = CONDITIONS[condition](corpus, options.joined_minutes)
            if not takes:
                print(f"{condition:<16}no recordings", flush=True)
                continue
            for name, mode in modes.items():
                before = mode.decoding() if mode.decoding else None
                found, cost = await mode.recognise_all(takes)
                new = report(condition, name, takes, found, cost, main)
                if mode.decoding and before:
                    seconds, wasted = (after - then for after, then in zip(mode.decoding(), before, strict=True))
                    print(f"    {wasted_row(condition, name, seconds, wasted)}", flush=True)
                    new.append({"condition": condition, "mode": name, "decoding": seconds, "wasted": wasted})
                rows += new
                if options.verbose:
                    print_wrong(new)
        if options.baseline:
            rows += earlier(options, rows)
        for name in MODES:
            checked = [score for (_, of), score in scores_of(rows).items() if of == name]
            if checked:
                print(score_row("all", name, total(checked)))
    return rows


async def measure_capacity(options: argparse.Namespace, corpus: list[Take]) -> Rows:
    """Stream to a server with growing load, beside faster-whisper on the same recordings."""
    main = spoken_language(corpus)
    takes = [take for take in corpus if take.said and take.checked and take.language == main]
    if not takes:
        raise CorpusError("the corpus has no recordings of speech with a transcript")
    spoken = recordings(takes, max(options.capacity), options.capacity_seconds)
    speed, offline = await offline_scores(offline_of(options), spoken)
    loads: list[Load] = []
    with served(server_arguments(options), options.language == "given", 1.0, False) as server:
        for partials in (False, True):
            for streams in options.capacity:
                loads.append(await load_of(server, spoken[:streams], offline[:streams], partials))
                print(f"{streams} streams: p95 {loads[-1].final_p95:.2f} s", file=sys.stderr, flush=True)
    print(*capacity_table(loads, speed), sep="\n")
    return [{"offline_speed": speed}, *(load.asdict() for load in loads)]


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=Path, metavar="DIR", help="directory with recordings and manifest.json")
    add("--files", default="*", metavar="PATTERN", help="names of the files with speech that are used")
    add("--limit", type=int, metavar="N", help="use the first N of them")
    add("--model", default="auto", help="as for asrserver --model")
    add("--mode", type=listed(MODES, "mode"), default=list(MODES[:3]), help=f"of {', '.join(MODES)}, with commas")
    names = list(CONDITIONS)
    add("--conditions", type=listed(names, "condition"), default=names, help=f"of {', '.join(names)}, with commas")
    minutes = [float(value) for value in JOINED_MINUTES]
    add("--joined-minutes", type=_numbers(float), default=minutes, metavar="M,…", help="lengths of joined recordings")
    add("--in-process", action="store_true", help="without a server and without waiting; no delays")
    add("--beam", type=int, default=1, help="beam size, of the server and offline")
    add("--threads", type=int, help="of a worker, and offline [the server's default; offline and in process all cores]")
    add("--language", choices=["given", "detect"], default="detect", help="whether sessions name their language")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker, such as silence=0.6")
    add("--speed", type=float, default=1.0, help="live streams are this many times as fast as real time")
    add("--streams", type=int, default=1, help="recordings that are recognised at the same time by the server")
    add("--partials", action=argparse.BooleanOptionalAction, help="ask for partial results [not in process]")
    add("--capacity", type=_numbers(int), metavar="N,…", help="measure N live streams instead, for each N")
    add("--capacity-seconds", type=float, default=60.0, help="length of their recordings")
    add("--verbose", action="store_true", help="print the texts that are not right")
    add("--baseline", type=Path, metavar="FILE", help="take the mode offline from FILE, which --json of a run wrote")
    add("--check", action="store_true", help="exit with status 1 if the server stands too far behind offline")
    add("--json", type=Path, metavar="FILE", help="write the scores of each recording to FILE")
    return parser.parse_args()


def _numbers(kind: type[int] | type[float]) -> Any:
    return lambda text: [kind(value) for value in text.split(",")]


def main() -> None:
    options = parse()
    try:
        corpus = corpus_of(options)
        rows = asyncio.run((measure_capacity if options.capacity else measure)(options, corpus))
    except (CorpusError, ModelError) as exc:
        raise SystemExit(str(exc)) from exc
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    if options.check and not options.capacity:
        broken = broken_limits(scores_of(rows)) + broken_waste(rows)
        print(*(f"NOT KEPT: {line}" for line in broken) if broken else ("all limits are kept",), sep="\n")
        sys.exit(bool(broken))


if __name__ == "__main__":
    main()
