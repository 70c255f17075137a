"""The owners of a session, one after another, without Redis: the events of each, from the previous one's checkpoint."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from typing import Any

import imageio_ffmpeg
import orjson

from asrserver.broker.keys import TASKS
from asrserver.broker.replies import Claim, Entry, Task
from asrserver.inference.engine import Engine
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.transcriber import Transcriber
from asrserver.protocol import codec
from asrserver.protocol.events import Partial, Progress, Result, SpeechStarted
from asrserver.protocol.options import Options
from asrserver.text.wer import word_errors
from tests.waiting import until

#: An event as Redis holds it.
Event = dict[str, Any]

#: A second of silence.
QUIET = bytes(32000)

#: Fields that differ between two owners that do the same.
OWN = {"time", "id"}


#: How a browser's recorder, and other live sources, encode.
LIVE = {
    "webm": ("-c:a", "libopus", "-b:a", "64k", "-f", "webm", "-cluster_time_limit", "500", "-live", "1"),
    "ogg": ("-c:a", "libopus", "-b:a", "64k", "-f", "ogg"),
    "mp4": ("-c:a", "aac", "-b:a", "128k", "-f", "mp4", "-movflags", "frag_keyframe+empty_moov+default_base_moof",
            "-frag_duration", "500000"),
}  # fmt: skip


def recogniser_of(engine: Engine, partials: PartialScheduler, **options: Any) -> Recogniser:
    settings = {"window": "fit", "silence": 0.4, "max_seconds": 600, "threads": 1, **options}
    return Recogniser(engine, partials, hold=lambda thread, labels: None, **settings)


class MemorySink:
    """Takes a session's events in place of the broker."""

    name = "w"

    def __init__(self, session: Session, epoch: int = 1) -> None:
        self.session = session
        self.epoch = epoch
        self.events: list[Event] = []

    async def append_event(self, claim: Claim, event: Result, after: str, fields: dict[str, str] | None = None) -> bool:
        assert event.id == f"{self.epoch}-{len(self.events) + 1}"
        assert fields is not None
        assert orjson.loads(fields["state"])["after"] == after
        self.session.states[event.id] = fields["state"]
        self.events.append(orjson.loads(codec.encode(event)))
        self.session.in_order.append(self.events[-1])
        return True

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: dict[str, str]) -> bool:
        self.session.checkpoints.append((after, fields))
        self.session.charged_seconds.append(total)
        return True

    def publish(self, claim: Claim, event: Partial | SpeechStarted | Progress) -> None:
        if isinstance(event, Progress):
            self.session.progress.append((event.taken, event.total))
        else:
            self.session.partials.append(orjson.loads(codec.encode(event)))
            self.session.in_order.append(self.session.partials[-1])

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None:
        self.session.dead_letters.append((sid, entry, reason))


