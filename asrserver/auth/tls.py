"""The TLS context of a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from asrserver.errors import SettingError

if TYPE_CHECKING:
    import ssl


def tls_context(certificate: str, key: str = "") -> ssl.SSLContext:
    """A server's TLS context (TLS 1.2 or later).

    Raises:
        SettingError: A file cannot be read or used; names the setting.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("tls-cert", certificate), ("tls-key", key)):
        if path and not os.access(path, os.R_OK):
            raise SettingError(f"{name}: {path} cannot be read")
    try:
        # An empty password, so that OpenSSL never asks for one at the terminal.
        context.load_cert_chain(certificate, key or None, password=lambda: "")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or "not a matching certificate and key in PEM"
        raise SettingError(f"tls-cert: {certificate}: {reason}") from None
    return context
