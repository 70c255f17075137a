"""deepgram.py, deepgram_recorded.py: what queries mean, and the shapes that Deepgram's clients require of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
import orjson
import pytest

from asrserver.errors import BadRequest, Refused
from asrserver.protocol import deepgram, deepgram_live, deepgram_recorded, model_names
from asrserver.protocol.events import Partial, Received, Refusal, SessionEvent, SpeechStarted, Word
from asrserver.protocol.options import Normalise, Options
from tests.events import durable, segment


def asked(query: str = "") -> deepgram.LiveRequest:
    return deepgram.parse_live(parse_qs(query, keep_blank_values=True))


# -- queries


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {"format": "auto"}),
        ("encoding=linear16&sample_rate=24000&channels=2", {"sample_rate": 24000, "channels": 2}),
        ("encoding=linear32&sample_rate=48000", {"format": "pcm_f32le", "sample_rate": 48000}),
        ("encoding=mulaw", {"format": "pcm_mulaw", "sample_rate": 8000}),
        ("encoding=ALAW&sample_rate=16000", {"format": "pcm_alaw"}),
        ("encoding=opus&sample_rate=48000", {"format": "opus", "sample_rate": 48000}),
        ("encoding=ogg-opus", {"format": "file"}),
        ("encoding=flac", {"format": "file"}),
        ("encoding=linear16&language=en-US&interim_results=True", {"language": "en", "partials": True}),
        ("encoding=linear16&language=multi&interim_results=false", {}),
        ("encoding=linear16&detect_language=true&language=de", {}),
        ("encoding=linear16&keyterm=new+york&keyterm=Bob", {"hotwords": "new york, Bob"}),
        ("encoding=linear16&keywords=Bob:2&keywords=ann&keywords=eve:-3", {"hotwords": "Bob, ann"}),
        ("encoding=linear16&numerals=true&smart_format=true", {"normalise": Normalise(numerals="digits")}),
        ("encoding=linear16&numerals=true&language=ko", {"normalise": Normalise(numerals="digits"), "language": "ko"}),
        ("encoding=linear16&endpointing=25", {"silence": 0.3}),
        ("encoding=linear16&endpointing=800", {"silence": 0.8}),
        ("encoding=linear16&endpointing=99999", {"silence": 5.0}),
        ("encoding=linear16&endpointing=true&punctuate=x&unknown=1&diarize=", {}),
        ("encoding=linear16&multichannel=true&channels=4", {"channels": 4, "channel_mode": "separate"}),
        ("encoding=linear16&vad_events=true", {"speech_events": True}),
        ("encoding=linear16&utterance_end_ms=1000", {"speech_events": True}),
    ],
)
def test_options_of_a_query(query: str, options: dict[str, Any]) -> None:
    """Unknown parameters are ignored, and so are combinations that Deepgram does not document."""
    expected = Options(mode="stream", format="pcm_s16le", word_timestamps=True)
    assert asked(query).options == msgspec.structs.replace(expected, **options)


@pytest.mark.parametrize(
    ("query", "endpointing", "utterance_end"),
    [
        ("", True, None),
        ("endpointing=true", True, None),
        ("endpointing=false&utterance_end_ms=1500", False, 1.5),
        ("endpointing=0&utterance_end_ms=false", False, None),
        ("endpointing=10&utterance_end_ms=999999", True, 60.0),
    ],
)
def test_what_ends_speech(query: str, endpointing: bool, utterance_end: float | None) -> None:
    found = asked(query)
    assert (found.endpointing, found.utterance_end) == (endpointing, utterance_end)


@pytest.mark.parametrize(
    "query",
    [
        "encoding=speex",
        "sample_rate=loud",
        "sample_rate=4000",
        "channels=3",
        "language=klingon",
        "interim_results=maybe",
        "endpointing=soon",
        "endpointing=nan",
        "utterance_end_ms=-1",
    ],
)
def test_what_cannot_be_used_is_named(query: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(query)
    assert (caught.value.code, caught.value.details["parameter"]) == ("bad_request", query.partition("=")[0])


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("nova-3", None),
        ("nova-3-general", None),
        ("nova-2-phonecall", None),
        ("nova", None),
        ("2-general", None),
        ("enhanced", None),
        ("base", "base"),
        ("whisper-base", "base"),
        ("whisper-large", None),
        ("whisper", None),
    ],
)
def test_names_of_models(name: str, model: str | None) -> None:
    assert model_names.resolve(name, ["base"], {}, model_names.DEEPGRAM) == model


@pytest.mark.parametrize("name", ["grass", "gpt-4o-transcribe", "nova-3;x"])
def test_names_of_no_model(name: str) -> None:
    with pytest.raises(Refused, match="models: base"):
        model_names.resolve(name, ["base"], {}, model_names.DEEPGRAM)


@pytest.mark.parametrize("text", ["", "x", "[1]", "{}", '{"type": 1}', '{"type":"' + "x" * 99_999 + '"}'])
def test_messages_that_are_none(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        deepgram_live.parse_message(text)
    assert caught.value.code in deepgram_live.SCHEMA_ERRORS


# -- live results


class Live:
    """The messages of a connection, event by event."""

    def __init__(self, query: str = "interim_results=true") -> None:
        self.results = deepgram_live.LiveResults(asked(query), "request", None)
        self.seq = 0

    def take(self, *events: SessionEvent) -> list[dict[str, Any]]:
        return [orjson.loads(data) for event in events for data in self.results.messages(event)]

    def durable(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        self.seq += 1
        return self.take(durable(kind, self.seq, **fields))

    def segment(self, start: float, end: float, text: str = "One, two.", **fields: Any) -> list[dict[str, Any]]:
        words = [Word("One,", start + 0.1, start + 0.2, 0.8), Word("two.", end - 0.2, end - 0.1, 0.9)]
        made = segment(0, text, start=start, end=end, words=words)
        return self.durable("segment", text=text, segments=[made], total=end + 0.5, **fields)

    def partial(self, start: float, end: float, text: str, stable: str = "") -> list[dict[str, Any]]:
        return self.take(
            Partial(session_id="s", start=start, end=end, text=text, stable=stable, language="en", follows=0)
        )

    def speech(self, start: float) -> list[dict[str, Any]]:
        return self.take(SpeechStarted(session_id="s", start=start, follows=0))


def ranges(messages: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(message["start"], round(message["start"] + message["duration"], 3)) for message in messages]


def types(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


def test_a_final_result() -> None:
    """Every field that LiveKit, pipecat and Deepgram's libraries read."""
    [found] = Live().segment(1.0, 3.0)
    model = {"name": "none", "version": found["metadata"]["model_info"]["version"], "arch": "whisper"}
    assert found == {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 0.0,
        "duration": 3.0,
        "is_final": True,
        "speech_final": True,
        "from_finalize": False,
        "channel": {
            "alternatives": [
                {
                    "transcript": "One, two.",
                    "confidence": 0.9,
                    "words": [
                        {"word": "one", "start": 1.1, "end": 1.2, "confidence": 0.8, "punctuated_word": "One,"},
                        {"word": "two", "start": 2.8, "end": 2.9, "confidence": 0.9, "punctuated_word": "two."},
                    ],
                    "languages": ["en"],
                }
            ]
        },
        "metadata": {"request_id": "request", "model_info": model, "model_uuid": deepgram.model_uuid("none")},
    }


