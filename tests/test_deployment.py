"""What deploys the server asks for what there is: commands, settings, paths, ports, metrics, and values of the chart.

`make deployment` checks the same files with the checkers of their kinds.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from asrserver import __version__
from asrserver.cli.main import main as program
from asrserver.config import setting_rows
from asrserver.handlers.app import ROUTES
from asrserver.telemetry.metrics import REGISTRY
from tests.program import System, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
DOCKERFILE = CONF / "docker" / "Dockerfile"
COMPOSE = sorted((CONF / "docker").glob("compose*.yaml"))
CHART = CONF / "helm" / "asrserver"
MANIFESTS = CONF / "kubernetes" / "asrserver.yaml"

#: Environment variables that are others': of the loader, the shell, NVIDIA's toolkit, pip, Hugging Face, images.
FOREIGN = {
    "DB_PASSWORD", "HF_HOME", "LD_LIBRARY_PATH", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES", "PATH",
    "PIP_BUILD_CONSTRAINT", "PIP_CONSTRAINT", "POSTGRES_PASSWORD", "POSTGRES_USER", "REDISCLI_AUTH", "REDIS_PASSWORD",
    "XDG_CACHE_HOME",
}  # fmt: skip


def variables() -> set[str]:
    return {row.env for row in setting_rows()}


def pods() -> list[dict[str, Any]]:
    """What the Deployments of the manifests start."""
    documents = yaml.safe_load_all(MANIFESTS.read_text())
    return [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]


def containers() -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Every container of the program: where it is, its command, and its environment."""
    for path in COMPOSE:
        for name, service in yaml.safe_load(path.read_text())["services"].items():
            if str(service.get("image", "")).startswith("asrserver"):
                yield f"{path.name} {name}", service.get("command", []), service["environment"]
    for pod in pods():
        for container in pod["containers"]:
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            yield f"{MANIFESTS.name} {container['name']}", container["args"], environment


def test_commands_are_such_as_the_program_takes() -> None:
    found = list(containers())
    assert len(found) == 6
    for where, words, _ in found:
        if not words:  # a file that is laid over another
            continue
        command = program.get_command(click.Context(program), words[0])
        assert command is not None, where
        taken = {flag for option in command.params for flag in option.opts}
        assert {word for word in words if word.startswith("--")} <= taken, where


def test_settings_are_such_as_there_are() -> None:
    """With values that they take; a typo would be ignored without a word."""
    rows = {row.env: row for row in setting_rows()}
    for where, _, environment in containers():
        assert environment.keys() <= rows.keys() | FOREIGN, where
        for name, value in environment.items():
            if name in rows and value is not None and "$" not in str(value):
                click.types.convert_type(rows[name].type)(str(value))
    dockerfile = DOCKERFILE.read_text()
    named = set(re.findall(r"\b([A-Z][A-Z_]+)=", re.sub(r"^(ARG|#).*", "", dockerfile, flags=re.M)))
    assert {"HOST", "ASRSERVER_MODEL"} <= named <= variables() | FOREIGN
    for path in (CONF / "environment", CONF / "docker" / "env.example"):
        named = set(re.findall(r"^#?([A-Z][A-Z_]+)=", path.read_text(), re.M))
        assert named
        assert named <= variables() | FOREIGN, path.name


def test_the_dockerfile_copies_what_there_is_and_installs_extras_that_there_are() -> None:
    text = DOCKERFILE.read_text()
    allowed = (CONF / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (?!--)(.*)$", text, re.M) for name in line.split()[:-1]]
    assert len(copied) > 5
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    files = [text, (CONF / "docker" / "compose.gpu.yaml").read_text(), (ROOT / "tools/install").read_text()]
    lists = [found for file in files for found in re.findall(r"\b(?:EXTRAS: \"|EXTRAS=|extras=)([a-z,]+)", file)]
    assert len(lists) >= 4
    assert {extra for found in lists for extra in found.split(",")} <= extras


def test_paths_of_probes_are_routes() -> None:
    text = "".join(path.read_text() for path in [*COMPOSE, MANIFESTS, ROOT / "tools/install"])
    paths = set(re.findall(r"path: (/\w+)", text)) | set(re.findall(r"127\.0\.0\.1:[^/\s]+(/\w+)", text))
    assert {"/livez", "/readyz", "/metrics"} == paths
    assert paths <= set(ROUTES)


def runs(code: str) -> bool:
    """Whether a probe succeeds, in a container with a proxy that cannot reach it."""
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command, env = [sys.executable, "-c", code], {**os.environ, **proxy}
    return subprocess.run(command, capture_output=True, timeout=60, check=False, env=env).returncode == 0


def test_the_health_checks_of_compose_ask_the_container_itself(start: Callable[..., System]) -> None:
    services = [service for path in COMPOSE for service in yaml.safe_load(path.read_text())["services"].values()]
    checks = {test[3] for service in services if "python" in (test := service.get("healthcheck", {}).get("test", ()))}
    assert len(checks) == 2
    metrics = free_port()
    system = start("run", "--metrics-port", str(metrics)).wait_ready()
    for check in checks:
        here = check.replace(":8080/", f":{system.port}/").replace(":9464/", f":{metrics}/")
        assert here != check
        assert runs(here)
    assert system.stop() == 0
    assert not runs(here)


def test_a_worker_is_ready_when_its_model_is_loaded(start: Callable[..., System]) -> None:
    """The readiness probe of the pods, as it stands in the manifests."""
    (probe,) = [
        container["readinessProbe"]["exec"]["command"]
        for pod in pods()
        for container in pod["containers"]
        if "exec" in container["readinessProbe"]
    ]
    port = free_port()
    code = probe[2].replace("127.0.0.1:9464", f"127.0.0.1:{port}")
    assert code != probe[2]

    def ready() -> bool:
        return runs(code)

    assert not ready()
    system = start("worker", "--workers", "1", "--metrics-port", str(port)).wait_ready()
    wait_until(ready, 20, "the probe says that it is ready")
    assert system.stop() == 0
    assert not ready()


def test_metrics_of_the_chart_exist() -> None:
    known = {family.name for family in REGISTRY.collect()}
    text = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
    named = set(re.findall(r"asrserver_[a-z_]+", text))
    assert named == {"asrserver_backlog_seconds", "asrserver_children"}
    assert named <= known


def test_the_chart_uses_its_values_and_no_others() -> None:
    """A value with another name would be nothing, without a word."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
    used = set(re.findall(r"\.Values\.([\w.]+)", text))
    for name in used:
        value = values
        for part in name.split("."):
            assert part in value, name
            value = value[part]
    assert set(values) == {name.partition(".")[0] for name in used}


def test_versions_are_the_program_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("pod", pods(), ids=lambda pod: pod["containers"][0]["name"])
def test_pods_may_do_little(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    # Kubernetes would set PORT-like variables for every service, which are settings here.
    assert not pod["enableServiceLinks"]
    assert pod["terminationGracePeriodSeconds"] > 3 * 10
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
