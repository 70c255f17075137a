#!/usr/bin/env python3
"""Recordings of people, with transcripts, from Debian's packages: for the tests with real models and for the demo.

    python tools/real_voices.py [DIRECTORY]

Downloads the packages with apt-get, which checks their signatures, and unpacks them into DIRECTORY (build/voices),
unless they are there. Nothing is installed, and root is not needed. The exit status is 1 where they cannot be had.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from asrserver.audio import wav

DIRECTORY = Path(__file__).resolve().parents[1] / "build" / "voices"

#: The prompts of a telephone exchange by professional speakers, with the transcripts of the English ones; and an audio
#: book in the public domain, in pieces.
PACKAGES = (
    "asterisk-core-sounds-en",
    "asterisk-core-sounds-en-g722",
    "asterisk-core-sounds-es-g722",
    "asterisk-core-sounds-it-g722",
    "pocketsphinx-testdata",
)

#: Where the packages have what is used: prompts by language, transcripts of the English ones, pieces of the book.
PROMPTS = {
    "en": "usr/share/asterisk/sounds/en_US_f_Allison",
    "es": "usr/share/asterisk/sounds/es_MX_f_Allison",
    "it": "usr/share/asterisk/sounds/it_IT_m_Carlo",
}
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
BOOK = "usr/share/pocketsphinx/test/data/librivox"

#: Seconds that a command of apt or dpkg may take: about 35 MB are fetched, and the lists of packages where need be.
COMMAND_TIMEOUT = 300.0

#: Samples per second of all recordings.
RATE = 16000


@dataclass(frozen=True)
class Voice:
    """A recording of a person.

    Attributes:
        name: Its name in its package.
        language: Language code.
        text: What is said; empty if the package has no transcript.
        pcm: 16-bit mono samples, RATE per second.
    """

    name: str
    language: str
    text: str
    pcm: bytes

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / RATE


class Unavailable(Exception):
    """Raised when the packages cannot be downloaded; the message says why."""


def fetch(directory: Path = DIRECTORY) -> Path:
    """Download and unpack the packages, unless they are there.

    Raises:
        Unavailable: They are not, and cannot be downloaded.
    """
    if directory.is_dir():
        return directory
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} not found: the recordings come from Debian's packages {', '.join(PACKAGES)}")
    work = directory.with_name(f".{directory.name}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _download(work)
        for package in work.glob("*.deb"):
            _run("dpkg-deb", "--extract", str(package), str(work / "files"))
        (work / "files").rename(directory)
    except OSError as exc:
        raise Unavailable(str(exc)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return directory


def _download(work: Path) -> None:
    """Download the packages with the system's lists or, where it has none, with lists of our own."""
    own = [f"--option=Dir::State={work}/state", f"--option=Dir::Cache={work}/cache"]
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    quiet = ("apt-get", "-qq", "--option=APT::Sandbox::User=root", "--option=Acquire::Languages=none")
    try:
        _run(*quiet, "download", *PACKAGES, cwd=work)
    except Unavailable:
        _run(*quiet, *own, "update", "--error-on=any", cwd=work)
        _run(*quiet, *own, "download", *PACKAGES, cwd=work)


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {COMMAND_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()}")


def prompts(names: Sequence[str], language: str = "en", directory: Path = DIRECTORY) -> list[Voice]:
    """Telephone prompts by their names, such as "demo-congrats"."""
    texts: dict[str, str] = {}
    if language == "en":
        lines = gzip.decompress((directory / TRANSCRIPTS).read_bytes()).decode().splitlines()
        texts = {name: text.strip() for name, colon, text in (line.partition(":") for line in lines) if colon}
    return [
        Voice(name, language, texts.get(name, ""), _g722(directory / PROMPTS[language] / f"{name}.g722"))
        for name in names
    ]


def book(directory: Path = DIRECTORY) -> list[Voice]:
    """The pieces of an audio book (Jane Austen, Sense and Sensibility; LibriVox)."""
    return list(_pieces(directory / BOOK))


def _pieces(folder: Path) -> Iterator[Voice]:
    for line in (folder / "transcription").read_text().splitlines():
        found = re.fullmatch(r"<s> (.*) </s> \((\S+)\)", line)
        if found:
            data = (folder / f"{found[2]}.wav").read_bytes()
            header = wav.read_header(data)
            assert header is not None
            yield Voice(found[2], "en", found[1], data[header.offset :])


def _g722(path: Path) -> bytes:
    """Decode G.722, which has no header."""
    with av.open(str(path), format="g722") as source:
        pieces = [frame.to_ndarray().astype("<i2").tobytes() for frame in source.decode(audio=0)]
    return b"".join(pieces)


def main() -> int:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    try:
        fetch(directory)
    except Unavailable as exc:
        print(f"no recordings of real voices: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
