"""The whole system, as its users meet it: the program as processes, a WebSocket client, REST, PostgreSQL.

All tests of this module share one running system: what they do must not disturb each other, which is a test by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import imageio_ffmpeg
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.text.wer import word_errors
from tests.conftest import Servers, System, Utterance, drop_database, until
from tests.ws_client import Talk, check_stored, chunk, look, query, stored, stored_chunks


@dataclass
class Running:
    """The shared system and its servers."""

    system: System
    redis_url: str
    database_url: str

    @property
    def url(self) -> str:
        return self.system.url


@pytest.fixture(scope="module")
def running(servers: Servers) -> Iterator[Running]:
    """One system with default settings for all tests of this module."""
    name = f"test_system_{os.getpid()}"
    database = make_dsn(**{**parse_dsn(servers.postgres.dsn), "dbname": name})
    with look(servers.redis.url) as client:
        client.flushall()
    environment = {"REDIS_URL": servers.redis.url, "DATABASE_URL": database}
    system = System("run", "--port", "0", env=environment)
    try:
        yield Running(system.wait_ready(), servers.redis.url, database)
        assert system.stop() == 0
        assert "Traceback" not in system.output(), system.output().partition("Traceback")[2][:3000]
        assert " died: " not in system.output()
    finally:
        system.close()
        drop_database(servers, name)


_ids = itertools.count()


@pytest.fixture
def sid(request: pytest.FixtureRequest) -> str:
    """A session id of the test's own."""
    return f"{request.node.name[:60]}-{next(_ids)}".replace("[", "-").replace("]", "")


# -- the protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=120)
async def test_lock_step_client_gets_exactly_its_messages(running: Running, all_utterances: list[Utterance]) -> None:
    """A client written from the protocol's first page alone; a hundred utterances of at most 5 % word errors."""
    async with await Talk.open(running.url + "?uid=1&device_id=2") as talk:
        ack = await talk.call({"action": "start", "session_id": "lock-step", "user_id": "someone"})
        assert (ack["type"], ack["session_id"], ack["status"]) == ("ack", "lock-step", "session_started")
        errors = words = 0
        texts = []
        for index, utterance in enumerate(all_utterances):
            ack = await talk.call(chunk("lock-step", index, utterance.wav))
            assert (ack["type"], ack["chunk_index"], ack["status"]) == ("ack", index, "received")
            result = await talk.next()
            assert (result["type"], result["session_id"], result["chunk_index"]) == ("chunk_result", "lock-step", index)
            texts.append(result["text"])
            errors += word_errors(utterance.text, result["text"])
            words += len(utterance.text.split())
        final = await talk.call({"action": "finish", "session_id": "lock-step"})
        assert (final["type"], final["session_id"], final["chunk_count"]) == ("final_result", "lock-step", 100)
        assert final["text"] == " ".join(texts)
        assert final["duration"] == pytest.approx(sum(len(u.pcm) for u in all_utterances) / 32000, abs=0.1)
        assert errors / words <= 0.05


@pytest.mark.gen_test(timeout=170)
async def test_fifty_sessions_of_ten_chunks(running: Running, utterances: list[Utterance]) -> None:
    """Every chunk one result, none twice, none under the wrong session; all rows; Redis keeps nothing for ever."""
    voices = itertools.cycle(utterances)
    said = {f"fifty-{number}": [next(voices) for _ in range(10)] for number in range(50)}
    names = list(said)
    lanes = [names[:5], names[5:10], *([name] for name in names[10:])]
    talks = [await Talk.open(running.url) for _ in lanes]

    async def interleaved(talk: Talk, sids: list[str]) -> None:
        for sid in sids:
            await talk.start(sid)
        for index in range(10):
            for sid in sids:
                await talk.send(chunk(sid, index, said[sid][index].wav))
        for sid in sids:
            await talk.send({"action": "finish", "session_id": sid})
        for sid in sids:
            await talk.find(sid, "final_result")

    try:
        async with asyncio.timeout(160):
            await asyncio.gather(*(interleaved(talk, sids) for talk, sids in zip(talks, lanes, strict=True)))
        for talk, sids in zip(talks, lanes, strict=True):
            for sid in sids:
                talk.check(sid, said[sid])
            assert len(talk.messages) == len(sids) * 22
    finally:
        await asyncio.gather(*(talk.close() for talk in talks))
    await until(lambda: all(stored(running.database_url, sid) for sid in said), 30, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(running.database_url, sid, spoken)
    with look(running.redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), 10, "nothing is open")
        assert client.xpending("asr_tasks", "asr_workers")["pending"] == 0
        for sid in said:
            for kind in ("session", "audio", "events"):
                assert 0 < client.pttl(f"asr_{kind}:{{{sid}}}") <= 600_000


