"""Check what deploys the server: the installer, the Dockerfile, the compose files, the Helm chart and its manifests.

`make deployment` runs it in an environment of its own (tools/deployment-requirements.txt), because these checkers are
needed for nothing else. No container engine and no cluster is needed. tests/test_deployment.py checks what needs no
checkers: that commands, settings, paths and metrics in these files exist in the program.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import tree_sitter
import tree_sitter_powershell
import yaml
from helm_python import chart

ROOT = Path(__file__).parents[1]
CHART = ROOT / "conf" / "helm" / "asrserver"

#: The chart with its own values, for those who do without Helm.
MANIFESTS = ROOT / "conf" / "kubernetes" / "asrserver.yaml"
HEAD = """\
# What `helm template asrserver conf/helm/asrserver` writes: made by `make deployment WRITE=--write`, not to be edited.
# docs/run/kubernetes.md says which secrets it needs. Set the image before: sed, or kustomize.
"""

#: The versions of Kubernetes whose schemas must allow the manifests.
VERSIONS = ("1.28.0", "1.32.0", "1.36.0")

#: Kinds that Kubernetes does not have: their schemas come with what serves them.
FOREIGN = ("ScaledObject",)

#: Values that turn on what the chart's own leave out, and something that they turn off.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "keda": {"autoscaling": {"kind": "keda"}},
    "adapter": {"autoscaling": {"kind": "adapter"}, "trustedProxies": "10.0.0.0/8"},
    "gpu": {"worker": {"gpu": {"enabled": True}, "env": {"ASRSERVER_MODEL": "large-v3-turbo"}}},
    "gpu without limits": {"worker": {"gpu": {"enabled": True, "count": 2}, "resources": {"limits": None}}},
    "ingress": {"ingress": {"enabled": True}, "imagePullSecrets": [{"name": "registry"}]},
    "own networks": {
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
            "redis": {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "port": 6380, "sentinelPort": 26379},
        },
    },
    "shards": {"redis": {"shards": ["redis-0.redis:6379", "redis-1.redis:6379"], "tls": True}},
    "openshift": {"user": None},
    "no policy": {"networkPolicy": {"enabled": False}, "gateway": {"nodeSelector": {"pool": "edge"}}},
}


class Failed(Exception):
    """Raised with what a checker found."""


def run(program: str, *arguments: str | Path) -> None:
    """Run a checker of this environment; raises Failed with what it says."""
    command = [str(Path(sys.executable).parent / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Failed(f"{program} {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")


def check_installer() -> None:
    run("shellcheck", ROOT / "tools" / "install")


def check_powershell() -> None:
    """The script for Windows by a parser: where there is no Windows, nothing else can be said of it."""
    script = ROOT / "tools" / "install.ps1"
    tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language())).parse(script.read_bytes())
    if tree.root_node.has_error:
        lines = sorted({node.start_point.row + 1 for node in _broken(tree.root_node)})
        raise Failed(f"{script.name} is no PowerShell at line {', '.join(map(str, lines))}")


def _broken(node: Any) -> Iterator[Any]:
    """The parts of a syntax tree that are wrong, or missing."""
    if node.type == "ERROR" or node.is_missing:
        yield node
    for child in node.children:
        yield from _broken(child)


def check_dockerfile() -> None:
    run("hadolint", ROOT / "conf" / "docker" / "Dockerfile")


def check_proxies() -> None:
    """The files for HAProxy and nginx by these programs themselves, where they are installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key, certificate = (ROOT / "tests" / "data" / "tls" / file for file in ("key.pem", "cert.pem"))
        (folder / "both.pem").write_text(certificate.read_text() + key.read_text())
        text = (ROOT / "conf" / "haproxy.cfg").read_text()
        (folder / "haproxy.cfg").write_text(text.replace("/etc/haproxy/asr.example.org.pem", str(folder / "both.pem")))
        text = (ROOT / "conf" / "nginx.conf").read_text()
        text = text.replace("/etc/ssl/asr.example.org.pem", str(certificate))
        text = text.replace("/etc/ssl/private/asr.example.org.key", str(key)).replace("/var/log/nginx", name)
        head = f"pid {folder}/pid;\nerror_log {folder}/errors;\nevents {{}}\n"
        (folder / "nginx.conf").write_text(f"{head}http {{\n{text}\n}}\n")
        for command in (
            ["haproxy", "-c", "-f", f"{folder}/haproxy.cfg"],
            ["nginx", "-t", "-c", f"{folder}/nginx.conf"],
        ):
            if (program := shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")) is None:
                print(f"{command[0]} is not installed: its file is not checked")
                continue
            done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                raise Failed(f"{command[0]}:\n{done.stdout}{done.stderr}")


def check_compose() -> None:
    """Each file by the schema of the Compose specification."""
    files = sorted((ROOT / "conf" / "docker").glob("compose*.yaml"))
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def check_chart() -> None:
    """What Helm finds; each variant by the schemas of several versions of Kubernetes."""
    for name, values in VARIANTS.items():
        report = chart.lint(CHART, values, strict=True)
        if found := [message for message in report["messages"] if message["severity"] > 1] + report["errors"]:
            raise Failed(f"helm lint, {name}: {found}")
        for document in yaml.safe_load_all(rendered(values)):
            if document["kind"] not in FOREIGN:
                validate(document, name)
    try:
        rendered({"autoscaling": {"kind": "magic"}})
    except helm_python.HelmError:
        return
    raise Failed("the chart takes a kind of autoscaling that there is not")


def validate(document: dict[str, Any], variant: str) -> None:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            where = f"{variant}, Kubernetes {version}, {document['kind']} {document['metadata']['name']}"
            raise Failed(f"{where}: {exc.message}") from None  # the rest of it is the schema


def rendered(values: dict[str, Any]) -> str:
    """The manifests as `helm template` writes them."""
    with chart.Chart.load(CHART) as loaded:
        files = loaded.render(values, name="asrserver", namespace="asrserver")
    texts = {name: text.strip().removeprefix("---\n") for name, text in sorted(files.items()) if "kind:" in text}
    parts = [f"# Source: {name}\n{text}" for name, text in texts.items()]
    return "".join(f"---\n{part}\n" for part in parts)


def check_manifests(write: bool) -> None:
    text = HEAD + rendered({})
    if write:
        MANIFESTS.write_text(text)
    elif MANIFESTS.read_text() != text:
        raise Failed(f"{MANIFESTS.relative_to(ROOT)} is not what the chart says: make deployment WRITE=--write")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write conf/kubernetes/asrserver.yaml")
    arguments = parser.parse_args()
    status = 0
    checks: dict[str, Callable[[], None]] = {
        "tools/install": check_installer,
        "tools/install.ps1": check_powershell,
        "Dockerfile": check_dockerfile,
        "compose files": check_compose,
        "proxies": check_proxies,
        "Helm chart": check_chart,
        "manifests": lambda: check_manifests(arguments.write),
    }
    for what, check in checks.items():
        try:
            check()
            print(f"{what}: right")
        except Failed as exc:
            print(f"{what}: {exc}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
