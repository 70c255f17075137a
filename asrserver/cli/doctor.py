"""The command `asrserver doctor`: what of a machine and its settings would keep a server from working, or from keeping
its promises."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from asrserver import __version__
from asrserver.cli.help import SettingsCommand
from asrserver.cli.options import settings_options
from asrserver.cli.startup import check_settings
from asrserver.config import Settings
from asrserver.errors import ModelError, SettingError, Unavailable
from asrserver.process import places
from asrserver.process.limits import available_cpus, raise_file_limit
from asrserver.process.seccomp import can_forbid_system_calls

#: Free bytes of a disk below which it is nearly full, and below which nothing can be promised.
LOW_DISK = 2 * 2**30
FULL_DISK = 200 * 2**20

#: Bytes of shared memory that metrics of all processes take, and the embedded PostgreSQL as well.
METRICS_MEMORY = 32 * 2**20
POSTGRES_MEMORY = 128 * 2**20

#: Limits that a server should not have, and what comes of them.
UNWANTED = (
    (resource.RLIMIT_AS, "ulimit -v", "a worker may not get the memory that its model needs"),
    (resource.RLIMIT_DATA, "ulimit -d", "a worker may not get the memory that its model needs"),
    (resource.RLIMIT_FSIZE, "ulimit -f", "no file grows beyond it, of the embedded servers or with a recording"),
)

#: Processes and threads that the user of the server should be allowed.
LEAST_THREADS = 1024

#: What adjtimex(2) returns where nothing keeps the clock right.
_TIME_ERROR = 5

#: Bytes of memory that a worker takes beside its weights, about.
WORKER_MEMORY = 300 * 2**20

#: Seconds by which clocks may differ.
CLOCK_SKEW = 2.0

#: Seconds that a PING to Redis should take at most: each acknowledgement waits for one such answer.
SLOW_REDIS = 0.01

#: Libraries whose versions matter when something is reported.
LIBRARIES = ("ctranslate2", "tornado", "redis", "aiopg", "sqlalchemy", "av", "numpy", "uvloop")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        level: ok, warn (it works, but not as it should) or fail (it does not work).
        subject: What was looked at.
        text: What was found, and what to do about it.
    """

    level: str
    subject: str
    text: str


@click.command(cls=SettingsCommand)
@settings_options("doctor")
@click.option(
    "--for",
    "command",
    type=click.Choice(["run", "gateway", "worker"]),
    default="run",
    show_default=True,
    help="The command that is to be started here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(command: str, as_json: bool, **options: Any) -> None:
    """Check this machine and the settings: what would keep a server from working.

    Takes the settings of asrserver run, by flags, environment or --config. Without a Redis or a PostgreSQL in the
    settings, the programs of the embedded ones are looked for. The exit status is 1 if something fails.
    """
    findings = list(diagnose(Settings(**options), command))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<5} {finding.subject:<11} {finding.text}")
    sys.exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def diagnose(settings: Settings, command: str) -> Iterator[Finding]:
    """Make the checks that matter for a command (run, gateway or worker), one after the other."""
    yield from check_program()
    yield from check_given(settings, command)
    yield from check_cpus()
    yield from check_limits()
    yield from check_shared_memory(embedded=command == "run" and not settings.has_database)
    yield from check_clock()
    if command != "worker":
        yield from check_port(settings)
        yield from check_files(settings)
        yield from check_disks(settings)
    if command != "gateway":
        yield from check_sandbox()
        yield from check_gpus(settings)
        yield from check_models(settings)
    if command == "run" or settings.has_redis:
        yield from check_redis(settings)
    if command == "run" or (command == "gateway" and settings.has_database):
        yield from check_postgres(settings)


def check_program() -> Iterator[Finding]:
    """The versions of the program and its libraries."""
    from importlib.metadata import PackageNotFoundError, version

    versions = []
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            yield Finding("fail", "program", f"the package {library} is not installed: pip install asrserver")
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    yield Finding("ok", "program", f"asrserver {__version__}, {system}, {', '.join(versions)}")


def check_given(settings: Settings, command: str) -> Iterator[Finding]:
    """Settings that exclude each other, or cannot work."""
    try:
        check_settings(settings, command)
    except SettingError as exc:
        yield Finding("fail", "settings", str(exc))
    else:
        yield Finding("ok", "settings", "they go together")


def check_port(settings: Settings) -> Iterator[Finding]:
    """Whether the port can be listened on."""
    place, family = f"{settings.port} of {settings.host}", socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as exc:
        taken = exc.errno == errno.EADDRINUSE
        why = f"is taken: by this server, if it runs (ss -ltnp 'sport = :{settings.port}')" if taken else exc.strerror
        yield Finding("warn" if taken else "fail", "port", f"{place}: {why}")
    else:
        yield Finding("ok", "port", place)


