"""The commands and programs of every page do what the page says, on a machine of their own, as they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.docs import plan
from tests.docs.machine import Machine
from tests.docs.pages import PAGES, ROOT, TRANSLATIONS
from tests.docs.steps import Reader, environment, needs_a_machine, steps

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(600)]

READ = [page for page in PAGES if page not in TRANSLATIONS and steps(page)]

#: The page that says how to start a server. The pages that only use one are read after it, on the same machine.
START = "docs/start.md"
SHARED = [START, *(page for page in READ if not needs_a_machine(page))]
OWN = [page for page in READ if page not in SHARED]


@contextmanager
def a_machine() -> Iterator[Machine]:
    """One on which nothing runs yet."""
    try:
        made = Machine(environment())
    except OSError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no namespaces for this user: {exc}")
    with made:
        yield made


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with a_machine() as made:
        yield made
        made.stop_servers()


@pytest.mark.parametrize("page", SHARED)
def test_pages_for_a_running_server(machine: Machine, page: str) -> None:
    if page != START and not machine.servers:
        machine.serve(plan.DEMO)
    reader = Reader(machine, page)
    for step in steps(page):
        reader.read(step)


def read_alone(page: str, slow: bool) -> None:
    """On a machine on which nothing runs but what the page starts, or a server for it."""
    with a_machine() as machine:
        machine.timeout *= 10 if slow else 1
        if not needs_a_machine(page):
            machine.serve(plan.DEMO)
        reader = Reader(machine, page)
        for step in steps(page, slow):
            reader.read(step)
        machine.stop_servers()


@pytest.mark.parametrize("page", OWN)
def test_pages_that_start_a_server(page: str) -> None:
    read_alone(page, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", plan.SLOW)
def test_pages_that_take_long(page: str) -> None:
    if any(step.block.language == "javascript" for step in steps(page, slow=True)):
        installed = (ROOT / "build" / "clients" / "installed").exists()
        if not installed:
            pytest.skip("the libraries for Node are not there: run make clients")
    read_alone(page, slow=True)
