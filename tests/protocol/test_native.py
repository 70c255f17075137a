"""native.py: messages of the native protocol become actions, and events become messages."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from asrserver.errors import BadRequest, Unavailable
from asrserver.protocol import native
from asrserver.protocol.events import (
    Lost,
    Moved,
    Partial,
    Progress,
    Received,
    Refusal,
    Resumed,
    SessionEvent,
    SpeechStarted,
    Started,
    UnknownEvent,
    Word,
)
from asrserver.protocol.native import Link
from asrserver.protocol.options import Options, Resume, Start
from tests.events import durable, segment


def sent(**message: Any) -> native.Action:
    """The action that a client's message is parsed to."""
    return native.parse(json.dumps(message))


def refused(**message: Any) -> BadRequest:
    """The error for a client's message."""
    with pytest.raises(BadRequest) as caught:
        sent(**message)
    return caught.value


def got(event: SessionEvent, channel: int | None = None) -> dict[str, Any]:
    """The message that a client gets for an event."""
    data = native.format(event, channel)
    assert data is not None
    message: dict[str, Any] = json.loads(data)
    return message


# -- what clients send


def test_a_start() -> None:
    plain = native.StartAction(Start("", "", Options(), False), Link(None, 0.0), False)
    assert sent(action="start") == sent(action="start", session_id="", user_id=None, resume="yes") == plain
    assert sent(
        action="start",
        session_id="s",
        user_id="u",
        language="en",
        channel=7,
        ack_interval=1,
        resume=True,
        queue_position=True,
    ) == native.StartAction(Start("s", "u", Options(language="en"), True), Link(7, 1.0), True)


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    """It is misspelt, or of a later release; the client must know that it would have no effect."""
    for name, hint in (
        ("langauge", "did you mean language?"),
        ("partial", "did you mean partials?"),
        ("word_timestamp", "did you mean word_timestamps?"),
        ("xyz", "allowed: ack_interval, action, channel, channel_mode, channels,"),
    ):
        error = refused(action="start", session_id="s", **{name: None})
        assert (error.code, error.details) == ("unknown_option", {"session_id": "s", "option": name})
        assert error.message.startswith(f"{name!r} is unknown ({hint}")
    assert refused(action="start", **{"x" * 100_000: 1}).details == {"option": "x" * 64}


def test_a_start_of_the_ancestors_clients_in_go_has_the_fields_of_a_chunk() -> None:
    start = sent(action="start", session_id="s", user_id="u", chunk_index=0, audio_data="")
    assert start == native.StartAction(Start("s", "u", Options(), False), Link(None, 0.0), False)


def test_unknown_fields_of_resume_are_named() -> None:
    """They are in the acknowledgement, up to a number and length."""
    resume = sent(action="resume", session_id="s", mode="stream", **{"x" * 100: 1})
    assert isinstance(resume, native.ResumeAction)
    assert resume.warnings == (
        "the field 'mode' is unknown and was ignored",
        f"the field '{'x' * 50}' is unknown and was ignored",
    )
    many = sent(action="resume", session_id="s", **{f"field{number}": 0 for number in range(100)})
    assert isinstance(many, native.ResumeAction)
    assert len(many.warnings) == native.MAX_WARNINGS
    data = native.format(Started(session_id="s"), None, resume.warnings)
    assert data is not None
    assert json.loads(data)["warnings"] == list(resume.warnings)


def test_a_resume() -> None:
    assert sent(action="resume", session_id="s") == native.ResumeAction(Resume("s", 0), Link(None, 0.0))
    assert sent(action="resume", session_id="s", last_seq=5, channel=1) == native.ResumeAction(
        Resume("s", 5), Link(1, 0.0)
    )
    for last_seq in (-1, True, "5", 1.0, None):
        error = refused(action="resume", session_id="s", last_seq=last_seq)
        assert (error.code, error.details) == ("bad_seq", {"session_id": "s"})
    assert refused(action="resume").code == "bad_id"


@pytest.mark.parametrize("action", ["start", "resume"])
def test_an_error_names_the_session_as_the_client_did(action: str) -> None:
    assert refused(action=action, session_id="s", channel=-1).details == {"option": "channel", "session_id": "s"}
    assert refused(action=action, session_id=["s"], channel=-1).details == {"option": "channel"}
    assert refused(action=action, session_id="x" * 129).details == {}


