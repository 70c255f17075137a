"""transcriber.py with the real recogniser: what each kind of session says, and takeovers at every event."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import imageio_ffmpeg
import orjson
import pytest
import tornado.ioloop

from asrserver.broker import Claim, Entry
from asrserver.errors import Unavailable
from asrserver.inference.engine import Engine
from asrserver.inference.models import Whisper
from asrserver.inference.recognise import Recogniser
from asrserver.inference.transcriber import Fenced, Transcriber
from asrserver.session import Options
from tests.conftest import Utterance

pytestmark = pytest.mark.gen_test(timeout=120)

Event = dict[str, Any]

#: A second of silence.
QUIET = bytes(32000)

#: What differs between two owners that do the same.
OWN = {"time", "id"}


@pytest.fixture
def recogniser(io_loop: tornado.ioloop.IOLoop, model: Whisper) -> Iterator[Recogniser]:
    made: list[Any] = []

    async def make() -> None:
        engine = Engine(model, 0, lambda place, labels: None)
        made.extend((engine, recogniser_of(engine)))

    io_loop.run_sync(make)
    yield made[1]
    made[1].close()
    made[0].stop(10)


def recogniser_of(engine: Engine, **options: Any) -> Recogniser:
    settings = {"window": "fit", "silence": 0.4, "max_seconds": 600, "threads": 1, **options}
    return Recogniser(engine, hold=lambda place, labels: None, **settings)


class Voice:
    """The broker, as a session knows it."""

    name = "w"

    def __init__(self, session: Session, epoch: int = 1) -> None:
        self.session = session
        self.epoch = epoch
        self.said: list[Event] = []

    async def emit(
        self, claim: Claim, number: int, event: Event, after: str, fields: dict[str, str] | None = None
    ) -> bool:
        assert number == len(self.said) + 1
        assert fields is not None
        assert orjson.loads(fields["state"])["after"] == after
        name = f"{self.epoch}-{number}"
        self.session.states[name] = fields["state"]
        self.said.append(orjson.loads(orjson.dumps({**event, "id": name})))
        return True

    async def cover(self, claim: Claim, after: str, fields: dict[str, str]) -> bool:
        self.session.covered.append(after)
        return True

    def publish(self, claim: Claim, event: Event) -> None:
        self.session.guesses.append(event)

    async def bury(self, sid: str, entry: str, reason: str) -> None:
        self.session.buried.append((sid, entry, reason))


class Session:
    """A session's audio, and as many owners as a test wants."""

    def __init__(self, recogniser: Recogniser, chunks: Sequence[bytes], first: int = 0, **options: Any) -> None:
        self.recogniser = recogniser
        self.fields = {"options": orjson.dumps(Options(**options).asdict()).decode()}
        self.entries = [Entry(f"{first + n + 1}-0", data, None) for n, data in enumerate(chunks)]
        last = f"{first + len(chunks)}-1" if chunks else "0-2"
        self.entries.append(Entry(last, None, "done"))
        self.buried: list[tuple[str, str, str]] = []
        self.guesses: list[Event] = []
        self.covered: list[str] = []
        self.states: dict[str, str] = {}  # after each event

    async def own(self, events: Sequence[Event] = (), epoch: int = 1) -> list[Event]:
        """What a next owner says, after what the ones before it said."""
        voice = Voice(self, epoch)
        state = {"state": self.states[events[-1]["id"]]} if events else {}
        claim = Claim("s", "1-0", epoch, {**self.fields, **state}, list(events))
        transcriber = Transcriber(claim, self.recogniser, voice)
        said = voice.said
        transcriber.feed([entry for entry in self.entries if key(entry.id) > key(transcriber.cursor)])
        await transcriber.run()
        assert transcriber.over
        assert transcriber.backlog == 0
        return said

    async def takeovers(self, step: int = 1) -> list[Event]:
        """The events; and every `step`-th of them, and each that says much, may be an owner's last."""
        whole = await self.own()
        assert [event["seq"] for event in whole] == list(range(1, len(whole) + 1))
        for last in range(len(whole)):
            if last % step and not whole[last - 1]["segments"]:
                continue
            rest = await self.own(whole[:last], epoch=2)
            assert [comparable(event) for event in rest] == [comparable(event) for event in whole[last:]], last
        answered = [event["chunk_index"] for event in whole if event.get("chunk_index") is not None]
        assert answered == sorted(set(answered))
        assert len(answered) == len(self.entries) - 1
        numbers = [segment["number"] for event in whole for segment in event["segments"]]
        assert numbers == list(range(len(numbers)))
        return whole


