"""The parts that `qwq serve` and `qwq batch` share: the name of the model for clients, lenience, and the extra."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import PurePath

from ..errors import UsageError

ROWS = 64  # of logits at a time, where the probabilities of a prompt are asked for


def add_served_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--alias` and `--lenient`."""
    parser.add_argument("--alias", metavar="NAME", help="the model's name for clients; default: the end of MODEL")
    parser.add_argument(
        "--lenient",
        action="store_true",
        help="ignore unknown fields of requests, and answer to any name of a model; default: refuse both",
    )


def served_name(options: argparse.Namespace) -> str:
    """Return the model's name for clients: the end of its name or path without the suffix, if there is no alias."""
    name: str = options.alias or PurePath(options.model.rstrip("/")).name or options.model
    return name if options.alias else name.removesuffix(".gguf").removesuffix(".safetensors")


def require_served(command: str, *packages: str) -> None:
    """Raise UsageError without the packages of the extra that a command needs."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(None, command, f"needs {missing[0]}: pip install 'qwq_ref[serve]'")
