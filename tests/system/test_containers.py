"""Every container and every kind of recording, through the whole system."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from asrserver.text.wer import word_errors
from tests.recordings import Utterance
from tests.system.support import CONTAINERS, Running, robust
from tests.waiting import until
from tests.ws_client import WsClient, chunk, look, query, stored, stored_chunks

#: Those that begin like any of their frames: in auto mode, all chunks but the first go on with the recording.
WEAK = ("mp3-no-id3", "adts-aac")


@pytest.mark.gen_test(timeout=120)
async def test_every_container_gives_the_text_of_the_wav(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """Each container as binary frames in auto mode and as base64 in chunk mode, and headerless PCM as one chunk."""
    spoken = robust(utterances, 3)
    expected = [utterance.text for utterance in spoken]
    heard: dict[tuple[str, str], list[str]] = {}
    async with await WsClient.open(running.url) as ws:
        for name in [*CONTAINERS, "pcm"]:
            data = [utterance.pcm if name == "pcm" else encode(utterance.wav, name) for utterance in spoken]
            for mode in ("auto", "chunk"):
                one = f"{sid}-{name}-{mode}"
                await ws.start(one, mode=mode)
                for index, piece in enumerate(data):
                    await ws.send(piece if mode == "auto" else chunk(one, index, piece))
                final = await ws.finish(one)
                assert not ws.of(one, "error")
                texts = [message["text"] for message in ws.of(one, "chunk_result")]
                assert len(texts) == len(data)
                if mode == "auto" and name in WEAK:
                    heard[name, mode] = [final["text"]] if final["text"] != " ".join(expected) else expected
                else:
                    heard[name, mode] = texts
                    assert final["text"] == " ".join(texts)
                length = sum(len(utterance.pcm) for utterance in spoken) / 32000
                assert final["duration"] == pytest.approx(length, abs=0.15 * len(spoken))
    assert heard["wav", "auto"] == expected
    assert {key: texts for key, texts in heard.items() if texts != expected} == {}


@pytest.mark.gen_test(timeout=60)
async def test_pieces_of_pcm_are_one_recording(running: Running, utterances: list[Utterance], sid: str) -> None:
    """Each chunk is 100 ms of headerless PCM: one result each, in order, and the whole text at the end."""
    utterance = robust(utterances, 1)[0]
    pieces = [utterance.pcm[begin : begin + 3200] for begin in range(0, len(utterance.pcm), 3200)]
    async with await WsClient.open(running.url) as ws:
        await ws.call({"action": "start", "session_id": sid})
        for index, piece in enumerate(pieces):
            ack = await ws.call(chunk(sid, index, piece))
            result = await ws.next()
            assert (ack["type"], ack["chunk_index"]) == ("ack", index)
            assert (result["type"], result["chunk_index"]) == ("chunk_result", index)
        final = await ws.call({"action": "finish", "session_id": sid})
    assert final["text"] == utterance.text
    assert final["chunk_count"] == len(pieces)
    assert final["duration"] == pytest.approx(len(utterance.pcm) / 32000, abs=0.01)
    await until(lambda: stored(running.database_url, sid), what="stored")
    assert stored(running.database_url, sid) == ("done", utterance.text, len(pieces))


@pytest.mark.gen_test(timeout=60)
async def test_slices_of_a_webm_are_one_recording(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """A MediaRecorder's slices, of which only the first has a header; two recordings in one session."""
    first, second = robust(utterances, 2)
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        index = 0
        for utterance in (first, second):
            data = encode(utterance.wav, "webm-opus")
            step = len(data) // 7
            for begin in range(0, len(data), step):
                await ws.chunk(sid, index, data[begin : begin + step])
                await ws.find(sid, "chunk_result", index)
                index += 1
        final = await ws.finish(sid)
    assert [message["chunk_index"] for message in ws.of(sid, "chunk_result")] == list(range(index))
    assert final["text"] == f"{first.text} {second.text}"
    assert final["chunk_count"] == index


