"""logs.py: what is logged, and what never is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from asrserver.telemetry.logs import configure_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, restored afterwards."""
    logger = logging.getLogger()
    before = logger.level, logger.handlers[:]
    hooks = sys.excepthook, threading.excepthook
    yield logger
    logger.setLevel(before[0])
    logger.handlers = before[1]
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_a_download_logs_no_request(root: logging.Logger, client: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    logging.getLogger(client).info("HTTP Request: GET https://huggingface.co/")
    logging.getLogger(f"{client}.x").warning("the hub is slow")
    logged = capfd.readouterr().err
    assert "the hub is slow" in logged
    assert "GET" not in logged


@pytest.mark.usefixtures("processes")
def test_what_libraries_and_the_interpreter_say_is_json_too() -> None:
    """Warnings, and the errors that end a thread and the process: they were lines of text among the objects."""
    code = """if True:
        import threading, warnings
        from asrserver.telemetry.logs import configure_logging
        configure_logging("info", "json")
        warnings.warn("an old way", UserWarning)
        thread = threading.Thread(target=lambda: 1 / 0, name="renewer")
        thread.start()
        thread.join()
        raise ValueError("what nobody expects")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("py.warnings", "warning"),
        ("asrserver", "critical"),
        ("asrserver", "critical"),
    ]
    assert "an old way" in lines[0]["message"]
    assert "renewer" in lines[1]["message"]
    assert "ZeroDivisionError" in lines[1]["error"]
    assert "what nobody expects" in lines[2]["error"]
    assert done.returncode == 1


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_a_client_sent_makes_no_line_of_its_own(
    root: logging.Logger, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", kind)
    logging.getLogger("tornado.general").warning("404: %s", "a\n2026 INFO fake\r\x1b[2K\u2028b\u202ec\td é中")
    logged = capfd.readouterr().err
    assert len(logged.splitlines()) == 1
    message = json.loads(logged)["message"] if kind == "json" else logged.rstrip("\n")
    assert message.endswith("404: a\\n2026 INFO fake\\r\\x1b[2K\\u2028b\\u202ec\\td é中")


def test_a_traceback_has_its_lines(root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """And they are indented: what an error quotes begins no line of the log."""
    configure_logging("info")
    try:
        raise ValueError("of a client\n2026-11-30 INFO forged\r2026-11-30 INFO forged")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, *others = capfd.readouterr().err.splitlines()
    assert first.endswith("failed")
    assert len(others) > 3
    assert all(line.startswith("  ") for line in others)
