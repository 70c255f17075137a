"""What the protocols of Vosk, FunASR and WhisperLive have in common: many of their clients take a host and a port, but
neither a path nor a key.

So all three are spoken at the path `/`, where the first message tells which one it is; and the query of the URL, which
users of other clients can write, says what the messages of these protocols cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.options import TRUE

#: Fields by which the first message shows its protocol; the first one that matches decides.
_FIELDS = {
    "whisperlive": ("uid",),
    "funasr": ("mode", "chunk_size", "is_speaking"),
    "vosk": ("config", "eof", "reset"),
}


def detect_protocol(message: str | bytes, subprotocol: str | None) -> str:
    """Find the protocol of a connection by its first message.

    Args:
        message: The message. Audio at once is Vosk's: its clients need not send a configuration.
        subprotocol: The subprotocol that was agreed on; FunASR's own client asks for `binary`.

    Returns:
        vosk, funasr or whisperlive.

    Raises:
        BadRequest: It is of none of them.
    """
    if subprotocol == "binary":
        return "funasr"
    if isinstance(message, bytes):
        return "vosk"
    fields = parse_object(message)
    if "action" in fields:
        raise BadRequest("bad_request", "the protocol of this message is spoken at the path /ws/asr")
    for name, marks in _FIELDS.items():
        if not fields.keys().isdisjoint(marks):
            return name
    raise BadRequest("bad_request", "the message is of no protocol that is spoken here: Vosk, FunASR, WhisperLive")


@dataclass(frozen=True, slots=True)
class UrlOptions:
    """What the query of the URL says; unknown parameters are ignored.

    Attributes:
        language: What is spoken, where no message says it; None: it is detected.
        model: Name of the model; empty: that of the messages, or whichever there is.
        plain: Whether texts are in lower case and without punctuation, as Vosk's are.
    """

    language: str | None = None
    model: str = ""
    plain: bool = False

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> UrlOptions:
        """Read a query; raises BadRequest where the language is unknown."""
        plain = query.get("plain", "0").lower() in ("", *TRUE)
        return cls(languages.parse(query.get("language")), query.get("model", "").strip(), plain)


NO_OPTIONS = UrlOptions()
