"""The language of the command line: English, or Chinese where the locale asks for it.

This module is loaded at every start and only chooses; what Chinese needs is loaded when it is chosen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from asrserver.cli.help import Group


def asks_for_chinese(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the first language of the locale that there are texts in is Chinese, of any region and script.

    The variables are gettext's: LC_ALL before LC_MESSAGES before LANG, and before them LANGUAGE, a list, which counts
    for nothing in the locale C. They are enough; the locale itself need not be installed.
    """
    locale = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    if re.match(r"(C|POSIX)\b", locale):
        return False
    languages = (environ.get("LANGUAGE") or locale).split(":")
    known = (found[0] for name in languages if (found := re.match(r"(zh|en|C|POSIX)(?![a-zA-Z])", name)))
    return next(known, "en") == "zh"


class Program(Group):
    """The group of all commands, which speaks the language of the locale when it is run."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if asks_for_chinese():
            from asrserver.cli.chinese import speak_chinese

            speak_chinese(self)
        return super().main(*args, **extra)
