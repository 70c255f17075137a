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
from asrserver.text.wer import spoken

DIRECTORY = Path(__file__).resolve().parents[1] / "build" / "voices"

#: An audio book in the public domain, in pieces, with transcripts.
BOOK = "pocketsphinx-testdata"

#: The prompts of a telephone exchange by professional speakers, by language, and the transcripts of the English ones.
PROMPTS = {
    "en": "asterisk-core-sounds-en-g722",
    "es": "asterisk-core-sounds-es-g722",
    "it": "asterisk-core-sounds-it-g722",
}
TRANSCRIPTS = "asterisk-core-sounds-en"

PACKAGES = (BOOK, TRANSCRIPTS, *PROMPTS.values())

#: Where the packages have them.
PLACES = {
    BOOK: "usr/share/pocketsphinx/test/data/librivox",
    TRANSCRIPTS: "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
    PROMPTS["en"]: "usr/share/asterisk/sounds/en_US_f_Allison",
    PROMPTS["es"]: "usr/share/asterisk/sounds/es_MX_f_Allison",
    PROMPTS["it"]: "usr/share/asterisk/sounds/it_IT_m_Carlo",
}

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


def fetch(packages: Sequence[str] = PACKAGES, directory: Path = DIRECTORY) -> None:
    """Download and unpack packages, unless they are there.

    Raises:
        Unavailable: They are not, and cannot be downloaded.
    """
    missing = [package for package in packages if not (directory / package).is_dir()]
    if not missing:
        return
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} not found: the recordings come from Debian's packages {', '.join(missing)}")
    work = directory / ".work"
    shutil.rmtree(work, ignore_errors=True)
    try:
        _download(missing, work)
        for package in missing:
            (file,) = work.glob(f"{package}_*.deb")
            _run("dpkg-deb", "--extract", str(file), str(work / package))
            (work / package).rename(directory / package)
    except OSError as exc:
        raise Unavailable(str(exc)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(packages: Sequence[str], work: Path) -> None:
    """Download packages with the system's lists or, where it has none, with lists of our own."""
    own = [f"--option=Dir::State={work}/state", f"--option=Dir::Cache={work}/cache"]
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    quiet = ("apt-get", "-qq", "--option=APT::Sandbox::User=root", "--option=Acquire::Languages=none")
    try:
        _run(*quiet, "download", *packages, cwd=work)
    except Unavailable:
        _run(*quiet, *own, "update", "--error-on=any", cwd=work)
        _run(*quiet, *own, "download", *packages, cwd=work)


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
        lines = gzip.decompress(_place(TRANSCRIPTS, directory).read_bytes()).decode().splitlines()
        texts = {name: text.strip() for name, colon, text in (line.partition(":") for line in lines) if colon}
    folder = _place(PROMPTS[language], directory)
    return [Voice(name, language, texts.get(name, ""), _g722(folder / f"{name}.g722")) for name in names]


def book(directory: Path = DIRECTORY) -> list[Voice]:
    """The pieces of the audio book (Jane Austen, Sense and Sensibility; LibriVox)."""
    return list(_pieces(_place(BOOK, directory)))


def words(text: str) -> list[str]:
    """The words of a text as they are compared: hyphens separate, and a title has one spelling."""
    return ["mr" if word == "mister" else word for word in spoken(text.replace("-", " "))]


def _place(package: str, directory: Path) -> Path:
    return directory / package / PLACES[package]


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
        fetch(directory=directory)
    except Unavailable as exc:
        print(f"no recordings of real voices: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
