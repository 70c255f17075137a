"""sandbox.py: files decode there as here, and no decoder that goes wrong costs more than its file."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asrserver.audio import SAMPLE_RATE, files, sandbox, turns
from asrserver.audio.sandbox import Sandbox
from asrserver.audio.selection import MIXED, Selection
from asrserver.errors import AudioError, Unavailable
from asrserver.process import seccomp
from tests.audio import misbehaving
from tests.audio.signals import encode_file, tone
from tests.audio.streams import OTHER_CODECS, TRACKS, WHOLE, speech
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("processes")

TS_TRACKS = {"ts-tracks": TRACKS["ts-tracks"]}


@pytest.fixture(scope="module")
def real(processes: None) -> Iterator[Sandbox]:
    made = Sandbox(files.by_library)
    yield made
    made.close(20)


@pytest.fixture
def wild(processes: None) -> Iterator[Sandbox]:
    """Its decoders misbehave. At the end nothing is left of it."""
    made = Sandbox(misbehaving.decode)
    before = open_files()
    yield made
    made.close(20)
    wait_until(lambda: not warm(), 20, "no process is left")
    assert open_files() == before


def open_files() -> int:
    return psutil.Process().num_fds()


def warm(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The warm processes of a process for `misbehaving`, and dead ones that nobody has waited for."""
    found = (of or psutil.Process()).children()
    return [one for one in found if one.status() == psutil.STATUS_ZOMBIE or "misbehaving" in str(one.cmdline())]