def key(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def comparable(event: Event) -> Event:
    """An event without what is its owner's, and times to the nearest tenth.

    Until it ends, a container's length is known only to the owner that began it.
    """
    rounded = {"total": round(event["total"], 1)}
    own = OWN if event["type"] == "final" else OWN | {"total"}
    return {name: value for name, value in {**event, **rounded}.items() if name not in own}


def texts(events: Sequence[Event]) -> list[Any]:
    """What was said of each chunk, and at last: a text, or an error's code."""
    return [event.get("text", event.get("code")) for event in events]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def encode(pcm: bytes, *options: str) -> bytes:
    """A file of that audio, by ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    return subprocess.run([*command, *options, "-"], input=pcm, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture(scope="module")
def webm(utterances: list[Utterance]) -> bytes:
    """Three utterances as one recording, as a browser makes it."""
    pcm = QUIET.join(utterance.pcm for utterance in utterances[:3])
    return encode(pcm, "-c:a", "libopus", "-b:a", "32k", "-f", "webm", "-cluster_time_limit", "500")


async def test_whole_files_are_utterances(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each its own text, in order; the final text is all of them."""
    said = utterances[:4]
    events = await Session(recogniser, [one.wav for one in said], first=7).takeovers()
    words = [one.text for one in said]
    assert texts(events) == [*words, " ".join(words)]
    assert [event.get("chunk_index") for event in events] == [7, 8, 9, 10, None]
    assert events[-1]["chunk_count"] == 4
    assert events[-1]["total"] == pytest.approx(sum(len(one.pcm) for one in said) / 32000, abs=0.01)


async def test_bad_chunks_cost_themselves(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each an error with a code, and those around them their texts."""
    one, two = utterances[:2]
    mp4 = encode(one.pcm, "-c:a", "aac", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    no_index = mp4[:36] + b"\x00\x00\x00\x08mdat" + mp4[-2000:]
    chunks = [b"no audio at all, but a text " * 9, one.wav, no_index, b"%PDF" + QUIET, two.wav, one.wav[:20]]
    session = Session(recogniser, chunks, mode="chunk")
    events = await session.takeovers()
    codes = ["not_audio", one.text, "undecodable_audio", "not_audio", two.text, "undecodable_audio"]
    assert texts(events) == [*codes, f"{one.text} {two.text}"]
    assert "moov" in events[2]["message"]


async def test_a_truncated_file_gives_what_it_has(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    whole = utterances[0].wav
    events = await Session(recogniser, [whole[:-3], whole[:44]]).takeovers()
    assert events[0]["text"] == utterances[0].text
    assert (events[1]["text"], events[1]["duration"]) == ("", 0.0)


@pytest.mark.parametrize("mode", ["auto", "chunk"])
async def test_raw_pcm_of_a_second_is_an_utterance(
    recogniser: Recogniser, utterances: list[Utterance], mode: str
) -> None:
    events = await Session(recogniser, [one.pcm for one in utterances[:3]], mode=mode).takeovers()
    assert texts(events)[:3] == [one.text for one in utterances[:3]]


@pytest.mark.parametrize("size", [3200, 3201])
async def test_short_pieces_are_one_recording(recogniser: Recogniser, utterances: list[Utterance], size: int) -> None:
    """Every piece is answered at once, and the words come at the end; also when cut inside a sample."""
    said = utterances[:2]
    pcm = QUIET.join(one.pcm for one in said)
    events = await Session(recogniser, pieces(pcm, size)).takeovers(step=20)
    words = " ".join(one.text for one in said)
    assert texts(events)[-1] == words
    assert set(texts(events)[:-1]) == {""}
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.01)


@pytest.mark.parametrize("size", [16000, 9999])
async def test_a_long_recording_is_recognised_as_it_goes_on(
    recogniser: Recogniser, utterances: list[Utterance], size: int
) -> None:
    """What is final comes before the end, nothing twice, and what is done with is let go."""
    said = utterances[:18]
    pcm = QUIET.join(one.pcm for one in said)
    assert len(pcm) / 32000 > 45
    session = Session(recogniser, pieces(pcm, size))
    events = await session.takeovers(step=50)
    assert texts(events)[-1] == " ".join(one.text for one in said)
    assert sum(bool(text) for text in texts(events)[:-1]) >= 2
    after = orjson.loads(session.states[events[-2]["id"]])["after"]
    assert key(after)[0] > len(session.entries) // 4
    times = [segment[name] for event in events for segment in event["segments"] for name in ("start", "end")]
    assert times == sorted(times)
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.01)


async def test_a_long_recording_at_another_rate(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """8 kHz: nothing is lost at the borders of what was let go."""
    pcm = QUIET.join(one.pcm for one in utterances[:16])
    narrow = encode(pcm, "-ar", "8000", "-f", "s16le")
    events = await Session(recogniser, pieces(narrow, 7999), sample_rate=8000).own()
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.05)
    rest = await Session(recogniser, pieces(narrow, 7999), sample_rate=8000).own(events[: len(events) * 3 // 4])
    assert texts(rest)[-1] == texts(events)[-1]


@pytest.mark.parametrize("cut", [1, 4])
async def test_slices_of_a_container_are_one_recording(
    recogniser: Recogniser, utterances: list[Utterance], webm: bytes, cut: int
) -> None:
    """Only the first has the header; the text is that of the whole."""
    size = -(-len(webm) // cut)
    events = await Session(recogniser, pieces(webm, size)).takeovers()
    assert texts(events)[-1] == " ".join(one.text for one in utterances[:3])
    if cut == 1:
        assert texts(events)[0] == texts(events)[1]


async def test_one_recording_after_another(recogniser: Recogniser, utterances: list[Utterance], webm: bytes) -> None:
    """Slices of a container, then pieces of PCM, then a file: each in its place."""
    a, b, c = (one.text for one in utterances[:3])
    third = len(webm) // 3 + 1
    chunks = [utterances[3].wav, *pieces(webm, third), utterances[4].wav, *pieces(webm, third), utterances[3].wav]
    events = await Session(recogniser, chunks).takeovers()
    d, e = utterances[3].text, utterances[4].text
    assert texts(events)[-1] == " ".join([d, a, b, c, e, a, b, c, d])


async def test_a_recording_that_fails_at_its_end_is_told_once(
    recogniser: Recogniser, utterances: list[Utterance], webm: bytes
) -> None:
    """What was understood of it before stays; the chunk after it is not to blame."""
    seconds = sum(len(one.pcm) for one in utterances[:3]) / 32000 + 2
    short = recogniser_of(recogniser.engine, max_seconds=seconds * 0.7)
    chunks = [*pieces(webm, len(webm) // 3 + 1), utterances[0].wav]
    session = Session(short, chunks)
    whole = await session.own()
    assert [event["type"] for event in whole] == ["chunk", "chunk", "chunk", "error", "chunk", "final"]
    assert whole[3]["code"] == "utterance_too_long"
    for last in range(len(whole)):
        rest = await session.own(whole[:last], epoch=2)
        assert [event["type"] for event in [*whole[:last], *rest]] == [event["type"] for event in whole]
        if last == 0 or last > 3:
            assert texts(rest) == texts(whole[last:])
    short.close()


async def test_silence_and_noise_give_no_words(recogniser: Recogniser) -> None:
    import numpy as np

    noise = (np.random.default_rng(1).normal(0, 0.003, 32000) * 32767).astype("<i2").tobytes()
    events = await Session(recogniser, [QUIET * 3, noise, QUIET[:100], b"\x00"]).takeovers()
    assert set(texts(events)) == {""}


async def test_a_session_without_audio_has_an_end(recogniser: Recogniser) -> None:
    [final] = await Session(recogniser, []).own()
    assert (final["type"], final["text"], final["chunk_count"], final["total"]) == ("final", "", 0, 0.0)


async def test_audio_with_three_strikes_is_not_tried(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """It is buried with the reason, the client is told, and the rest is recognised."""
    session = Session(recogniser, [one.wav for one in utterances[:3]])
    session.fields["strike:2-0"] = "3"
    events = await session.own()
    assert texts(events)[:3] == [utterances[0].text, "audio_rejected", utterances[2].text]
    assert [entry for _, entry, _ in session.buried] == ["2-0"]


async def test_a_recording_with_three_strikes_is_let_go_whole(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    """Its further pieces begin a new one: they do not bring back what killed."""
    first, second = utterances[:2]
    pieces = [first.pcm[at : at + 16000] for at in range(0, len(first.pcm), 16000)]
    struck = len(pieces) + 1
    rest = [second.pcm[at : at + 16000] for at in range(0, len(second.pcm), 16000)]
    session = Session(recogniser, [*pieces, bytes(16000), *rest])
    session.fields[f"strike:{struck}-0"] = "3"
    events = await session.own()
    assert [event["type"] for event in events].count("error") == 1
    assert events[struck - 1]["code"] == "audio_rejected"
    assert events[-1]["text"] == second.text


async def test_who_is_fenced_stops(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """At the first refusal; and a Redis that is away is no verdict on the chunk."""
    session = Session(recogniser, [utterances[0].wav] * 2)

    async def run(emit: Callable[..., Any]) -> Transcriber:
        claim = Claim("s", "1-0", 1, session.fields, [])
        voice = Voice(session)
        voice.emit = emit  # type: ignore[method-assign]
        transcriber = Transcriber(claim, recogniser, voice)
        transcriber.feed(session.entries)
        await transcriber.run()
        return transcriber

    calls: list[int] = []

    async def refuse(*args: Any) -> bool:
        calls.append(1)
        return False

    async def away(*args: Any) -> bool:
        calls.append(1)
        raise Unavailable("broker_unavailable", "away")

    with pytest.raises(Fenced):
        await run(refuse)
    with pytest.raises(Unavailable):
        await run(away)
    assert len(calls) == 2


async def test_entries_may_come_one_by_one(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """As the feed reads them, before and while it works."""
    session = Session(recogniser, [one.wav for one in utterances[:3]])
    voice = Voice(session)
    transcriber = Transcriber(Claim("s", "1-0", 1, session.fields, []), recogniser, voice)
    transcriber.feed(session.entries[:1])
    task = asyncio.ensure_future(transcriber.run())
    for entry in session.entries[1:]:
        await asyncio.sleep(0)
        transcriber.feed([entry])
    await task
    assert texts(voice.said)[:3] == [one.text for one in utterances[:3]]
