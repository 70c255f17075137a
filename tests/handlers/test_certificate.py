"""A renewed TLS certificate is used without a restart, at a real TLS server."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from asrserver.errors import SettingError
from asrserver.handlers import certificate
from asrserver.handlers.app import AsrApplication, BoundedHttpServer
from asrserver.handlers.certificate import Certificate
from tests.api_keys import TLS
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)


def put(folder: Path, kind: str, *names: str) -> None:
    """Put the first certificate, or the renewed one, into a folder, as programs do that renew it."""
    for name in names or ("cert.pem", "key.pem"):
        shutil.copy(TLS / f"{kind}{name}", folder / f"{name}.new")
        os.replace(folder / f"{name}.new", folder / name)


def name_of(kind: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / f"{kind}cert.pem").read_text())


async def shown(port: int) -> bytes | None:
    """The certificate that the server shows to a client that connects now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    await writer.wait_closed()
    return found


async def test_a_renewed_certificate_is_used(
    app: AsrApplication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For new connections; a broken file changes nothing, and is told of once. Connections go on."""
    caplog.set_level("INFO", "asrserver.app")
    looks = 0
    refresh = Certificate.refresh

    def counted(one: Certificate) -> bool:
        nonlocal looks
        looks += 1
        return refresh(one)

    async def several_looks() -> None:
        before = looks
        await until(lambda: looks > before + 4)

    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Certificate, "refresh", counted)
    put(tmp_path, "")
    loaded = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    server = BoundedHttpServer(app, ssl_options=loaded.context)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    port = listening.getsockname()[1]
    server.add_sockets([listening])
    server.follow(loaded)
    trusting = ssl.create_default_context(cafile=TLS / "cert.pem")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    await several_looks()
    assert await shown(port) == name_of("")
    assert not caplog.messages

    (tmp_path / "cert.pem").write_text("no certificate")
    await until(lambda: caplog.messages)
    await several_looks()
    assert await shown(port) == name_of("")
    (tmp_path / "cert.pem").unlink()
    await until(lambda: len(caplog.messages) == 2)
    put(tmp_path, "renewed-", "cert.pem")  # the old key is still there
    await until(lambda: len(caplog.messages) == 3)
    await several_looks()
    assert await shown(port) == name_of("")
    assert len(caplog.messages) == 3
    assert all("new connections get the TLS certificate that was loaded before" in text for text in caplog.messages)
    assert [("cannot be read" in text, str(tmp_path) in text) for text in caplog.messages] == [
        (False, True), (True, True), (False, True)
    ]  # fmt: skip

    put(tmp_path, "renewed-", "key.pem")
    await until(lambda: len(caplog.messages) == 4)
    assert caplog.messages[3] == f"the TLS certificate was loaded again from {tmp_path / 'cert.pem'}"
    assert await shown(port) == name_of("renewed-")
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    server.stop()
    await server.close_all_connections()
    await until(lambda: all(task.get_name() != "tls-certificate" for task in asyncio.all_tasks()))


def test_files_that_are_being_written_are_not_read(tmp_path: Path) -> None:
    """As long as they change between two looks; and a symbolic link that points elsewhere is a change."""
    for kind, folder in (("", tmp_path / "one"), ("renewed-", tmp_path / "two")):
        folder.mkdir()
        put(folder, kind)
    link = tmp_path / "live"
    link.symlink_to("one")
    loaded = Certificate(str(link / "cert.pem"), str(link / "key.pem"))
    first = loaded.context
    link.unlink()
    link.symlink_to("two")
    assert not loaded.refresh()
    os.utime(tmp_path / "two" / "key.pem", ns=(1, 1))
    assert not loaded.refresh()
    assert loaded.context is first
    assert loaded.refresh()
    assert loaded.context is not first
    assert not loaded.refresh()


async def test_files_that_could_not_be_read_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they have not changed since: this gateway had no descriptor left, for example."""
    put(tmp_path, "")
    loaded = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    put(tmp_path, "renewed-")

    def fail(*_files: str) -> ssl.SSLContext:
        raise SettingError("Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(certificate, "tls_context", fail)
        assert not loaded.refresh()  # they have just changed
        with pytest.raises(SettingError):
            loaded.refresh()
        assert not loaded.refresh()
    assert loaded.refresh()
    assert not loaded.refresh()
