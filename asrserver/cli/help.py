"""The help of commands: settings under the titles of their groups, and what a command does in full."""

from __future__ import annotations

from gettext import gettext as _
from typing import Any

import click

#: Titles of the groups of settings, in the order in which help and documentation have them.
TITLES = {
    "server": "Processes and logs",
    "gateway": "Gateway",
    "worker": "Worker",
    "redis": "Redis",
    "leases": "Sessions in Redis",
    "database": "PostgreSQL",
    "embedded": "Embedded servers",
}

#: Characters of a command's first sentence that a list of commands shows, at most: all of it.
_SENTENCE = 1000


class Group(click.Group):
    """A group whose list of commands has their first sentences in full: click's cuts them at the end of the line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(_SENTENCE)) for name, command in found if command]
        with formatter.section(_("Commands")):
            formatter.write_dl(rows)


class Setting(click.Option):
    """An option that is a setting of the server.

    Attributes:
        group: That of the setting: a key of TITLES.
    """

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class SettingsCommand(click.Command):
    """A command with so many settings that they are only found by the titles of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {"": [], **{group: [] for group in TITLES}}
        for option in self.get_params(ctx):
            if record := option.get_help_record(ctx):
                rows[option.group if isinstance(option, Setting) else ""].append(record)
        for group, records in rows.items():
            if records:
                with formatter.section(_(TITLES[group]) if group else _("Options")):
                    formatter.write_dl(records)