@pytest.mark.gen_test(timeout=60)
async def test_sessions_one_after_another_on_one_connection(
    running: Running, utterances: list[Utterance], sid: str
) -> None:
    """A finished session's connection takes the next; an empty id gets one; a known id is refused, here and later."""
    async with await Talk.open(running.url) as talk:
        await talk.stream(f"{sid}-a", utterances[:1])
        await talk.stream(f"{sid}-b", utterances[1:2])
        talk.check(f"{sid}-a", utterances[:1])
        talk.check(f"{sid}-b", utterances[1:2])
        count = len(talk.messages)
        await talk.send({"action": "start", "session_id": ""})
        await until(lambda: len(talk.messages) == count + 1)
        made = talk.messages[-1]["session_id"]
        assert len(made) == 36
        await talk.chunk(made, 0, utterances[2].wav)
        assert (await talk.finish(made))["text"] == utterances[2].text
    async with await Talk.open(running.url) as talk:
        error = await talk.call({"action": "start", "session_id": f"{sid}-a"})
        assert (error["type"], error["code"]) == ("error", "session_exists")
        assert (await talk.call({"action": "start", "session_id": f"{sid}-c"}))["type"] == "ack"
        await talk.finish(f"{sid}-c")


# -- containers ------------------------------------------------------------------------------------------------------

#: Name → FFmpeg's options and the file's suffix. Lossy ones at a rate at which the small model hears the same.
CONTAINERS = {
    "wav": (["-c:a", "pcm_s16le"], "wav"),
    "wav-44100-stereo": (["-c:a", "pcm_s16le", "-ar", "44100", "-ac", "2"], "wav"),
    "wav-float": (["-c:a", "pcm_f32le"], "wav"),
    "webm-opus": (["-c:a", "libopus", "-b:a", "64k"], "webm"),
    "ogg-opus": (["-c:a", "libopus", "-b:a", "64k"], "ogg"),
    "ogg-vorbis": (["-c:a", "libvorbis", "-q:a", "8"], "ogg"),
    "flac": (["-c:a", "flac"], "flac"),
    "mp3": (["-c:a", "libmp3lame", "-b:a", "128k"], "mp3"),
    "mp3-no-id3": (["-c:a", "libmp3lame", "-b:a", "128k", "-id3v2_version", "0", "-write_xing", "0"], "mp3"),
    "mp4-aac": (["-c:a", "aac", "-b:a", "128k"], "mp4"),
    "mp4-fragmented": (["-c:a", "aac", "-b:a", "128k", "-movflags", "frag_keyframe+empty_moov"], "mp4"),
    "m4a-aac": (["-c:a", "aac", "-b:a", "128k"], "m4a"),
    "adts-aac": (["-c:a", "aac", "-b:a", "128k"], "aac"),
}

#: Those that begin like any of their frames: in auto mode, all chunks but the first go on with the recording.
WEAK = ("mp3-no-id3", "adts-aac")


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, str], bytes]:
    """encode(wav, name): the same audio in one of CONTAINERS, by FFmpeg."""
    folder = tmp_path_factory.mktemp("containers")
    program = imageio_ffmpeg.get_ffmpeg_exe()

    def encoder(wav: bytes, name: str) -> bytes:
        options, suffix = CONTAINERS[name]
        target = folder / f"{next(_ids)}.{suffix}"
        command = [program, "-v", "error", "-y", "-f", "wav", "-i", "pipe:0", *options, str(target)]
        subprocess.run(command, input=wav, check=True, timeout=60)
        return target.read_bytes()

    return encoder