def test_interim_results_replace_each_other_and_finals_follow_each_other() -> None:
    live = Live()
    interim = [*live.partial(1, 2, "One"), *live.partial(1, 3, "One, two", "One,")]
    assert [message["is_final"] or message["speech_final"] for message in interim] == [False, False]
    assert interim[1]["channel"]["alternatives"][0]["words"] == [
        {"word": "one", "start": 1.0, "end": 2.143, "confidence": 1.0, "punctuated_word": "One,"},
        {"word": "two", "start": 2.143, "end": 3.0, "confidence": 0.5, "punctuated_word": "two"},
    ]
    first = live.segment(1, 3.5)
    second = [*live.partial(5, 6, "Three"), *live.segment(5, 6.5, cut=True), *live.segment(6.4, 7)]
    assert ranges([*interim, *first]) == [(0, 2), (0, 3), (0, 3.5)]
    assert ranges(second) == [(3.5, 6), (3.5, 6.5), (6.5, 7)]
    assert [message["speech_final"] for message in second] == [False, False, True]
    [empty] = live.partial(8, 9, "")
    assert empty["channel"]["alternatives"][0] | {"languages": 0} == {
        "transcript": "",
        "confidence": 0.0,
        "words": [],
        "languages": 0,
    }
    assert Live("").partial(1, 2, "One") == []


