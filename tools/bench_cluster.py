"""What a Redis Cluster would cost: the CPU time of Redis for a chunk, appended and read, with one slot of keys or many.

together     one Redis; the chunks of many sessions in one EVAL, their streams in one XREAD, as this program does
by session   a node of a cluster; a session's keys have a slot of their own, so each needs a command of its own
by group     a node of a cluster; the sessions share a few slots, and those of one slot a command

    python tools/bench_cluster.py --rounds 5
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis
from benching import about, about_line, cpu, wait_for

from asrserver.broker import audio_scripts
from asrserver.embedded import locate

CHUNK = bytes(range(256)) * 12 + bytes(128)


@contextmanager
def server(cluster: bool) -> Iterator[tuple[redis.Redis, psutil.Process]]:
    """Run a Redis without persistence, or the only node of a cluster, which has all slots."""
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as place:
        socket = Path(place) / "redis.sock"
        options = ["--port", "7600" if cluster else "0", "--cluster-enabled", "yes" if cluster else "no"]
        command = [str(locate.redis()), *options, "--unixsocket", str(socket), "--save", "", "--dir", place]
        process = subprocess.Popen([*command, "--logfile", str(Path(place) / "log")])
        try:
            wait_for(socket.exists, 10, "the start of Redis")
            client = redis.Redis(unix_socket_path=str(socket))
            if cluster:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                wait_for(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 10, "the cluster")
            yield client, psutil.Process(process.pid)
            client.close()
        finally:
            process.kill()
            process.wait()


def measure(client: redis.Redis, process: psutil.Process, groups: Sequence[Sequence[str]], turns: int) -> float:
    """Return the microseconds of Redis for a chunk of each session, `turns` times, one command for each group."""
    sessions = [tag for group in groups for tag in group]
    for tag in sessions:
        client.hset(f"asr_session:{tag}", "gateway", "bench")
        client.xadd(f"asr_audio:{tag}", {"t": "start"}, id="0-1")
    before = cpu([process])
    for turn in range(turns):
        pipe = client.pipeline(transaction=False)
        for group in groups:
            keys = [name for tag in group for name in (f"asr_session:{tag}", f"asr_audio:{tag}")]
            chunk = (turn, turn - 1 if turn else "", CHUNK, time.time(), 1)
            pipe.execute_command("EVAL", audio_scripts.APPEND, len(keys), *keys, "bench", *(chunk * len(group)))
        assert all(answer == [1] * len(group) for answer, group in zip(pipe.execute(), groups, strict=True))
        pipe = client.pipeline(transaction=False)
        for group in groups:
            streams = [f"asr_audio:{tag}" for tag in group]
            pipe.execute_command("XREAD", "COUNT", 16, "STREAMS", *streams, *[f"{turn}-1"] * len(group))
            if turn % 50 == 49:
                for stream in streams:
                    pipe.execute_command("XTRIM", stream, "MINID", f"{turn}-0")
        pipe.execute()
    return 1e6 * (cpu([process]) - before) / turns / len(sessions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=64, help="whose chunks come in one turn of a gateway")
    parser.add_argument("--slots", type=int, default=4, help="that the sessions share")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(about_line(about()))
    numbers = range(options.sessions)
    shared = [[f"{n}-{{{slot}}}" for n in numbers if n % options.slots == slot] for slot in range(options.slots)]
    found: dict[str, list[float]] = {"together": [], "by session": [], "by group": []}
    for _ in range(options.rounds):
        with server(False) as one:
            found["together"].append(measure(*one, [[f"{{{n}}}" for n in numbers]], options.turns))
        with server(True) as node:
            found["by session"].append(measure(*node, [[f"{{{n}}}"] for n in numbers], options.turns))
        with server(True) as node:
            found["by group"].append(measure(*node, shared, options.turns))
    print(f"{options.sessions} sessions, {options.slots} slots by group; Redis's CPU for each chunk")
    base = found["together"]
    for name, each in found.items():
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(each, base, strict=True))
        median = statistics.median(a / b for a, b in itertools.zip_longest(each, base))
        print(f"{name:11} {statistics.median(each):6.1f} µs   {median:.2f} times ({ratios})")


if __name__ == "__main__":
    main()
