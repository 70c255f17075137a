"""realtime.py and realtime_session.py: setups and turns, in the shapes that OpenAI's library requires."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from openai.types.beta.realtime.transcription_session_update import Session as OldSession
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from asrserver.errors import BadRequest
from asrserver.protocol.events import Lost, Partial, Refusal, SessionEvent, SpeechStarted, Word
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.protocol.realtime import Transcription
from asrserver.protocol.realtime_session import LOGPROBS, Setup, secret_request
from tests.events import durable, segment

KNOWN: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def setup(**given: Any) -> Setup:
    return Setup().updated({"type": "transcription", "audio": {"input": given}})


#: Clients that commit.
MANUAL = setup(turn_detection=None)


class Client:
    """What a client gets: short names of its messages with what matters of them."""

    def __init__(self, setup: Setup) -> None:
        self.transcription = Transcription(setup)
        self.messages: list[dict[str, Any]] = []
        self._seq = 0
        self.take(self.transcription.begin())

    def take(self, messages: Iterable[bytes]) -> list[tuple[Any, ...]]:
        """The messages; each is one that OpenAI's library knows."""
        found = [orjson.loads(data) for data in messages]
        for message in found:
            assert KNOWN.validate_python(message, strict=True).type == message["type"]
        self.messages += found
        assert len({message["event_id"] for message in self.messages}) == len(self.messages)
        return [_short(message) for message in found]

    def get(self, *events: SessionEvent) -> list[tuple[Any, ...]]:
        return [one for event in events for one in self.take(self.transcription.messages(event))]

    def append(self, seconds: float) -> None:
        self.transcription.appended(seconds)

    def commit(self, number: int | None) -> list[tuple[Any, ...]]:
        self.transcription.check_commit()
        return self.take(self.transcription.commit(number))

    def clear(self, number: int | None) -> list[tuple[Any, ...]]:
        return self.take([self.transcription.clear(number)])

    def items(self) -> list[str]:
        """The ids of the items, in the order in which they were committed; each names the one before."""
        found = [m for m in self.messages if m["type"] == "input_audio_buffer.committed"]
        assert [m["previous_item_id"] for m in found] == [None, *(m["item_id"] for m in found)][: len(found)]
        return [m["item_id"] for m in found]


_FIELDS = ("audio_start_ms", "audio_end_ms", "delta", "transcript")


def _short(message: dict[str, Any]) -> tuple[Any, ...]:
    kind = message["type"].rpartition(".")[2]
    values = [message[name] for name in _FIELDS if name in message]
    if "error" in message:
        values.append(message["error"]["code"])
    return (kind, *values)


def speech(start: float) -> SpeechStarted:
    return SpeechStarted(session_id="s", start=start, follows=0)


def partial(start: float, stable: str, text: str = "", language: str = "en", end: float = 0.0) -> Partial:
    shown = text or f"{stable} and more".strip()
    return Partial(session_id="s", start=start, end=end, text=shown, stable=stable, language=language, follows=0)


def nothing(start: float, end: float) -> Partial:
    return Partial(session_id="s", start=start, end=end, text="", stable="", language="", follows=0)


def result(number: int, text: str, **fields: Any) -> Any:
    return durable("segment", number + 1, segments=[segment(number, text, **fields)])


def flushed(number: int) -> Any:
    return durable("flushed", 1, number=number)


COMMITTED = [("committed",), ("added",)]


# -- turns that the server detects


def test_a_turn() -> None:
    """Its deltas only add to its text, and are all of it before its end."""
    client = Client(Setup())
    client.append(3.0)
    assert client.get(speech(1.0)) == [("speech_started", 1000)]
    assert client.get(partial(1.0, "")) == []
    assert client.get(partial(1.0, "hello"), partial(1.0, "hello")) == [("delta", "hello")]
    assert client.get(result(1, "hello there world")) == [
        ("speech_stopped", 2000),
        *COMMITTED,
        ("delta", " there world"),
        ("completed", "hello there world"),
    ]
    [item] = client.items()
    assert {m.get("item_id", item) for m in client.messages} == {item}
    assert client.messages[-1]["usage"] == {"type": "duration", "seconds": 1.0}
    assert client.messages[-1]["languages"] == [{"code": "en"}]