def test_words_without_times_and_in_languages_without_spaces() -> None:
    made = segment(0, "你好，世界", start=0.0, end=1.0, language="zh")
    [found] = Live("language=zh&endpointing=false").durable("segment", text=made.text, segments=[made])
    best = found["channel"]["alternatives"][0]
    assert "languages" not in best
    assert not found["speech_final"]
    assert [word["punctuated_word"] for word in best["words"]] == ["你", "好", "，", "世", "界"]
    assert (best["words"][0]["start"], best["words"][-1]["end"]) == (0.0, 1.0)


@pytest.mark.parametrize("query", ["vad_events=true", "vad_events=true&interim_results=true"])
def test_speech_started_comes_once_and_before_its_text(query: str) -> None:
    live = Live(query)
    started = {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 1.0}
    assert live.speech(1.0) == [started]
    assert "SpeechStarted" not in types([*live.partial(1.0, 2, "One"), *live.segment(1.0, 3)])
    assert types(live.segment(4.0, 5)) == ["SpeechStarted", "Results"]  # the event itself was lost
    assert Live("").speech(1.0) == []


def test_the_end_of_an_utterance() -> None:
    """It is told after the final result: when so much time has passed without speech, or speech comes so late."""
    live = Live("utterance_end_ms=1000")
    live.segment(1.0, 3.0)  # whose last word ends at 2.9
    (wait,) = live.results.utterance_waits(3.5)
    assert (round(wait[0], 3), wait[1:]) == (0.4, (0, 2.9))
    end = {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 2.9}
    assert [orjson.loads(data) for data in live.results.utterance_over(0, 2.9)] == [end]
    assert list(live.results.utterance_over(0, 2.9)) == []
    assert types(live.segment(3.5, 4.0)) == ["Results"]
    assert live.speech(4.2) == []  # 0.3 s after the last word
    assert live.results.utterance_waits(9) == []
    assert types(live.segment(4.2, 5.0)) == ["Results"]
    assert types(live.partial(7.0, 8.0, "Three")) == ["UtteranceEnd"]
    assert Live("").results.utterance_waits(9) == []


def test_the_end_of_an_utterance_before_speech_that_is_known_already() -> None:
    live = Live("utterance_end_ms=1000&vad_events=true")
    assert types([*live.speech(1.0), *live.speech(5.0)]) == ["SpeechStarted"] * 2
    assert types(live.segment(1.0, 3.0)) == ["Results", "UtteranceEnd"]
    assert live.results.utterance_waits(9) == []


def test_one_result_answers_a_finalize() -> None:
    """The last one before it; where there is none, an empty one."""
    live = Live("vad_events=true&interim_results=true")
    live.results.flushes = 1
    assert types(live.segment(1.0, 2.0)) == ["SpeechStarted"]
    [first] = [message for message in live.segment(3.0, 4.0) if message["type"] == "Results"]
    assert (first["from_finalize"], first["start"]) == (False, 0.0)
    assert types(live.partial(4.0, 4.5, "Three")) == ["SpeechStarted"]
    [answer] = live.durable("flushed", number=1, total=4.5)
    assert (answer["from_finalize"], answer["is_final"], answer["speech_final"]) == (True, True, True)
    assert ranges([first, answer]) == [(0, 2), (2, 4)]
    live.results.flushes = 3
    empty = [*live.durable("flushed", number=2, total=5.0), *live.durable("flushed", number=3, total=5.0)]
    assert [message["from_finalize"] for message in empty] == [True, True]
    assert [message["channel"]["alternatives"][0]["transcript"] for message in empty] == ["", ""]
    assert ranges(empty) == [(4, 5), (5, 5)]
    [after] = [message for message in live.segment(5.0, 6.0) if message["type"] == "Results"]
    assert (after["from_finalize"], after["start"]) == (False, 5.0)


def test_the_end() -> None:
    """A result that waits for a finalize comes before."""
    live = Live("channels=2")
    live.results.sha256.update(b"audio")
    live.results.flushes = 1
    live.segment(1.0, 2.0)
    results, found = live.durable("final", total=2.5)
    assert results["is_final"]
    created = found.pop("created")
    assert created.endswith("Z")
    assert found == {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": "request",
        "sha256": hashlib.sha256(b"audio").hexdigest(),
        "duration": 2.5,
        "channels": 2,
    }


