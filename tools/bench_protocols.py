#!/usr/bin/env python3
"""Measure what a stream costs in each protocol, as a ratio to the server's own protocol in the same run.

    python tools/bench_protocols.py [--streams 40] [--seconds 10] [--rounds 3] [--only deepgram,realtime]

One gateway and one worker with the demo model; in each round every protocol has STREAMS live streams at once, of
SECONDS of speech with pauses, in real time in pieces of 100 ms. Printed are the CPU milliseconds per second of audio of
the gateway and of the worker, medians over the rounds, and the ratio of their sum to that of the native protocol in the
same round: with partial results where the protocol has them, without where it has none. Texts are compared, so that
nothing can be cheap by being wrong. The worker's part includes the recognition, which is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import time
from collections import defaultdict

import uvloop
from benching import about, about_line, add_json, cpu, servers, system, write_ratios
from dialects import DIALECTS, Dialect, Native, NativePartials
from live import Recording, load, make

from asrserver.text.wer import word_errors

#: Bytes of 100 ms.
PIECE = 3200


async def stream(kind: type[Dialect], ports: dict[str, int], recording: Recording, delay: float) -> int:
    """Stream a recording in real time; return the number of wrong words."""
    await asyncio.sleep(delay)
    client = await kind.open(ports)
    pcm = (recording.samples * 32767).astype("<i2").tobytes()
    begun = time.monotonic()
    for at in range(0, len(pcm), PIECE):
        await asyncio.sleep(max(0.0, begun + at / 32000 - time.monotonic()))
        await client.send(pcm[at : at + PIECE])
    return word_errors(recording.text, await client.finish())


async def streams(kind: type[Dialect], ports: dict[str, int], recordings: list[Recording]) -> int:
    """Stream all recordings at once, begun within a second; return the number of wrong words."""
    return sum(
        await asyncio.gather(
            *(stream(kind, ports, one, number / len(recordings)) for number, one in enumerate(recordings))
        )
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of protocols, separated by commas; the native one is added")
    add_json(parser)
    options = parser.parse_args()
    named = [name for name in options.only.split(",") if name]
    kinds = [kind for kind in DIALECTS if not named or kind.name in (Native.name, NativePartials.name, *named)]
    recordings = [make(load(), options.seconds, (0.5, 1.0), seed) for seed in range(options.streams)]
    seconds = sum(recording.seconds for recording in recordings)
    words = sum(len(recording.text.split()) for recording in recordings)
    print(about_line(about()))
    cost: dict[str, list[tuple[float, float]]] = defaultdict(list)  # of each protocol, in each round
    wrong: dict[str, int] = defaultdict(int)
    port = free_port()
    with servers() as both, system(both, "run", "--model", "demo", "--wyoming-port", str(port)) as running:
        processes = [running.children(kind) for kind in ("gateway", "worker")]
        ports = {"http": running.port, "wyoming": port}
        for turn in range(options.rounds):
            for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
                before = [cpu(each) for each in processes]
                wrong[kind.name] += uvloop.run(streams(kind, ports, recordings))
                gateway, worker = (
                    1000 * (cpu(each) - then) / seconds for each, then in zip(processes, before, strict=True)
                )
                cost[kind.name].append((gateway, worker))
    print("                            CPU, ms per second     ratio to     wrong")
    print("protocol                    gateway     worker       native     words")
    found = {}
    for kind in kinds:
        native = cost[NativePartials.name if kind.partials else Native.name]
        ratios = [sum(mine) / sum(other) for mine, other in zip(cost[kind.name], native, strict=True)]
        ratio = statistics.median(ratios)
        if kind not in (Native, NativePartials):
            found[f"{kind.name} to the native protocol, gateway and worker CPU"] = ratios
        gateway, worker = (statistics.median(values) for values in zip(*cost[kind.name], strict=True))
        share = 100 * wrong[kind.name] / words / options.rounds
        print(f"{kind.name:26} {gateway:8.2f} {worker:10.2f} {ratio:12.2f} {share:7.1f} %")
    write_ratios(options, found)


if __name__ == "__main__":
    main()
