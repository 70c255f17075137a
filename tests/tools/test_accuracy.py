"""accuracy.py: a corpus is read, recognised in process as a server would, and its delays are measured."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy
import pytest
from accuracy import listed, worker_settings
from evaluation.capacity import Load, capacity_table, load_of, recordings
from evaluation.conditions import joined
from evaluation.corpus import CorpusError, Take, load_corpus, load_utterances, spoken_language
from evaluation.delays import Delays, delays_of, speech_of
from evaluation.inprocess import InProcess, wav
from evaluation.limits import broken_waste
from evaluation.recognition import Mode, Recognition, judge
from evaluation.scoring import Score
from evaluation.served import Served
from numpy.random import default_rng

from asrserver.audio import wav as wav_format
from asrserver.config import Settings
from asrserver.inference.whisper import Whisper
from tests.program import System


@pytest.fixture(scope="module")
def utterances() -> list[Take]:
    return load_utterances(limit=4)


def entry(file: str, **fields: Any) -> dict[str, Any]:
    return {"file": file, "transcript": "tell me", "language": "en", "condition": "clips", **fields}


def write_corpus(directory: Path, entries: list[dict[str, Any]], take: Take) -> None:
    (directory / "manifest.json").write_text(json.dumps(entries))
    for one in entries:
        (directory / one["file"]).write_bytes(wav(take.samples))


def test_a_corpus_is_a_directory_with_a_manifest(tmp_path: Path, utterances: list[Take]) -> None:
    noise = entry("n.wav", condition="none", transcript="", language="")
    entries = [entry("a.wav", language="zh?"), entry("b.wav", source="unchecked by ear"), entry("c.wav"), noise]
    write_corpus(tmp_path, entries, utterances[0])
    takes = load_corpus(tmp_path)
    assert [(take.name, take.language, take.speech, take.checked) for take in takes] == [
        ("a.wav", "", True, True), ("b.wav", "en", True, False),
        ("c.wav", "en", True, True), ("n.wav", "", False, True),
    ]  # fmt: skip
    assert takes[0].seconds == utterances[0].seconds
    assert spoken_language(takes) == "en"
    assert [take.name for take in load_corpus(tmp_path, "[bc]*", 1)] == ["b.wav", "n.wav"]


@pytest.mark.parametrize(
    ("manifest", "file", "message"),
    [
        ("", b"", "manifest.json"),
        ("{}", b"", "list of objects"),
        ('[{"name": 1}]', b"", "list of objects"),
        ('[{"file": "b.wav"}]', b"", "b.wav: "),
        ('[{"file": "a.wav"}]', b"x" * 100, "a.wav: is in no audio container"),
        ('[{"file": "a.wav", "condition": "none"}]', b"", "no recording of speech"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_said(
    tmp_path: Path, utterances: list[Take], manifest: str, file: bytes, message: str
) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "a.wav").write_bytes(file or wav(utterances[0].samples))
    with pytest.raises(CorpusError, match=message):
        load_corpus(tmp_path)


@pytest.mark.gen_test(timeout=120)
async def test_both_modes_recognise_in_process_as_a_server_does(utterances: list[Take]) -> None:
    settings = Settings(model="demo", device="cpu")
    server = InProcess(Whisper("demo", "cpu", "default", 1, 1), settings, False, partials=False)
    try:
        recording = joined(utterances, 0.2, (1.0, 2.0), default_rng(1))
        for recognise in (server.auto, server.stream):
            for take in (*utterances[:2], recording):
                found = await recognise(take)
                assert found.text == take.text
                assert found.languages == ["en"] * len(take.said)
                assert (judge(take, found).errors, judge(take, found).wrong_languages) == (0, 0)
    finally:
        server.close()


@pytest.mark.gen_test(timeout=60)
async def test_closing_waits_as_long_as_a_call_of_the_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would end while the model's thread computes, and be aborted."""
    settings = replace(Settings(), device="cpu")
    server = InProcess(Whisper("demo", "cpu", "default", 1, 1), settings, False, partials=False)
    stop, limits = server._recogniser.engine.stop, list[float | None]()

    def record(timeout: float | None) -> None:
        limits.append(timeout)
        stop(timeout)

    monkeypatch.setattr(server._recogniser.engine, "stop", record)
    server.close()
    assert limits == [None]
    assert not server._recogniser.engine._thread.is_alive()