def test_speech_that_begins_before_the_text_of_the_turn_before_it() -> None:
    client = Client(Setup())
    client.append(9.0)
    client.get(speech(1.0), partial(1.0, "one"))
    assert client.get(speech(3.0), partial(3.0, "three")) == []
    assert client.get(result(1, "one two"))[-3:] == [
        ("completed", "one two"),
        ("speech_started", 3000),
        ("delta", "three"),
    ]
    assert client.get(result(3, "three"))[-1] == ("completed", "three")
    assert client.get(partial(1.0, "late")) == []
    assert len(client.items()) == 2


@pytest.mark.parametrize("heard", [True, False])
def test_what_was_no_speech_is_an_empty_turn(heard: bool) -> None:
    """As soon as that is heard; if it is not, before the next one."""
    client = Client(Setup())
    client.append(9.0)
    client.get(speech(1.0))
    empty = [*COMMITTED, ("completed", "")]
    if heard:
        assert client.get(nothing(1.0, 1.5)) == [("speech_stopped", 1500), *empty]
        assert client.get(nothing(1.0, 1.5), speech(4.0)) == [("speech_started", 4000)]
    else:
        assert client.get(speech(4.0)) == []
    found = client.get(result(4, "words"))
    assert found[-1] == ("completed", "words")
    assert found[: 5 - heard * 5] == ([] if heard else [("speech_stopped", 4000), *empty, ("speech_started", 4000)])


def test_a_result_alone_is_a_whole_turn() -> None:
    """Its partial results were lost on their way."""
    client = Client(Setup())
    assert client.get(result(0, "a b")) == [
        ("speech_started", 0),
        ("speech_stopped", 1000),
        *COMMITTED,
        ("delta", "a b"),
        ("completed", "a b"),
    ]


@pytest.mark.parametrize(
    ("stable", "final", "language", "delta"),
    [
        ("hello world", "Hello, world again", "en", " again"),
        ("hello world", "hello", "en", None),
        ("hello", "hello, world.", "en", ", world."),
        ("打开", "打开卧室", "zh", "卧室"),
        ("打开", "打幵卧室", "zh", "卧室"),
    ],
)
def test_what_was_sent_stays(stable: str, final: str, language: str, delta: str | None) -> None:
    """Also where the final text has other marks or letters; that is in the end."""
    client = Client(Setup())
    client.get(partial(0.0, stable, language=language))
    found = client.get(result(0, final, language=language))
    assert [one[1] for one in found if one[0] == "delta"] == ([delta] if delta else [])
    assert found[-1] == ("completed", final)


def test_a_turn_that_the_client_ends() -> None:
    """It has what the server found by then."""
    client = Client(Setup())
    client.append(2.0)
    client.get(speech(0.5), partial(0.5, "set a"))
    assert client.commit(1) == [("speech_stopped", 2000), *COMMITTED]
    client.append(5.0)
    assert client.get(result(0, "set a timer")) == [("delta", " timer")]
    assert client.get(flushed(1)) == [("completed", "set a timer")]
    assert client.get(speech(4.0), result(4, "go"))[0] == ("speech_started", 4000)
    assert client.messages[-1]["transcript"] == "go"
    assert len(client.items()) == 2


# -- turns that the client ends


def test_a_commit_joins_all_since_the_one_before() -> None:
    client = Client(MANUAL)
    client.append(3.0)
    assert client.get(speech(0.0), partial(0.0, "open the"), result(0, "open the window")) == [
        ("delta", "open the"),
        ("delta", " window"),
    ]
    assert client.get(partial(2.0, "please")) == [("delta", " please")]
    assert client.commit(1) == COMMITTED
    client.append(2.0)
    assert client.get(result(2, "please now")) == [("delta", " now")]
    assert client.commit(2) == COMMITTED
    assert client.get(flushed(1)) == [("completed", "open the window please now")]
    assert client.messages[-1]["usage"]["seconds"] == 3.0
    assert client.get(result(4, "thanks"), flushed(2)) == [("delta", "thanks"), ("completed", "thanks")]
    assert client.messages[-1]["usage"]["seconds"] == 2.0
    assert len(client.items()) == 2


