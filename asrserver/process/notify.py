"""Notifications for systemd (Type=notify): that the service is ready, and its status in words.

`systemctl status` shows the words. Source: sd_notify(3), the datagrams behind it.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("asrserver.supervisor")

#: Seconds that a datagram may wait while systemd does not read: its socket is full, which its own log says.
SEND_TIMEOUT = 1.0


def notify(status: str, *states: str) -> None:
    """Tell systemd; nothing happens where no systemd asked for it (NOTIFY_SOCKET).

    Args:
        status: What the program does now, in one line.
        states: READY=1 or STOPPING=1, if it is that.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(SEND_TIMEOUT)
            connection.connect("\0" + path[1:] if path.startswith("@") else path)  # @: an abstract socket
            connection.send("\n".join((*states, f"STATUS={status}")).encode())
    except OSError as exc:
        log.warning("systemd cannot be told %r: %s", status, exc.strerror or exc)
