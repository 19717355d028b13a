"""The recipe: two stages of training. A run depends on its seed alone, and an interrupted run resumes to the same bits.

    base        a new model, on documents with planted faults
    cold-start  from the base model, on clean reasoning alone

The folder of a run holds `state.npz` (weights, optimiser, step; replaced whole) and `log.csv` (a row for each step). At
the end it also holds the checkpoint, in the Hugging Face layout and in bfloat16.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import CheckpointError, NonFiniteError, UsageError
from ..files import StrPath, read_file, read_json, writes
from ..formats.names import CONFIG
from ..formats.write import write_atomically, write_json, write_safetensors
from ..text import load_tokenizer
from . import corpus
from .corpus import Formatter, Mixture
from .model import Checkpointing, Gradients, loss_and_grads
from .nano import copied_model, new_model
from .optim import clip_by_global_norm, cosine_schedule, descend, initial_state

STATE = "state.npz"  # in the folder of a run: weights, optimiser and step


@dataclass(frozen=True)
class Stage:
    """The documents and the schedule of one stage.

    mixture       shares of faulty documents
    steps         optimiser steps, each of `rows` x `length` tokens
    rate          peak learning rate, after a linear `warmup`; half a cosine leads to `floor` times the peak
    hidden        the rate of the matrices inside blocks, over that of the other weights
    decay         weight decay
    max_norm      largest norm of all gradients together
    """

    mixture: Mixture
    steps: int
    rate: float
    rows: int = 17
    length: int = 192
    warmup: int = 100
    floor: float = 0.05
    hidden: float = 2.0
    decay: float = 0.1
    max_norm: float = 1.0


STAGES = {
    "base": Stage(Mixture(loops=0.15, switches=0.15, learn_prompts=True), steps=3000, rate=2.5e-3),
    "cold-start": Stage(Mixture(), steps=2600, rate=1.2e-3, floor=0.02),
}


def train(
    name: str,
    folder: StrPath,
    *,
    base: StrPath | None = None,
    template: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    workers: int = 1,
    checkpointing: Checkpointing = "none",
    seconds_between_saves: float = 60.0,
    progress: Callable[[int, int, float], object] | None = None,
) -> None:
    """Run a stage of `STAGES` in `folder`, or resume it there.

    base       the folder of the model to start from; None for a new model
    template   chat template to store beside a new model
    workers    threads that share a batch
    progress   called after each step with the steps done, all steps, and the loss

    Saves the state and passes a KeyboardInterrupt on. Raises UsageError for a folder of another run, CheckpointError
    for a damaged one, and FileError where the system refuses to write. Raises NonFiniteError for a step whose loss or
    gradient is not finite: the weights before it are saved.
    """
    stage = STAGES[name]
    total = steps or stage.steps
    folder = Path(folder)
    if base is not None:
        Config.from_file(Path(base) / CONFIG)  # a wrong name leaves no folder
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _train(
            name, stage, total, folder, base, template, seed, workers, checkpointing, seconds_between_saves, progress
        )


def saved_step(folder: StrPath) -> int:
    """Return the number of steps that the run in a folder has done and saved; 0 without a run."""
    saved = Path(folder) / STATE
    return int(_read_state(saved, {"step": np.array(0)})["step"]) if saved.exists() else 0


def _read_state(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
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
def _alone(folder: Path) -> Iterator[None]:
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


def _train(
    name: str,
    stage: Stage,
    total: int,
    folder: Path,
    base: StrPath | None,
    template: str | None,
    seed: int,
    workers: int,
    checkpointing: Checkpointing,
    seconds_between_saves: float,
    progress: Callable[[int, int, float], object] | None,
) -> None:
    recipe = {"stage": name, "optimiser": "muon+adamw", "seed": seed, **asdict(stage)} | {"steps": total}
    _check_recipe(folder / "recipe.json", recipe)
    if base is None:
        config, weights = new_model(folder, seed, template)
    else:
        config, weights = copied_model(Path(base), folder)
    state = initial_state(weights)
    saved = folder / STATE
    if saved.exists():
        for key, array in _read_state(saved, weights | state).items():
            (weights if key in weights else state)[key] = array
    formatter = Formatter(load_tokenizer(folder, config.V))
    done = int(state["step"])

    def save() -> None:
        arrays: dict[str, Any] = {**weights, **state}
        write_atomically(saved, lambda file: np.savez(file, **arrays))

    torn = []  # not empty while a step has updated a part of the weights

    def update(grads: Gradients, rate: float) -> None:
        torn.append(True)
        descend(weights, grads, state, rate, stage.hidden * rate, stage.decay)
        torn.clear()

    last_save = time.monotonic()
    with _log(folder / "log.csv", done) as log:
        try:
            # Ctrl-C interrupts the main thread alone: an update in another thread is whole.
            with ThreadPoolExecutor(1, "qwq-update") as updates:
                for step in range(done, total):
                    started = time.perf_counter()
                    rng = np.random.default_rng([seed, list(STAGES).index(name), step])
                    batch = corpus.batch(formatter, stage.mixture, rng, stage.rows, stage.length)
                    loss, grads, _ = loss_and_grads(config, weights, batch, workers, checkpointing)
                    norm = clip_by_global_norm(grads, stage.max_norm)
                    if not (math.isfinite(loss) and math.isfinite(norm)):
                        found = f"the loss is {loss:g}, the gradient's norm {norm:g}"
                        problem = f"{found}: the weights stay as before this step"
                        raise NonFiniteError(folder, f"step {step + 1}", problem)
                    rate = cosine_schedule(step, total, stage.rate, stage.warmup, stage.floor * stage.rate)
                    updates.submit(update, grads, rate).result()
                    tokens = int(np.count_nonzero(batch.segments)) if batch.segments is not None else batch.ids.size
                    seconds = time.perf_counter() - started
                    log([step + 1, f"{loss:.6f}", f"{norm:.4f}", f"{rate:.3e}", tokens, f"{seconds:.3f}"])
                    if progress is not None:
                        progress(step + 1, total, loss)
                    if time.monotonic() - last_save > seconds_between_saves:
                        save()
                        last_save = time.monotonic()
        finally:
            if int(state["step"]) > done and not torn:
                save()
    write_safetensors(folder / "model.safetensors", weights, "BF16")


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
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


@contextlib.contextmanager
def _log(path: Path, done: int) -> Iterator[Callable[[list[Any]], None]]:
    """Yield a function that adds a row to the log. Rows of steps that are not in the saved state are removed first."""
    lines = read_file(path, 1 << 30, CheckpointError).decode("utf-8", "replace").splitlines() if path.exists() else []
    text = "\n".join(["step,loss,grad_norm,rate,tokens,seconds", *lines[1 : done + 1]]) + "\n"
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
