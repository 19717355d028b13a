"""A model whose weights are in other processes: its choices are made once, so all machines compute the same bits."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__, core
from ..config import Config, Rope
from ..engine.ahead import check_forms
from ..engine.fit import candidates
from ..errors import ClusterError, UsageError
from ..formats import Source, resolve
from ..forms import FILE, AnyForm

_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class ModelThere:
    """A model as each machine finds it, and the choices for it.

    name     an absolute path, a hub id, or the name of a shipped model
    files    the files of its weights -> bytes, which must be the same everywhere
    weights  the name of the weight form; kv: of the cache form
    version  of this package
    """

    name: str
    files: dict[str, int]
    weights: str
    kv: str
    context: int
    rope: Rope | None
    isa: str | None
    chat_template: str | None = None
    version: str = __version__

    def path(self) -> Path:
        """Return the folder or file on this machine. Raises ClusterError for another model, or another qwq_ref."""
        if self.version != __version__:
            raise ClusterError(None, "qwq_ref", f"is {__version__} here, and {self.version} where the command runs")
        path = resolve(self.name, offline=True)
        if (files := weight_files(path)) != self.files:
            raise ClusterError(path, None, f"holds {files} here, and {self.files} where the command runs")
        return path

    def form(self, source: Source) -> AnyForm:
        """Return the weight form of a source of this model."""
        return source.kept.form if self.weights == FILE and source.kept is not None else self.weights


def weight_files(path: Path) -> dict[str, int]:
    """Return the files with the weights of a model -> bytes."""
    files = [path] if path.is_file() else [file for file in sorted(path.iterdir()) if file.suffix in _WEIGHTS]
    return {file.name: file.stat().st_size for file in files}


def name_of(model: str) -> str:
    """Return the name by which other machines find a model."""
    return os.path.abspath(model) if os.path.exists(model) else model


@dataclass(frozen=True)
class Elsewhere:
    """The backend of a model whose weights are in other processes: it tells of them, and computes nothing."""

    config: Config
    context: int
    form: str
    kv: str
    isa: str
    description: str
    chunk = 512
    threads = 1
    tensors = None
    streams = False

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name}: the weights are in other processes")


def usable_forms(source: Source, config: Config, weights: str | None) -> list[AnyForm]:
    """Return the wanted weight form alone, or those of a source, the most exact first. Raises UsageError."""
    kept = None if source.kept is None else source.kept.form
    check_forms(config, source.forms, weights, "core", source.path, kept is not None)
    if weights is None:
        return candidates(source.dtypes, source.forms, config.swiglu_beta, kept)
    return [kept if weights == FILE and kept is not None else weights]


def changed(source: Source, rope: Rope | None) -> Config:
    """Return the config of a source, with another position embedding if one is given."""
    return source.config if rope is None else dataclasses.replace(source.config, rope=rope)


def require_core() -> None:
    """Raise UsageError where the C core is not built: NumPy's bits depend on the machine."""
    if not core.available():
        raise UsageError(None, "ray", "needs the C core: install a C compiler, then qwq_ref again")
