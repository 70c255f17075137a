"""Which models the fleet offers: what its workers' heartbeats say."""

from __future__ import annotations

import re
from typing import Any

from asrserver.broker.status import BrokerStatus
from asrserver.errors import BadRequest
from asrserver.protocol import model_names
from asrserver.protocol.options import Options

#: Seconds for which a model counts as offered after the last heartbeat of a worker that offers it. Sessions that name
#: it wait meanwhile, as every session waits while there is no worker: its workers are perhaps being restarted.
OFFERED_FOR = 300.0


class Offers:
    """The models that the workers offer.

    Attributes:
        models: One entry for each model that a living worker offers; see `summary`.
        aliases: The operator's names of models, each with the model it means; empty: whichever there is.
    """

    def __init__(self, status: BrokerStatus, served_model_names: str = "") -> None:
        """Know none yet; `served_model_names` is the setting."""
        self.aliases = model_names.aliases(served_model_names)
        self.models: dict[str, dict[str, Any]] = {}
        self._status = status
        self._recent: set[str] = set()  # offered in the last OFFERED_FOR
        self._defaults: dict[str, frozenset[str]] = {}  # first model of a worker → its languages

    async def refresh(self) -> None:
        """Read them; raises Unavailable."""
        workers = await self._status.heartbeats("worker")
        self._recent = await self._status.offered(OFFERED_FOR)
        self.models = {model["name"]: model for model in summary(workers)}
        self._defaults = {
            worker["model"]: frozenset(worker.get("languages", ())) for worker in workers if "model" in worker
        }

    async def check(self, options: Options) -> None:
        """Refuse a session that no worker can recognise.

        Raises:
            BadRequest: `unknown_model`, or `bad_option` for a language that the model does not know.
            Unavailable: Redis does not answer.
        """
        name = options.model
        if not self._defaults or (name is not None and name not in self._recent):
            await self.refresh()  # it may have been offered just now
        if name is not None and name not in self._recent:
            message = f"no worker offers the model {name!r} (offered: {', '.join(self.models) or 'none'})"
            raise BadRequest("unknown_model", message, option="model")
        known = self._languages(name)
        if options.language and known and options.language not in known:
            message = f"the model does not know the language {options.language} (languages: {', '.join(sorted(known))})"
            raise BadRequest("bad_option", message, option="language")

    def named(self, name: str, served: re.Pattern[str]) -> str | None:
        """The model that a client means; None: whichever there is. See model_names.resolve, which may raise Refused."""
        return model_names.resolve(name, self.models, self.aliases, served)

    def expected(self, options: Options) -> str | None:
        """The model that will recognise a session; None if that depends on the worker that takes it."""
        if options.model is None and len(self._defaults) == 1:
            return next(iter(self._defaults))
        return options.model

    def model_for(self, language: str | None) -> str | None:
        """The model for a language that the default model does not know; None: that one will do, or no other does."""
        if not language or language in self._languages(None):
            return None
        return next((name for name, model in self.models.items() if language in model["languages"]), None)

    def _languages(self, name: str | None) -> frozenset[str]:
        """The languages of a model, or of any that may be used; empty if they are not known."""
        if name is not None:
            return frozenset(self.models[name]["languages"]) if name in self.models else frozenset()
        return frozenset[str]().union(*self._defaults.values())


def summary(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The models of all workers, by name.

    Args:
        workers: Their heartbeats.

    Returns:
        Of each model: `name`; `workers` that offer it; how many of them have it `loaded`, and have it as their
        `default`; `compute_types` in use; `size_bytes` of its weights; `languages`; open `sessions`.
    """
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for model in worker.get("models", ()):
            entry = found.setdefault(
                model["name"],
                {"name": model["name"], "workers": 0, "loaded": 0, "default": 0, "compute_types": [], "sessions": 0}
                | {"size_bytes": model["size_bytes"], "languages": model["languages"]},
            )
            entry["workers"] += 1
            entry["loaded"] += model["loaded"]
            entry["default"] += model["name"] == worker["model"]
            entry["sessions"] += model["sessions"]
            if model["compute_type"] and model["compute_type"] not in entry["compute_types"]:
                entry["compute_types"].append(model["compute_type"])
    return [found[name] for name in sorted(found)]
