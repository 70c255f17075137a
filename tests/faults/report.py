"""The report of a run: one page, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from tests.faults.account import KINDS
from tests.faults.growth import as_rows
from tests.faults.growth import lines as growth
from tests.faults.harness import Run

#: Problems that are shown.
SHOWN = 25


def page(run: Run) -> str:
    """One page of text."""
    options, account = run.options, run.account
    lines = [
        f"seed {options.seed}: {options.clients} clients, {options.seconds:.0f} s, {len(run.happened)} faults, "
        f"{run.seconds:.0f} s in all",
        ", ".join(f"{kind} {account.wrong[kind]}" for kind in KINDS),
        "",
        "at s   until  longest wait  fault",
    ]
    for one in sorted(run.happened, key=lambda one: one.began):
        lines.append(f"{one.began:6.1f} {one.ended:6.1f} {one.wait:8.1f} s {one.waiting:4d} {one.name}: {one.what}")
    lines += [""] + [f"{count:7d} {what}" for what, count in sorted(account.counts.items())]
    lines += ["", *growth(run.tenths), ""]
    if run.refusals:
        lines.append("refused: " + ", ".join(f"{code} {count}" for code, count in sorted(run.refusals.items())))
    if run.skipped:
        lines.append("not possible here: " + ", ".join(run.skipped))
    lines += [f"traceback: {what}" for what in run.tracebacks[:10]]
    lines += ["", *account.problems[:SHOWN]]
    if len(account.problems) > SHOWN:
        lines.append(f"… and {len(account.problems) - SHOWN} more")
    if not account.is_clean or run.tracebacks:
        lines.append(f"files: {run.place}")
    return "\n".join(lines)


def as_json(run: Run) -> str:
    """One JSON object."""
    options: dict[str, Any] = asdict(run.options) | {"faults": [fault.name for fault in run.options.faults]}
    found = {
        "options": options,
        "seconds": round(run.seconds, 1),
        "wrong": {kind: run.account.wrong[kind] for kind in KINDS},
        "counts": dict(run.account.counts),
        "refusals": run.refusals,
        "faults": [asdict(one) for one in run.happened],
        "problems": run.account.problems,
        "tenths": as_rows(run.tenths),
        "tracebacks": run.tracebacks,
        "not_possible": run.skipped,
    }
    return json.dumps(found)
