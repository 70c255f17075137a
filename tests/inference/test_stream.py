"""Stream mode with the real model: segments, partial results, takeovers, released audio."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from asrserver.audio import turns
from asrserver.audio.pcm import Samples
from asrserver.broker.replies import Entry
from asrserver.inference import event_log, whisper
from asrserver.inference.audio_thread import AudioThread
from asrserver.inference.decoding import Request
from asrserver.inference.listening import Channel
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.silero import FrameRun
from asrserver.inference.stream import LONG_PIECE
from asrserver.protocol import codec
from asrserver.protocol.options import Options
from asrserver.text.wer import word_errors
from tests.audio.bombs import opus_silence, small_frames
from tests.audio.streams import packets_of
from tests.recordings import Utterance
from tests.worker_harness import LIVE, QUIET, Event, Session, encode, key, pieces

pytestmark = pytest.mark.gen_test(timeout=120)


def spoken(said: Sequence[Utterance], pause: float = 1.0) -> bytes:
    """A recording of utterances with pauses between them."""
    quiet = bytes(2 * int(pause * 16000))
    return quiet.join(one.pcm for one in said)


def cut(data: bytes, low: int, high: int, seed: int = 1) -> list[bytes]:
    """Slices of random sizes."""
    random = np.random.default_rng(seed)
    slices, at = [], 0
    while at < len(data):
        slices.append(data[at : at + int(random.integers(low, high + 1))])
        at += len(slices[-1])
    return slices


def segments(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [segment for event in events for segment in event["segments"]]


def errors(said: Sequence[Utterance], text: str) -> float:
    """Share of wrong words: in the middle of a recording the small model may recognise other words than alone."""
    expected = " ".join(one.text for one in said)
    return word_errors(expected, text) / len(expected.split())


async def test_each_pause_ends_a_segment(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each has its times, language and words in order; the final text is all of them."""
    said = utterances[:6]
    session = Session(recogniser, pieces(spoken(said), 3200), mode="stream", word_timestamps=True)
    events = await session.run_owner()
    assert [event["type"] for event in events] == ["segment"] * 6 + ["final"]
    assert all(len(event["segments"]) == 1 for event in events[:-1])
    found = segments(events)
    assert [segment["number"] for segment in found] == list(range(6))
    assert events[-1]["text"] == " ".join(segment["text"] for segment in found)
    assert errors(said, events[-1]["text"]) <= 0.05
    at = 0.0
    for one, segment in zip(said, found, strict=True):
        assert at - 0.3 <= segment["start"] < segment["end"] <= at + len(one.pcm) / 32000 + 0.3
        at += len(one.pcm) / 32000 + 1.0
        assert " ".join(word["word"] for word in segment["words"]) == segment["text"]
        times = [word[name] for word in segment["words"] for name in ("start", "end")]
        assert times == sorted(times)
        assert segment["start"] <= times[0]
        assert times[-1] <= segment["end"] + 0.1
        assert all(0 <= word["confidence"] <= 1 for word in segment["words"])
    assert events[-1]["total"] == pytest.approx(at - 1.0, abs=0.01)
    assert events[-1]["chunk_count"] == len(session.entries) - 1
    assert not session.partials


