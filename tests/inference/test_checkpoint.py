"""checkpoint.py: what an owner leaves to the next, which may be a worker of another release.

tests/data/events-0.1.0.json is what workers of release 0.1.0 wrote (tools/record_events.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from asrserver.audio import wav
from asrserver.audio.decoders import resume_decoder
from asrserver.audio.demux.base import Track
from asrserver.audio.recording import ResumePoint
from asrserver.inference import checkpoint
from asrserver.inference.checkpoint import Checkpoint, SessionState, StreamState
from asrserver.inference.recogniser import Recogniser
from tests.recordings import DATA
from tests.worker_harness import Session, check_alike, pieces

RELEASE = json.loads((DATA / "events-0.1.0.json").read_text())["sessions"]

STATES = [state for was in RELEASE.values() for state in was["checkpoints"]]


def test_a_session_without_a_state_begins() -> None:
    assert checkpoint.decode(None) == SessionState()
    assert SessionState().checkpoint == Checkpoint("0-1", None)


@pytest.mark.parametrize("text", STATES)
def test_the_states_of_the_last_release_are_the_same_today(text: str) -> None:
    """In both directions: what is read is written again with the same keys, and those that are new since."""
    state = checkpoint.decode(text)
    wrote = json.loads(text)
    again = json.loads(checkpoint.encode(state))
    assert {name: again[name] for name in wrote if name != "recording"} | {"recording": _known(again, wrote)} == wrote
    assert again.keys() - wrote.keys() == {"damaged", "further", "languages"}
    assert (state.after, state.total, state.chunks) == (wrote["after"], wrote["total"], wrote["chunks"])
    if state.recording is not None:
        resume_decoder(state.recording.border)


def _known(again: dict[str, Any], wrote: dict[str, Any]) -> dict[str, Any] | None:
    """The stream of a state, without the fields that a reader of the last release ignores."""
    if wrote["recording"] is None:
        return None
    assert again["recording"].keys() - wrote["recording"].keys() == {"floors", "clock"}
    return {name: again["recording"][name] for name in wrote["recording"]}


def test_a_clock_lies_beside_the_border() -> None:
    """Release 0.1.0 refuses a border with a field that it does not know."""
    track = Track("opus", b"OpusHead", 48000, 1, clock=1000.0, ticks=3, delay=0.5)
    other = replace(track, number=2)
    point = ResumePoint(1, 2, "matroska", 16000, 1, track, 7, time=20.25, others=(other,))
    state = SessionState("2-0", StreamState("1-0", "matroska", 5, 0, point))
    recording = json.loads(checkpoint.encode(state))["recording"]
    assert recording["clock"].pop("others")[0]["number"] == 2
    assert recording["clock"] == {"time": 20.25, "clock": 1000.0, "ticks": 3, "delay": 0.5}
    assert not recording["border"].keys() & recording["clock"].keys()
    assert not recording["border"]["track"].keys() & recording["clock"].keys()
    assert checkpoint.decode(checkpoint.encode(state)) == state


def test_there_are_states_of_streams_in_a_container_and_without() -> None:
    streams = [state.recording for state in map(checkpoint.decode, STATES) if state.recording is not None]
    assert {stream.kind for stream in streams} == {None, "matroska"}
    assert any(stream.border.track is not None and stream.border.track.extradata for stream in streams)


def test_a_state_of_a_newer_release_is_understood() -> None:
    """Without what this one does not know; what it does not have is as in the beginning."""
    border = {"offset": 1, "sample": 2, "kind": "wav", "sample_rate": 16000, "channels": 1, "new": 3}
    stream = {"after": "1-0", "kind": "wav", "sample": 5, "skip": 0, "border": border, "new": 3}
    assert checkpoint.decode(json.dumps({"after": "2-0", "recording": stream, "new": 3})) == SessionState(
        "2-0", StreamState("1-0", "wav", 5, 0, ResumePoint(1, 2, "wav", 16000, 1))
    )


@pytest.mark.parametrize("text", ["", "[]", '{"after":5}', '{"recording":{}}', '{"recording":{"border":5,"clock":[]}}'])
def test_what_is_no_state_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        checkpoint.decode(text)


def chunks(name: str) -> list[bytes]:
    """What the client of a recorded session sent."""
    one, two, mandarin = (
        files("asrserver").joinpath("data", "recordings", f"{file}.wav").read_bytes()
        for file in ("english-1", "english-2", "mandarin")
    )
    if name == "chunk":
        return [one, b"<html>" + bytes(range(32, 127)), mandarin]
    samples = [pcm(one), bytes(32000), pcm(two)]
    return [*pieces(samples[2], 20000), one] if name == "auto" else pieces(b"".join(samples), 6400)


def pcm(data: bytes) -> bytes:
    """A file's samples."""
    header = wav.read_header(data)
    assert header is not None
    return data[header.offset :][: header.size]


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("name", ["stream", "chunk", "auto"])
async def test_a_worker_continues_the_session_of_one_of_the_last_release(recogniser: Recogniser, name: str) -> None:
    """Whichever event was its last: nothing is missing, nothing is there twice."""
    was: dict[str, Any] = RELEASE[name]
    wrote = [json.loads(event) for event in was["events"]]
    session = Session(recogniser, chunks(name))
    session.fields = {"options": was["hash"]["options"]}
    for last in range(1, len(wrote)):
        session.states = {wrote[last - 1]["id"]: was["checkpoints"][last - 1]}
        rest = await session.run_owner(wrote[:last], epoch=2)
        assert [event["seq"] for event in rest] == list(range(last + 1, len(wrote) + 1))
        assert {event["id"].partition("-")[0] for event in rest} == {"2"}
        check_alike(wrote, wrote[:last] + rest)
