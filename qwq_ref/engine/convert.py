"""From a checkpoint to a folder of packed weights, which `load` reads as fast as the disk gives them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..footprint import human
from ..formats import Checkpoint, resolve
from ..formats.checkpoint import CONFIG
from ..formats.packed import writing
from ..host import memory
from ..text import load_tokenizer
from .weights import (
    FORMS,
    packed_forms,
    packed_name,
    packed_tensors,
    plan,
)

# What a folder holds beside its weights.
_SMALL = (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def convert(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    weights: str,
    *,
    threads: int | None = None,
    offline: bool = False,
    progress: Callable[[float], object] | None = None,
) -> Path:
    """A model, as `load` takes it -> the file of its packed weights in a folder, beside copies of its small files.

    weights   of `FORMS`; the folder may hold other forms of the same model
    progress  called with the number of weights read since its last call, of `footprint.parameters`

    One weight is held in memory at a time. The file appears when it is whole; what is interrupted leaves none.
    Raises a QwqError before anything is written: for a model that cannot be read or is packed already, a folder that
    holds something else, a disk that is too small.
    """
    if weights not in FORMS:
        raise UsageError(None, "weights", f"must be one of {', '.join(FORMS)}, got {weights[:40]}")
    path, folder = resolve(model, offline=offline), Path(folder)
    if packed_forms(path):
        raise UsageError(path, None, "is packed already: convert the checkpoint that it was made from")
    with Checkpoint.open(path) as checkpoint:
        config = checkpoint.config
        source = path if path.is_dir() else path.parent
        load_tokenizer(source, config.vocab_size)
        small = [name for name in _SMALL if (source / name).is_file()]
        _check_folder(folder, source, small)
        planned = plan(config, weights)
        _check_room(folder, sum(stored.nbytes for stored in planned.values()))
        folder.mkdir(parents=True, exist_ok=True)
        for name in small:
            shutil.copyfile(source / name, folder / name)
        with writing(folder / packed_name(weights), planned) as append:
            for name, tensor in packed_tensors(config, checkpoint, weights, threads or memory.cpus(), progress):
                append(name, tensor)
    return folder / packed_name(weights)


def _check_folder(folder: Path, source: Path, small: list[str]) -> None:
    """It is new, empty, or holds packed weights beside the very same small files."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise UsageError(folder, None, "is not a folder")
        return
    if any(folder.iterdir()) and not packed_forms(folder):
        raise UsageError(folder, None, "holds something else: take a new folder")
    for name in small:
        if (folder / name).exists() and (folder / name).read_bytes() != (source / name).read_bytes():
            raise UsageError(folder / name, None, "is of another model: take a new folder")


def _check_room(folder: Path, needed: int) -> None:
    room = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if needed > room:
        raise UsageError(folder, None, f"needs {human(needed)} on its disk, which has {human(room)} left")
