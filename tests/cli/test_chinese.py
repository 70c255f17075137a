"""The command line in Chinese: when it is, what is, and how its lines are broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from asrserver.cli.chinese import columns, fill
from asrserver.cli.language import asks_for_chinese

#: What the choice depends on.
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")

TEXT = "收到 SIGTERM 后，会话最多还有多少秒可以完成（“drain”）；超时则中断。见 --drain-timeout、--lease……等等。"


def asrserver(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in a locale, on a terminal of 80 columns."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "asrserver", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**env, "COLUMNS": "80", "PYTHONUTF8": "1", **variables},
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "chinese"),
    [
        ({}, False),
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_TW.UTF-8"}, True),
        ({"LANG": "zh"}, True),
        ({"LANG": "zh-Hans"}, True),
        ({"LANG": "zha_CN"}, False),
        ({"LC_MESSAGES": "zh_SG@pinyin", "LANG": "en_US.UTF-8"}, True),
        ({"LC_ALL": "de_DE.UTF-8", "LANG": "zh_CN.UTF-8"}, False),
        ({"LC_ALL": "", "LANG": "zh_CN.UTF-8"}, True),
        ({"LANGUAGE": "zh_CN:en", "LANG": "en_US.UTF-8"}, True),
        ({"LANGUAGE": "en:zh_CN", "LANG": "zh_CN.UTF-8"}, False),
        ({"LANGUAGE": "fr:zh_CN:en", "LANG": "fr_FR.UTF-8"}, True),
        ({"LANGUAGE": "zh_CN", "LC_ALL": "C"}, False),
        ({"LANGUAGE": "zh_CN", "LANG": "C.UTF-8"}, False),
        ({"LANGUAGE": "zh_CN", "LANG": "POSIX"}, False),
        ({"LANGUAGE": "zh_CN"}, True),
    ],
    ids=str,
)
def test_the_locale_chooses(variables: Mapping[str, str], chinese: bool) -> None:
    assert asks_for_chinese(variables) is chinese


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("command", [(), ("run",), ("transcribe",), ("keys", "create")], ids=" ".join)
def test_help_is_chinese_and_fits_the_terminal(command: tuple[str, ...]) -> None:
    """Though no locale for it is installed here, all but names: flags, variables, values, examples of commands."""
    shown = asrserver(*command, "--help", LANG="zh_CN.UTF-8")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("用法：")
    assert "\n选项:\n" in shown.stdout
    meanings = re.sub(r"(?m)^  -.*?(  |$)|\[[^]]*\]", "", shown.stdout)
    assert not re.search(r"\b(the|of|that|is|are)\b", meanings)
    assert max(map(columns, shown.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("processes")
def test_wrong_usage_is_told_in_chinese_and_a_wrong_setting_as_in_the_manual() -> None:
    wrong = asrserver("run", "--prt", "1", LANG="zh_CN.UTF-8")
    assert wrong.returncode == 2
    assert "错误：没有 '--prt' 这个选项。" in wrong.stderr
    wrong = asrserver("run", "--config", "/none", LANG="zh_CN.UTF-8")
    assert wrong.stderr == "错误：--config: /none: [Errno 2] No such file or directory: '/none'\n"


@pytest.mark.usefixtures("processes")
def test_elsewhere_nothing_of_it_is_loaded() -> None:
    assert asrserver("--help", LANG="de_DE.UTF-8").stdout.startswith("Usage: asrserver")
    script = (
        "import sys; sys.modules['asrserver.cli.chinese'] = None; from asrserver.cli.main import main; main(['-h'])"
    )
    shown = {}
    for language in ("en", "zh"):
        env = {**os.environ, "LC_ALL": f"{language}_XX.UTF-8", "LANGUAGE": ""}
        shown[language] = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=False)
    assert shown["en"].returncode == 0
    assert b"asrserver.cli.chinese" in shown["zh"].stderr  # the script does keep it from being loaded


@pytest.mark.parametrize("width", range(18, 60))
def test_lines_are_broken_between_characters_but_not_at_marks(width: int) -> None:
    lines = fill(TEXT, width).splitlines()
    assert max(map(columns, lines)) <= width
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", TEXT)
    assert not [line for line in lines if line[0] in "，。；：！？、）”…" or line[-1] in "（“"]
    assert {"SIGTERM", "--drain-timeout", "--lease"} <= {
        word for line in lines for word in re.findall(r"[A-Za-z-]+", line)
    }


def test_a_word_longer_than_a_line_stays_whole() -> None:
    assert fill("见 https://example.org/long 处", 8) == "见\nhttps://example.org/long\n处"