@pytest.mark.gen_test(timeout=120)
async def test_long_recording_is_trimmed_behind_what_is_recognised(
    running: Running, utterances: list[Utterance], sid: str
) -> None:
    """More than a minute of PCM: right text, segments in order, and Redis keeps only part of the audio."""
    spoken: list[Utterance] = []
    recording = b""
    for utterance in utterances:
        spoken.append(utterance)
        recording += utterance.pcm + bytes(32000)
        if len(recording) > 75 * 32000:
            break
    pieces = [recording[begin : begin + 16000] for begin in range(0, len(recording), 16000)]
    kept = []
    with look(running.redis_url) as client:
        async with await WsClient.open(running.url) as ws:
            await ws.start(sid)
            for index, piece in enumerate(pieces):
                await ws.chunk(sid, index, piece)
                await ws.find(sid, "chunk_result", index)
                kept.append(client.xlen(f"asr_audio:{{{sid}}}"))
            final = await ws.finish(sid)
    expected = " ".join(utterance.text for utterance in spoken)
    assert word_errors(expected, final["text"]) <= 0.05 * len(expected.split())
    assert final["duration"] == pytest.approx(len(recording) / 32000, abs=0.01)
    assert max(kept) < 100 < len(pieces)
    assert " ".join(m["text"] for m in ws.of(sid, "chunk_result") if m["text"]) in final["text"]
    await until(lambda: stored(running.database_url, sid), what="stored")
    segments = query(
        running.database_url,
        "SELECT start_time, end_time, text FROM asr_segments WHERE session_id = %s ORDER BY number",
        sid,
    )
    times = [time for segment in segments for time in segment[:2]]
    assert times == sorted(times)
    assert times[-1] <= len(recording) / 32000
    assert " ".join(segment[2] for segment in segments) == final["text"]
    begins = itertools.accumulate((len(utterance.pcm) / 32000 + 1 for utterance in spoken), initial=0.0)
    for begin, utterance in zip(begins, spoken, strict=False):
        inside = [s[2] for s in segments if begin - 0.5 <= s[0] and s[1] <= begin + len(utterance.pcm) / 32000 + 0.7]
        assert word_errors(utterance.text, " ".join(inside)) <= 1


@pytest.mark.gen_test(timeout=120)
async def test_a_live_stream(running: Running, utterances: list[Utterance], sid: str) -> None:
    """Partial results during speech, a segment at each pause, rows with words; Redis keeps only audio without a final
    result."""
    spoken = utterances[:8]
    recording = b"".join(utterance.pcm + bytes(32000) for utterance in spoken)
    pieces = [recording[begin : begin + 3200] for begin in range(0, len(recording), 3200)]
    kept = []
    with look(running.redis_url) as client:
        async with await WsClient.open(running.url) as ws:
            await ws.start(sid, mode="stream", partials=True, partial_interval=0.1, word_timestamps=True)
            for index, piece in enumerate(pieces):
                await ws.send(piece)
                await ws.find(sid, "ack", index)
                await asyncio.sleep(0.02)
                kept.append(client.xlen(f"asr_audio:{{{sid}}}"))
            final = await ws.finish(sid)
    kinds = [message["type"] for message in ws.of(sid) if message["type"] != "ack"]
    assert set(kinds) == {"partial_result", "segment_result", "final_result"}
    assert kinds.index("partial_result") < kinds.index("segment_result")
    segments = ws.of(sid, "segment_result")
    assert [segment["number"] for segment in segments] == list(range(8))
    assert [segment["seq"] for segment in segments] == list(range(1, 9))
    assert final["text"] == " ".join(segment["text"] for segment in segments)
    expected = " ".join(utterance.text for utterance in spoken)
    assert word_errors(expected, final["text"]) <= 0.05 * len(expected.split())
    starts = {segment["start"] for segment in segments}
    assert {partial["start"] for partial in ws.of(sid, "partial_result")} <= starts
    assert min(kept[-100:]) < 60 < len(pieces)
    await until(lambda: stored(running.database_url, sid), what="stored")
    rows = query(
        running.database_url, "SELECT text, words FROM asr_segments WHERE session_id = %s ORDER BY number", sid
    )
    assert rows == [(segment["text"], segment["words"]) for segment in segments]
    assert all(words for _, words in rows)
    assert stored_chunks(running.database_url, sid) == []
    (worker,) = [worker for worker in running.system.get("/health")["workers"] if worker["partials"]]
    assert worker["partial_interval"] >= 0.5
    assert worker["stable_words"] >= worker["revised_words"]


@pytest.mark.gen_test(timeout=60)
async def test_other_sample_rates_and_floats(running: Running, utterances: list[Utterance], sid: str) -> None:
    """`start` gives the format of headerless audio."""
    np = pytest.importorskip("numpy")
    utterance = robust(utterances, 1)[0]
    samples = np.frombuffer(utterance.pcm, "<i2")
    stereo = np.repeat(samples, 2).astype("<i2").tobytes()
    floats = (samples / 32768).astype("<f4").tobytes()
    async with await WsClient.open(running.url) as ws:
        for name, data, options in (
            ("stereo", stereo, {"format": "pcm_s16le", "channels": 2}),
            ("float", floats, {"format": "pcm_f32le"}),
            ("48k", np.repeat(samples, 3).astype("<i2").tobytes(), {"sample_rate": 48000}),
        ):
            await ws.start(f"{sid}-{name}", **options)
            await ws.chunk(f"{sid}-{name}", 0, data)
            final = await ws.finish(f"{sid}-{name}")
            assert final["text"] == utterance.text, name
            assert final["duration"] == pytest.approx(len(samples) / 16000, abs=0.05)