def test_errors() -> None:
    live = Live()
    live.results.unreadable = "x" * 5000
    schema, other, worker = [
        *live.take(Refusal(code="bad_json", message="no"), Refusal(code="too_fast", message="slow")),
        *live.durable("error", code="recognition_failed", message="sorry"),
    ]
    assert schema == {"type": "Error", "variant": "SchemaError", "description": "no", "message": "x" * 1000}
    assert other == {"type": "Error", "variant": "too_fast", "description": "slow"}
    assert worker["variant"] == "recognition_failed"
    assert live.take(Received("s", 1)) == []


def test_configure() -> None:
    results = Live().results
    done = {"type": "ConfigureSuccess", "request_id": "request"}
    assert orjson.loads(results.configured(None)) == done
    assert orjson.loads(results.configured(["x"])) == {**done, "keyterms": ["x"]}
    failed = orjson.loads(results.not_configured(BadRequest("bad_request", "no")))
    assert failed == {**done, "type": "ConfigureFailure", "code": "INVALID_KEYTERMS", "description": "no"}


def test_channels_have_results_of_their_own() -> None:
    """Each has ranges, interim results, ends of speech and of utterances by itself, and an answer to a flush."""
    live = Live(
        "multichannel=true&encoding=linear16&channels=2&interim_results=true&vad_events=true&utterance_end_ms=900"
    )

    def segment_on(channel: int, start: float, end: float) -> list[dict[str, Any]]:
        words = [Word("One", start + 0.1, end - 0.1, 0.8)]
        made = segment(0, "One", start=start, end=end, words=words, channel=channel)
        return live.durable("segment", text="One", segments=[made], total=end + 0.5, channels=2)

    def partial_on(channel: int, start: float, end: float) -> list[dict[str, Any]]:
        event = Partial(
            session_id="s", start=start, end=end, text="One", stable="", language="en", follows=0, channel=channel,
            channels=2,
        )  # fmt: skip
        return live.take(event)

    first = [*partial_on(1, 0.5, 1.5), *partial_on(0, 1.0, 1.5)]
    assert types(first) == ["SpeechStarted", "Results"] * 2
    assert [one.get("channel_index", one["channel"]) for one in first] == [[1, 2], [1, 2], [0, 2], [0, 2]]
    finals = [*segment_on(0, 1.0, 2.0), *segment_on(1, 0.5, 3.0), *segment_on(0, 2.5, 3.5)]
    results = [one for one in finals if one["type"] == "Results"]
    assert [one["channel_index"] for one in results] == [[0, 2], [1, 2], [0, 2]]
    assert ranges(results) == [(0.0, 2.0), (0.0, 3.0), (2.0, 3.5)]
    assert [wait[1:] for wait in live.results.utterance_waits(4.0)] == [(0, 3.4), (1, 2.9)]
    [over] = [orjson.loads(data) for data in live.results.utterance_over(1, 2.9)]
    assert (over["channel"], over["last_word_end"]) == ([1, 2], 2.9)
    live.results.flushes = 1
    assert "Results" not in types(segment_on(1, 4.0, 5.0))  # it waits to become the answer
    answers = [one for one in live.durable("flushed", number=1, total=5.0, channels=2) if one["type"] == "Results"]
    assert [(one["channel_index"], one["from_finalize"]) for one in answers] == [([0, 2], True), ([1, 2], True)]
    [about] = live.durable("final", total=5.0, channels=2)
    assert (about["type"], about["channels"]) == ("Metadata", 2)


def test_the_channels_of_a_container_are_known_when_it_is_heard() -> None:
    live = Live("multichannel=true")
    made = segment(0, "One", start=0.0, end=1.0, channel=1)
    found = [one for one in live.durable("segment", text="One", segments=[made], channels=3) if "channel_index" in one]
    assert [one["channel_index"] for one in found] == [[1, 3]]
    assert live.durable("final", channels=3)[-1]["channels"] == 3


# -- recordings


SEGMENTS = [
    segment(0, "One. Two", start=0.0, end=1.0, words=[Word("One.", 0.1, 0.4, 0.9), Word("Two", 0.5, 0.9, 0.9)]),
    segment(1, "three.", start=1.5, end=2.0, words=[Word("three.", 1.6, 1.9, 0.7)]),
    segment(2, "Four.", start=5.0, end=6.0, words=[Word("Four.", 5.1, 5.9, 0.5)]),
]


