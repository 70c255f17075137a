"""This release reads the last release's events, and the last release can read this one's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asrserver.gateway.persistence import record, row
from asrserver.gateway.session import Session
from asrserver.protocol import codec, native
from asrserver.protocol.events import (
    ChunkResult,
    Final,
    Partial,
    Progress,
    Published,
    Result,
    SessionEvent,
    UnknownEvent,
    Word,
)
from asrserver.protocol.options import Options
from tests.events import durable, segment

RELEASE = json.loads((Path(__file__).parent.parent / "data" / "events-0.1.0.json").read_text())

#: What a release's session was, by its name.
Recorded = dict[str, Any]

recorded = pytest.mark.parametrize("was", RELEASE["sessions"].values(), ids=RELEASE["sessions"])


def events(was: Recorded) -> list[Result]:
    return [codec.decode(data.encode()) for data in was["events"]]


def published(was: Recorded) -> list[Published]:
    return [codec.decode_published(data.encode()) for data in was["published"]]


def as_sent(messages: Sequence[SessionEvent]) -> list[Any]:
    return [json.loads(data) for event in messages if (data := native.format(event)) is not None]


# -- the last release's events in today's code


def test_the_recording_has_every_type() -> None:
    types = {json.loads(data)["type"] for was in RELEASE["sessions"].values() for data in was["published"]}
    assert types == {"chunk", "segment", "error", "final", "partial", "progress", "moved"}


@recorded
def test_every_event_is_understood(was: Recorded) -> None:
    """Every field of each event is read."""
    for data in (*was["events"], *was["published"]):
        event = codec.decode_published(data.encode())
        assert not isinstance(event, UnknownEvent)
        told, wrote = json.loads(codec.encode(event)), json.loads(data)
        for rows in (told.get("segments", ()), wrote.get("segments", ())):
            for one in rows:
                one.setdefault("chunk_index", None)  # None is no longer written
        assert {name: told[name] for name in wrote} == wrote
        assert {name: value for name, value in told.items() if name not in wrote and value not in (None, False)} == {
            "v": 1
        }


@recorded
def test_a_client_gets_the_same_messages(was: Recorded) -> None:
    """A session of this gateway sends what a gateway of the last release sent, and a chunk_index in every message."""
    got: list[SessionEvent] = []
    session = Session("s", "", codec.decode_options(was["hash"]["options"]), got.append)
    for event in published(was):
        if isinstance(event, Partial):
            assert session.deliver_passing(event)
        elif isinstance(event, Result):
            assert session.deliver(event)
    results = [message for message in was["messages"] if message["type"] not in ("ack", "error")]
    errors = [message for message in was["messages"] if message["type"] == "error" and "seq" in message]
    for message in (*results, *errors):
        if message["type"] in ("error", "final_result"):
            message.setdefault("chunk_index", 0 if message["type"] == "final_result" else None)
    if was["messages"][-1].get("code") == "session_moved":  # its results went to the other connection
        results = as_sent(got)
    assert [message for message in as_sent(got) if message["type"] != "error"] == results
    assert [message for message in as_sent(got) if message["type"] == "error"] == errors


@recorded
def test_a_session_is_resumed_at_any_of_its_events(was: Recorded) -> None:
    everything = events(was)
    fields = {"moves": "1", **was["hash"]}
    options = codec.decode_options(fields["options"])
    for last_seq in range(len(everything) + 1):
        got: list[SessionEvent] = []
        session = Session.resumed("s", options, fields, everything, last_seq, got.append)
        assert session.state == ("over" if last_seq == len(everything) else "finishing")
        for event in everything:
            assert session.deliver(event)
        assert as_sent(got) == as_sent(everything[last_seq:])
        assert session.state == "over"


@recorded
def test_a_session_is_stored(was: Recorded) -> None:
    everything = events(was)
    stored = record(row("s", was["hash"]), everything)
    wrote = [json.loads(data) for data in was["events"]]
    final = wrote[-1]
    expected = {
        "status": final["status"],
        "final_text": final["text"],
        "total_duration": final["total"],
        "chunk_count": final["chunk_count"],
        "model": "demo",
        "mode": json.loads(was["hash"]["options"])["mode"],
    }
    assert {name: stored.session[name] for name in expected} == expected
    answers = [event for event in wrote if event.get("chunk_index") is not None]
    assert [(chunk["chunk_index"], chunk.get("text"), chunk.get("error_code")) for chunk in stored.chunks] == [
        (event["chunk_index"], event.get("text"), event.get("code")) for event in answers
    ]
    assert [chunk["received_at"] for chunk in stored.chunks] == [event["received"] for event in answers]
    segments = [one for event in wrote for one in event["segments"]]
    assert [
        (one["number"], one["start_time"], one["end_time"], one["text"], one["words"], one["chunk_index"])
        for one in stored.segments
    ] == [
        (one["number"], one["start"], one["end"], one["text"], one.get("words"), one["chunk_index"]) for one in segments
    ]
    errors = [event["code"] for event in wrote if event["type"] == "error" and event.get("chunk_index") is None]
    assert stored.session.get("error_code") == (errors[-1] if errors else None)


@recorded
def test_options_are_understood(was: Recorded) -> None:
    text = was["hash"]["options"]
    options = codec.decode_options(text)
    assert Options.parse(json.loads(text)) == options
    newer: dict[str, Any] = {
        "model": None,
        "speech_events": False,
        "normalise": {},
        "channel_mode": "mix",
        "track": None,
    }
    assert json.loads(codec.encode_options(options)) == {**newer, **json.loads(text)}


# -- today's events in the last release's code

#: The keys that release 0.1.0 reads and cannot do without, by type: of an event, and of each of its segments.
DURABLE = {"type", "session_id", "seq", "id", "time", "worker", "model", "chunk_count", "total", "language", "segments"}
READ = {
    "chunk": DURABLE | {"chunk_index", "text", "duration"},
    "segment": DURABLE,
    "error": DURABLE | {"code", "message"},
    "final": DURABLE | {"text", "status"},
    "partial": {"type", "session_id", "follows", "start", "end", "text", "stable", "language"},
    "progress": {"type", "session_id", "taken", "total"},
}
SEGMENT = {"number", "start", "end", "text", "language", "confidence"}

#: The keys of options that its workers read, and cannot do without.
OPTIONS = {"mode", "format", "sample_rate", "channels", "language", "task", "prompt", "hotwords"}


def written() -> list[Published]:
    return [
        *(durable(kind, 1, segments=[segment()], language=None) for kind in ("chunk", "segment", "error", "final")),
        Partial(session_id="s", start=0.0, end=1.0, text="", stable="", language="", follows=0),
        Progress(session_id="s", taken=0, total=0.0),
    ]


@pytest.mark.parametrize("event", written(), ids=lambda event: type(event).__name__)
def test_the_last_release_finds_all_that_it_reads(event: Published) -> None:
    """Fields are written for every value, also None, empty and zero."""
    wrote = json.loads(codec.encode(event))
    assert wrote.keys() >= READ[wrote["type"]]
    for one in wrote.get("segments", ()):
        assert one.keys() >= SEGMENT


def test_the_last_release_finds_no_words_where_there_are_none() -> None:
    """Its gateways pass on whatever a segment has."""
    with_words = durable("segment", 1, segments=[segment(words=[Word("a", 0.0, 1.0, 1.0)])])
    [one] = json.loads(codec.encode(with_words))["segments"]
    assert one.keys() == SEGMENT | {"words"}
    assert one["words"] == [{"word": "a", "start": 0.0, "end": 1.0, "confidence": 1.0}]
    [one] = json.loads(codec.encode(durable("segment", 1, segments=[segment()])))["segments"]
    assert one.keys() == SEGMENT


def test_the_last_release_finds_all_options_that_it_reads() -> None:
    assert json.loads(codec.encode_options(Options())).keys() >= OPTIONS


# -- the next release's events in today's code


def test_fields_that_are_not_known_are_ignored() -> None:
    event = durable("chunk", 1, text="a", segments=[segment()])
    newer = json.loads(codec.encode(event)) | {"v": 9, "speaker": {"name": "x"}}
    newer["segments"][0]["speaker"] = 3
    read = codec.decode(json.dumps(newer).encode())
    assert isinstance(read, ChunkResult)
    assert (read.v, read.text, read.segments) == (9, "a", [segment()])
    assert codec.decode_options('{"mode":"stream","diarize":true}') == Options(mode="stream")


def test_a_type_that_is_not_known_counts_and_is_told_to_nobody() -> None:
    """Later results follow it, its segments are stored, and its total is the session's length."""
    base = {**json.loads(codec.encode(durable("segment", 1, total=3.0, segments=[segment()])))}
    event = codec.decode(json.dumps({**base, "type": "speaker_change"}).encode())
    assert isinstance(event, UnknownEvent)
    assert (event.type, event.seq, event.id, event.problem) == ("speaker_change", 1, "1-1", "")
    got: list[SessionEvent] = []
    session = Session("s", "", Options(), got.append)
    final = durable("final", 2)
    assert isinstance(final, Final)
    assert not session.deliver(final)
    assert session.deliver(event)
    assert session.deliver(final)
    assert [message["type"] for message in as_sent(got)] == ["final_result"]
    stored = record({"id": "s"}, [event])
    assert [one["text"] for one in stored.segments] == ["word"]
    assert stored.session["total_duration"] == 3.0


def test_what_is_published_and_not_known_is_passed_over() -> None:
    event = codec.decode_published(b'{"type":"speech_started","session_id":"s","at":1.5}')
    assert isinstance(event, UnknownEvent)
    got: list[SessionEvent] = []
    session = Session("s", "", Options(), got.append)
    assert session.deliver(event)
    assert as_sent(got) == []
    assert session.deliver(durable("final", 1))


def test_a_known_event_that_cannot_be_read_counts_too_and_says_why() -> None:
    wrote = json.loads(codec.encode(durable("chunk", 4)))
    del wrote["text"]
    event = codec.decode(json.dumps(wrote).encode())
    assert isinstance(event, UnknownEvent)
    assert (event.type, event.seq) == ("chunk", 4)
    assert "text" in event.problem


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"type":5}', b'{"seq":1}', b"\xff"])
def test_what_is_no_event_raises(data: bytes) -> None:
    for decode in (codec.decode, codec.decode_published):
        with pytest.raises(ValueError, match=r"."):
            decode(data)
