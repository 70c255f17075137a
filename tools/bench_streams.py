#!/usr/bin/env python3
"""Measure the cores that a live stream of continuous speech takes in each part of the system, each part alone.

    python tools/bench_streams.py [--streams 100]

STREAMS streams of the load test's recordings (--talk-ratio 1, a session of 20 s each, 100 ms frames of PCM, started
within 5 s), without partial results, are processed by one part after another:

    voice activity, features, engine
            one after another in a process that does nothing else: audio in the pieces that a worker reads with as many
            streams, with as many recordings per network call; the segments' features as they grow; their text, one
            window per call (a worker in which several windows wait puts some into one call, which reduces "the rest").
    worker  a real worker on a real Redis, which a simple feeder fills in real time; no gateway. "The rest" is the
            remainder of its CPU: reading, dispatch, events, and contention of its threads.
    gateway, Redis, PostgreSQL, tester
            the load tester sends in real time to a real gateway on a real Redis and PostgreSQL, without workers.
            A substitute reads the streams and emits events as a worker does, without recognition: it identifies a
            sentence by the frame in its middle. The gateway's part includes storing results, that of Redis all of
            its traffic.

CPU is user and system time of each process and its ended children (getrusage or /proc), divided by the seconds of
audio: the cores that a stream takes. Texts are compared, so that no part can be fast by being wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import psutil
import uvloop
from bench_worker import run_worker
from benching import Silent, a_stream, about, about_line, cpu, processes, servers, system

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.decoders import open_decoder
from asrserver.audio.pcm import Samples
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.lease import LeaseRenewer
from asrserver.broker.replies import Entry, Task
from asrserver.broker.worker_side import WorkerBroker
from asrserver.config import Settings
from asrserver.errors import AsrError
from asrserver.inference import silero
from asrserver.inference.audio_thread import MAX_BATCH
from asrserver.inference.checkpoint import Checkpoint, StreamState
from asrserver.inference.consumer import POLL_SECONDS, READ_ENTRIES, read_interval
from asrserver.inference.decoding import Request
from asrserver.inference.event_log import Coverage, EventLog
from asrserver.inference.features import GrowingLogMel
from asrserver.inference.profiles import DEMO
from asrserver.inference.segments import RecognisedSegment
from asrserver.inference.transcript import MIN_LANGUAGE_PROBABILITY
from asrserver.inference.vad import PAD_SECONDS, Endpointer, SegmentEnded
from asrserver.inference.windows import window_for
from asrserver.inference.worker import load_model
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import run
from asrserver.loadtest.speech import FRAME, FRAME_SECONDS, Scripts, Sentence, load
from asrserver.process.limits import die_with_parent
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Published
from asrserver.protocol.options import Options
from asrserver.text.wer import spoken, word_errors

#: The parts of the worker's CPU, and the other parts.
OF_WORKER = ("voice activity", "features", "engine", "worker, the rest")
BESIDE = ("gateway", "Redis", "PostgreSQL", "tester")

#: Seconds after the end of a stream within which its final result must arrive.
FINAL_TIMEOUT = 60.0

_spawn = multiprocessing.get_context("spawn")


def parts(streams: int) -> dict[str, float]:
    """Measure the cores per stream of each part, with `streams` of them at once."""
    # As `asrserver run` does: one worker per core, minus one for the gateway.
    each = math.ceil(streams / max(1, len(os.sched_getaffinity(0)) - 1))
    computed = computing(each)
    worker = working(each)
    return {**computed, OF_WORKER[-1]: worker - sum(computed.values()), **serving(streams)}


def plan(streams: int, *urls: str) -> Plan:
    """One session of continuous speech per stream."""
    return Plan(urls=urls, connections=streams, talk_ratio=1.0, sessions=1)


def script(scripts: Scripts, number: int) -> list[Sentence]:
    """The sentences of a stream, without silence between them."""
    return [part.sentence for part in scripts.script(number, 0)]


def check(part: str, said: list[Sentence], text: str) -> None:
    """Exit if a text is wrong: then the measured work is not the real work."""
    words = [word for sentence in said for word in sentence.words]
    if word_errors(words, understood := spoken(text)) > 0.02 * len(words):
        raise SystemExit(f"{part}: wrong text “{' '.join(understood)}” for “{' '.join(words)}”")


@contextmanager
def started(target: Any, *arguments: Any) -> Iterator[BaseProcess]:
    """Run a process until the block ends; numpy computes in one thread there, as in a worker."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = _spawn.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