def answer(query: str, segments: Sequence[Any] = SEGMENTS) -> dict[str, Any]:
    text = " ".join(one.text for one in segments)
    final: Any = durable("final", 4, text=text, total=6.5)
    found: dict[str, Any] = deepgram_recorded.answer(deepgram_recorded.parse(parse_qs(query)), segments, final, "hash")
    return found


def test_a_recording() -> None:
    found = answer("punctuate=true")
    uuid = deepgram.model_uuid("none")
    about = found["metadata"]
    assert about["model_info"].keys() == {uuid} == set(about["models"])
    assert (about["request_id"], about["duration"], about["channels"], about["sha256"]) == ("s", 6.5, 1, "hash")
    assert "request_id" not in found
    assert found["results"].keys() == {"channels"}
    [channel] = found["results"]["channels"]
    [best] = channel["alternatives"]
    assert channel.keys() == {"alternatives"}
    assert best.keys() == {"transcript", "confidence", "words"}
    assert best["transcript"] == "One. Two three. Four."
    assert [word["word"] for word in best["words"]] == ["one", "two", "three", "four"]
    assert best["confidence"] == pytest.approx(0.9)


def test_what_else_may_be_asked_of_a_recording() -> None:
    found = answer("utterances=true&smart_format=true&detect_language=true")["results"]
    assert [(one["start"], one["end"], one["transcript"], one["channel"]) for one in found["utterances"]] == [
        (0.0, 2.0, "One. Two three.", 0),
        (5.0, 6.0, "Four.", 0),
    ]
    assert len({one["id"] for one in found["utterances"]}) == 2
    [channel] = found["channels"]
    assert channel["detected_language"] == "en"
    paragraphs = channel["alternatives"][0]["paragraphs"]
    assert paragraphs["transcript"] == "\nOne. Two three.\n\nFour."
    assert [(one["num_words"], one["start"], one["end"]) for one in paragraphs["paragraphs"]] == [
        (3, 0.1, 1.9),
        (1, 5.1, 5.9),
    ]
    assert [one["text"] for one in paragraphs["paragraphs"][0]["sentences"]] == ["One.", "Two three."]
    assert len(answer("utterances=true&utt_split=0.2")["results"]["utterances"]) == 3


def test_a_recording_of_two_parties() -> None:
    """Each channel has its text; utterances are in the order of time, and say their channel."""
    said = [
        segment(0, "Hello.", start=0.0, end=1.0, words=[Word("Hello.", 0.1, 0.9, 0.9)], channel=0),
        segment(1, "Yes?", start=0.5, end=1.5, words=[Word("Yes?", 0.6, 1.4, 0.7)], channel=1),
        segment(2, "Bye.", start=3.0, end=4.0, words=[Word("Bye.", 3.1, 3.9, 0.5)], channel=0),
    ]
    final: Any = durable("final", 4, text="Hello. Yes? Bye.", total=4.5, channels=2)
    asked = deepgram_recorded.parse(parse_qs("multichannel=true&utterances=true&detect_language=true"))
    found = deepgram_recorded.answer(asked, said, final, "hash")
    assert found["metadata"]["channels"] == 2
    channels = found["results"]["channels"]
    assert [one["alternatives"][0]["transcript"] for one in channels] == ["Hello. Bye.", "Yes?"]
    assert [[word["word"] for word in one["alternatives"][0]["words"]] for one in channels] == [
        ["hello", "bye"],
        ["yes"],
    ]
    assert [one["detected_language"] for one in channels] == ["en", "en"]
    utterances = found["results"]["utterances"]
    assert [(one["channel"], one["transcript"]) for one in utterances] == [(0, "Hello."), (1, "Yes?"), (0, "Bye.")]


def test_silence() -> None:
    found = answer("utterances=true&paragraphs=true", [])["results"]
    assert found["utterances"] == []
    assert found["channels"][0]["alternatives"] == [
        {"transcript": "", "confidence": 0.0, "words": [], "paragraphs": {"transcript": "", "paragraphs": []}}
    ]


@pytest.mark.parametrize(
    ("query", "format"),
    [("", "file"), ("encoding=mulaw", "pcm_mulaw"), ("encoding=amr-nb", "file"), ("encoding=opus", "file")],
)
def test_the_format_of_a_recording(query: str, format: str) -> None:
    assert deepgram_recorded.parse(parse_qs(query)).start.options.format == format