def check_cpus() -> Iterator[Finding]:
    """CPUs, and the quota of a container."""
    cpus, all_cpus = available_cpus(), os.cpu_count() or 1
    text = f"{cpus:g} of {all_cpus}" if cpus < all_cpus else f"{all_cpus}"
    if cpus < 1:
        yield Finding("warn", "CPUs", f"{text}: less than one core, so live text will be late: raise the CPU quota")
    else:
        yield Finding("ok", "CPUs", text)


def check_files(settings: Settings) -> Iterator[Finding]:
    """Open files: each connection is one."""
    limit, wanted = raise_file_limit(), settings.wanted_files
    if limit < wanted:
        text = f"{limit:g}, and --max-connections needs {wanted}: raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        yield Finding("warn", "open files", text)
    else:
        yield Finding("ok", "open files", f"{limit:g}")


def check_limits() -> Iterator[Finding]:
    """Limits of the shell or the service manager that nobody thinks of."""
    wrong = False
    for kind, name, cost in UNWANTED:
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            wrong = True
            yield Finding("warn", "limits", f"{name} is {limit // 1024}, so {cost}: set it to unlimited")
    threads = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if threads != resource.RLIM_INFINITY and threads < LEAST_THREADS:
        wrong = True
        text = f"ulimit -u is {threads}: processes and threads may not start, raise it to {LEAST_THREADS} or more"
        yield Finding("warn", "limits", text)
    if not wrong:
        yield Finding("ok", "limits", "memory, sizes of files and threads are not limited")


def check_shared_memory(embedded: bool) -> Iterator[Finding]:
    """Metrics are in shared memory, of which containers often have little.

    Args:
        embedded: Whether an embedded PostgreSQL uses it too.
    """
    if not places.has_shared_memory():
        text = f"{places.SHARED_MEMORY} is not writable: metrics are files in {tempfile.gettempdir()}"
        yield Finding("warn", "shm", text)
        return
    free, needed = shutil.disk_usage(places.SHARED_MEMORY).free, POSTGRES_MEMORY if embedded else METRICS_MEMORY
    text = f"{free / 2**20:,.0f} MiB free"
    if free < needed:
        users = "metrics and the embedded PostgreSQL take" if embedded else "metrics take"
        more = f"{users} up to {needed / 2**20:.0f}: give the container more (--shm-size)"
        yield Finding("warn", "shm", f"{text}, {more}")
    else:
        yield Finding("ok", "shm", text)


def check_clock() -> Iterator[Finding]:
    """Whether something keeps the clock of this machine right. That of Redis is compared with it; see check_redis."""
    state = _clock_state()
    if state == _TIME_ERROR:
        text = "nothing synchronises it, as far as the kernel knows: run chrony, for example, unless the host does it"
        yield Finding("warn", "clock", text)
    else:
        yield Finding("ok", "clock", "the kernel does not tell" if state < 0 else "it is synchronised")


def _clock_state() -> int:
    """What adjtimex(2) says, which is only asked; -1 where it may not be."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)  # Linux has it
    # struct timex has 208 bytes, of which the first ask for no change.
    return -1 if adjtimex is None else int(adjtimex(ctypes.create_string_buffer(512)))


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Free space where the server writes."""
    places = {} if settings.has_redis and settings.has_database else {"--data-dir": settings.data_path}
    if settings.save_audio:
        places["--save-audio"] = Path(settings.save_audio).absolute()
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        text = f"{name} {place}: {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK):
            yield Finding("fail", "disk", f"{name} {place}: {there} is not writable by user {os.geteuid()}")
        elif free < LOW_DISK:
            yield Finding("fail" if free < FULL_DISK else "warn", "disk", f"{text}: make room, or choose another disk")
        else:
            yield Finding("ok", "disk", text)


def check_sandbox() -> Iterator[Finding]:
    """Whether the kernel holds the processes that decode strangers' files to computing."""
    if can_forbid_system_calls():
        yield Finding("ok", "sandbox", "processes that decode strangers' files are held to a few system calls")
    else:
        text = (
            "the kernel filters no system calls here, so limits alone hold the processes that decode strangers' files: "
            "let the container use seccomp (PR_SET_SECCOMP), and run workers as a user of their own"
        )
        yield Finding("warn", "sandbox", text)


