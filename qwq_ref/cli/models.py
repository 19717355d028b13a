"""Find the model that a user names, for commands that read its config and never load its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..config import Config
from ..engine.fit import available_forms
from ..formats import open_source, resolve
from ..formats.names import CONFIG, INDEX
from ..formats.packed import PackedFile
from ..formats.packed_folder import packed_files


@dataclass(frozen=True)
class Found:
    """A model's config, and the weights beside it.

    path    the checkpoint's or packed weights' folder or file, or the config.json
    dtypes  dtype -> bytes of a checkpoint's tensors; empty where there is no checkpoint
    packed  weight form -> bytes of its packed tensors; empty where there are none
    """

    path: Path
    config: Config
    dtypes: Mapping[str, int] = field(default_factory=dict)
    packed: Mapping[str, int] = field(default_factory=dict)


def find(model: str, offline: bool) -> Found:
    """Find a model by a config.json, or by a name that `formats.resolve` takes, and read headers only.

    A config.json stands for itself, or for the folder of packed weights that it is in: this model has no other forms.
    Raises CheckpointError, ConfigError.
    """
    if model.endswith(".json"):
        file = Path(model)
        if file.name != CONFIG or not file.is_file() or not packed_files(file.parent):
            return Found(file, Config.from_file(model))
        model = os.fspath(file.parent)
    path = resolve(model, offline=offline)
    if path.is_dir() and not (path / INDEX).exists() and not any(path.glob("*.safetensors")):
        return Found(path / CONFIG, Config.from_file(path / CONFIG))
    with open_source(path) as source:
        files, forms = packed_files(path), available_forms(source.dtypes, source.forms)
        return Found(path, source.config, source.dtypes, {form: _bytes(files[form]) for form in forms if form in files})


def _bytes(file: Path) -> int:
    """Return the bytes of the tensors in a packed file. Raises CheckpointError."""
    with PackedFile(file) as packed:
        return sum(stored.nbytes for stored in packed.weights.values())