def test_the_table_has_a_row_for_each_condition_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], utterances: list[Take]
) -> None:
    write_corpus(tmp_path, [entry("a.wav", transcript=utterances[0].text)], utterances[0])
    arguments = ["--in-process", "--model", "demo", "--corpus", str(tmp_path), "--mode", "auto,stream", "--verbose"]
    arguments += ["--conditions", "clean,none,telephone", "--check", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["accuracy.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        accuracy.main()
    assert stop.value.code == 0
    rows = [line.split()[:6] for line in capsys.readouterr().out.splitlines()]
    words = str(len(utterances[0].text.split()))
    assert ["clean", "auto", "1"] in [row[:3] for row in rows]
    assert [row[4:] for row in rows if row[:2] == ["clean", "stream"]] == [[words, "0.00"]]
    assert ["none", "no", "recordings"] in rows
    assert [row[0] for row in rows if row[1:2] == ["auto"]] == ["clean", "telephone", "all"]
    assert ["clean,", "auto:", "0.0", "%"] in [row[:4] for row in rows]
    (first, *_) = json.loads((tmp_path / "out.json").read_text())
    assert (first["condition"], first["mode"], first["text"]) == ("clean", "auto", utterances[0].text)


def test_offline_texts_can_be_those_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], utterances: list[Take]
) -> None:
    text = utterances[0].text
    write_corpus(tmp_path, [entry("a.wav", transcript=text)], utterances[0])
    row: dict[str, Any] = {
        "condition": "clean",
        "group": "clean",
        "mode": "offline",
        "name": "a.wav",
        "checked": True,
        "said": [text],
    }
    counts = Score(recordings=1, words=len(text.split()), substitutions=1).asdict()
    others = [{**row, "name": "b.wav"}, {**row, "condition": "reverb"}, {**row, "said": ["others"]}, {"delays": {}}]
    old = [{**row, **counts}, *({**other, **counts} for other in others)]
    (tmp_path / "old.json").write_text(json.dumps(old))
    arguments = ["--in-process", "--model", "demo", "--corpus", str(tmp_path), "--mode", "stream"]
    arguments += ["--conditions", "clean", "--baseline", str(tmp_path / "old.json")]
    monkeypatch.setattr("sys.argv", ["accuracy.py", *arguments])
    accuracy.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "thrown away" not in line]
    assert [(*row[:3], row[6]) for row in rows[1:]] == [
        ("clean", "stream", "1", "0"), ("clean", "offline", "1", "1"),
        ("all", "stream", "1", "0"), ("all", "offline", "1", "1"),
    ]  # fmt: skip


def test_recordings_with_unchecked_transcripts_are_in_no_sum(utterances: list[Take]) -> None:
    right = [Recognition(take.text, ["en"]) for take in utterances[:2]]
    takes = [utterances[0], replace(utterances[1], checked=False)]
    rows = accuracy.report("clean", "auto", takes, right, 1.0, "en")
    assert [row["group"] for row in rows] == ["clean", "clean unchecked"]
    assert {key: score.recordings for key, score in accuracy.scores_of(rows).items()} == {("clean", "auto"): 1}


def test_a_setting_of_the_worker_can_be_tried() -> None:
    options = argparse.Namespace(model="demo", beam=2, threads=None, set=["silence=0.6", "--batch-size=3"])
    assert worker_settings(options) == {"model": "demo", "beam_size": 2, "silence": 0.6, "batch_size": 3}
    options.set = ["port=1"]
    with pytest.raises(CorpusError, match="'port' is no setting of a worker"):
        worker_settings(options)


def test_an_unknown_mode_is_refused() -> None:
    assert listed(("auto", "stream"), "mode")("stream,auto") == ["stream", "auto"]
    with pytest.raises(argparse.ArgumentTypeError, match="mode 'live' must be one of auto, stream"):
        listed(("auto", "stream"), "mode")("auto,live")


def test_a_file_is_sent_as_wav(utterances: list[Take]) -> None:
    data = wav(utterances[0].samples)
    header = wav_format.read_header(data)
    assert header is not None
    assert len(data) - header.offset == 2 * len(utterances[0].samples)


def partial(when: float, start: float, text: str, stable: str = "") -> tuple[float, dict[str, Any]]:
    return when, {"type": "partial_result", "start": start, "text": text, "stable": stable, "language": "en"}


def segment(when: float, start: float, end: float, text: str) -> tuple[float, dict[str, Any]]:
    return when, {"type": "segment_result", "start": start, "end": end, "text": text, "language": "en"}


