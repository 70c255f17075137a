"""protocol/wyoming.py: bytes to events, what clients ask for, and answers as the package `wyoming` reads them."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, read_event, write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from asrserver.errors import BadRequest
from asrserver.protocol import languages, wyoming
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.protocol.wyoming import MAX_DATA, MAX_LINE, AudioFormat, EventParser, TranscribeRequest, WireEvent
from tests.events import segment


def written(*events: Event) -> bytes:
    """The bytes that the package writes for these."""
    out = io.BytesIO()
    for event in events:
        write_event(event, out)
    return out.getvalue()


def read(data: bytes) -> list[Event]:
    """What the package reads of an answer."""
    source, found = io.BytesIO(data), []
    while (event := read_event(source)) is not None:
        found.append(event)
    assert not source.read()
    return found


def parsed(data: bytes, *cuts: int, max_payload: int = 1 << 20) -> list[WireEvent]:
    """The events in bytes that come in pieces; the pieces of a payload are joined."""
    parser, found = EventParser(max_payload), list[WireEvent]()
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        for event in parser.feed(data[begin:end]):
            same = found and event.payload and found[-1].payload and event.data is found[-1].data
            found += [event] if not same else [WireEvent(event.type, event.data, found.pop().payload + event.payload)]
    assert not parser.in_event
    return found


CHUNK = AudioChunk(16000, 2, 1, bytes(range(200)), timestamp=20)
NAMES = Transcribe(language="de", transcript_names=["Küche", "Büro"], transcript_terms=["Rollo"])


# -- events


@pytest.mark.parametrize("cut", ["whole", "bytes", "random"])
def test_events_come_in_any_pieces(cut: str) -> None:
    sent = [Describe(), NAMES, AudioStart(16000, 2, 1), CHUNK, AudioStop(timestamp=5), Ping("x"), Ping()]
    data = written(*(one.event() for one in sent))
    cuts = {"whole": [], "bytes": range(1, len(data)), "random": sorted(random.Random(1).sample(range(len(data)), 40))}
    found = parsed(data, *cuts[cut])
    assert [one.type for one in found] == [one.event().type for one in sent]
    assert found[1].data == {
        "language": "de",
        "transcript_names": ["Küche", "Büro"],
        "transcript_terms": ["Rollo"],
    }
    assert found[3].payload == CHUNK.audio
    assert found[3].data["timestamp"] == 20


def test_data_may_stand_in_the_line_behind_it_or_in_both() -> None:
    body = b'{"channels": 1, "rate": 8000}'
    line = {"type": "audio-chunk", "data": {"rate": 1, "width": 2}, "data_length": len(body), "payload_length": 4}
    [found] = parsed(json.dumps(line).encode() + b"\n" + body + b"abcd")
    assert found == WireEvent("audio-chunk", {"rate": 8000, "width": 2, "channels": 1}, b"abcd")
    plain = b'{"type": "ping", "data": {"text": "a"}, "data_length": 0, "payload_length": null}\r\n'
    assert parsed(plain) == [WireEvent("ping", {"text": "a"})]
    assert parsed(b'{"type": "describe", "data": null}\n') == [WireEvent("describe", {})]


def test_payloads_of_other_events_are_skipped() -> None:
    strange = Event("future", {"a": 1}, b"\n{not an event}\n" * 9)
    assert parsed(written(strange, Ping("x").event())) == [
        WireEvent("future", {"a": 1}),
        WireEvent("ping", {"text": "x"}),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n", "bad_json"),
        (b"[]\n", "bad_json"),
        (b"\n", "bad_json"),
        (b"\xff\xfe\n", "bad_json"),
        (b"[" * 5000 + b"\n", "bad_json"),
        (b'{"data": {}}\n', "bad_request"),
        (b'{"type": 7}\n', "bad_request"),
        (b'{"type": "a", "data": []}\n', "bad_request"),
        (b'{"type": "a", "data_length": -1}\n', "bad_request"),
        (b'{"type": "a", "data_length": true}\n', "bad_request"),
        (b'{"type": "a", "payload_length": 1.5}\n', "bad_request"),
        (b'{"type": "a", "data_length": 2}\n[]', "bad_json"),
        (b"x" * (MAX_LINE + 1), "message_too_large"),
        (b'{"type": "' + b"x" * MAX_LINE + b'"}\n', "message_too_large"),
        (b'{"type": "a", "data_length": %d}\n' % (MAX_DATA + 1), "message_too_large"),
        (b'{"type": "audio-chunk", "payload_length": 1000001}\n', "message_too_large"),
        (b'{"type": "a", "data_length": 39999}\n[' + b"0," * 19999, "bad_json"),
    ],
)
def test_what_is_no_event_ends_it(data: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        list(EventParser(1_000_000).feed(data))
    assert caught.value.code == code


def test_no_more_is_kept_than_a_line_and_its_data() -> None:
    """A payload is passed on as it comes, or dropped."""
    for kind, pieces in (("audio-chunk", 99), ("other", 0)):
        parser = EventParser(1 << 30)
        events = list(parser.feed(b'{"type": "%s", "payload_length": %d}\n' % (kind.encode(), 1 << 30)))
        for _ in range(99):
            events += parser.feed(bytes(1 << 16))
        assert sum(bool(event.payload) for event in events) == pieces
        assert len(parser._buffer) == 0
        assert parser.in_event


# -- what clients ask for


def test_requests_become_options() -> None:
    [event] = parsed(written(NAMES.event()))
    asked = TranscribeRequest.parse(event.data)
    common: dict[str, Any] = {
        "mode": "stream",
        "silence": wyoming.SILENCE,
        "language": "de",
        "hotwords": "Rollo, Büro, Küche",
    }
    assert asked.options(AudioFormat()) == Options(**common, format="pcm_s16le")
    assert asked.options(AudioFormat(48000, 2, 2)) == Options(
        **common, format="pcm_s16le", sample_rate=48000, channels=2
    )
    for other in (AudioFormat(96000), AudioFormat(4000), AudioFormat(width=1), AudioFormat(channels=6)):
        assert asked.options(other) == Options(**common, format="file")


@pytest.mark.parametrize("language", [None, "", "auto", "en-US", "en"])
def test_languages_are_taken_as_others_name_them(language: str | None) -> None:
    options = TranscribeRequest.parse({"language": language}).options(AudioFormat())
    assert options.language == languages.parse(language)


@pytest.mark.parametrize("language", ["klingon", 7, ["en"]])
def test_a_bad_language_is_named(language: Any) -> None:
    with pytest.raises(BadRequest, match="language"):
        TranscribeRequest.parse({"language": language}).options(AudioFormat())


def test_names_come_before_terms_where_there_is_no_room_for_all() -> None:
    names, terms = [f"name {number}" for number in range(90)], [f"term {number}" for number in range(90)]
    asked = TranscribeRequest.parse({"transcript_names": ["x" * 2000, *names, *names], "transcript_terms": terms})
    words = asked.hotwords.split(", ")
    assert len(asked.hotwords) <= MAX_TEXT
    assert words[::-1][:90] == names  # at the end: a model's prompt loses its beginning
    assert words[0] == f"term {len(words) - 91}"


def test_names_of_other_types_are_left_out() -> None:
    given = {"transcript_names": ["a\x00b", " ", 7, None, ["c"]], "transcript_terms": "text", "name": 5}
    assert TranscribeRequest.parse(given) == TranscribeRequest(hotwords="ab")


def test_what_a_chunk_does_not_say_the_start_says() -> None:
    assert AudioFormat.parse({}, {}) == AudioFormat(16000, 2, 1)
    start = {"rate": 1, "width": 4, "channels": 3}
    assert AudioFormat.parse({"rate": 8000, "width": None}, start) == AudioFormat(8000, 4, 3)


@pytest.mark.parametrize("bad", [{"rate": "16000"}, {"rate": -1}, {"width": 5}, {"channels": 1.5}, {"rate": True}])
def test_a_format_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(bad))):
        AudioFormat.parse(bad, {})


# -- answers


def test_info_is_what_home_assistant_needs() -> None:
    """A line that fits into its buffer, and the languages of all models."""
    models = [{"name": f"model-{number}", "languages": sorted(languages.NAMES)} for number in range(20)]
    data = wyoming.info(models, "1.2.3")
    assert len(data.partition(b"\n")[0]) < 1 << 16
    [event] = read(data)
    [program] = Info.from_event(event).asr
    assert (program.name, program.installed, program.version) == ("asrserver", True, "1.2.3")
    assert program.supports_transcript_streaming
    assert program.requires_external_vad
    assert [model.name for model in program.models] == [model["name"] for model in models]
    assert all(model.installed and model.languages == sorted(languages.NAMES) for model in program.models)


def test_a_transcript_and_what_is_streamed_of_it() -> None:
    segments = [segment(0, "turn on"), segment(1, "the light")]
    data = wyoming.transcript_start("en") + b"".join(wyoming.transcript_chunk(segments[: n + 1], n) for n in range(2))
    start, *chunks, text, stop = read(data + wyoming.transcript(wyoming.text_of(segments), "en"))
    assert TranscriptStart.from_event(start).language == "en"
    assert [TranscriptChunk.from_event(chunk).text for chunk in chunks] == ["turn on", " the light"]
    assert Transcript.from_event(text) == Transcript("turn on the light", language="en")
    assert stop.type == "transcript-stop"
    assert [event.type for event in read(wyoming.transcript_start(None))] == ["transcript-start"]
    assert Transcript.from_event(read(wyoming.transcript("", None))[0]) == Transcript("")


def test_small_answers() -> None:
    assert Pong.from_event(read(wyoming.pong("x"))[0]) == Pong("x")
    assert Pong.from_event(read(wyoming.pong(7))[0]) == Pong(None)
    assert Error.from_event(read(wyoming.error("overloaded", "no room"))[0]) == Error("no room", "overloaded")