def decoding(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes that decode a file."""
    return [child for one in warm(of) for child in one.children()]


def decode(made: Sandbox, data: bytes) -> files.Decoded:
    return files.decode_file(data, "amr", 60, MIXED, made.decode)


def lives(made: Sandbox) -> bool:
    """Whether it decodes the next file."""
    return len(decode(made, b"two").samples) == 3 * SAMPLE_RATE


# -- as here -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", WHOLE | OTHER_CODECS | TS_TRACKS)
def test_files_are_decoded_as_in_this_process(real: Sandbox, name: str, separate: bool, tmp_path: Path) -> None:
    """Intact and damaged: the same samples, damage and errors."""
    arguments, kind = (WHOLE | OTHER_CODECS | TS_TRACKS)[name]
    data = encode_file(speech() if name in TS_TRACKS else speech()[: 3 * SAMPLE_RATE], arguments, tmp_path)
    middle = len(data) // 2
    for one in (data, data[:middle], data[:middle] + os.urandom(400) + data[middle + 400 :], data[:40]):
        here, there = (_outcome(one, kind, separate, whole) for whole in (files.by_library, real.decode))
        assert here[1:] == there[1:]
        np.testing.assert_array_equal(here[0], there[0])
    assert len(_outcome(data, kind, separate, real.decode)[0]) > 2 * SAMPLE_RATE


def _outcome(data: bytes, kind: str, separate: bool, whole: Any) -> tuple[Any, str, str]:
    try:
        found = files.decode_file(data, kind, 60, Selection(separate=separate), whole)
    except AudioError as exc:
        return np.zeros(0, np.float32), exc.code, exc.message
    return found.samples, "", found.damage.message if found.damage else ""


def test_tracks_of_other_kinds_need_no_file(real: Sandbox, tmp_path: Path) -> None:
    """PyAV imports modules when it comes upon subtitles; a child can open none."""
    (tmp_path / "titles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n")
    more = f"-f lavfi -i testsrc=d=3:s=64x64 -i {tmp_path}/titles.srt -map 0 -map 1 -map 2 -c:v mpeg4 -c:s srt"
    data = encode_file(tone(3.0), f"{more} -c:a ac3 -f matroska", tmp_path)
    found = files.decode_file(data, "matroska", 60, MIXED, real.decode)
    assert len(found.samples) == pytest.approx(3 * SAMPLE_RATE, abs=2000)


def test_what_is_not_there_is_said_as_in_this_process(real: Sandbox, tmp_path: Path) -> None:
    data = encode_file(tone(1.0), "-f caf", tmp_path)
    with pytest.raises(AudioError) as caught:
        files.decode_file(data, "caf", 60, Selection(3), real.decode)
    assert caught.value.code == "no_such_track"
    with pytest.raises(AudioError) as caught:
        files.decode_file(data, "caf", 0.5, MIXED, real.decode)
    assert caught.value.code == "utterance_too_long"


# -- what goes wrong ---------------------------------------------------------------------------------------------------

WRONG = {
    b"crash": "was ended by SIGSEGV",
    b"abort": "was ended by SIG",  # abort(3) may not send itself a signal, and then does what is illegal
    b"exit": "ended with status 7",
    b"spin": "took 5 s of CPU without audio",
    b"memory": "takes too much memory",
    b"native memory": "takes too much memory",
    b"nonsense": "says what no decoder says",
}


@pytest.mark.parametrize("way", WRONG)
def test_a_decoder_that_goes_wrong_costs_its_file(wild: Sandbox, way: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What it had decoded is kept, as before damage of a container."""
    with pytest.raises(AudioError, match=WRONG[way]) as caught:
        decode(wild, misbehaving.AT_ONCE + way)
    assert caught.value.code == "undecodable_audio"
    assert lives(wild)
    found = decode(wild, way)
    assert len(found.samples) == SAMPLE_RATE
    assert found.damage is not None
    assert found.damage.message == "the audio cannot be decoded from 1.00 s on"
    assert lives(wild)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (0 if way.endswith(b"memory") else 2)
    assert all(WRONG[way] in record.getMessage() for record in told)


def test_a_defect_is_no_damage(wild: Sandbox) -> None:
    """An exception that says nothing of the audio, and of which the file's content is not shown."""
    with pytest.raises(RuntimeError, match=r"the decoder failed: 'KeyError in misbehaving\.py, line") as caught:
        decode(wild, b"fail")
    assert "what is in the file" not in str(caught.value)
    assert lives(wild)


def test_no_more_is_decoded_than_was_asked_for(wild: Sandbox) -> None:
    with pytest.raises(AudioError) as caught:
        decode(wild, bytes(100))
    assert caught.value.code == "utterance_too_long"
    wait_until(lambda: not decoding(), 20, "its process ends")


@pytest.mark.skipif(os.uname().machine not in seccomp.MACHINES, reason="no system calls are filtered")
def test_a_decoder_can_do_nothing_else(wild: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@localhost")
    with pytest.raises(AudioError, match=r"possible: \[\]"):
        decode(wild, misbehaving.AT_ONCE + b"break out")


@pytest.mark.skipif(os.uname().machine not in seccomp.MACHINES, reason="no system calls are filtered")
def test_where_the_kernel_takes_no_filter_files_are_decoded_and_it_is_said() -> None:
    """By the log when the first file comes, and by the doctor before."""
    assert seccomp.can_forbid_system_calls()
    done = subprocess.run([sys.executable, "-m", "tests.audio.without_seccomp"], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["warn sandbox", "16000 samples"], done.stderr
    [told] = done.stderr.splitlines()
    assert told.startswith("the kernel filters no system calls (seccomp): ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_is_killed(wild: Sandbox, number: signal.Signals) -> None:
    with ThreadPoolExecutor() as pool:
        found = pool.submit(decode, wild, misbehaving.AT_ONCE + b"wait")
        [child] = wait_until(decoding)
        child.send_signal(number)
        with pytest.raises(AudioError, match=f"was ended by {number.name}"):
            found.result(20)
    assert lives(wild)


def test_a_decoder_is_stopped(wild: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of it. Meanwhile others have their turns, and the watch for hung threads sees that it goes on."""
    monkeypatch.setattr(sandbox, "SILENT_SECONDS", 3)
    work = files.decoding(misbehaving.AT_ONCE + b"wait", "amr", 60, MIXED, wild.decode)
    assert turns.take_turn(work) == []
    [child] = wait_until(decoding)
    child.suspend()
    count = 0
    with pytest.raises(AudioError, match="said nothing for 3 s"):  # noqa: PT012
        while not turns.take_turn(work):
            count += 1
    assert 50 < count < 60
    wait_until(lambda: not child.is_running(), 20, "it is killed, and waited for")
    assert lives(wild)


def test_other_files_do_not_wait(wild: Sandbox) -> None:
    """Several threads decode at once, and each has its own."""
    with ThreadPoolExecutor(5) as pool:
        hung = [pool.submit(decode, wild, way) for way in (b"wait", b"wait")]
        children = wait_until(lambda: len(found := decoding()) == 2 and found)
        lengths = [7, 3, 9, 1, 5, 8, 2, 6, 4, 10]
        found = pool.map(lambda length: len(decode(wild, bytes(length)).samples), lengths)
        assert list(found) == [length * SAMPLE_RATE for length in lengths]
        assert not any(one.done() for one in hung)
        for child in children:
            child.kill()
        assert [len(one.result(20).samples) for one in hung] == [SAMPLE_RATE] * 2


# -- the warm process --------------------------------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_file(wild: Sandbox) -> None:
    assert not warm()
    assert lives(wild)
    [one] = warm()
    assert one.num_threads() == 1
    assert lives(wild)
    assert warm() == [one]


def test_a_warm_process_that_has_ended_is_replaced(wild: Sandbox) -> None:
    for _ in range(3):
        assert lives(wild)
        warm()[0].kill()  # whether that is known by the next file or not
    assert lives(wild)


def test_a_warm_process_that_ends_takes_its_children_along(wild: Sandbox) -> None:
    found = wild.decode(b"wait", "amr", MIXED, 60)
    assert any(map(len, found))
    [child] = decoding()
    warm()[0].kill()
    with pytest.raises(AudioError, match="the decoder was ended"):
        deque(found)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert lives(wild)


def test_it_ends_when_no_file_comes() -> None:
    made = Sandbox(misbehaving.decode, idle=0.05)
    try:
        for _ in range(3):
            assert lives(made)
            wait_until(lambda: not warm(), 20, "it ends, and is waited for")
    finally:
        made.close(20)


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """However that ends, and with a file in hand."""
    code = (
        "from asrserver.audio.sandbox import Sandbox; from tests.audio import misbehaving;"
        "from asrserver.audio.selection import MIXED;"
        "list(Sandbox(misbehaving.decode).decode(b'wait', 'amr', MIXED, 60))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    one = psutil.Process(process.pid)
    [child] = wait_until(lambda: decoding(one))
    both = [*warm(one), child]
    process.kill()
    process.wait(20)
    assert psutil.wait_procs(both, 20)[1] == []


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
def test_no_process_can_be_started(wild: Sandbox, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That says nothing of the audio, which is not given up."""
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(Unavailable):
        decode(wild, b"two")
    monkeypatch.undo()
    assert lives(wild)


def test_a_closed_one_starts_nothing(wild: Sandbox) -> None:
    assert lives(wild)
    wild.close(20)
    with pytest.raises(Unavailable):
        decode(wild, b"two")
    assert not warm()