class Session:
    """A session's audio, and what its owners made of it."""

    def __init__(self, recogniser: Recogniser, chunks: Sequence[bytes], first: int = 0, **options: Any) -> None:
        self.recogniser = recogniser
        self.fields = {"options": codec.encode_options(Options(**options))}
        self.entries = [Entry(f"{first + n + 1}-0", data, None) for n, data in enumerate(chunks)]
        last = f"{first + len(chunks)}-1" if chunks else "0-2"
        self.entries.append(Entry(last, None, "done"))
        self.dead_letters: list[tuple[str, str, str]] = []
        self.partials: list[Event] = []
        self.checkpoints: list[tuple[str, dict[str, str]]] = []
        self.charged_seconds: list[float] = []  # seconds of the session at each checkpoint
        self.progress: list[tuple[int, float]] = []  # (last chunk, seconds) of each progress event
        self.in_order: list[Event] = []  # events and partials
        self.states: dict[str, str] = {}  # after each event

    async def run_owner(self, events: Sequence[Event] = (), epoch: int = 1) -> list[Event]:
        """The events of a next owner, after the events of those before it."""
        sink = MemorySink(self, epoch)
        state = {"state": self.states[events[-1]["id"]]} if events and self.states else {}
        said = [(segment["text"], segment["language"]) for event in events for segment in event["segments"]]
        known = [codec.decode(orjson.dumps(event)) for event in events]
        claim = Claim("s", Task(TASKS, "1-0"), epoch, {**self.fields, **state}, known, said)
        transcriber = Transcriber(claim, self.recogniser, sink)
        transcriber.inbox.put([entry for entry in self.entries if key(entry.id) > key(transcriber.inbox.cursor)])
        await transcriber.run()
        assert transcriber.over
        assert transcriber.backlog == 0
        return sink.events

    async def run_live(self) -> list[Event]:
        """The events of an owner whose entries come one by one, each after the one before is processed and decoded."""
        sink = MemorySink(self)
        transcriber = Transcriber(Claim("s", Task(TASKS, "1-0"), 1, self.fields, []), self.recogniser, sink)
        run = asyncio.ensure_future(transcriber.run())
        for entry in self.entries:
            transcriber.inbox.put([entry])
            await until(lambda: not transcriber.inbox.unread or run.done())
            await until(lambda: not _decoding())
        await run
        return sink.events

    async def takeovers(self, step: int = 1, exactly: bool = True) -> list[Event]:
        """The events of one owner; checks that every `step`-th, and each with segments, may be an owner's last.

        A next owner must continue with the same events. For a live stream these are not `exactly` the same, because a
        segment may come with another chunk's result; but all of it comes in the end.
        """
        whole = await self.run_owner()
        assert [event["seq"] for event in whole] == list(range(1, len(whole) + 1))
        for last in range(len(whole)):
            if last % step and not whole[last - 1]["segments"]:
                continue
            rest = await self.run_owner(whole[:last], epoch=2)
            if exactly:
                assert [comparable(event) for event in rest] == [comparable(event) for event in whole[last:]], last
            check_alike(whole, whole[:last] + rest)
        answered = [event["chunk_index"] for event in whole if event.get("chunk_index") is not None]
        assert answered == sorted(set(answered))
        assert len(answered) == len(self.entries) - 1 or "stream" in self.fields["options"]
        numbers = [segment["number"] for event in whole for segment in event["segments"]]
        assert numbers == list(range(len(numbers)))
        return whole


def _decoding() -> bool:
    """Whether a segment or a partial result is being decoded."""
    return any(task.get_name().startswith(("segment-", "draft-")) for task in asyncio.all_tasks())


def key(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def comparable(event: Event) -> Event:
    """An event without the fields that depend on its owner, and with times to the nearest tenth.

    Until it ends, the length of a container is known only to the owner that began it.
    """
    rounded = {"total": round(event["total"], 1)}
    own = OWN if event["type"] == "final" else OWN | {"total"}
    return {name: value for name, value in {**event, **rounded}.items() if name not in own}


def check_alike(whole: Sequence[Event], other: Sequence[Event]) -> None:
    """Check that both have each segment once, in order and at its place, one answer per chunk, and the same text.

    A lossy codec that begins in the middle gives samples that differ in the last digits, which may once give another
    word with the small model.
    """
    one, two = ([segment for event in events for segment in event["segments"]] for events in (whole, other))
    assert [segment["number"] for segment in two] == list(range(len(one)))
    for segments in (one, two):  # those of two channels come in the order in which they end
        segments.sort(key=lambda segment: (segment.get("channel", 0), segment["start"]))
    for wanted, found in zip(one, two, strict=True):
        assert wanted.get("channel") == found.get("channel")
        assert abs(wanted["start"] - found["start"]) < 0.15
        assert abs(wanted["end"] - found["end"]) < 0.15
    answers = [
        [(event["chunk_index"], event["type"]) for event in events if event.get("chunk_index") is not None]
        for events in (whole, other)
    ]
    assert answers[0] == answers[1]
    assert word_errors(whole[-1]["text"], other[-1]["text"]) <= max(1, 0.03 * len(whole[-1]["text"].split()))
    assert whole[-1]["chunk_count"] == other[-1]["chunk_count"]
    assert abs(whole[-1]["total"] - other[-1]["total"]) < 0.1


def texts(events: Sequence[Event]) -> list[Any]:
    """The text or error code of each event."""
    return [event.get("text", event.get("code")) for event in events]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def encode(pcm: bytes, *options: str, channels: int = 1) -> bytes:
    """Encode audio with ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", str(channels)]
    command += ["-i", "-"]
    return subprocess.run([*command, *options, "-"], input=pcm, stdout=subprocess.PIPE, check=True).stdout
