"""The table of all Redis keys is complete: operators look there."""

from __future__ import annotations

import inspect

from asrserver.broker import keys

#: What the arguments of a key are called in the table.
PLACEHOLDERS = {
    "sid": "sid",
    "model": "<model>",
    "owner": "<key id>",
    "minute": "<minute>",
    "gateway": "<gateway>",
    "name": "<name>",
    "worker": "<name>",
    "digest": "<sha256>",
}


def test_the_table_has_every_key() -> None:
    assert keys.__doc__ is not None
    rows = {line.split("  ")[0] for line in keys.__doc__.splitlines()}
    found = {value for name, value in vars(keys).items() if name.isupper() and name != "GROUP"}
    for function in vars(keys).values():
        if inspect.isfunction(function):
            names = list(inspect.signature(function).parameters)
            kinds = ("worker", "gateway") if function in (keys.alive_key, keys.heartbeat_key) else ("<kind>",)
            for kind in kinds:
                found.add(function(*(kind if name == "kind" else PLACEHOLDERS[name] for name in names)))
    assert found <= rows
    assert len(found) == len([row for row in rows if row.startswith("asr_") or row.endswith((":heartbeat", ":drain"))])
