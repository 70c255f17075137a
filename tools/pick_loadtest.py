#!/usr/bin/env python3
"""Choose the recordings of `asrserver loadtest`: those that the packaged model understands in every context.

    python tools/pick_loadtest.py [--count 15] [--repeats 40]

Run it again whenever the packaged model is replaced. For each of tests/data/utterances it sends REPEATS repetitions in
one live session to a real server, with different silence before each, and one as an utterance, and keeps those that are
always recognised without an error. From these it chooses COUNT whose texts differ most, so that swapped sessions cannot
look right. Then it sends these as a load test does, one after another with little silence between them, and starts
again without any that was not recognised: one was mistaken in one of six positions among others, but never after
itself. Writes asrserver/data/loadtest. Exits with status 1 if there are too few.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import random
import shutil
import sys
from pathlib import Path

from live import UTTERANCES, server

from asrserver.client import Client
from asrserver.loadtest.speech import Sentence, load, quiet_frames
from asrserver.text.wer import word_errors

TARGET = Path(__file__).resolve().parent.parent / "asrserver" / "data" / "loadtest"

#: The share of words, of the longer of two sentences, that must differ between them.
MIN_DIFFERENCE = 0.5

#: Sentences per session.
SESSION_SENTENCES = 8


async def understood(client: Client, sentence: Sentence, repeats: int) -> bool:
    """Whether every repetition in a live session, and the single utterance, are recognised without an error."""
    dice, quiet = random.Random(sentence.text), quiet_frames()
    live = await client.start(mode="stream", format="pcm_s16le")
    alone = await client.start(mode="chunk")
    await alone.send(sentence.wav)
    for _ in range(repeats):
        for frame in (*(quiet[at] for at in range(dice.randrange(40))), *sentence.frames):
            await live.send(frame)
    texts = [(await session.finish())["text"] for session in (live, alone)]
    return texts == [" ".join([sentence.text] * repeats), sentence.text]


async def good(url: str, candidates: dict[str, Sentence], repeats: int) -> dict[str, Sentence]:
    """The sentences that are understood."""
    async with await Client.connect(url) as client:
        room = asyncio.Semaphore(4)

        async def check(sentence: Sentence) -> bool:
            async with room:
                return await understood(client, sentence, repeats)

        found = await asyncio.gather(*map(check, candidates.values()))
    return {name: one for (name, one), right in zip(candidates.items(), found, strict=True) if right}


async def mistaken(url: str, chosen: dict[str, Sentence], repeats: int) -> set[str]:
    """The names of sentences that are not understood among others."""
    dice, quiet = random.Random(7), quiet_frames()
    order = [name for name in chosen for _ in range(repeats)]
    dice.shuffle(order)
    found: set[str] = set()
    async with await Client.connect(url) as client:
        room = asyncio.Semaphore(8)

        async def say(names: list[str]) -> None:
            async with room:
                live = await client.start(mode="stream", format="pcm_s16le")
                for name in names:
                    for frame in (*(quiet[at] for at in range(dice.randrange(3, 9))), *chosen[name].frames):
                        await live.send(frame)
                heard = (await live.finish())["text"].split()
            said = [(name, word) for name in names for word in chosen[name].text.split()]
            compared = difflib.SequenceMatcher(None, [word for _, word in said], heard, autojunk=False)
            for kind, begin, end, _, _ in compared.get_opcodes():
                if kind != "equal":
                    found.update(name for name, _ in said[min(begin, len(said) - 1) : max(end, begin + 1)])

        await asyncio.gather(
            *(say(order[at : at + SESSION_SENTENCES]) for at in range(0, len(order), SESSION_SENTENCES))
        )
    return found


def far_apart(candidates: dict[str, Sentence], count: int) -> list[str]:
    """Choose up to `count` sentences that differ by MIN_DIFFERENCE from each other; prefer those with new words."""
    chosen: list[str] = []
    known: set[str] = set()
    while len(chosen) < count:
        free = [
            name
            for name, one in candidates.items()
            if all(
                word_errors(one.words, candidates[other].words)
                >= MIN_DIFFERENCE * max(len(one.words), len(candidates[other].words))
                for other in chosen
            )
        ]
        if not free:
            break
        best = max(free, key=lambda name: (len(set(candidates[name].words) - known), name))
        chosen.append(best)
        known.update(candidates[best].words)
    return sorted(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    transcripts: dict[str, str] = json.loads((UTTERANCES / "transcripts.json").read_text())
    sentences = load(tuple((str(UTTERANCES / name), text) for name, text in transcripts.items()))
    candidates = dict(zip(transcripts, sentences, strict=True))
    with server() as running:
        url = running.url
        kept = asyncio.run(good(url, candidates, arguments.repeats))
        chosen, wrong = far_apart(kept, arguments.count), set(kept)
        while wrong:
            wrong = asyncio.run(mistaken(url, {name: kept[name] for name in chosen}, arguments.repeats))
            kept = {name: one for name, one in kept.items() if name not in wrong}
            chosen = far_apart(kept, arguments.count)
    print(f"{len(kept)} of {len(candidates)} are always understood; {len(chosen)} of them differ enough")
    if len(chosen) < arguments.count:
        return 1
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    for name in chosen:
        shutil.copy(UTTERANCES / name, TARGET / name)
        print(f"  {name}  {transcripts[name]}")
    (TARGET / "transcripts.json").write_text(json.dumps({name: transcripts[name] for name in chosen}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