def check_gpus(settings: Settings) -> Iterator[Finding]:
    """Whether the GPUs that are there can be used."""
    from asrserver.inference.cuda import problem
    from asrserver.supervisor.devices import gpu_indexes

    gpus = gpu_indexes()
    if settings.device == "cpu" or (settings.device == "auto" and not gpus):
        yield Finding("ok", "GPUs", "not used")
    elif why := problem():
        yield Finding("fail", "GPUs", f"{len(gpus)} found, but {why}")
    else:
        yield Finding("ok", "GPUs", f"{len(gpus)}")


def check_models(settings: Settings) -> Iterator[Finding]:
    """Whether the models are at hand and intact, and fit into memory."""
    from asrserver.models import PACKAGED, TOY_NOTICE, can_be_fetched, find_model, verify
    from asrserver.supervisor.devices import with_device, worker_count

    weights = 0
    for name in settings.models:
        try:
            model = find_model(name, download=False)
            weights += model.size
            if verify(model) is False:
                text = f"{model.path}/model.bin is damaged: asrserver models remove {model.name}"
                yield Finding("fail", "model", text)
            elif model.name in PACKAGED:
                yield Finding("warn", "model", TOY_NOTICE)
            else:
                yield Finding("ok", "model", f"{model.name}, {model.path}, {model.size / 2**20:,.0f} MiB")
        except ModelError as exc:
            if can_be_fetched(name):
                yield Finding("warn", "model", f"{exc}: it is fetched at start, or by asrserver models pull {name}")
            else:
                yield Finding("fail", "model", str(exc))
        except OSError as exc:
            yield Finding("fail", "model", f"{name}: {exc.strerror}: {exc.filename}")
    resolved = with_device(settings)
    workers = worker_count(resolved)
    needed, free = workers * (weights + WORKER_MEMORY), _free_memory()
    text = f"{free / 2**30:.1f} GiB free; {workers} × worker takes about {needed / 2**30:.1f} GiB"
    if resolved.device == "cpu" and free < needed:
        yield Finding("warn", "memory", f"{text}: fewer --workers, a smaller model, or more memory")
    else:
        yield Finding("ok", "memory", text)


def _free_memory() -> float:
    """Bytes that are available (proc(5)); any number where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Whether Redis can be reached, and whether it keeps what it is given."""
    if not settings.has_redis:
        from asrserver.embedded import locate

        yield from _embedded("Redis", locate.redis)
        return
    from asrserver.broker.addresses import addresses, label

    urls = addresses(settings.redis)
    for url in urls:
        yield from _redis(url, "Redis" if len(urls) == 1 else f"Redis {label(url)}")


def _redis(url: str, name: str) -> Iterator[Finding]:
    """The findings about one Redis."""
    import asyncio

    from asrserver.broker.requirements import inspect

    try:
        found = asyncio.run(inspect(url))
    except (Unavailable, SettingError) as exc:
        yield Finding("fail", name, str(exc))
        return
    yield Finding("ok", name, f"version {found.version}, {1000 * found.latency:.1f} ms")
    if found.latency > SLOW_REDIS:
        text = f"a PING takes {1000 * found.latency:.0f} ms: every acknowledgement takes longer than that"
        yield Finding("warn", name, text)
    for lacking in found.shortcomings:
        yield Finding("warn", name, lacking)
    if abs(found.skew) > CLOCK_SKEW:
        text = f"the clock of Redis differs from this machine's by {found.skew:+.1f} s: synchronise both (NTP)"
        yield Finding("warn", "clock", text)


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Whether PostgreSQL can be reached, and whether its tables are this program's."""
    if not settings.has_database:
        from asrserver.embedded import locate

        yield from _embedded("PostgreSQL", locate.postgres)
        return
    from asrserver.storage import schema
    from asrserver.storage.errors import StorageError, translated
    from asrserver.storage.pool import STATEMENT_TIMEOUT

    try:
        found = schema.read_version(schema.parameters(settings.database))
        found.check()
    except Exception as exc:  # whatever the driver raises; `translated` knows all of it
        error = exc if isinstance(exc, StorageError) else translated(exc, STATEMENT_TIMEOUT)
        yield Finding("fail", "PostgreSQL", str(error))
        return
    if found.pending:
        text = f"{len(found.pending)} migrations are applied when a gateway starts, or by asrserver db upgrade"
        yield Finding("warn", "PostgreSQL", f"tables of version {found.number}: {text}")
    else:
        yield Finding("ok", "PostgreSQL", f"tables of version {found.number}")


def _embedded(name: str, locate: Callable[[], Path]) -> Iterator[Finding]:
    """Whether the program of an embedded server is there."""
    from asrserver.embedded.locate import EmbeddedError

    try:
        yield Finding("ok", name, f"none in the settings: {locate()} is started")
    except EmbeddedError as exc:
        yield Finding("fail", name, str(exc))
