"""transcriber.py with the real recogniser: what sessions of chunks say, and takeovers at every event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from asrserver.broker.keys import TASKS
from asrserver.broker.replies import Claim, Task
from asrserver.errors import Unavailable
from asrserver.inference.event_log import Fenced
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.transcriber import Transcriber
from asrserver.text.wer import word_errors
from tests.recordings import Utterance
from tests.worker_harness import QUIET, MemorySink, Session, encode, key, pieces, texts

pytestmark = pytest.mark.gen_test(timeout=120)


@pytest.fixture(scope="module")
def webm(utterances: list[Utterance]) -> bytes:
    """Three utterances as one recording, as a browser makes it."""
    pcm = QUIET.join(utterance.pcm for utterance in utterances[:3])
    return encode(pcm, "-c:a", "libopus", "-b:a", "32k", "-f", "webm", "-cluster_time_limit", "500")


async def test_whole_files_are_utterances(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each has its own text, in order; the final text is all of them."""
    said = utterances[:4]
    events = await Session(recogniser, [one.wav for one in said], first=7).takeovers()
    words = [one.text for one in said]
    assert texts(events) == [*words, " ".join(words)]
    assert [event.get("chunk_index") for event in events] == [7, 8, 9, 10, None]
    assert events[-1]["chunk_count"] == 4
    assert events[-1]["total"] == pytest.approx(sum(len(one.pcm) for one in said) / 32000, abs=0.01)


