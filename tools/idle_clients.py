"""Open idle WebSockets, which send nothing and answer pings; each costs this process a socket and nothing else.

    python tools/idle_clients.py PORT COUNT [start]

Writes their number when all are open; ends when standard input ends. With `start` each opens a session.
"""

from __future__ import annotations

import selectors
import socket
import sys

from asrserver.process.limits import raise_file_limit

#: Connections from one address, 127.0.0.x: fewer than --max-address-connections allows.
CONNECTIONS_PER_ADDRESS = 900

#: Connections that are opened at once, before their handshakes: fewer than the server's listen backlog.
BATCH = 50

START = b'{"action":"start","mode":"stream","format":"pcm_s16le"}'


def shake(connection: socket.socket, start: bool) -> None:
    """Do the handshake and, if requested, start a session."""
    connection.sendall(
        b"GET /ws/asr HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        got = connection.recv(4096)
        if not got:
            raise SystemExit("the server closed a connection without an answer")
        answer += got
    if not answer.startswith(b"HTTP/1.1 101"):
        raise SystemExit(f"the server refused a connection: {answer[:300].decode(errors='replace')}")
    if start:
        connection.sendall(bytes([0x81, 0x80 | len(START), 0, 0, 0, 0]) + START)
        answer = connection.recv(4096)
        if b"session_started" not in answer:
            raise SystemExit(f"the server refused a session: {answer[:300].decode(errors='replace')}")


def answer(connection: socket.socket) -> bool:
    """Answer the pings that arrived; False if the connection is closed."""
    data = connection.recv(65536)
    while data:
        kind, size = data[0] & 0x0F, data[1] & 0x7F
        if kind == 8 or size > 125:
            return False
        if kind == 9:
            connection.sendall(bytes([0x8A, 0x80 | size, 0, 0, 0, 0]) + data[2 : 2 + size])
        data = data[2 + size :]
        if not data:
            return True
    return False


def main() -> None:
    raise_file_limit()
    port, count, start = int(sys.argv[1]), int(sys.argv[2]), "start" in sys.argv[3:]
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    opened = 0
    while opened < count:
        fresh = []
        for number in range(opened, min(count, opened + BATCH)):
            source = (f"127.0.0.{2 + number // CONNECTIONS_PER_ADDRESS}", 0)
            fresh.append(socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source))
        for connection in fresh:
            shake(connection, start)
            connection.settimeout(5)
            selector.register(connection, selectors.EVENT_READ)
        opened += len(fresh)
        for key, _ in selector.select(0):
            if key.fileobj is not sys.stdin and not answer(key.fileobj):  # type: ignore[arg-type]
                raise SystemExit("the server closed a connection")
    print(opened, flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if not answer(key.fileobj):  # type: ignore[arg-type]
                raise SystemExit("the server closed a connection")


if __name__ == "__main__":
    main()
