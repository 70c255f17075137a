#!/usr/bin/env python3
"""Measure the accuracy and the delays of a live server, against offline recognition of the same audio.

    python tools/accuracy.py [--recordings 5] [--seconds 60] [--streams 1] [--model demo] [--url ws://…]

The recordings consist of test utterances with pauses of 0.2 to 3 s and are sent in real time. Offline, faster-whisper's
own `transcribe` decodes each segment once, where silences of 0.4 s separate segments. It pads each segment to 30 s,
which a model that was trained on short windows, such as the packaged one, does not understand: therefore a second line
shows the results with the shortest window that fits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import urllib.request
from collections.abc import Callable
from typing import Any

from live import Heard, Recording, delays, load, make, percentile, server, speak

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.client import Client
from asrserver.inference import vad
from asrserver.inference.agreement import common_prefix
from asrserver.inference.features import log_mel
from asrserver.inference.whisper import Request, Whisper, window_for
from asrserver.models import find_model
from asrserver.text.wer import word_errors
from asrserver.text.words import words


def offline(recordings: list[Recording], recognise: Callable[[Samples], str]) -> list[str]:
    """Transcribe each recording, one segment after another."""
    return [
        " ".join(
            text
            for start, end in vad.segments(recording.samples, 0.4)
            if (text := recognise(recording.samples[start:end]))
        )
        for recording in recordings
    ]


def faster_whisper(model: str, language: str) -> Callable[[Samples], str]:
    from faster_whisper import WhisperModel

    whisper = WhisperModel(str(find_model(model).path), device="cpu", cpu_threads=1)

    def recognise(samples: Samples) -> str:
        found, _ = whisper.transcribe(
            samples, language=language, beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in found)

    return recognise


def short_windows(model: str, language: str) -> Callable[[Samples], str]:
    whisper = Whisper(model, "cpu", "default", 1, 1)

    def recognise(samples: Samples) -> str:
        seconds = len(samples) / SAMPLE_RATE
        features = log_mel(samples, window_for(seconds, "fit"), whisper.n_mels)
        return whisper.recognise([(features, Request(language=language), seconds)])[0].text

    return recognise


async def live(url: str, recordings: list[Recording], options: argparse.Namespace) -> list[Heard]:
    room = asyncio.Semaphore(options.streams)

    async def one(recording: Recording) -> Heard:
        async with room, await Client.connect(url) as client:
            return await speak(client, recording, partials=True, partial_interval=options.interval)

    return await asyncio.gather(*(one(recording) for recording in recordings))


def revisions(heard: Heard) -> tuple[int, int]:
    """Count the stable words that the segment's final text contradicts, and all stable words."""
    stable: dict[float, str] = {}
    revised = settled = 0
    for _, message in heard.messages:
        if message["type"] == "partial_result":
            assert message["stable"].startswith(stable.get(message["start"], "")) or not message["text"]
            stable[message["start"]] = message["stable"] or stable.get(message["start"], "")
        elif message["type"] == "segment_result" and message["start"] in stable:
            before = words(stable[message["start"]], message["language"])
            settled += len(before)
            revised += len(before) - common_prefix(before, words(message["text"], message["language"]))
    return revised, settled


def report(recordings: list[Recording], texts: dict[str, list[str]], found: list[Heard], factor: Any) -> None:
    total = sum(len(recording.text.split()) for recording in recordings)
    seconds = sum(recording.seconds for recording in recordings)
    live_errors = sum(word_errors(r.text, heard.final["text"]) for r, heard in zip(recordings, found, strict=True))
    pairs = [delays(recording, heard) for recording, heard in zip(recordings, found, strict=True)]
    first = [delay for starts, _ in pairs for delay in starts]
    final = [delay for _, ends in pairs for delay in ends]
    partials = sum(m["type"] == "partial_result" for heard in found for _, m in heard.messages)
    revised, settled = (sum(values) for values in zip(*(revisions(heard) for heard in found), strict=True))
    print(f"{len(recordings)} recordings, {seconds:.0f} s, {total} words")
    for name, said in texts.items():
        wrong = sum(word_errors(r.text, text) for r, text in zip(recordings, said, strict=True))
        print(f"word errors offline, {name:<10}{100 * wrong / total:.2f} %")
    print(f"word errors live               {100 * live_errors / total:.2f} %")
    print(f"first partial after speech     p50 {percentile(first, 0.5):.2f} s, p95 {percentile(first, 0.95):.2f} s")
    print(f"final after speech             p50 {percentile(final, 0.5):.2f} s, p95 {percentile(final, 0.95):.2f} s")
    print(f"partial results                {partials / seconds:.2f} per second of audio")
    print(f"stable words                   {settled} of {total}")
    print(f"stable words revised           {revised} ({100 * revised / max(1, settled):.2f} %)")
    print(f"engine real-time factor        {factor}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=1, help="recordings that are sent at the same time")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between partial results")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--language", default="en")
    parser.add_argument("--url", help="URL of a running server; without it, one is started")
    options = parser.parse_args()
    utterances = load()
    recordings = [make(utterances, options.seconds, (0.2, 3.0), seed) for seed in range(options.recordings)]
    model, language = options.model, options.language
    texts = {
        "30 s": offline(recordings, faster_whisper(model, language)),
        "short": offline(recordings, short_windows(model, language)),
    }
    if options.url:
        found = asyncio.run(live(options.url, recordings, options))
        report(recordings, texts, found, "unknown")
        return
    with server("--workers", "1", "--model", options.model) as (url, http, _):
        found = asyncio.run(live(url, recordings, options))
        with urllib.request.urlopen(f"{http}/api/v1/health") as response:
            (worker,) = json.load(response)["workers"]
        report(recordings, texts, found, worker["real_time_factor"])


if __name__ == "__main__":
    main()