def robust(utterances: list[Utterance], count: int) -> list[Utterance]:
    """Longer utterances: a lossy coder's noise changes nothing there."""
    return sorted(utterances, key=lambda utterance: -len(utterance.pcm))[:count]


@pytest.mark.gen_test(timeout=120)
async def test_every_container_gives_the_text_of_the_wav(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """Each container as binary frames in auto mode and as base64 in chunk mode, and headerless PCM as one chunk."""
    spoken = robust(utterances, 3)
    expected = [utterance.text for utterance in spoken]
    heard: dict[tuple[str, str], list[str]] = {}
    async with await Talk.open(running.url) as talk:
        for name in [*CONTAINERS, "pcm"]:
            data = [utterance.pcm if name == "pcm" else encode(utterance.wav, name) for utterance in spoken]
            for mode in ("auto", "chunk"):
                one = f"{sid}-{name}-{mode}"
                await talk.start(one, mode=mode)
                for index, piece in enumerate(data):
                    await talk.send(piece if mode == "auto" else chunk(one, index, piece))
                final = await talk.finish(one)
                assert not talk.of(one, "error")
                texts = [message["text"] for message in talk.of(one, "chunk_result")]
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


# -- old clients -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_pieces_of_pcm_are_one_recording(running: Running, utterances: list[Utterance], sid: str) -> None:
    """100 ms of headerless PCM a chunk, in lock step: one result each, in order, and the whole text at the end."""
    utterance = robust(utterances, 1)[0]
    pieces = [utterance.pcm[begin : begin + 3200] for begin in range(0, len(utterance.pcm), 3200)]
    async with await Talk.open(running.url) as talk:
        await talk.call({"action": "start", "session_id": sid})
        for index, piece in enumerate(pieces):
            ack = await talk.call(chunk(sid, index, piece))
            result = await talk.next()
            assert (ack["type"], ack["chunk_index"]) == ("ack", index)
            assert (result["type"], result["chunk_index"]) == ("chunk_result", index)
        final = await talk.call({"action": "finish", "session_id": sid})
    assert final["text"] == utterance.text
    assert final["chunk_count"] == len(pieces)
    assert final["duration"] == pytest.approx(len(utterance.pcm) / 32000, abs=0.01)
    await until(lambda: stored(running.database_url, sid), what="stored")
    assert stored(running.database_url, sid) == ("done", utterance.text, len(pieces))


@pytest.mark.gen_test(timeout=60)
async def test_slices_of_a_webm_are_one_recording(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """A MediaRecorder's slices, only the first with a header; two recordings in one session."""
    first, second = robust(utterances, 2)
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        index = 0
        for utterance in (first, second):
            data = encode(utterance.wav, "webm-opus")
            step = len(data) // 7
            for begin in range(0, len(data), step):
                await talk.chunk(sid, index, data[begin : begin + step])
                await talk.find(sid, "chunk_result", index)
                index += 1
        final = await talk.finish(sid)
    assert [message["chunk_index"] for message in talk.of(sid, "chunk_result")] == list(range(index))
    assert final["text"] == f"{first.text} {second.text}"
    assert final["chunk_count"] == index


@pytest.mark.gen_test(timeout=120)
async def test_long_recording_is_trimmed_behind_what_is_recognised(
    running: Running, utterances: list[Utterance], sid: str
) -> None:
    """More than a minute of PCM in half seconds: right text, segments in order, and Redis does not keep all of it."""
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
        async with await Talk.open(running.url) as talk:
            await talk.start(sid)
            for index, piece in enumerate(pieces):
                await talk.chunk(sid, index, piece)
                await talk.find(sid, "chunk_result", index)
                kept.append(client.xlen(f"asr_audio:{{{sid}}}"))
            final = await talk.finish(sid)
    expected = " ".join(utterance.text for utterance in spoken)
    assert word_errors(expected, final["text"]) <= 0.05 * len(expected.split())
    assert final["duration"] == pytest.approx(len(recording) / 32000, abs=0.01)
    assert max(kept) < 100 < len(pieces)
    assert " ".join(m["text"] for m in talk.of(sid, "chunk_result") if m["text"]) in final["text"]
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
    """Partial results while people speak, a segment at each pause, rows with words; Redis keeps what is not final."""
    spoken = utterances[:8]
    recording = b"".join(utterance.pcm + bytes(32000) for utterance in spoken)
    pieces = [recording[begin : begin + 3200] for begin in range(0, len(recording), 3200)]
    kept = []
    with look(running.redis_url) as client:
        async with await Talk.open(running.url) as talk:
            await talk.start(sid, mode="stream", partials=True, partial_interval=0.1, word_timestamps=True)
            for index, piece in enumerate(pieces):
                await talk.send(piece)
                await talk.find(sid, "ack", index)
                await asyncio.sleep(0.02)
                kept.append(client.xlen(f"asr_audio:{{{sid}}}"))
            final = await talk.finish(sid)
    kinds = [message["type"] for message in talk.of(sid) if message["type"] != "ack"]
    assert set(kinds) == {"partial_result", "segment_result", "final_result"}
    assert kinds.index("partial_result") < kinds.index("segment_result")
    segments = talk.of(sid, "segment_result")
    assert [segment["number"] for segment in segments] == list(range(8))
    assert [segment["seq"] for segment in segments] == list(range(1, 9))
    assert final["text"] == " ".join(segment["text"] for segment in segments)
    expected = " ".join(utterance.text for utterance in spoken)
    assert word_errors(expected, final["text"]) <= 0.05 * len(expected.split())
    starts = {segment["start"] for segment in segments}
    assert {partial["start"] for partial in talk.of(sid, "partial_result")} <= starts
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
    """Headerless audio of another format is what `start` says it is."""
    np = pytest.importorskip("numpy")
    utterance = robust(utterances, 1)[0]
    samples = np.frombuffer(utterance.pcm, "<i2")
    stereo = np.repeat(samples, 2).astype("<i2").tobytes()
    floats = (samples / 32768).astype("<f4").tobytes()
    async with await Talk.open(running.url) as talk:
        for name, data, options in (
            ("stereo", stereo, {"format": "pcm_s16le", "channels": 2}),
            ("float", floats, {"format": "pcm_f32le"}),
            ("48k", np.repeat(samples, 3).astype("<i2").tobytes(), {"sample_rate": 48000}),
        ):
            await talk.start(f"{sid}-{name}", **options)
            await talk.chunk(f"{sid}-{name}", 0, data)
            final = await talk.finish(f"{sid}-{name}")
            assert final["text"] == utterance.text, name
            assert final["duration"] == pytest.approx(len(samples) / 16000, abs=0.05)


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=120)
async def test_each_malformed_message_costs_itself_alone(
    running: Running, utterances: list[Utterance], encode: Callable[[bytes, str], bytes], sid: str
) -> None:
    """Every wrong thing gets an error with a code; the session, its connection and its neighbours go on."""
    spoken = utterances[:8]
    neighbours = [f"{sid}-same", f"{sid}-other"]
    async with await Talk.open(running.url) as talk, await Talk.open(running.url) as other:
        await talk.start(neighbours[0])
        await other.start(neighbours[1])
        await talk.chunk(neighbours[0], 0, spoken[0].wav)
        await other.chunk(neighbours[1], 0, spoken[0].wav)

        async def refused(code: str, message: Any, where: Talk = talk) -> dict[str, Any]:
            seen = sum(m["type"] == "error" for m in where.messages)
            await where.send(message)
            await until(lambda: sum(m["type"] == "error" for m in where.messages) > seen, 30, code)
            error = [m for m in where.messages if m["type"] == "error"][-1]
            assert error["code"] == code, error
            assert error["message"]
            return error

        # Before start.
        async with await Talk.open(running.url) as early:
            assert (await early.call(chunk(sid, 0, spoken[0].wav)))["code"] == "no_session"
            assert (await early.call(b"12"))["code"] == "no_session"
            assert (await early.call({"action": "finish"}))["code"] == "no_session"
            await early.stream(f"{sid}-early", spoken[:1])
            early_errors = [m for m in early.messages if m["type"] == "error"]
            assert len(early_errors) == 3

        await talk.start(sid)
        await talk.chunk(sid, 0, spoken[0].wav)
        # What is no message.
        await refused("bad_json", '{"action": "chunk", ')
        await refused("bad_json", '["action"]')
        await refused("bad_json", "")
        await refused("unknown_action", {"action": "dance", "session_id": sid})
        await refused("bad_request", {"session_id": sid})
        await refused("no_session", chunk(f"{sid}-nobody", 0, b"12"))
        await refused("bad_option", {"action": "start", "session_id": f"{sid}-x", "mode": "loud"})
        await refused("bad_option", {"action": "start", "session_id": f"{sid}-x", "language": "tlh"})
        await refused("bad_id", {"action": "start", "session_id": "a b"})
        await refused("session_exists", {"action": "start", "session_id": sid})
        # What is no chunk. The client goes on with the next index, or sends the refused one again.
        broken = chunk(sid, 1, b"") | {"audio_data": "%%%not base64%%%"}
        assert (await refused("bad_base64", broken))["chunk_index"] == 1
        await talk.chunk(sid, 1, spoken[1].wav)
        assert (await refused("empty_chunk", chunk(sid, 2, b"")))["chunk_index"] == 2
        await talk.chunk(sid, 3, spoken[2].wav)
        await refused("empty_chunk", b"")
        await refused("bad_request", {"action": "chunk", "session_id": sid, "chunk_index": 4})
        await refused("bad_index", chunk(sid, -1, b"12"))
        await refused("bad_index", chunk(sid, 0, b"12") | {"chunk_index": "four"})
        gap = await refused("chunk_gap", chunk(sid, 40, spoken[3].wav))
        assert (gap["expected"], gap["chunk_index"]) == (4, 40)
        await talk.chunk(sid, 4, spoken[3].wav)
        # What is no audio.
        whole = spoken[4].wav
        await talk.send(chunk(sid, 5, b"This is a text, and nothing that anybody could listen to.\n" * 50))
        assert (await talk.find(sid, "error", 5))["code"] == "not_audio"
        mp4 = encode(whole, "mp4-aac")
        moov = mp4.index(b"moov") - 4
        assert moov > mp4.index(b"mdat")
        await talk.send(chunk(sid, 6, mp4[:moov]))
        error = await talk.find(sid, "error", 6)
        assert error["code"] == "undecodable_audio"
        assert "moov" in error["message"]
        await talk.send(chunk(sid, 7, b"RIFF\xff\xff\xff\x7fWAVE" + os.urandom(5000)))
        assert (await talk.find(sid, "error", 7))["code"] == "undecodable_audio"
        # A truncated WAV is heard as far as it goes: here to the middle of its closing silence.
        await talk.chunk(sid, 8, spoken[4].wav[:-1001])
        assert (await talk.find(sid, "chunk_result", 8))["text"] == spoken[4].text
        # Twice.
        await talk.send(chunk(sid, 8, spoken[5].wav))
        await until(lambda: len([m for m in talk.of(sid, "ack") if m.get("chunk_index") == 8]) == 2, what="second ack")
        await talk.chunk(sid, 9, spoken[5].wav)
        final = await talk.finish(sid)
        assert final["text"] == " ".join(utterance.text for utterance in spoken[:6])
        assert (await refused("session_finished", {"action": "finish", "session_id": sid}))["session_id"] == sid
        await refused("session_finished", chunk(sid, 10, spoken[5].wav))
        assert [m["chunk_index"] for m in talk.of(sid, "chunk_result")] == [0, 1, 3, 4, 8, 9]
        assert len(talk.of(sid, "final_result")) == 1

        await talk.chunk(neighbours[0], 1, spoken[6].wav)
        await other.chunk(neighbours[1], 1, spoken[7].wav)
        await talk.finish(neighbours[0])
        await other.finish(neighbours[1])
        talk.check(neighbours[0], [spoken[0], spoken[6]])
        other.check(neighbours[1], [spoken[0], spoken[7]])
    await until(lambda: stored(running.database_url, sid), what="stored")
    texts = dict(stored_chunks(running.database_url, sid))
    assert texts == {
        0: spoken[0].text,
        1: spoken[1].text,
        3: spoken[2].text,
        4: spoken[3].text,
        5: None,
        6: None,
        7: None,
        8: spoken[4].text,
        9: spoken[5].text,
    }


@pytest.mark.gen_test(timeout=30)
async def test_finish_twice_at_once(running: Running, utterances: list[Utterance], sid: str) -> None:
    """The second finish, sent before the first is answered, is an error; the final result comes once."""
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        await talk.chunk(sid, 0, utterances[0].wav)
        await talk.send({"action": "finish", "session_id": sid})
        await talk.send({"action": "finish", "session_id": sid})
        final = await talk.find(sid, "final_result")
        error = await talk.find(sid, "error")
        assert final["text"] == utterances[0].text
        assert error["code"] == "session_finished"
        await talk.stream(f"{sid}-next", utterances[1:2])
        talk.check(f"{sid}-next", utterances[1:2])
        assert len(talk.of(sid, "final_result")) == 1


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros (RFC 6455, 5.2)."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + bytes(4) + payload
    if len(payload) < 1 << 16:
        return head + bytes([0x80 | 126]) + struct.pack("!H", len(payload)) + bytes(4) + payload
    return head + bytes([0x80 | 127]) + struct.pack("!Q", len(payload)) + bytes(4) + payload


async def write(talk: Talk, data: bytes) -> None:
    protocol = talk.connection.protocol
    assert protocol is not None
    assert protocol.stream is not None
    await protocol.stream.write(data)


@pytest.mark.gen_test(timeout=120)
async def test_messages_that_are_too_large(running: Running, utterances: list[Utterance], sid: str) -> None:
    """40 MB as text, as one binary frame, and in fragments with pings between: one error each, then all goes on."""
    large = 40 * 2**20
    limit = 16 * 2**20
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        await talk.chunk(sid, 0, utterances[0].wav)

        async def errors(count: int) -> None:
            await until(lambda: len([m for m in talk.messages if m["type"] == "error"]) >= count, 60, "an error")
            found = [m for m in talk.messages if m["type"] == "error"]
            assert [m["code"] for m in found] == ["message_too_large"] * count

        await talk.send("x" * large)
        await errors(1)
        await talk.send(bytes(large))
        await errors(2)
        piece = bytes(2**20 - 7)
        await write(talk, frame(2, piece, final=False))
        for _ in range(38):
            await write(talk, frame(0, piece, final=False) + frame(9, b"ping"))
        await write(talk, frame(0, b"end"))
        await errors(3)
        # The limit is reached by the first fragment, so that even the next header does not fit.
        await write(talk, frame(2, bytes(limit - 1), final=False) + frame(9, b"ping") + frame(0, b"more"))
        await errors(4)
        await write(talk, frame(1, b"y" * limit, final=False))
        for _ in range(200):
            await write(talk, frame(0, b"y", final=False))
        await write(talk, frame(0, b""))
        await errors(5)
        await talk.chunk(sid, 1, utterances[1].wav)
        await talk.find(sid, "chunk_result", 1)
        final = await talk.finish(sid)
        assert final["text"] == f"{utterances[0].text} {utterances[1].text}"
        assert not talk.closed


@pytest.mark.gen_test(timeout=60)
async def test_fragmented_message_is_one_message(running: Running, utterances: list[Utterance], sid: str) -> None:
    """A chunk in many frames, a ping between them, is one chunk."""
    wav = utterances[0].wav
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        await write(talk, frame(2, wav[:1000], final=False) + frame(9, b"ping"))
        for begin in range(1000, len(wav), 7000):
            await write(talk, frame(0, wav[begin : begin + 7000], final=False))
        await write(talk, frame(0, b""))
        assert (await talk.finish(sid))["text"] == utterances[0].text


# -- REST ------------------------------------------------------------------------------------------------------------


def rest(running: Running, method: str, path: str) -> int:
    """The status of a request."""
    url = f"http://127.0.0.1:{running.system.port}/api/v1{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


@pytest.mark.gen_test(timeout=60)
async def test_a_session_is_read_back_and_deleted(running: Running, utterances: list[Utterance], sid: str) -> None:
    """GET of a session right after its final result has all of it; history lists it; DELETE is for good."""
    loop = asyncio.get_running_loop()
    async with await Talk.open(running.url) as talk:
        final = await talk.stream(sid, utterances[:3], user_id="someone")
        session = await loop.run_in_executor(None, running.system.get, f"/session/{sid}")
        assert session["status"] == "done"
        assert session["text"] == final["text"]
        assert session["duration"] == final["duration"]
        assert session["user_id"] == "someone"
        assert [c["text"] for c in session["chunks"]] == [utterance.text for utterance in utterances[:3]]
        assert " ".join(s["text"] for s in session["segments"]) == final["text"]
        history = await loop.run_in_executor(None, running.system.get, "/history?limit=1")
        assert history["total"] >= 1
        assert [record["session_id"] for record in history["records"]] == [sid]
        assert history["records"][0]["text"] == final["text"]
        assert history["records"][0]["chunk_count"] == 3
        assert await loop.run_in_executor(None, rest, running, "DELETE", f"/session/{sid}") == 200
        for method in ("GET", "DELETE"):
            assert await loop.run_in_executor(None, rest, running, method, f"/session/{sid}") == 404
    assert query(running.database_url, "SELECT count(*) FROM asr_chunks WHERE session_id = %s", sid) == [(0,)]
    async with await Talk.open(running.url) as talk:
        assert (await talk.call({"action": "start", "session_id": sid}))["code"] == "session_exists"


@pytest.mark.gen_test(timeout=60)
async def test_deleting_an_open_session_keeps_nothing(running: Running, utterances: list[Utterance], sid: str) -> None:
    """DELETE while the session goes on: the client gets its text, and no row is left when it is over."""
    loop = asyncio.get_running_loop()
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        await talk.chunk(sid, 0, utterances[0].wav)
        await talk.find(sid, "chunk_result", 0)
        assert await loop.run_in_executor(None, rest, running, "DELETE", f"/session/{sid}") == 200
        await talk.chunk(sid, 1, utterances[1].wav)
        final = await talk.finish(sid)
        assert final["chunk_count"] == 2
        with look(running.redis_url) as client:
            await until(lambda: client.zscore("asr_open", sid) is None, what="it is closed")
    assert await loop.run_in_executor(None, rest, running, "GET", f"/session/{sid}") == 404
    assert query(running.database_url, "SELECT count(*) FROM asr_segments WHERE session_id = %s", sid) == [(0,)]


def test_health_is_what_is(running: Running) -> None:
    """Every part is probed and named; the old field names are there."""
    health = running.system.get("/health")
    assert health["status"] == "ok"
    assert health["funasr_ready"]
    assert health["redis_ready"]
    assert health["workers_ready"]
    assert health["postgres_ready"]
    assert [gateway["pid"] for gateway in health["gateways"]] == [p.pid for p in running.system.children("gateway")]
    assert [worker["pid"] for worker in health["workers"]] == [p.pid for p in running.system.children("worker")]


@pytest.mark.gen_test(timeout=60)
async def test_silence_and_noise_give_no_words(running: Running, sid: str) -> None:
    """Nothing said, nothing invented."""
    np = pytest.importorskip("numpy")
    noise = (np.random.default_rng(1).normal(0, 300, 5 * 16000)).astype("<i2").tobytes()
    async with await Talk.open(running.url) as talk:
        await talk.start(sid)
        await talk.chunk(sid, 0, bytes(5 * 32000))
        await talk.chunk(sid, 1, noise)
        final = await talk.finish(sid)
        assert [message["text"] for message in talk.of(sid, "chunk_result")] == ["", ""]
        assert final["text"] == ""
        assert final["duration"] == pytest.approx(10, abs=0.01)
