"""The recipe's stages of supervised training.

A run depends on its seed alone, and an interrupted run resumes to the same bits.

    base        a new model, on documents with planted faults
    cold-start  from the base model, on clean reasoning alone
    control     from the cold start, on as many problems of the same kinds as `rl` learns from, with their solutions

The folder of a run holds `state.npz` (weights, optimiser, step; replaced whole) and `log.csv` (a row for each step). At
the end it also holds the checkpoint, in the Hugging Face layout and in bfloat16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import NonFiniteError
from ..files import StrPath, writes
from ..formats.names import CONFIG
from ..formats.write import write_atomically, write_safetensors
from ..text import load_tokenizer
from . import corpus
from .corpus import RL_SHARES, Formatter, Mixture
from .folder import LOG, RECIPE, STATE, alone, check_recipe, log, read_state
from .model import Checkpointing, Gradients, loss_and_grads
from .nano import copied_model, new_model
from .optim import clip_by_global_norm, cosine_schedule, descend, initial_state

COLUMNS = ("step", "loss", "grad_norm", "rate", "tokens", "seconds")  # of the log


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
    "control": Stage(Mixture(shares=RL_SHARES), steps=1200, rate=4e-4, floor=0.02),
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
    with alone(folder):
        _train(
            name, stage, total, folder, base, template, seed, workers, checkpointing, seconds_between_saves, progress
        )


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
    check_recipe(folder / RECIPE, recipe)
    if base is None:
        config, weights = new_model(folder, seed, template)
    else:
        config, weights = copied_model(Path(base), folder)
    state = initial_state(weights)
    saved = folder / STATE
    if saved.exists():
        for key, array in read_state(saved, weights | state).items():
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
    with log(folder / LOG, done, COLUMNS) as add:
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
                    add([step + 1, f"{loss:.6f}", f"{norm:.4f}", f"{rate:.3e}", tokens, f"{seconds:.3f}"])
                    if progress is not None:
                        progress(step + 1, total, loss)
                    if time.monotonic() - last_save > seconds_between_saves:
                        save()
                        last_save = time.monotonic()
        finally:
            if int(state["step"]) > done and not torn:
                save()
    write_safetensors(folder / "model.safetensors", weights, "BF16")