@pytest.mark.usefixtures("processes")
async def test_bad_chunks_cost_themselves(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each gets an error with a code, and the chunks around it their texts."""
    one, two = utterances[:2]
    mp4 = encode(one.pcm, "-c:a", "aac", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
    no_index = mp4[:36] + b"\x00\x00\x00\x08mdat" + mp4[-2000:]
    chunks = [b"no audio at all, but a text " * 9, one.wav, no_index, b"%PDF" + QUIET, two.wav, one.wav[:20]]
    session = Session(recogniser, chunks, mode="chunk")
    events = await session.takeovers()
    codes = ["not_audio", one.text, "undecodable_audio", "not_audio", two.text, "undecodable_audio"]
    assert texts(events) == [*codes, f"{one.text} {two.text}"]
    assert "moov" in events[2]["message"]


@pytest.mark.parametrize("mode", ["auto", "chunk"])
async def test_damage_in_a_file_is_named(recogniser: Recogniser, utterances: list[Utterance], mode: str) -> None:
    """The rest is recognised, and an error of no chunk says which seconds are missing, whoever owns the session."""
    one, two = utterances[:2]
    mp3 = encode(one.pcm, "-c:a", "libmp3lame", "-f", "mp3")
    both = bytearray(encode(one.pcm + QUIET + two.pcm, "-c:a", "libmp3lame", "-f", "mp3"))
    at = len(mp3)
    both[at : at + 300] = bytes(300)
    events = await Session(recogniser, [bytes(both), one.wav], mode=mode).takeovers()
    assert [event["type"] for event in events] == ["error", "chunk", "chunk", "final"]
    assert texts(events) == ["undecodable_audio", f"{one.text} {two.text}", one.text, events[-1]["text"]]
    assert events[0].get("chunk_index") is None
    assert events[0]["message"].startswith("chunk 0: ")


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
    """Every piece is answered at once, and the words come at the end, also for pieces cut inside a sample."""
    said = utterances[:2]
    pcm = QUIET.join(one.pcm for one in said)
    events = await Session(recogniser, pieces(pcm, size)).takeovers(step=20, exactly=False)
    words = " ".join(one.text for one in said)
    assert texts(events)[-1] == words
    assert " ".join(text for text in texts(events)[:-1] if text) in words
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.01)


@pytest.mark.parametrize("size", [16000, 9999])
async def test_a_long_recording_is_recognised_while_it_arrives(
    recogniser: Recogniser, utterances: list[Utterance], size: int
) -> None:
    """Final text comes before the end, nothing comes twice, and recognised audio is released."""
    said = utterances[:18]
    pcm = QUIET.join(one.pcm for one in said)
    assert len(pcm) / 32000 > 45
    session = Session(recogniser, pieces(pcm, size))
    events = await session.takeovers(step=50, exactly=False)
    expected = " ".join(one.text for one in said)
    assert word_errors(expected, texts(events)[-1]) <= 0.02 * len(expected.split())
    live = await session.run_live()
    assert sum(bool(text) for text in texts(live)[:-1]) >= 2
    after = orjson.loads(session.states[live[-2]["id"]])["after"]
    assert key(after)[0] > len(session.entries) // 4
    times = [segment[name] for event in events for segment in event["segments"] for name in ("start", "end")]
    assert times == sorted(times)
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.01)


async def test_a_long_recording_at_another_rate(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """8 kHz: nothing is lost where audio was released."""
    pcm = QUIET.join(one.pcm for one in utterances[:16])
    narrow = encode(pcm, "-ar", "8000", "-f", "s16le")
    session = Session(recogniser, pieces(narrow, 7999), sample_rate=8000)
    events = await session.run_owner()
    assert events[-1]["total"] == pytest.approx(len(pcm) / 32000, abs=0.05)
    rest = await session.run_owner(events[: len(events) * 3 // 4])
    assert texts(rest)[-1] == texts(events)[-1]


@pytest.mark.parametrize("cut", [1, 4])
async def test_slices_of_a_container_are_one_recording(
    recogniser: Recogniser, utterances: list[Utterance], webm: bytes, cut: int
) -> None:
    """Only the first has the header; the text is that of the whole file."""
    size = -(-len(webm) // cut)
    events = await Session(recogniser, pieces(webm, size)).takeovers(exactly=cut == 1)
    assert texts(events)[-1] == " ".join(one.text for one in utterances[:3])
    if cut == 1:
        assert texts(events)[0] == texts(events)[1]


async def test_one_recording_after_another(recogniser: Recogniser, utterances: list[Utterance], webm: bytes) -> None:
    """Slices of a container, then pieces of PCM, then a file: each text in its place."""
    a, b, c = (one.text for one in utterances[:3])
    third = len(webm) // 3 + 1
    chunks = [utterances[3].wav, *pieces(webm, third), utterances[4].wav, *pieces(webm, third), utterances[3].wav]
    events = await Session(recogniser, chunks).takeovers()
    d, e = utterances[3].text, utterances[4].text
    assert texts(events)[-1] == " ".join([d, a, b, c, e, a, b, c, d])


@pytest.mark.usefixtures("processes")
async def test_a_recorder_that_was_stopped_at_once(
    recogniser: Recogniser, utterances: list[Utterance], webm: bytes
) -> None:
    """A header in two slices and no audio: no words and no error."""
    head = webm[: webm.index(b"\x1f\x43\xb6\x75")]
    assert len(head) < 1000
    session = Session(recogniser, [utterances[1].wav, head[:100], head[100:], utterances[0].wav])
    whole = await session.run_owner()
    assert texts(whole)[:-1] == [utterances[1].text, "", "", utterances[0].text]
    assert whole[-1]["text"] == f"{utterances[1].text} {utterances[0].text}"
    for last in range(len(whole)):
        rest = await session.run_owner(whole[:last], epoch=2)
        assert [event["type"] for event in [*whole[:last], *rest]] == [event["type"] for event in whole]
        assert texts(rest) == texts(whole[last:])


async def test_silence_and_noise_give_no_words(recogniser: Recogniser) -> None:
    import numpy as np

    noise = (np.random.default_rng(1).normal(0, 0.003, 32000) * 32767).astype("<i2").tobytes()
    events = await Session(recogniser, [QUIET * 3, noise, QUIET[:100], b"\x00"]).takeovers()
    assert set(texts(events)) == {""}


async def test_a_session_without_audio_has_an_end(recogniser: Recogniser) -> None:
    [final] = await Session(recogniser, []).run_owner()
    assert (final["type"], final["text"], final["chunk_count"], final["total"]) == ("final", "", 0, 0.0)


async def test_audio_with_three_strikes_is_not_tried(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """It becomes a dead letter with the reason, the client gets an error, and the rest is recognised."""
    session = Session(recogniser, [one.wav for one in utterances[:3]])
    session.fields["strike:2-0"] = "3"
    events = await session.run_owner()
    assert texts(events)[:3] == [utterances[0].text, "audio_rejected", utterances[2].text]
    assert [entry for _, entry, _ in session.dead_letters] == ["2-0"]


async def test_a_recording_with_three_strikes_loses_its_growing_segment(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    """It is dropped with the struck piece, so that further pieces do not bring back what killed the worker."""
    first, second = utterances[:2]
    begun = pieces(first.pcm, 3200)[:10]
    struck = len(begun) + 1
    session = Session(recogniser, [*begun, first.pcm[32000:35200], *pieces(second.pcm, 16000)])
    session.fields[f"strike:{struck}-0"] = "3"
    events = await session.run_owner()
    assert [event["type"] for event in events].count("error") == 1
    assert events[struck - 1]["code"] == "audio_rejected"
    assert events[-1]["text"] == second.text


async def test_a_fenced_owner_stops(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """At the first refusal; and an unavailable Redis is no error of the chunk."""
    session = Session(recogniser, [utterances[0].wav] * 2)

    async def run(emit: Callable[..., Any]) -> Transcriber:
        claim = Claim("s", Task(TASKS, "1-0"), 1, session.fields, [])
        sink = MemorySink(session)
        sink.append_event = emit  # type: ignore[method-assign]
        transcriber = Transcriber(claim, recogniser, sink)
        transcriber.inbox.put(session.entries)
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


async def test_the_end_of_a_stream_is_processed_with_its_last_pieces(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one run of the audio thread; an incomplete sample takes another."""
    asked: list[int] = []
    run = recogniser.audio_thread.run

    async def counting(labels: list[str], *given: Any, **how: Any) -> Any:
        asked.append(len(labels))
        return await run(labels, *given, **how)

    monkeypatch.setattr(recogniser.audio_thread, "run", counting)

    async def final(chunks: list[bytes], **options: Any) -> Any:
        asked.clear()
        return (await Session(recogniser, chunks, mode="stream", **options).run_owner())[-1]

    spoken = utterances[0]
    for rate, pcm in ((16000, spoken.pcm), (48000, np.repeat(np.frombuffer(spoken.pcm, "<i2"), 3).tobytes())):
        chunks = pieces(pcm, rate)
        event = await final(chunks, format="pcm_s16le", sample_rate=rate)
        assert event["text"] == spoken.text
        assert event["total"] == pytest.approx(len(spoken.pcm) / 32000, abs=0.01)
        assert asked == [len(chunks)]
    assert (await final([b"x"], format="pcm_s16le"))["text"] == ""
    assert asked == [1, 1]


async def test_entries_may_come_one_by_one(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """As the consumer reads them, before and during the work."""
    session = Session(recogniser, [one.wav for one in utterances[:3]])
    sink = MemorySink(session)
    transcriber = Transcriber(Claim("s", Task(TASKS, "1-0"), 1, session.fields, []), recogniser, sink)
    transcriber.inbox.put(session.entries[:1])
    task = asyncio.ensure_future(transcriber.run())
    for entry in session.entries[1:]:
        await asyncio.sleep(0)
        transcriber.inbox.put([entry])
    await task
    assert texts(sink.events)[:3] == [one.text for one in utterances[:3]]
