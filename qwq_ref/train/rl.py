"""A run of reinforcement learning in a folder: its problems, its reward, its log. It resumes to the same bits.

An iteration depends on the seed, its number and the weights alone. The state is replaced whole after an iteration, so
an interruption loses no more than the iteration that it stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import NonFiniteError, UsageError
from ..files import StrPath, writes
from ..formats.names import CONFIG
from ..formats.write import write_atomically, write_safetensors
from ..spec.ops import Array
from ..tasks import CATEGORIES, FURTHER, HARDER
from ..text import load_tokenizer
from .corpus import RL_SHARES, Formatter
from .environment import Exercises
from .folder import LOG, RECIPE, STATE, alone, check_recipe, log, read_state
from .nano import copied_model
from .optim import initial_state
from .ppo import Settings, initial_value_head, iterate
from .reward import PARTS, Reward

MEASURES = ("length", "kl", "entropy", "sampler_gap", "loss", "value_loss", "clipped", "grad_norm")
COLUMNS = ("iteration", "reward", *PARTS, *MEASURES, "rate", "tokens", "sample_seconds", "seconds")  # of the log


@dataclass(frozen=True)
class Recipe:
    """All parameters of a run but its seed. `shares` says how often each category is asked, by its name."""

    settings: Settings = field(default_factory=Settings)
    reward: Reward = field(default_factory=Reward)
    shares: Mapping[str, float] = field(default_factory=lambda: dict(RL_SHARES))
    max_tokens: int = 160


def check(recipe: Recipe) -> None:
    """Raise UsageError for a recipe that cannot be run."""
    how = recipe.settings
    for name in recipe.shares:
        if name not in (*CATEGORIES, *HARDER, *FURTHER):
            raise UsageError(None, "categories", f"there is no {name!r}")
    if not sum(recipe.shares.values()) > 0 or min(recipe.shares.values()) < 0:
        raise UsageError(None, "categories", "the shares must be positive numbers")
    if how.advantages == "group" and how.group < 2:
        raise UsageError(None, "group", "must be at least 2: the advantages are differences within a group")
    if how.prompts % how.group:
        raise UsageError(None, "group", f"{how.group} does not divide the {how.prompts} answers of an iteration")


def train(
    folder: StrPath,
    base: StrPath,
    recipe: Recipe,
    *,
    seed: int = 0,
    workers: int = 1,
    seconds_between_saves: float = 60.0,
    progress: Callable[[int, int, Mapping[str, float]], object] | None = None,
) -> None:
    """Run a recipe on the model `base` in `folder`, or resume it there.

    progress  called after each iteration with the iterations done, all of them, and the values of the log

    At the end, the folder holds the model in bfloat16. Saves the state and passes a KeyboardInterrupt on. Raises
    UsageError for a folder of another run, CheckpointError for a damaged one, and FileError where the system refuses to
    write. Raises NonFiniteError for an iteration after which the weights are not finite: those before it are saved.
    """
    check(recipe)
    Config.from_file(Path(base) / CONFIG)  # a wrong name leaves no folder
    folder = Path(folder)
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        _train(folder, Path(base), recipe, seed, workers, seconds_between_saves, progress)


def _train(
    folder: Path,
    base: Path,
    recipe: Recipe,
    seed: int,
    workers: int,
    seconds_between_saves: float,
    progress: Callable[[int, int, Mapping[str, float]], object] | None,
) -> None:
    check_recipe(folder / RECIPE, {"stage": "rl", "optimiser": "muon+adamw", "seed": seed, **asdict(recipe)})
    how, total = recipe.settings, recipe.settings.iterations
    config, weights = copied_model(base, folder)
    reference = {name: w.copy() for name, w in weights.items()} | initial_value_head(config)
    weights |= initial_value_head(config)
    whole = {**weights, **initial_state(weights), "iteration": np.zeros((), np.int64)}
    saved = folder / STATE
    if saved.exists():
        whole = read_state(saved, whole)
    world = Exercises(
        Formatter(load_tokenizer(folder, config.V)), config.V, recipe.shares, recipe.reward, recipe.max_tokens
    )
    done = kept = int(whole["iteration"])

    def save() -> None:
        arrays: dict[str, Any] = whole
        write_atomically(saved, lambda file: np.savez(file, **arrays))

    last_save = time.monotonic()
    with log(folder / LOG, done, COLUMNS) as add:
        try:
            for number in range(done, total):
                rate = 1 - number / total
                learns = how.advantages == "group" or number >= how.warmup
                next_ = {name: array.copy() for name, array in whole.items()}
                ours: dict[str, Array] = {name: next_[name] for name in weights}
                state: dict[str, Array] = {name: next_[name] for name in next_ if name not in weights}
                rng = np.random.default_rng([seed, number])
                measured = iterate(
                    config, ours, reference, state, world, how, rng, rate=rate, learns=learns, workers=workers
                )
                if not (math.isfinite(measured["loss"]) and all(np.isfinite(w).all() for w in ours.values())):
                    problem = "the loss or a weight is not finite: the weights stay as before this iteration"
                    raise NonFiniteError(folder, f"iteration {number + 1}", problem)
                measured |= {"iteration": number + 1, "rate": rate * how.rate if learns else 0.0}
                next_ |= ours | state | {"iteration": np.array(number + 1)}
                add([_written(measured[name]) for name in COLUMNS])
                whole = next_
                if progress is not None:
                    progress(number + 1, total, measured)
                if time.monotonic() - last_save > seconds_between_saves:
                    save()
                    kept, last_save = number + 1, time.monotonic()
        finally:
            if int(whole["iteration"]) > kept:
                save()
    write_safetensors(folder / "model.safetensors", {name: whole[name] for name in config.tensors()}, "BF16")


def _written(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