def test_silence_is_an_empty_turn() -> None:
    client = Client(MANUAL)
    client.append(1.0)
    assert [*client.commit(1), *client.get(nothing(0.0, 0.5), flushed(1))] == [*COMMITTED, ("completed", "")]
    assert "languages" not in client.messages[-1]


def test_a_commit_of_nothing_is_refused() -> None:
    client = Client(MANUAL)
    client.append(0.05)
    with pytest.raises(BadRequest) as caught:
        client.commit(1)
    client.transcription.event_id = "mine"
    assert client.get(Refusal.of(caught.value)) == [("error", "input_audio_buffer_commit_empty")]
    assert client.messages[-1]["error"]["event_id"] == "mine"
    client.append(0.05)
    assert client.commit(1) == COMMITTED


@pytest.mark.parametrize("given", [Setup(), MANUAL])
def test_what_is_cleared_has_no_text(given: Setup) -> None:
    client = Client(given)
    client.append(3.0)
    client.get(speech(0.0), partial(0.0, "never"))
    assert client.clear(1) == [("cleared",)]
    assert client.get(partial(0.0, "never mind"), result(0, "never mind"), flushed(1)) == []
    client.append(3.0)
    found = [*client.get(speech(4.0), result(4, "this")), *client.commit(2), *client.get(flushed(2))]
    assert next(one for one in found if one[0] == "completed") == ("completed", "this")
    assert len(client.items()) == (1 if given is MANUAL else 2)


def test_a_commit_when_there_is_no_session_any_more() -> None:
    client = Client(MANUAL)
    client.append(3.0)
    client.get(result(0, "all of it"), durable("final", 9))
    assert client.commit(None) == COMMITTED
    assert client.take(client.transcription.settle()) == [("completed", "all of it")]


# -- one session after another


def test_times_and_turns_go_on_in_the_next_session() -> None:
    client = Client(MANUAL)
    client.append(3.0)
    client.get(result(0, "first"), durable("final", 2))
    assert client.take(client.transcription.begin()) == []
    client.append(2.0)
    assert client.get(result(0, "second")) == [("delta", " second")]
    client.commit(1)
    assert client.get(flushed(1)) == [("completed", "first second")]
    client.transcription.setup = Setup()
    client.append(1.0)
    client.get(result(3, "third"), durable("final", 4))
    assert client.take(client.transcription.begin())[-1] == ("completed", "third")  # nobody will commit it
    assert client.get(speech(0.5)) == [("speech_started", 6500)]
    assert client.get(durable("final", 1)) == [("speech_stopped", 6000), *COMMITTED, ("completed", "")]


def test_whether_speech_goes_on() -> None:
    """Then a session is not cut for new options."""
    client = Client(Setup())
    transcription = client.transcription
    for begin, end in (
        (speech(1.0), nothing(1.0, 2.0)),
        (partial(1.0, ""), result(1, "x")),
        (speech(1.0), flushed(1)),
    ):
        client.get(begin)
        assert transcription.is_speaking
        client.get(end)
        assert not transcription.is_speaking
    client.get(speech(5.0), result(4, "y", end=4.9))
    assert transcription.is_speaking
    client.append(40.0)
    assert not transcription.is_speaking


# -- failures


