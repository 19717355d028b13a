"""The recipe: two stages, each a function of its seed, interrupted and resumed to the same bits.

    base        a new model, on documents with planted faults
    cold-start  from the base model, on clean reasoning alone

A run keeps in its folder: `state.npz` (weights, optimiser, step; replaced whole), `log.csv` (a row per step), and at
the end the checkpoint itself in the Hugging Face layout, in bfloat16.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import UsageError
from ..files import StrPath
from ..formats import Checkpoint
from ..formats.write import write_atomically, write_json, write_safetensors
from ..spec.ops import Array
from ..text import load_tokenizer
from . import corpus
from .corpus import Formatter, Mixture
from .model import Checkpointing, loss_and_grads
from .optim import (
    adamw,
    clip_by_global_norm,
    cosine_schedule,
    initial_state,
)
from .tokenizer import train_tokenizer

NANO: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "initializer_range": 0.06,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Stage:
    """What to train on, and how long. Rates are peaks; the schedule is a warm-up and half a cosine."""

    mixture: Mixture
    steps: int
    rate: float
    rows: int = 40
    length: int = 160
    warmup: int = 100
    floor: float = 0.05
    decay: float = 0.1
    max_norm: float = 1.0


STAGES = {
    "base": Stage(Mixture(loops=0.15, switches=0.15, learn_prompts=True), steps=1600, rate=3e-3),
    "cold-start": Stage(Mixture(), steps=900, rate=2e-3, warmup=50, floor=0.02),
}


def initial_weights(config: Config, rng: np.random.Generator, width: float) -> dict[str, Array]:
    """Hugging Face's initialisation: normal matrices of standard deviation `width`, biases 0, norms 1; the two
    projections that write to the stream are smaller, since 2 L of them add up (GPT-2).
    """
    weights: dict[str, Array] = {}
    for name, shape in config.tensors().items():
        if len(shape) == 1:
            weights[name] = np.full(shape, name.endswith("norm.weight"), np.float32)
            continue
        scale = width / math.sqrt(2 * config.L) if name.endswith(("o_proj.weight", "down_proj.weight")) else width
        weights[name] = rng.normal(0, scale, shape).astype(np.float32)
    return weights


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
    """Run a stage of `STAGES` into `folder`, from where an earlier run left it; `base` is the model it starts from.

    template   chat template to store beside a new model
    progress   called after each step with (steps done, steps in all, loss)

    KeyboardInterrupt is let through, with the state saved. Raises UsageError for a folder of another run.
    """
    stage = STAGES[name]
    total = steps or stage.steps
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _train(
            name, stage, total, folder, base, template, seed, workers, checkpointing, seconds_between_saves, progress
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time in a folder: two would overwrite each other's state."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
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
    recipe = {"stage": name, "seed": seed, "steps": total, **asdict(stage)} | {"steps": total}
    _check_recipe(folder / "recipe.json", recipe)
    if base is None:
        config, weights = _new_model(folder, seed, template)
    else:
        config, weights = _copied_model(Path(base), folder)
    state = initial_state(weights)
    saved = folder / "state.npz"
    if saved.exists():
        with np.load(saved, allow_pickle=False) as arrays:
            for key, array in arrays.items():
                (weights if key in weights else state)[key] = array
    formatter = Formatter(load_tokenizer(folder, config.V))
    done = int(state["step"])
    _cut_log(folder / "log.csv", done)

    def save() -> None:
        arrays: dict[str, Any] = {**weights, **state}
        write_atomically(saved, lambda file: np.savez(file, **arrays))

    last_save = time.monotonic()
    with open(folder / "log.csv", "a", newline="") as log:
        rows = csv.writer(log)
        try:
            for step in range(done, total):
                started = time.perf_counter()
                rng = np.random.default_rng([seed, list(STAGES).index(name), step])
                batch = corpus.batch(formatter, stage.mixture, rng, stage.rows, stage.length)
                loss, grads, _ = loss_and_grads(config, weights, batch, workers, checkpointing)
                norm = clip_by_global_norm(grads, stage.max_norm)
                rate = cosine_schedule(step, total, stage.rate, stage.warmup, stage.floor * stage.rate)
                adamw(weights, grads, state, rate, decay=stage.decay)
                tokens = int(np.count_nonzero(batch.segments)) if batch.segments is not None else batch.ids.size
                seconds = time.perf_counter() - started
                rows.writerow([step + 1, f"{loss:.6f}", f"{norm:.4f}", f"{rate:.3e}", tokens, f"{seconds:.3f}"])
                if progress is not None:
                    progress(step + 1, total, loss)
                if time.monotonic() - last_save > seconds_between_saves:
                    log.flush()
                    save()
                    last_save = time.monotonic()
        finally:
            log.flush()
            if int(state["step"]) > done:
                save()
    write_safetensors(folder / "model.safetensors", weights, "BF16")


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """A folder holds one run: going on with other parameters would give neither."""
    if path.exists():
        if json.loads(path.read_text("utf-8")) != json.loads(json.dumps(recipe)):
            raise UsageError(path, None, "is of a run with other parameters; choose another folder")
    else:
        write_json(path, recipe)


def _cut_log(path: Path, done: int) -> None:
    """Keep the rows of the steps that the saved state has seen, and the header."""
    lines = path.read_text().splitlines() if path.exists() else []
    header = "step,loss,grad_norm,rate,tokens,seconds"
    path.write_text("\n".join([header, *lines[1 : done + 1]]) + "\n")


def _new_model(folder: Path, seed: int, template: str | None) -> tuple[Config, dict[str, Array]]:
    config = Config.from_dict(NANO)
    if not (folder / "tokenizer.json").exists():
        write_json(folder / "tokenizer.json", train_tokenizer(corpus.texts(seed, 6000), config.V))
    added = load_tokenizer(folder, config.V).added
    end, text_end = added["<|im_end|>"], added["<|endoftext|>"]
    write_json(folder / "config.json", {**NANO, "bos_token_id": text_end, "eos_token_id": end})
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": text_end,
            "do_sample": True,
            "eos_token_id": [end, text_end],
            "pad_token_id": text_end,
            "temperature": 0.6,
            "top_k": 40,
            "top_p": 0.95,
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": NANO["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    if template is not None:
        write_atomically(folder / "chat_template.jinja", lambda file: file.write(template.encode("utf-8")))
    return config, initial_weights(config, np.random.default_rng([seed]), NANO["initializer_range"])


def _copied_model(base: Path, folder: Path) -> tuple[Config, dict[str, Array]]:
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "recipe.json" and not (folder / path.name).exists():
            content = path.read_bytes()
            write_atomically(folder / path.name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    with Checkpoint.open(base) as checkpoint:
        return checkpoint.config, {name: checkpoint[name] for name in checkpoint}
