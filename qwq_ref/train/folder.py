"""The folder of a training run: its lock, its parameters, its saved state and its log.

.lock        held by the process that trains
recipe.json  the parameters: a run with others needs another folder
state.npz    weights, optimiser and step; replaced whole
log.csv      a row for each step
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UsageError
from ..files import StrPath, read_file, read_json, writes
from ..formats.write import write_atomically, write_json

STATE = "state.npz"
RECIPE = "recipe.json"
LOG = "log.csv"


def saved_step(folder: StrPath, name: str = "step") -> int:
    """Return the number of steps, or of what `name` counts, that the run in a folder has saved; 0 without a run."""
    saved = Path(folder) / STATE
    return int(read_state(saved, {name: np.array(0)})[name]) if saved.exists() else 0


def read_state(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arrays of a saved state that have these names, and the shapes of these. Raises CheckpointError."""
    found = {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name, like in wanted.items():
                found[name] = arrays[name]
                if found[name].shape != np.shape(like):
                    raise CheckpointError(path, name, f"has shape {found[name].shape}, not {np.shape(like)}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise CheckpointError(path, None, "is damaged: remove it, and the run starts again") from None
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder, because two runs would overwrite each other's state. Raises UsageError if it is locked."""
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        with writes(path):
            lock = stack.enter_context(open(path, "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(folder, None, "another run is at work here") from None
        yield


def check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Write the parameters of a run into its folder. Raises UsageError if a run with others is there."""
    if path.exists():
        found = read_json(path, 1 << 20, CheckpointError)
        for name, value in json.loads(json.dumps(recipe)).items():
            if found.get(name) != value:
                problem = (
                    f"is {found.get(name)!r:.40} in the run of this folder, not {value!r:.40}: choose another folder"
                )
                raise UsageError(path, name, problem)
    else:
        write_json(path, recipe)


def read_log(path: Path) -> dict[str, list[float]]:
    """Return the columns of a log, by their names. Raises CheckpointError for a file that is no log or has no rows."""
    if not path.is_file():
        raise UsageError(path.parent, None, f"holds no {path.name}: name the folder of a run of qwq train")
    rows = list(csv.reader(read_file(path, 1 << 30, CheckpointError).decode("utf-8", "replace").splitlines()))
    if len(rows) < 2:
        raise CheckpointError(path, None, "holds no steps yet")
    names, *steps = rows
    columns: dict[str, list[float]] = {name: [] for name in names}
    for number, row in enumerate(steps, 2):
        try:
            for name, value in zip(names, row, strict=True):
                columns[name].append(float(value))
        except ValueError:
            raise CheckpointError(path, f"line {number}", f"does not hold {len(names)} numbers") from None
    return columns


@contextlib.contextmanager
def log(path: Path, done: int, columns: Sequence[str]) -> Iterator[Callable[[list[Any]], None]]:
    """Yield a function that adds a row to the log. Rows of steps that are not in the saved state are removed first."""
    lines = read_file(path, 1 << 30, CheckpointError).decode("utf-8", "replace").splitlines() if path.exists() else []
    text = "\n".join([",".join(columns), *lines[1 : done + 1]]) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    with writes(path):
        file = open(path, "a", newline="", buffering=1)  # noqa: SIM115 - closed below

    def add(row: list[Any]) -> None:
        with writes(path):
            csv.writer(file).writerow(row)

    try:
        yield add
    finally:
        with contextlib.suppress(OSError):  # the last row was written, or its error is raised
            file.close()