# -- computing -------------------------------------------------------------------------------------------------------


def computing(streams: int) -> dict[str, float]:
    """Measure voice activity, features and engine, in a process of their own."""
    here, there = _spawn.Pipe()
    with started(_compute, streams, there) as process:
        there.close()
        try:
            found: dict[str, float] = here.recv()
        except EOFError:
            process.join()
            raise SystemExit("voice activity, features and engine could not be measured") from None
        return found


def _compute(streams: int, pipe: Connection) -> None:
    settings = Settings(device="cpu", model="demo")
    model = load_model(settings)
    some = plan(min(streams, MAX_BATCH))
    scripts = Scripts(load(()), some)
    said = [script(scripts, number) for number in range(some.connections)]
    recordings = [_samples(each) for each in said]
    step = max(1, round(read_interval(streams) / FRAME_SECONDS)) * FRAME // 2
    used = {}
    for seconds in (2, 0):  # the first warms up
        audio = [recording[: seconds * SAMPLE_RATE or None] for recording in recordings]
        begun = time.process_time()
        segments = [_cut(events) for events in _hear(audio, step, (settings.silence or DEMO.silence))]
        heard = time.process_time()
        grown = [_features(*each, step, settings, model.n_mels) for each in zip(audio, segments, strict=True)]
        seen = time.process_time()
        texts = [_recognise(model, each) for each in grown]
        spent = (heard - begun, seen - heard, time.process_time() - seen)
        used = dict(zip(OF_WORKER, spent, strict=False))
    for each, text in zip(said, texts, strict=True):
        check("engine", each, text)
    total = sum(map(len, recordings)) / SAMPLE_RATE
    pipe.send({part: seconds / total for part, seconds in used.items()})


def _samples(said: list[Sentence]) -> Samples:
    pcm = b"".join(frame for sentence in said for frame in sentence.frames)
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)


def _hear(audio: list[Samples], step: int, silence: float) -> list[list[Any]]:
    """The voice activity events of recordings that share network calls, piece by piece."""
    endpointers = [Endpointer(silence) for _ in audio]
    events: list[list[Any]] = [[] for _ in audio]
    for at in range(0, max(map(len, audio)), step):
        pairs = list(zip(endpointers, audio, strict=True))
        silero.score([run for one, samples in pairs for run in one.push(samples[at : at + step])])
        for found, one in zip(events, endpointers, strict=True):
            found += one.pull()
    for found, one in zip(events, endpointers, strict=True):
        found += one.flush()
    return events


def _cut(events: list[Any]) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in events if isinstance(event, SegmentEnded)]


def _features(
    audio: Samples, segments: list[tuple[int, int]], step: int, settings: Settings, n_mels: int
) -> list[tuple[Any, float]]:
    """The (features, seconds) of the segments, computed while they grow, up to the silence that ends them."""
    found = []
    for start, end in segments:
        mel, upto = GrowingLogMel(n_mels), end + int(((settings.silence or DEMO.silence) - PAD_SECONDS) * SAMPLE_RATE)
        for at in range(start, upto, step):
            mel.feed(audio[at : min(at + step, upto)], at + step >= upto)
        seconds = (end - start) / SAMPLE_RATE
        found.append((mel.window(window_for(seconds, settings.window), end - start), seconds))
    return found


