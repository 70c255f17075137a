"""API keys for tests."""

from __future__ import annotations

from pathlib import Path

from asrserver.auth.keys import KeyLimits, KeysFile
from tests.recordings import DATA

TLS = DATA / "tls"


#: A key as an operator would give it by environment.
GIVEN = "0123456789abcdefghijklmnop"


class Keys:
    """A keys file with two keys and an operator's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = KeysFile(str(path))
        self.a, self.text_a = self.file.create("a", KeyLimits(), operator=False)
        self.b, self.text_b = self.file.create("b", KeyLimits(), operator=False)
        self.operator, self.text_operator = self.file.create("boss", KeyLimits(), operator=True)
