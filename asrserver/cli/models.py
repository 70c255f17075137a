"""asrserver models: the speech models on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from gettext import gettext as _

import click

from asrserver import models as store
from asrserver.cli.help import Group
from asrserver.cli.status import format_table
from asrserver.errors import ModelError


@click.group(cls=Group)
def models() -> None:
    """List, fetch, verify and remove speech models.

    \b
    asrserver models list              models on this machine, and names of those that can be fetched
    asrserver models pull small        fetch a model from the Hugging Face hub
    asrserver models verify base       compare a model with its known checksum
    asrserver models remove small      remove a model from this machine's caches
    """


@models.command("list")
def list_models() -> None:
    """List the models on this machine, and the names of those that can be fetched."""
    found = store.available()
    rows = [(model.name, model.source, f"{model.size / 2**20:,.0f} MiB", str(model.path)) for model in found]
    click.echo("\n".join(format_table(("NAME", "SOURCE", "WEIGHTS", "DIRECTORY"), rows)))
    others = [name for name in store.HUB if name not in {model.name for model in found}]
    click.echo("\n" + _("Without --model, asrserver run uses {model}.").format(model=store.resolve("auto")))
    fetched = _("Fetched from the Hugging Face hub by --model or asrserver models pull: {names}.")
    click.echo(fetched.format(names=", ".join(others)))


@models.command("pull")
@click.argument("name")
def pull_model(name: str) -> None:
    """Fetch the model NAME from the Hugging Face hub, unless it is on this machine."""
    with _model_errors():
        model = store.find_model(name)
    click.echo(f"{model.name}: {model.size / 2**20:,.0f} MiB in {model.path}")


@models.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME…]")
def verify_models(names: tuple[str, ...]) -> None:
    """Compare models with their known SHA-256: all on this machine, or NAMEs. The exit status is 1 if one differs."""
    with _model_errors():
        found = [store.find_model(name, download=False) for name in names] or store.available()
    damaged = False
    for model in found:
        intact = store.verify(model)
        damaged = damaged or intact is False
        click.echo(f"{model.name}: {'no checksum is known' if intact is None else 'intact' if intact else 'DAMAGED'}")
    if damaged:
        raise SystemExit(1)


@models.command("remove")
@click.argument("name")
def remove_model(name: str) -> None:
    """Remove the model NAME from this machine's caches; packages and directories stay."""
    removed = store.remove(name)
    if not removed:
        raise click.ClickException(f"no cache on this machine holds the model {name}")
    for path in removed:
        click.echo(f"removed {path}")


@contextmanager
def _model_errors() -> Iterator[None]:
    try:
        yield
    except ModelError as exc:
        raise click.ClickException(str(exc)) from None
