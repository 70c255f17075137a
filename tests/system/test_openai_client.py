"""OpenAI's own Python library against the whole system: right texts, and the exceptions that its users know."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import imageio_ffmpeg
import openai
import pytest
from openai.types.audio import TranscriptionVerbose
from openai.types.realtime.audio_transcription_param import AudioTranscriptionParam

from tests.recordings import Utterance
from tests.system.support import CONTAINERS, Running, append, client_of, robust, turns
from tests.waiting import wait_until


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with client_of(running.system) as made:
        wait_until(lambda: len(made.models.list().data) > 1, 30, "the gateway knows the workers' model")
        yield made


@pytest.fixture(scope="module")
def recording(utterances: list[Utterance]) -> tuple[str, bytes]:
    """Three utterances with pauses between them, as MP3, and their text."""
    said = robust(utterances, 3)
    pcm = bytes(48000).join(one.pcm for one in said)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    mp3 = subprocess.run([*command, "-b:a", "128k", "-f", "mp3", "-"], input=pcm, stdout=subprocess.PIPE, check=True)
    return " ".join(one.text for one in said), mp3.stdout


@pytest.mark.parametrize("path", ["/v1", ""])
def test_every_format(running: Running, recording: tuple[str, bytes], path: str) -> None:
    text, mp3 = recording
    with client_of(running.system, path=path) as client:
        create = client.audio.transcriptions.create
        assert create(model="whisper-1", file=mp3).text == text
        assert create(model="gpt-4o-transcribe", file=("blob", mp3), response_format="text") == f"{text}\n"
        srt = create(model="whisper-1", file=mp3, response_format="srt")
        assert srt.startswith("1\n00:00:00,")
        assert srt.count(" --> ") >= 3
        assert create(model="whisper-1", file=mp3, response_format="vtt").startswith("WEBVTT\n\n00:00:00.")


def test_times_of_words(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    text, mp3 = recording
    found = client.audio.transcriptions.create(
        model="whisper-1",
        file=mp3,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en-US",
        prompt="A few commands.",
        temperature=0,
    )
    assert isinstance(found, TranscriptionVerbose)
    assert found.segments is not None
    assert found.words is not None
    assert (found.text, found.language) == (text, "english")
    assert "".join(segment.text for segment in found.segments) == f" {text}"
    assert " ".join(word.word for word in found.words) == text
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert found.duration >= times[-1] > found.segments[-1].start


def test_a_stream_of_events(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    text, mp3 = recording
    deltas, done = [], []
    for event in client.audio.transcriptions.create(model="whisper-1", file=mp3, stream=True):
        if event.type == "transcript.text.delta":
            deltas.append(event.delta)
        elif event.type == "transcript.text.done":
            done.append(event.text)
    assert len(deltas) >= 3
    assert "".join(deltas) == text
    assert done == [text]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(
    client: openai.OpenAI, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], container: str
) -> None:
    [said] = robust(utterances, 1)
    file = encode(said.wav, container)
    assert client.audio.transcriptions.create(model="whisper-1", file=("x.bin", file)).text == said.text


def test_silence_is_a_result(client: openai.OpenAI) -> None:
    empty = Utterance("", "", bytes(32000 * 45))
    found = client.audio.transcriptions.create(model="whisper-1", file=empty.wav, response_format="verbose_json")
    assert (found.text, found.segments) == ("", [])
    assert found.duration == pytest.approx(45, abs=0.1)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "whisper-1"]
    assert client.models.retrieve("gpt-4o-mini-transcribe").object == "model"


@pytest.mark.parametrize(
    ("file", "code"), [(b"\x01\x02\x03\x04" * 99_999, "not_audio"), (b"OggS\0\2" + b"x" * 999_999, "undecodable_audio")]
)
def test_bad_audio_is_the_client_s_fault(client: openai.OpenAI, file: bytes, code: str) -> None:
    """A 500 would be sent again, twice."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model="whisper-1", file=file)
    assert caught.value.code == code
    assert caught.value.request_id


def test_unknown_names(client: openai.OpenAI, utterances: list[Utterance]) -> None:
    file = utterances[0].wav
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.transcriptions.create(model="nova-3", file=file)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.audio.transcriptions.create(model="whisper-1", file=file, language="klingon")
    assert bad.value.param == "language"
    with pytest.raises(openai.BadRequestError, match="language cy"):  # which the demo model does not know
        client.audio.transcriptions.create(model="whisper-1", file=file, language="Welsh")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="whisper-1", input="text")


def test_live_turns(client: openai.OpenAI, utterances: list[Utterance]) -> None:
    """Found by the server, and then made by the client; mistakes are told in between."""
    said = robust(utterances, 4)
    with client.realtime.connect(extra_query={"intent": "transcription"}) as live:
        assert live.recv().type == "session.created"
        for one in said:
            append(live, one.pcm + bytes(48000))
        assert turns(live, len(said)) == [one.text for one in said]
        wrong: list[tuple[AudioTranscriptionParam, str]] = [
            ({"model": "nova-3"}, "model_not_found"),
            ({"language": "cy"}, "bad_option"),
        ]
        for given, code in wrong:
            live.session.update(session={"type": "transcription", "audio": {"input": {"transcription": given}}})
            event = live.recv()
            assert event.type == "error"
            param = f"session.audio.input.transcription.{next(iter(given))}"
            assert (event.error.code, event.error.param) == (code, param)
        live.session.update(
            session={
                "type": "transcription",
                "audio": {"input": {"turn_detection": None, "transcription": {"model": "whisper-1", "language": "en"}}},
            }
        )
        assert live.recv().type == "session.updated"
        for pair in (said[:2], said[2:]):
            for one in pair:
                append(live, one.pcm + bytes(48000))
            live.input_audio_buffer.commit()
            assert turns(live, 1) == [" ".join(one.text for one in pair)]