def test_delays_count_from_speech_and_not_from_silence_around_it() -> None:
    messages = [
        partial(1.8, 0.9, "tell"),
        partial(2.5, 0.9, "tell me", "tell"),
        partial(3.5, 0.9, "tell me more", "tell me"),  # after the speech: no gap
        segment(4.0, 0.9, 3.1, "tell them more"),
        partial(6.0, 5.0, ""),
        segment(7.5, 5.0, 6.5, "now"),
    ]
    found = delays_of(messages, [(1.0, 1.9), (2.1, 3.0), (5.1, 6.4)])
    assert found.first == pytest.approx([0.8])
    assert found.gaps == pytest.approx([0.7])
    assert found.final == pytest.approx([1.0, 1.1])
    assert (found.shown, found.stable, found.settled, found.revised) == (6, 3, 2, 1)


def test_partial_results_of_the_next_segment_are_not_those_of_this_one() -> None:
    messages = [partial(2.0, 1.0, "one"), partial(3.0, 2.5, "two"), segment(3.2, 1.0, 2.0, "one")]
    found = delays_of([*messages, segment(4.5, 2.5, 3.5, "two")], [(1.1, 1.9), (2.6, 3.4)])
    assert found.first == pytest.approx([0.9, 0.4])
    assert found.shown == 2
    assert found.gaps == []


def test_a_segment_without_speech_has_no_delay() -> None:
    found = delays_of([segment(4.0, 1.0, 2.0, "hm")], [(5.0, 6.0)])
    assert found.final == []
    assert math.isnan(found.asdict()["final_p50"])


def test_delays_are_added() -> None:
    first, second = Delays([1.0], [0.5], [2.0], 4, 2, 1, 0), Delays([3.0], [], [], 4, 4, 2, 1)
    first.add(second)
    assert first == Delays([1.0, 3.0], [0.5], [2.0], 8, 6, 3, 1)
    assert first.asdict()["stable_share"] == 0.75


def test_streams_are_carried_if_their_segments_come_in_time() -> None:
    found = [(2, False, 1.0), (4, False, 1.9), (8, False, 4.0), (2, True, 1.9), (4, True, 2.1)]
    loads = [Load(streams, partials, 1.0, p95, 0.5, 3.0, 2.5, 0) for streams, partials, p95 in found]
    loads.append(Load(6, False, 1.0, 1.0, 0.5, 3.1, 2.5, 0))  # in time, and wrong
    lines = capacity_table(loads, 8.0)
    assert lines[-2:] == [
        "carried without partials: 4 streams, 0.50 of what offline speed allows",
        "carried with partials: 2 streams, 0.25 of what offline speed allows",
    ]
    assert "8.0 times real time" in lines[0]


@pytest.mark.gen_test(timeout=120)
async def test_a_server_is_measured_as_its_clients_use_it(shared: System, utterances: list[Take]) -> None:
    server = Served(shared.url, f"http://127.0.0.1:{shared.port}", False, 1.0, True)
    auto, cost = await Mode(server.auto, server.cpu_seconds, 2).recognise_all(utterances)
    assert [one.text for one in auto] == [take.text for take in utterances], "each at its place"
    assert cost > 0
    recording = joined(utterances, 0.1, (1.0, 2.0), default_rng(1))
    live = await server.stream(recording)
    assert live.text == recording.text
    assert live.languages == ["en"] * len(recording.said)
    found = delays_of(live.messages, speech_of(recording))
    assert len(found.final) == len(found.first) == len(recording.said)
    assert min(found.final) > 0
    assert min(found.first) > 0
    assert found.shown >= found.stable > 0


@pytest.mark.gen_test(timeout=120)
async def test_a_load_is_streams_in_real_time(shared: System, utterances: list[Take]) -> None:
    server = Served(shared.url, f"http://127.0.0.1:{shared.port}", False, 1.0, True)
    offline = [Score(words=10, substitutions=1)] * 3
    found = await load_of(server, recordings(utterances, 3, 4.0), offline, False)
    assert (found.streams, found.partials, found.rate, found.dropped) == (3, False, 0.0, 0)
    assert found.offline_rate == 10
    assert 0 < found.final_p50 <= found.final_p95
    assert math.isnan(found.first_p50)


def test_waste_is_judged_over_all_conditions() -> None:
    rows: list[dict[str, Any]] = [
        {"condition": "clean", "mode": "auto", "decoding": 60.0, "wasted": 0.0},
        {"condition": "noise5", "mode": "auto", "decoding": 40.0, "wasted": 5.0},
        {"condition": "noise5", "mode": "stream", "decoding": 40.0, "wasted": 2.1},
        {"condition": "noise5", "mode": "stream", "text": "a row without"},
        {"condition": "clean", "mode": "none", "decoding": 0.0, "wasted": 0.0},
    ]
    assert broken_waste(rows) == ["stream: 5.2 % of the decoding thrown away"]