async def test_few_bytes_of_much_audio_are_listened_to_in_steps(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' work comes between: an entry of 12 kB can hold three minutes, and one of 120 kB half an hour."""
    lengths = []
    push = Channel.push

    def pushed(channel: Channel, samples: Samples, first: int) -> list[FrameRun]:
        lengths.append(len(samples))
        return push(channel, samples, first)

    monkeypatch.setattr(Channel, "push", pushed)
    events = await Session(recogniser, [opus_silence()[:12_000]], mode="stream").run_owner()
    assert events[-1]["total"] > 150
    assert sum(lengths) == pytest.approx(events[-1]["total"] * 16000, abs=16)
    assert max(lengths) < 2 * LONG_PIECE


async def test_others_have_their_turn_while_bytes_hold_no_audio(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[None] = []
    step = AudioThread._step
    monkeypatch.setattr(AudioThread, "_step", lambda thread, job: steps.append(step(thread, job)))
    monkeypatch.setattr(turns, "TURN", 0.0)
    events = await Session(recogniser, [small_frames()], mode="stream").run_owner()
    assert events[0]["code"] == "undecodable_audio"
    assert len(steps) > 10


@pytest.mark.usefixtures("processes")  # bits of a header are no file, and no stream yet
@pytest.mark.parametrize("kind", LIVE)
async def test_slicing_does_not_change_the_text(recogniser: Recogniser, utterances: list[Utterance], kind: str) -> None:
    """Slices of 1 to 1,500 bytes, in both modes and at every takeover: the text of the same recording as WAV."""
    said = sorted(utterances, key=lambda one: -len(one.pcm))[:4]
    pcm = spoken(said)
    data = encode(pcm, *LIVE[kind])
    slices = cut(data, 1, 1500)
    wav = await Session(recogniser, [encode(pcm, "-f", "wav")]).run_owner()
    session = Session(recogniser, slices, mode="stream")
    events = await session.takeovers(exactly=False)
    assert events[-1]["text"] == wav[-1]["text"]
    assert len(segments(events)) == len(segments(wav))
    auto = await Session(recogniser, slices).run_owner()
    assert auto[-1]["text"] == wav[-1]["text"]
    answers = [event["chunk_index"] for event in auto if event.get("chunk_index") is not None]
    assert answers == list(range(len(slices)))


@pytest.mark.parametrize(
    ("format", "rate", "channels"),
    [("pcm_s16le", 8000, 1), ("pcm_f32le", 48000, 2), ("pcm_s16le", 44100, 2), ("pcm_alaw", 16000, 1)],
)
async def test_headerless_audio_of_every_kind(
    recogniser: Recogniser, utterances: list[Utterance], format: str, rate: int, channels: int
) -> None:
    """In pieces cut inside samples."""
    said = utterances[:3]
    data = encode(spoken(said), "-f", format[4:], "-ar", str(rate), "-ac", str(channels))
    slices = cut(data, 1, rate)
    session = Session(recogniser, slices, mode="stream", format=format, sample_rate=rate, channels=channels)
    events = await session.takeovers(exactly=False)
    assert len(segments(events)) == 3
    if rate > 8000:
        assert errors(said, events[-1]["text"]) <= 0.1


async def test_packets_of_opus(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Each chunk is one, and a worker that takes over goes on between them; or the chunks are pieces of a file."""
    said = sorted(utterances, key=lambda one: -len(one.pcm))[:4]
    file = encode(spoken(said), *LIVE["ogg"])
    for chunks in (packets_of(file), cut(file, 500, 1500)):
        events = await Session(recogniser, chunks, mode="stream", format="opus").takeovers(exactly=False)
        assert len(segments(events)) == 4
        assert errors(said, events[-1]["text"]) <= 0.1


async def test_takeovers_of_a_long_recording(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """At every event; audio before the final results is released, whatever the container."""
    said = utterances[:10]
    data = encode(spoken(said), *LIVE["webm"])
    session = Session(recogniser, cut(data, 1000, 4000), mode="stream")
    events = await session.takeovers(exactly=False)
    assert errors(said, events[-1]["text"]) <= 0.05
    assert len(segments(events)) == 10
    after = orjson.loads(session.states[events[-2]["id"]])["after"]
    assert key(after)[0] > len(session.entries) * 0.7
    assert len(session.states[events[-2]["id"]]) < 2000


async def test_progress_is_reported_by_audio_too(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client ahead of real time goes on when its audio is taken, not at fixed times only."""
    monkeypatch.setattr(event_log, "PROGRESS_INTERVAL_SECONDS", 1000.0)
    session = Session(recogniser, pieces(QUIET * 20, 32000), mode="stream")
    await session.run_live()
    assert session.progress == [(3, 4.0), (7, 8.0), (11, 12.0), (15, 16.0), (19, 20.0)]


async def test_progress_is_reported_by_bytes_too(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in the tags of an MP3 file: the gateway counts it as seconds until it is taken."""
    monkeypatch.setattr(event_log, "PROGRESS_INTERVAL_SECONDS", 1000.0)
    picture = b"ID3\4\0\0\x01\0\0\0" + bytes(2 << 20)
    session = Session(recogniser, pieces(picture, 128_000), mode="stream")
    await session.run_live()
    taken = [index for index, _ in session.progress]
    assert len(taken) >= 5
    assert taken == sorted(taken)


async def test_quiet_is_released_without_an_event(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A checkpoint comes every ten seconds of it, and the next owner continues there."""
    one, two = utterances[:2]
    session = Session(recogniser, pieces(one.pcm + QUIET * 60 + two.pcm + QUIET, 16000), mode="stream")
    events = await session.run_live()
    assert [event["text"] for event in events[:-1]] == [one.text, two.text]
    assert 5 <= len(session.checkpoints) <= 7
    assert np.diff(session.charged_seconds) == pytest.approx(10.0, abs=1.0)
    assert key(session.checkpoints[-1][0])[0] > 100
    session.fields["state"] = session.checkpoints[-1][1]["state"]
    session.states.clear()
    rest = await session.run_owner(events[:1], epoch=2)
    assert [event["type"] for event in rest] == ["segment", "final"]
    assert rest[-1]["text"] == events[-1]["text"]
    assert rest[-1]["total"] == events[-1]["total"]
    assert rest[0]["segments"] == events[1]["segments"]


async def test_partials_settle(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins with the previous stable text; none comes after its segment, which begins with the stable text."""
    model = recogniser.engine.model
    monkeypatch.setattr(model, "profile", dataclasses.replace(model.profile, first_draft=0.3))
    said = sorted(utterances, key=lambda one: -len(one.pcm))[:5]
    options: dict[str, Any] = {
        "mode": "stream",
        "partials": True,
        "partial_interval": 0.01,
    }  # by the clock; the audio comes faster
    session = Session(recogniser, pieces(spoken(said), 3200), **options)
    session.in_order = []
    events = await session.run_live()
    assert len(session.partials) > len(said)
    stable: dict[float, str] = {}
    ended: set[float] = set()
    for item in session.in_order:
        if item["type"] == "segment":
            (segment,) = item["segments"]
            ended.add(segment["start"])
        elif item["type"] == "partial":
            assert item["start"] not in ended
            assert item["text"].startswith(item["stable"])
            assert item["stable"].startswith(stable.get(item["start"], ""))
            stable[item["start"]] = item["stable"]
            assert item["follows"] == len(ended)
            assert item["end"] > item["start"]
    assert stable.keys() <= ended
    settled = sum(len(text.split()) for text in stable.values())
    assert settled > 5
    assert recogniser.words.stable == settled
    kept = sum(segment["text"].startswith(stable.get(segment["start"], "")) for segment in segments(events))
    assert kept >= len(said) - 1


async def test_the_silence_that_ends_a_segment_is_the_sessions(
    recogniser: Recogniser, utterances: list[Utterance]
) -> None:
    pcm = spoken(utterances[:3], 0.8)
    short = await Session(recogniser, pieces(pcm, 3200), mode="stream", silence=0.3).run_owner()
    long = await Session(recogniser, pieces(pcm, 3200), mode="stream", silence=2.0).run_owner()
    assert (len(segments(short)), len(segments(long))) == (3, 1)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_segment_that_breaks_off_waits_longer_for_its_end(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """What was said up to the pause, as it is decoded in the pause, decides whether the pause ends the segment."""
    model, recogniser.silence = recogniser.engine.model, 1.0
    monkeypatch.setattr(model, "profile", dataclasses.replace(model.profile, sure_end=0.85))
    monkeypatch.setattr(whisper, "breaks_off", lambda text, probability, sure: goes_on and 0 < probability <= 1 > sure)
    session = Session(recogniser, pieces(spoken(utterances[:2], 0.8) + bytes(64000), 3200), mode="stream")
    assert len(segments(await session.run_live())) == (1 if goes_on else 2)


async def test_other_hot_words(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the next segment on, and no text is lost by it."""
    asked: list[str] = []

    def request(*args: Any, **kwargs: Any) -> Request:
        asked.append(args[3])
        return Request(*args, **kwargs)

    monkeypatch.setattr("asrserver.inference.transcriber.Request", request)
    said = utterances[:2]
    session = Session(recogniser, [one.pcm + bytes(64000) for one in said], mode="stream")
    options = codec.encode_options(Options(mode="stream", hotwords="timer, lamp"))
    session.entries.insert(1, Entry("1-1", None, None, options=options))
    events = await session.run_live()
    assert events[-1]["text"] == " ".join(one.text for one in said)
    assert (asked[0], asked[-1]) == ("", "timer, lamp")


async def test_a_segment_that_is_cut_says_so(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Speech went on: there was no pause at which it could end."""
    said = sorted(utterances, key=lambda one: -len(one.pcm))[:10]
    session = Session(recogniser, pieces(spoken(said, 0.1), 32000), mode="stream", silence=3.0)
    events = [event for event in await session.run_live() if event["type"] == "segment"]
    assert [event["cut"] for event in events] == [True] * (len(events) - 1) + [False]
    assert len(events) > 1


async def test_a_bad_chunk_costs_itself(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Text in the middle of a recording, or damage in a container: an error with the index; the rest is recognised."""
    said = utterances[:2]
    chunks = pieces(spoken(said), 16000)
    chunks.insert(3, b"this is no audio at all, it is a text " * 5)
    session = Session(recogniser, chunks, mode="stream")
    events = await session.takeovers(exactly=False)
    assert [(event["code"], event["chunk_index"]) for event in events if event["type"] == "error"] == [("not_audio", 3)]
    assert len(segments(events)) == 2
    assert errors(said, events[-1]["text"]) <= 0.1
    data = encode(spoken(utterances[:6]), *LIVE["webm"])
    slices = pieces(data, 2000)
    slices[len(slices) // 2] = np.random.default_rng(3).bytes(2000)
    events = await Session(recogniser, slices, mode="stream").run_owner()
    assert len(segments(events)) >= 5
    assert {event["code"] for event in events if event["type"] == "error"} <= {"undecodable_audio"}


async def test_a_recorder_that_starts_again(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A new header in the middle begins another recording of the session, whose times continue."""
    said = utterances[:4]
    slices = [
        *cut(encode(spoken(said[:2]), *LIVE["webm"]), 500, 1500),
        *cut(encode(spoken(said[2:]), *LIVE["ogg"]), 500, 1500),
    ]
    events = await Session(recogniser, slices, mode="stream").takeovers(exactly=False)
    assert errors(said, events[-1]["text"]) <= 0.15
    times = [segment[name] for segment in segments(events) for name in ("start", "end")]
    assert times == sorted(times)
    assert times[-1] > len(spoken(said[:2])) / 32000 + 1


async def test_an_entry_with_three_strikes_is_passed_over(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Together with the growing segment; the recording continues, whatever its container."""
    said = utterances[:5]
    for data in (spoken(said), encode(spoken(said), *LIVE["webm"])):
        slices = pieces(data, len(data) // 60)
        struck = len(slices) // 2
        session = Session(recogniser, slices, mode="stream")
        session.fields[f"strike:{struck + 1}-0"] = "3"
        events = await session.run_owner()
        codes = [event["code"] for event in events if event["type"] == "error"]
        assert codes in (["audio_rejected"], ["audio_rejected", "undecodable_audio"])  # the container has a hole then
        assert events[-1]["text"].startswith(said[0].text)
        assert events[-1]["text"].endswith(said[4].text)
        assert [entry for _, entry, _ in session.dead_letters] == [f"{struck + 1}-0"]


async def test_decoding_for_nothing_is_counted(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A segment that pauses is decoded: for nothing if it goes on, and for its text if it ends."""
    engine, recogniser.silence = recogniser.engine, 1.0
    one, two = (one.pcm for one in utterances[:2])
    await Session(recogniser, pieces(one + QUIET * 2 + two + QUIET * 2, 3200), mode="stream").run_live()
    assert engine.busy_seconds > 0
    assert engine.wasted_seconds == 0
    await Session(recogniser, pieces(one + QUIET[::2] + two + QUIET * 2, 3200), mode="stream").run_live()
    assert 0 < engine.wasted_seconds < engine.busy_seconds


async def test_suspicion_ends(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """An innocent session gets partials again once it is past the audio that was in flight when its worker died."""
    said = utterances[:4]
    session = Session(recogniser, pieces(spoken(said), 3200), mode="stream", partials=True, partial_interval=0.01)
    session.fields["strike:10-0"] = "1"
    events = await session.run_live()
    assert len(segments(events)) == 4
    starts = {guess["start"] for guess in session.partials}
    assert segments(events)[0]["start"] not in starts
    assert segments(events)[-1]["start"] in starts


async def test_silence_noise_and_tone_give_no_words(recogniser: Recogniser) -> None:
    t = np.arange(20 * 16000) / 16000
    noise = np.random.default_rng(1).normal(0, 0.05, len(t))
    for sound in (np.zeros(len(t)), noise, 0.3 * np.sin(2 * np.pi * 440 * t)):
        pcm = (sound * 32767).astype("<i2").tobytes()
        session = Session(recogniser, pieces(pcm, 3200), mode="stream", partials=True)
        events = await session.run_owner()
        assert [(event["type"], event["text"]) for event in events] == [("final", "")]
        assert not session.partials


@pytest.mark.parametrize("context", [True, False])
async def test_previous_text_is_context_across_a_short_gap(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch, context: bool
) -> None:
    """In the session's language only, and only if the setting is on."""
    asked: list[Any] = []
    real = recogniser.engine.recognise

    async def watched(row: Any) -> Any:
        asked.append(row.request.previous)
        return await real(dataclasses.replace(row, request=dataclasses.replace(row.request, previous="")))

    monkeypatch.setattr(recogniser.engine, "recognise", watched)
    recogniser.context = context
    one, two, three = utterances[:3]
    pcm = one.pcm + QUIET + two.pcm + QUIET * 5 + three.pcm
    await Session(recogniser, pieces(pcm, 3200), mode="stream").run_live()
    near = [previous for previous in asked if previous]
    assert set(near) == ({one.text} if context else set())
    assert not asked[-1]


async def test_a_file_in_pieces_is_one_file(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A piece of it that looks like another file, or like text, belongs to it all the same."""
    said = utterances[:2]
    wav = said[0].wav[:44] + b"".join(one.pcm for one in said)  # whose header ends before its data does not
    tags = b"LIST" + (3000).to_bytes(4, "little") + b"INFO" + b"ID3 text, a great deal of it. " * 99 + bytes(26)
    head, body = wav[:36], wav[36:40] + b"\xff\xff\xff\xff" + wav[44:]
    file = [head, tags[:12], tags[12:1500], tags[1500:], *pieces(body, 4000)]
    for format, right in (("file", True), ("auto", False)):
        events = await Session(recogniser, file, mode="stream", format=format).run_owner()
        assert [event["type"] for event in events].count("error") == (0 if right else 2)
    assert errors(said, (await Session(recogniser, file, mode="stream", format="file").run_owner())[-1]["text"]) <= 0.1


@pytest.mark.parametrize("head", [b"%PDF-1.7", b"PK\x03\x04", b"\x7f\xfe\x80\x01", b"MAC \x96\x0f"])
async def test_the_rest_of_what_is_no_audio_is_not_heard_as_pcm(
    recogniser: Recogniser, utterances: list[Utterance], head: bytes
) -> None:
    """One error, for the piece with the signature, whoever processes the rest; a recording after it is heard."""
    noise = np.random.default_rng(3).bytes(50_000)
    session = Session(recogniser, [*pieces(head + noise, 3200), utterances[0].wav], mode="stream")
    events = await session.takeovers(exactly=False)
    assert [event["chunk_index"] for event in events if event["type"] == "error"] == [0]
    assert [segment["text"] for segment in segments(events)] == [utterances[0].text]
    assert events[-1]["total"] == pytest.approx(len(utterances[0].pcm) / 32000, abs=0.05)


async def test_what_is_no_file_is_refused(recogniser: Recogniser) -> None:
    events = await Session(recogniser, [QUIET, QUIET], mode="stream", format="file").run_owner()
    assert [event.get("code") for event in events] == ["not_audio", "not_audio", None]
    assert (events[-1]["text"], events[-1]["total"]) == ("", 0.0)


@pytest.mark.parametrize("mode", ["stream", "auto", "chunk"])
async def test_a_track_that_the_session_names(
    recogniser: Recogniser, utterances: list[Utterance], mode: str, tmp_path: Path
) -> None:
    """Of an MP4 with two languages the named one is recognised, also by a next owner; a third is an error."""
    one, two = utterances[:2]
    (tmp_path / "two.wav").write_bytes(two.wav)
    data = encode(one.pcm, "-i", str(tmp_path / "two.wav"), "-map", "0:a", "-map", "1:a", *LIVE["mp4"])
    chunks = pieces(data, len(data) // 5) if mode == "stream" else [data]
    for track, said in ((None, one), (0, one), (1, two)):
        session = Session(recogniser, chunks, mode=mode, track=track)
        assert errors([said], (await session.takeovers(exactly=False))[-1]["text"]) <= 0.2
    events = await Session(recogniser, chunks, mode=mode, track=2).run_owner()
    assert [(event["code"], event["message"]) for event in events if event["type"] == "error"] == [
        ("no_such_track", "there is no audio track 2: there are 2 audio tracks, numbered from 0")
    ]
    assert events[-1]["text"] == ""
