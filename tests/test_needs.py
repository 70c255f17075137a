"""needs.py: every test has one marker for what it needs, and starts only what the marker allows."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import imageio_ffmpeg
import pytest

from tests import needs


def test_every_test_has_exactly_one_kind(request: pytest.FixtureRequest) -> None:
    assert request.session.items
    assert {item.nodeid: found for item in request.session.items if len(found := needs.kinds(item)) != 1} == {}


def test_this_one_needs_nothing(request: pytest.FixtureRequest) -> None:
    assert needs.kinds(request.node) == ["unit"]


@pytest.mark.parametrize(
    ("fixtures", "marks", "kind"),
    [
        ((), (), "unit"),
        (("tmp_path", "io_loop"), (), "unit"),
        (("servers", "real_servers"), (), "service"),
        (("http_server",), (), "service"),
        (("processes",), (), "system"),
        (("processes", "start", "real_servers"), (), "system"),
        (("processes", "real_servers"), ("slow",), "slow"),
        ((), ("slow",), "slow"),
    ],
)
def test_the_kind_is_derived_from_the_fixtures(fixtures: tuple[str, ...], marks: tuple[str, ...], kind: str) -> None:
    assert needs.kind_of(fixtures, marks) == kind


@pytest.mark.parametrize("by_hand", ["unit", "service", "system"])
def test_no_other_kind_is_set_by_hand(by_hand: str) -> None:
    with pytest.raises(pytest.UsageError, match=f"{by_hand}: derived"):
        needs.kind_of((), (by_hand,))


def test_a_fixture_of_a_fixture_counts(pytester: pytest.Pytester) -> None:
    """A test is marked even if it uses servers or processes indirectly; -m selects by the markers."""
    pytester.makeconftest(
        """
        import pytest
        from tests import needs

        @pytest.hookimpl(tryfirst=True)
        def pytest_collection_modifyitems(items):
            for item in items:
                needs.mark(item)

        @pytest.fixture
        def processes(): ...

        @pytest.fixture
        def real_servers(): ...

        @pytest.fixture
        def deep(real_servers): ...

        @pytest.fixture
        def deeper(deep): ...
        """
    )
    pytester.makepyfile(
        """
        import pytest

        def test_unit(tmp_path): ...

        def test_service(deeper): ...

        @pytest.mark.usefixtures("processes")
        def test_system(deeper): ...

        @pytest.mark.slow
        @pytest.mark.usefixtures("processes")
        def test_slow(): ...
        """
    )
    pytester.makeini("[pytest]\nmarkers =\n" + "".join(f"    {kind}: x\n" for kind in needs.KINDS))
    for kind in needs.KINDS:
        done = pytester.runpytest_inprocess("-m", kind, "-v", "--strict-markers", "-p", "no:tornado")
        done.assert_outcomes(passed=1, deselected=3)
        done.stdout.fnmatch_lines([f"*::test_{kind} PASSED*"])


def test_a_unit_test_starts_no_process() -> None:
    """Not with multiprocessing either; FFmpeg is allowed."""
    with pytest.raises(needs.NeedsProcessesError, match="unit test starts python"):
        subprocess.run([sys.executable, "-c", ""], check=False)
    with pytest.raises(needs.NeedsProcessesError, match="unit test starts true"):
        subprocess.Popen("true")
    with pytest.raises(needs.NeedsProcessesError, match="unit test starts SpawnProcess"):
        multiprocessing.get_context("spawn").Process().start()
    assert subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], capture_output=True, check=False).stdout


@pytest.mark.usefixtures("real_servers")
def test_a_service_test_starts_servers_and_not_the_program() -> None:
    subprocess.run(["true"], check=True)
    with pytest.raises(needs.NeedsProcessesError, match="service test starts python"):
        subprocess.run([sys.executable, "-c", ""], check=False)


@pytest.mark.usefixtures("processes")
def test_a_system_test_starts_what_it_likes() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