def _recognise(model: Any, segments: list[tuple[Any, float]]) -> str:
    """The text of one recording; as in a session, the language is detected until it is certain."""
    language, texts = None, []
    for features, seconds in segments:
        [found] = model.recognise([(features, Request(language), seconds)])
        if language is None and found.language_probability >= MIN_LANGUAGE_PROBABILITY:
            language = found.language
        texts.append(found.text)
    return " ".join(texts)


# -- a worker --------------------------------------------------------------------------------------------------------


def working(streams: int) -> float:
    """Measure the cores per stream of a worker."""
    here, there = _spawn.Pipe()  # the worker ends when this process does
    with (
        servers() as own,
        started(run_worker, Settings(redis_url=own.redis.url, device="cpu", model="demo"), there) as process,
    ):
        uvloop.run(feed(own.redis.url, "warm", plan(2)))
        worker = psutil.Process(process.pid)
        before = cpu([worker])
        seconds, late = uvloop.run(feed(own.redis.url, "stream", plan(streams)))
        used = cpu([worker]) - before
        here.close()
    print(f"  worker: {used / seconds * streams:.2f} cores, last results after {late:.1f} s", flush=True)
    return used / seconds


async def feed(url: str, name: str, some: Plan) -> tuple[float, float]:
    """Write frames to Redis in real time; return the seconds of audio, and from its end to the last final result."""
    broker, loop = GatewayBroker(url, f"bench-{name}"), asyncio.get_running_loop()
    await broker.open()
    scripts = Scripts(load(()), some)
    sids = [f"{name}-{number}" for number in range(some.connections)]
    finals: dict[str, asyncio.Future[str]] = {sid: loop.create_future() for sid in sids}
    subscribed = asyncio.Event()
    asked = codec.encode_options(Options(mode="stream", format="pcm_s16le"))
    fields = {"gateway": broker.name, "options": asked, "user_id": ""}

    def told(event: Published) -> None:
        if isinstance(event, Final):
            finals[event.session_id].set_result(event.text)

    def appended(error: Exception | None) -> None:
        for final in finals.values():
            if error is not None and not final.done():
                final.set_exception(error)

    async def stream(number: int) -> tuple[float, float]:
        sid, said = sids[number], script(scripts, number)
        await asyncio.sleep(some.starts(number))
        await broker.open_session(sid, sid, fields, time.time() + 600)
        due, frames = time.monotonic(), [frame for sentence in said for frame in sentence.frames]
        for index, frame in enumerate(frames):
            due += FRAME_SECONDS
            await asyncio.sleep(due - time.monotonic())
            broker.append(sid, index, index - 1 if index else None, [frame], True, appended)
        await broker.end_session(sid, "done", time.time() + 600)
        async with asyncio.timeout(FINAL_TIMEOUT):
            text = await finals[sid]
        check("worker", said, text)
        return len(frames) * FRAME_SECONDS, time.monotonic() - due

    listening = loop.create_task(broker.subscribe(told, subscribed.set))
    await subscribed.wait()
    found = await asyncio.gather(*(stream(number) for number in range(some.connections)))
    listening.cancel()
    await broker.close()
    return sum(seconds for seconds, _ in found), max(late for _, late in found)


# -- the gateway, and all that is not a worker -----------------------------------------------------------------------


def serving(streams: int) -> dict[str, float]:
    """Measure the cores per stream of the gateway, Redis, PostgreSQL and the load tester."""
    with servers() as own, system(own, "gateway") as server, started(_stand_in, own.redis.url, os.getpid()):
        some = plan(streams, f"ws://127.0.0.1:{server.port}/ws/asr")
        outcome = run(some, processes(server, own), Silent())
    stats = outcome.stats
    if outcome.why_not:
        raise SystemExit(f"gateway: {'; '.join(outcome.why_not)}: {stats.examples[:1]}")
    used = a_stream(outcome)
    print(
        f"  gateway: {used['gateway'] * streams:.2f} cores; {stats.right} of {stats.sessions} sessions right",
        flush=True,
    )
    return {part: used[part] for part in BESIDE}


def _stand_in(url: str, parent: int) -> None:
    die_with_parent(parent)
    uvloop.run(StandIn(url).run())


