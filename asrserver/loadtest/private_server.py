"""A server for one measurement: `asrserver run` with its own Redis and PostgreSQL, in a temporary directory."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from asrserver.process.limits import die_with_parent

#: Seconds that the server may take to start, with a large model, and to stop.
START_TIMEOUT = 300.0
STOP_TIMEOUT = 60.0

#: Bytes at the end of the log that are shown when the server does not start.
SHOWN_LOG = 2000


@contextmanager
def private_server(directory: Path, environment: Mapping[str, str], *options: str) -> Iterator[str]:
    """Run a server on a free port of the loopback address while the block lasts.

    Args:
        directory: For its data and its log; other users must be able to enter it, because for root PostgreSQL runs as
            another one.
        environment: Its environment.
        options: Further options of `asrserver run`.

    Yields:
        Its URL, http://127.0.0.1:PORT.

    Raises:
        RuntimeError: It does not start; the message has the end of its log.
    """
    command = [sys.executable, "-m", "asrserver", "run", "--port", "0", "--data-dir", str(directory / "data"), *options]
    log = directory / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,  # Ctrl+C is for the clients, which end first
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
        )
    try:
        port = _port(process)
        if port is None:
            raise RuntimeError(f"the server does not start:\n{log.read_text(errors='replace')[-SHOWN_LOG:].strip()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()  # its children end with it
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _port(process: subprocess.Popen[bytes]) -> int | None:
    """The port that the server announces on standard output; None if it ends, or does not do so in time."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            block = process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not block:
                return None
            said += block
            if found := re.search(rb"listening on https?://\S+:(\d+)", said):
                return int(found[1])
    return None