@pytest.mark.parametrize("given", [Setup(), MANUAL])
def test_a_failure_of_the_recogniser(given: Setup) -> None:
    """It is no `error`, which would end the client's session."""
    client = Client(given)
    client.append(2.0)
    found = client.get(durable("error", 1, code="recognition_failed", message="no", total=2.0))
    if given is MANUAL:
        assert found == []
        found = [*client.commit(1), *client.get(flushed(1))]
    assert found == [*COMMITTED, ("failed", "recognition_failed")]
    assert client.get(durable("error", 2, code="undecodable_audio", message="half a sample")) == []
    failed = client.get(
        durable("error", 1, code="model_unavailable", message="no"), durable("final", 2, status="error")
    )
    assert failed == [*COMMITTED, ("failed", "model_unavailable")]


def test_what_is_told_of_errors() -> None:
    client = Client(Setup())
    for silent in (
        Refusal(code="overloaded", message="m"),
        Refusal(code="session_idle", message="m"),
        Lost(code="session_moved", message="m"),
    ):
        assert client.get(silent) == []
    assert client.get(Refusal(code="quota_exceeded", message="m"), Refusal(code="internal_error", message="m")) == [
        ("error", "quota_exceeded"),
        ("error", "internal_error"),
    ]
    assert [m["error"]["type"] for m in client.messages] == ["invalid_request_error", "server_error"]


# -- setups


def test_the_default() -> None:
    assert Setup().options(None) == Options(
        mode="stream", format="pcm_s16le", sample_rate=24000, partials=True, silence=0.5, speech_events=True
    )
    client = Client(Setup())
    client.take([client.transcription.created(), client.transcription.updated("session.update")])
    created, updated = client.messages
    assert created["session"] == updated["session"]
    assert (created["type"], updated["type"]) == ("session.created", "session.updated")
    assert created["session"]["audio"]["input"]["transcription"] == {"model": "whisper-1"}


def test_an_update_changes_what_is_present() -> None:
    first = setup(
        format={"type": "audio/pcm", "rate": 16000},
        transcription={"model": "m", "language": "en-US", "prompt": "p" * MAX_TEXT + "q", "keywords": ["a", "b"]},
        turn_detection={"type": "server_vad", "silence_duration_ms": 800, "future": 1},
        noise_reduction={"type": "near_field"},
        future={},
    )
    options = first.options("demo")
    assert (options.sample_rate, options.language, options.hotwords, options.model) == (16000, "en", "a, b", "demo")
    assert (len(options.prompt), options.prompt[-1], options.silence) == (MAX_TEXT, "q", 0.8)
    changed = first.updated({"audio": {"input": {"transcription": {"keywords": [], "prompt": None, "delay": "low"}}}})
    assert changed.options("demo") == Options.parse(
        {name: getattr(options, name) for name in options.__struct_fields__} | {"hotwords": "", "prompt": ""}
    )
    changed = changed.updated({"audio": {"input": {"turn_detection": {"threshold": 0.9}}}})
    assert changed.turns is not None
    assert (changed.turns["silence_duration_ms"], changed.turns["threshold"]) == (800, 0.9)
    off = changed.updated({"audio": {"input": {"turn_detection": None, "noise_reduction": None}}})
    assert (off.turns, off.noise_reduction, off.options(None).silence) == (None, None, None)
    again = off.updated({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}})
    assert again.turns == {"type": "semantic_vad", "eagerness": "low"}
    assert again.options(None).silence == 0.5
    assert off.updated({"audio": {"input": {"transcription": None}}}).options(None).language is None


@pytest.mark.parametrize(
    ("old", "new", "format", "rate"),
    [
        ("pcm16", "audio/pcm", "pcm_s16le", 24000),
        ("g711_ulaw", "audio/pcmu", "pcm_mulaw", 8000),
        ("g711_alaw", "audio/pcma", "pcm_alaw", 8000),
    ],
)
def test_formats_in_both_shapes(old: str, new: str, format: str, rate: int) -> None:
    given = {
        "input_audio_format": old,
        "input_audio_transcription": {"model": "gpt-4o-transcribe", "language": "en"},
        "input_audio_noise_reduction": {"type": "far_field"},
        "turn_detection": None,
        "include": [LOGPROBS],
    }
    found = Setup().updated(given)
    same = setup(
        format={"type": new},
        transcription=given["input_audio_transcription"],
        noise_reduction={"type": "far_field"},
        turn_detection=None,
    )
    assert found == same.updated({"include": [LOGPROBS]})
    options = found.options(None)
    assert (options.format, options.sample_rate, options.word_timestamps) == (format, rate, True)
    client = Client(found)
    message = orjson.loads(client.transcription.updated("transcription_session.update"))
    assert message["type"] == "transcription_session.updated"
    assert OldSession.model_validate(message["session"]).to_dict() == {**given, **message["session"]}


