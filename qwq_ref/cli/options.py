"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..config import Config, Rope
from ..errors import UsageError
from ..forms import FORMS, KV_FORMS

DEFAULT_MODEL = "qwq-nano"
MODELS = "a folder, a .safetensors file, a hub id, or a shipped model: qwq-nano (the default), qwq-nano-base"


def set_threads(threads: int) -> None:
    """Give BLAS so many threads. It reads this once, when NumPy is first imported."""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=MODELS)


def require_core() -> None:
    """Raise CoreError, for a command that is nothing without it."""
    from .. import core

    if not core.available():
        raise core.CoreError(None, "core", "is not built: install a C compiler, then qwq_ref again")


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What `read_prompt` reads."""
    parser.add_argument("positional", nargs="?", metavar="PROMPT", help="the prompt; else -p, -f, or standard input")
    parser.add_argument("-p", "--prompt", help="the prompt")
    parser.add_argument("-f", "--file", help="read the prompt from a file (after PROMPT, if both are given)")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `engine_choices` takes."""
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", choices=["core", "numpy"], help="default: the C core where it is built")
    group.add_argument("--weights", choices=[*FORMS], help="default: the most exact that fits")
    group.add_argument("--kv", choices=KV_FORMS, help="of the cache; default: int8 with q8 and q4")
    group.add_argument("--isa", choices=["scalar", "avx2", "avx512"], help="default: the best; no result depends on it")
    group.add_argument("-t", "--threads", type=int, metavar="N", help="threads; default: one per core")


def engine_choices(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load` that say how to compute. NumPy's own threads would only wait for the core's."""
    if options.threads is not None and options.threads < 1:
        raise UsageError(None, "threads", f"must be at least 1, got {options.threads}")
    if options.backend == "numpy" and options.threads is not None:
        set_threads(options.threads)
    return {name: getattr(options, name) for name in ("backend", "weights", "kv", "isa", "threads")}


def add_rope_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("long context")
    group.add_argument("--rope-scaling", choices=["none", "yarn"], help="position scaling; default: the config's own")
    group.add_argument("--rope-scale", type=float, default=4.0, metavar="X", help="YaRN's factor (default 4)")
    group.add_argument(
        "--yarn-orig-ctx", type=int, metavar="N", help="length trained on, 32768 for QwQ-32B; default: the config's"
    )


def chosen_rope(options: argparse.Namespace, config: Config) -> Rope | None:
    """The position embedding that the options ask for; None is the config's own. Raises ConfigError."""
    if options.rope_scaling is None:
        return None
    scaling: dict[str, Any] = {"rope_type": "default"}
    if options.rope_scaling == "yarn":
        original = options.yarn_orig_ctx or config.rope.original_max_position_embeddings or None
        scaling = {"rope_type": "yarn", "factor": options.rope_scale, "original_max_position_embeddings": original}
    return config.with_rope({"rope_theta": config.rope.theta, **scaling}, "command line").rope


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt: an argument, a file, or what is piped in; of two, first the argument. Raises UsageError."""
    parts = [text for text in (options.prompt, options.positional) if text is not None]
    if len(parts) == 2:
        raise UsageError(None, "prompt", "is given twice, with -p and without")
    if options.file is not None:
        try:
            parts.append(Path(options.file).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "is not UTF-8"
            raise UsageError(options.file, None, f"cannot be read ({reason})") from None
    if not parts:
        if sys.stdin.isatty():
            raise UsageError(None, "prompt", "is missing: give it as an argument, with -f, or on standard input")
        try:
            parts.append(sys.stdin.buffer.read().decode("utf-8").removesuffix("\n"))
        except UnicodeDecodeError:
            raise UsageError("standard input", None, "is not UTF-8") from None
    prompt = "\n\n".join(parts)
    if not prompt.strip():
        raise UsageError(None, "prompt", "is empty")
    return prompt


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str, at_least: int = 0) -> Iterator[Callable[[float], object]]:
    """A progress bar on stderr, if that is a terminal and there is enough to wait for."""
    if not sys.stderr.isatty() or total < at_least:
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False, file=sys.stderr) as bar:

        def update(count: float) -> None:
            bar.update(count)
            if bar.n >= total * (1 - 1e-9):  # gone before anything else is written
                bar.close()

        yield update