def test_chunks_and_finish_are_taken_as_they_are() -> None:
    """The connection finds their session, and its errors name it."""
    chunk = sent(action="chunk", session_id=5, chunk_index="1", audio_data="AQI=")
    assert chunk == native.ChunkAction(5, "1", "AQI=")
    assert isinstance(chunk, native.ChunkAction)
    assert chunk.audio() == b"\x01\x02"
    assert sent(action="finish") == native.FinishAction(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("channel", value) for value in (-1, 2**32, "1", True, 1.0)]
    + [("ack_interval", value) for value in (-0.1, 5.1, "1", True, float("nan"))],
)
def test_a_bad_link_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadRequest) as error:
        Link.parse({name: value})
    assert error.value.details == {"option": name}


def test_links() -> None:
    assert Link.parse({}) == Link.parse({"channel": None, "ack_interval": None}) == Link(None, 0.0)
    assert Link.parse({"channel": 2**32 - 1, "ack_interval": 5}) == Link(2**32 - 1, 5.0)


# -- what clients get; what workers say is compared with the last release's messages in test_compatibility.py


def test_acknowledgements() -> None:
    ack = {"type": "ack", "session_id": "s"}
    started = {**ack, "status": "session_started", "chunk_index": 0}
    assert got(Started(session_id="s")) == started
    assert got(Started(session_id="s", queued=0), 0) == {**started, "queued": 0, "channel": 0}
    assert got(Received("s", 3)) == {**ack, "status": "received", "chunk_index": 3}
    assert got(Received("s", 3, through=True)) == {**ack, "status": "received", "chunk_index": 3, "through": True}
    resumed = {**ack, "status": "session_resumed", "state": "recording", "next_chunk_index": 4}
    assert got(Resumed(session_id="s", state="recording", next_chunk_index=4)) == resumed
    missed = Resumed(session_id="s", state="recording", next_chunk_index=4, missed=7)
    assert got(missed, 2) == {**resumed, "missed": 7, "channel": 2}


def test_refusals_say_what_they_know() -> None:
    error = {"type": "error", "code": "chunk_gap", "message": "m", "chunk_index": None}
    assert got(Refusal(code="chunk_gap", message="m")) == error
    gap = BadRequest("chunk_gap", "m", session_id="s", chunk_index=0, expected=0)
    assert got(Refusal.of(gap, session_id="t")) == {**error, "session_id": "s", "chunk_index": 0, "expected": 0}
    lost = Lost.of(Unavailable("broker_full", "m", 10.0), session_id="s", chunk_index=1, resumable=False)
    assert got(lost) == {
        "type": "error",
        "code": "broker_full",
        "message": "m",
        "session_id": "s",
        "chunk_index": 1,
        "retry_after": 10.0,
        "resumable": False,
    }


def test_a_segment_has_words_only_where_they_were_asked_for() -> None:
    words = [Word("a", 0.0, 0.5, 1.0)]
    message = got(durable("segment", 4, segments=[segment(2, "a", words=words)]))
    assert message == {
        "type": "segment_result",
        "session_id": "s",
        "number": 2,
        "start": 2.0,
        "end": 3.0,
        "text": "a",
        "language": "en",
        "confidence": 0.9,
        "words": [{"word": "a", "start": 0.0, "end": 0.5, "confidence": 1.0}],
        "seq": 4,
    }
    assert "words" not in got(durable("segment", 4, segments=[segment()]))


def test_an_error_of_no_single_chunk_names_none() -> None:
    assert got(durable("error", 1)) == {
        "type": "error",
        "code": "not_audio",
        "message": "no audio",
        "session_id": "s",
        "chunk_index": None,
        "seq": 1,
    }
    assert got(durable("error", 1, chunk_index=0))["chunk_index"] == 0