class StandIn:
    """Does what workers do to Redis and to gateways, without recognition."""

    def __init__(self, url: str) -> None:
        self._broker = WorkerBroker(url, "stand-in")
        self._lease = LeaseRenewer(url, "stand-in")
        self._sentences = {one.frames[len(one.frames) // 2]: one for one in load(())}
        self._sessions: dict[str, StandInSession] = {}

    async def run(self) -> None:
        await self._broker.open()
        renewing = asyncio.create_task(self._renew())
        while not renewing.done():
            begun = time.monotonic()
            await self._read()
            await asyncio.sleep(max(POLL_SECONDS / 4, begun + read_interval(len(self._sessions)) - time.monotonic()))
        renewing.result()

    async def _read(self) -> None:
        for task, sid in await self._broker.claim(None, 100, 0.0):
            claim = await self._broker.acquire(task, sid)
            if claim is not None:
                options = codec.decode_options(claim.fields["options"])
                log = EventLog(claim, self._broker, "stand-in", options)
                self._sessions[sid] = StandInSession(task, log, self._sentences)
        cursors = {sid: session.cursor for sid, session in self._sessions.items()}
        found = await self._broker.read_audio(cursors, READ_ENTRIES)
        await asyncio.gather(*(self._sessions[sid].take(entries) for sid, entries in found.items()))
        self._sessions = {sid: session for sid, session in self._sessions.items() if not session.over}

    async def _renew(self) -> None:
        """Renew the leases, as often as a worker does."""
        while True:
            await asyncio.sleep(Settings().lease / 5)
            await asyncio.to_thread(self._lease.renew, [session.task for session in self._sessions.values()])


class StandInSession:
    """One session of the stand-in: one segment per sentence."""

    def __init__(self, task: Task, log: EventLog, sentences: dict[bytes, Sentence]) -> None:
        self.task = task
        self.cursor = "0-1"
        self.over = False
        self._log = log
        self._sentences = sentences
        self._seconds = 0.0
        self._point = open_decoder("pcm_s16le", SAMPLE_RATE, 1).resume_point(0)

    async def take(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.data is not None:
                self._log.count(entry.index, entry.chunks)
                for at in range(0, len(entry.data), FRAME):
                    await self._hear(entry, entry.data[at : at + FRAME])
            elif entry.status is not None:
                self.over = True
                await self._log.append_final(entry.status, Coverage(self._seconds, Checkpoint(entry.id, None)))
        self.cursor = entries[-1].id
        if not self.over:
            self._log.report_progress(self._seconds, 0.0, 0)

    async def _hear(self, entry: Entry, frame: bytes) -> None:
        self._seconds += FRAME_SECONDS
        sentence = self._sentences.get(frame)
        if sentence is None:
            return
        end = self._seconds + sentence.seconds / 2
        segment = RecognisedSegment(end - sentence.seconds, end, sentence.text, "en", 1.0, 0.97)
        state = StreamState(entry.id, None, int(end * SAMPLE_RATE), 0, self._point)
        text = self._log.add([segment])
        coverage = Coverage(self._seconds, Checkpoint(entry.id, state))
        await self._log.append_segment(text, "en", coverage)


def table(found: dict[str, float], cores: float) -> list[str]:
    """The table: cores per stream of each part and of all, the streams that the part alone could serve, its share."""
    total = sum(found.values())
    lines = [f"{'':18}{'millicores/stream':>20}{'streams, it alone':>21}{'share':>8}"]
    for part, each in {**found, "sum": total}.items():
        lines.append(f"{part:18}{1000 * each:20.2f}{cores / each:21,.0f}{each / total:8.0%}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    options = parser.parse_args()
    print(about_line(about()))
    try:
        found = parts(options.streams)
    except AsrError as exc:
        raise SystemExit(str(exc)) from None
    print("\n".join(table(found, len(os.sched_getaffinity(0)))))


if __name__ == "__main__":
    main()
