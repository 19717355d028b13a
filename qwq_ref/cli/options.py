"""Options that several commands share, and their meaning."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..config import TRAINED_POSITIONS, Config, Rope
from ..errors import UsageError
from ..forms import FILE, FORMS, KV_FORMS
from ..host.limits import cpu_quota, cpus
from .screen import tell
from .values import count, number, one_of, only, size, threads, tokens

DEFAULT_MODEL = "qwq-nano"
MODELS = (
    "a folder, a .safetensors or .gguf file, an ID or ID:TYPE of the Hugging Face hub, or a shipped model: "
    "qwq-nano (the default), qwq-nano-base"
)


def set_threads(threads: int) -> None:
    """Set the number of BLAS threads. BLAS reads it once, when NumPy is imported."""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def set_numpy_threads(options: argparse.Namespace) -> None:
    """Set the number of BLAS threads for the NumPy backend. BLAS knows no quota; the core has threads of its own."""
    if options.backend == "numpy" and (options.threads is not None or cpu_quota() is not None):
        set_threads(options.threads or cpus())


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=MODELS)


def add_download_arguments(parser: Any) -> None:
    """Add the options that `models.locate` reads to a parser or a group of options."""
    parser.add_argument("--offline", action="store_true", help="download nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="download a model of the hub without a question")


def given_once(options: argparse.Namespace, dest: str, default: str | None = None) -> str | None:
    """Return the value of an option that may also be given as a word without it. Raises UsageError for both."""
    given = [value for value in (getattr(options, dest), options.positional) if value is not None]
    if len(given) == 2:
        raise UsageError(None, dest, "is given twice, with the option and without")
    return given[0] if given else default


def refuse(options: argparse.Namespace, dests: Iterable[str], why: str) -> None:
    """Raise UsageError if one of these options was typed: it would have no effect."""
    for dest in dests:
        if dest in options.typed:
            raise UsageError(None, dest, why)


def require_core() -> None:
    """Raise CoreError if the C core is not built."""
    from .. import core

    if not core.available():
        raise core.CoreError(None, "core", "is not built: install a C compiler, then qwq_ref again")


def add_prompt_arguments(parser: argparse.ArgumentParser, what: str = "the prompt") -> None:
    """Add the options that `prompt.read_prompt` reads.

    what  the name of the text in the help
    """
    parser.add_argument(
        "positional",
        nargs="?",
        metavar="PROMPT",
        help=f"{what}; without PROMPT, -p or -f, or if PROMPT is -, it comes from standard input",
    )
    parser.add_argument("-p", "--prompt", help=f"{what}, as an option")
    parser.add_argument(
        "-f",
        "--file",
        help=f"read {what} from FILE, or from standard input if FILE is -; with PROMPT or -p, the text of the file "
        "comes second",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `engine_choices` reads."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--backend", **one_of(["core", "numpy"]), help="the C core or the spec in NumPy; default: core, if it is built"
    )
    group.add_argument(
        "--weights",
        **one_of((*FORMS, FILE)),
        help="weight form, or file, the types of a GGUF file without loss; default: the most exact form that fits",
    )
    group.add_argument(
        "--kv",
        **one_of(KV_FORMS),
        help="form of the KV cache; default: int8 with q8, q4 and file, fp32 with fp32 and bf16",
    )
    group.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction set, such as avx2; default: QWQ_ISA, or the fastest. Every instruction set gives the same "
        "results",
    )
    add_threads_argument(group)
    gpu = only(("0", "auto"), "everything runs on the CPU")
    parser.add_argument("-ngl", "--gpu-layers", "--n-gpu-layers", type=gpu, help=argparse.SUPPRESS)


def add_memory_arguments(parser: argparse.ArgumentParser, what: str | None = None) -> None:
    """Add the options that `loading.load_model` reads where work may share passes over the weights.

    what  what shares a pass; None: nothing does
    """
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--max-memory",
        type=size,
        metavar="SIZE",
        help="take at most so much memory, such as 8G. If the model needs more, its layers are read from the disk in "
        "each pass over them, with the same results",
    )
    if what is None:
        parser.set_defaults(parallel=None)
        return
    group.add_argument(
        "-np", "--parallel", type=count, metavar="N", help=f"{what} that share each pass over the layers"
    )


def engine_choices(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load` that choose how to compute. Raises UsageError for an unknown instruction set.

    Call `set_threads` first: this imports NumPy if an instruction set is given.
    """
    if options.isa is not None:
        check_isas([options.isa])
    return {name: getattr(options, name) for name in ("backend", "weights", "kv", "isa", "threads")}


def add_threads_argument(parser: Any, what: str = "threads") -> None:
    """Add `--threads` to a parser or a group of options."""
    parser.add_argument("-t", "--threads", type=threads, metavar="N", help=f"{what}; default: one for each usable CPU")


def check_isas(names: Sequence[str]) -> None:
    """Raise UsageError for an instruction set that this machine cannot run."""
    from .. import core

    have = core.isas() if core.available() else names
    for name in names:
        if name not in have:
            raise UsageError(None, "isa", f"{name[:40]} cannot run here; {', '.join(have)} can")


def add_rope_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `chosen_rope` reads."""
    group = parser.add_argument_group("long context")
    group.add_argument(
        "--rope-scaling",
        **one_of(["none", "yarn"]),
        help="yarn: extend the context with YaRN; default: as in the config",
    )
    group.add_argument(
        "--rope-scale",
        type=number(1, 1 << 16),
        metavar="X",
        help="YaRN: factor of the context; default: as in the config, or else 4",
    )
    group.add_argument(
        "--yarn-orig-ctx",
        type=tokens(1, 1 << 26),
        metavar="N",
        help="YaRN: context length in training, 32768 for QwQ-32B; default: as in the config, or else at most 32768",
    )


def check_rope_options(options: argparse.Namespace) -> None:
    """Raise UsageError for an option of RoPE without effect. Call it before a model is looked for."""
    if options.rope_scaling != "yarn":
        refuse(options, ("rope_scale", "yarn_orig_ctx"), "needs --rope-scaling yarn")


def chosen_rope(options: argparse.Namespace, config: Config) -> Rope | None:
    """Return the position embedding that the options ask for, or None for the config's own.

    The options replace single fields of the config's own YaRN. The context length in training is assumed where
    neither tells it, and a line on stderr says so. Call `check_rope_options` first.
    """
    if options.rope_scaling != "yarn":
        return None if options.rope_scaling is None else Rope(theta=config.rope.theta)
    own = config.rope
    original = options.yarn_orig_ctx or own.original_max_position_embeddings or assumed_length(config)
    if options.yarn_orig_ctx is None and not own.original_max_position_embeddings:
        problem = "is assumed, because config.json does not tell the context length in training"
        tell(f"qwq: --yarn-orig-ctx {original} {problem}")
    factor = options.rope_scale or (own.factor if own.type == "yarn" else 4.0)
    return dataclasses.replace(own, type="yarn", factor=factor, original_max_position_embeddings=original)


def assumed_length(config: Config) -> int:
    """Return the context length in training of a model whose config does not tell it."""
    return min(config.max_position_embeddings, TRAINED_POSITIONS)