def test_what_clients_are_not_told() -> None:
    assert native.format(UnknownEvent(session_id="s", type="new", seq=1)) is None
    for event in (Progress(session_id="s", taken=1, total=1.0), Moved(session_id="s", move=1, ended=False)):
        assert native.format(event) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "+/8BAg==",
        "+/8BAg",
        "-_8BAg==",
        "-_8BAg",
        "+/8B\r\nAg==\n",
        "data:audio/wav;base64,+/8BAg==",
        "data:audio/webm;codecs=opus;base64,-_8BAg",
    ],
)
def test_base64_in_all_its_forms(text: str) -> None:
    assert native.ChunkAction("s", 0, text).audio() == b"\xfb\xff\x01\x02"


@pytest.mark.parametrize("text", ["???", "QUJDR", "=", "QQ==QQ==", "ü", "data:audio/wav,abcd", "data:", "+/8B!Ag=="])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        native.ChunkAction("s", 0, text).audio()
    assert caught.value.code == "bad_base64"


@pytest.mark.parametrize("values", ["[[]]," * 300_000 + "1", "1," * 1_000_000 + "1", '{"a":1},' * 100_000 + "1"])
def test_a_message_of_very_many_values_costs_nothing(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its parsing: megabytes of them stopped a gateway for seconds."""
    monkeypatch.setattr("asrserver.protocol.json_messages.orjson.loads", None)
    with pytest.raises(BadRequest, match="10000 values") as caught:
        native.parse(f'{{"action": "start", "x": [{values}]}}')
    assert caught.value.code == "bad_json"


@pytest.mark.parametrize("value", ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000, "[" * 5000])
@pytest.mark.parametrize("message", ["%s", '{"action": "start", "x": %s}', '{"action": %s}', '{"session_id": %s}'])
def test_a_message_of_many_brackets_is_refused(message: str, value: str) -> None:
    """They were an internal error, which the brake on refusals did not see."""
    with pytest.raises(BadRequest) as caught:
        native.parse(message % value)
    assert caught.value.code == "bad_json"


def test_results_of_channels() -> None:
    """Where channels are recognised by themselves each result says its channel, or has segments that do."""
    on = [segment(0, "a", channel=1), segment(1, "b", channel=0)]

    def told(event: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(native.format(event) or b"")
        return found

    assert told(durable("segment", 1, segments=on[:1], channels=2))["channel"] == 1
    for kind in ("chunk", "error", "final"):
        found = told(durable(kind, 1, segments=on, channels=2))
        assert [(one["channel"], one["text"]) for one in found["segments"]] == [(1, "a"), (0, "b")]
        assert "segments" not in told(durable(kind, 1, segments=[segment()]))
    partial = Partial(session_id="s", start=0.0, end=1.0, text="a", stable="", language="en", follows=0)
    assert "channel" not in told(partial)
    assert told(msgspec.structs.replace(partial, channel=1))["channel"] == 1
    assert told(SpeechStarted(session_id="s", start=0.0, follows=0, channel=0))["channel"] == 0


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"channel_mode": "both"}, "channel_mode"),
        ({"channels": 3}, "channels"),
        ({"channels": 9, "channel_mode": "separate"}, "channels"),
        ({"track": -1}, "track"),
        ({"track": "1"}, "track"),
        ({"track": 64}, "track"),
    ],
)
def test_channels_and_tracks_that_cannot_be(given: dict[str, Any], option: str) -> None:
    with pytest.raises(BadRequest) as caught:
        native.parse(json.dumps({"action": "start", **given}))
    assert (caught.value.code, caught.value.details["option"]) == ("bad_option", option)


def test_channels_and_a_track_in_a_query() -> None:
    start = native.start_of_query({"channel_mode": "separate", "channels": "8", "track": "1"})
    assert start is not None
    options = start.start.options
    assert (options.channel_mode, options.channels, options.track, options.cost_rate) == ("separate", 8, 1, 32000)
    assert start.warnings == ()


def test_an_unknown_parameter_of_a_query_is_warned_of() -> None:
    """PCM of 8 kHz would be taken for 16 kHz without a word. Other servers' clients have parameters of their own."""
    start = native.start_of_query({"mode": "stream", "smaple_rate": "8000"})
    assert start is not None
    assert start.warnings == ("the parameter 'smaple_rate' is unknown and was ignored",)
    told = native.format(Started(session_id="s"), warnings=start.warnings)
    assert told is not None
    assert json.loads(told)["warnings"] == list(start.warnings)