def test_languages() -> None:
    assert setup(transcription={"languages": ["de-CH"]}).options(None).language == "de"
    assert setup(transcription={"languages": ["de", "en"]}).options(None).language is None
    one = setup(transcription={"language": "en"})
    assert one.updated({"input_audio_transcription": {"languages": ["de", "en"]}}).options(None).language is None
    assert one.updated({"input_audio_transcription": {"language": None}}).options(None).language is None
    assert one.updated({"input_audio_transcription": {"language": "auto"}}).options(None).language is None


@pytest.mark.parametrize("model", ["gpt-realtime-whisper", "gpt-live-transcribe-2026-10-01"])
def test_models_that_detect_no_turns(model: str) -> None:
    """Unless the client asks for it."""
    found = setup(transcription={"model": model})
    assert found.turns is None
    assert found.updated({"turn_detection": {"type": "server_vad"}}).turns is not None
    assert setup(transcription={"model": "gpt-transcribe"}).turns is not None


@pytest.mark.parametrize(
    ("session", "path"),
    [
        (5, "session"),
        ({"audio": []}, "session.audio"),
        ({"audio": {"input": 5}}, "session.audio.input"),
        ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "session.audio.input.format.type"),
        ({"audio": {"input": {"format": {"rate": 4000}}}}, "session.audio.input.format.rate"),
        ({"audio": {"input": {"turn_detection": {"type": "none"}}}}, "session.audio.input.turn_detection.type"),
        ({"audio": {"input": {"transcription": {"prompt": 5}}}}, "session.audio.input.transcription.prompt"),
        ({"audio": {"input": {"transcription": {"model": []}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"input": {"noise_reduction": {}}}}, "session.audio.input.noise_reduction.type"),
        ({"input_audio_format": "mp3"}, "session.input_audio_format"),
        ({"input_audio_transcription": {"language": "klingon"}}, "session.input_audio_transcription.language"),
        ({"input_audio_transcription": {"keywords": "a"}}, "session.input_audio_transcription.keywords"),
        ({"turn_detection": {"silence_duration_ms": "5"}}, "session.turn_detection.silence_duration_ms"),
        ({"include": {}}, "session.include"),
    ],
)
def test_what_cannot_be_used_is_named(session: Any, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Setup().updated(session)
    assert caught.value.details == {"option": path}
    assert caught.value.message.startswith((path, "language"))


def test_probabilities_of_words() -> None:
    client = Client(Setup().updated({"include": [LOGPROBS]}))
    client.get(result(0, "a b", words=[Word("a", 0.0, 0.4, 1.0), Word("b", 0.5, 0.9, 0.5)]))
    assert client.messages[-1]["logprobs"] == [
        {"token": "a", "logprob": 0.0, "bytes": [97]},
        {"token": " b", "logprob": -0.6931, "bytes": [32, 98]},
    ]


def test_requests_for_client_secrets() -> None:
    assert secret_request({}) == (600, Setup())
    asked = {"expires_after": {"anchor": "created_at", "seconds": 10}, "session": {"type": "realtime"}}
    seconds, found = secret_request(asked)
    assert (seconds, found.kind) == (10, "realtime")
    assert Setup().updated(found.document()).document() == found.document()
    for bad in ({"anchor": "x"}, {"seconds": 9}, {"seconds": 7201}, {"seconds": "60"}, 5):
        with pytest.raises(BadRequest, match="expires_after"):
            secret_request({"expires_after": bad})
