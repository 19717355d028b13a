"""`qwq convert`: a model's weights packed once, so that loading them is reading them."""

from __future__ import annotations

import argparse
import sys

from ..errors import UsageError
from ..forms import FORMS
from .options import (
    add_model_argument,
    progress_bar,
    require_core,
    set_threads,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where to write: a new folder, or one that holds other forms of this model")
    add_model_argument(parser)
    parser.add_argument("--weights", choices=[*FORMS], default="q4", help="default: q4")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads; default: one per core")
    parser.add_argument("--offline", action="store_true", help="download nothing")


def run(options: argparse.Namespace) -> int:
    if options.threads is not None and options.threads < 1:
        raise UsageError(None, "threads", f"must be at least 1, got {options.threads}")
    set_threads(1)  # BLAS has no part in this
    from ..engine.convert import convert
    from ..footprint import human, parameters
    from ..formats import resolve
    from ..formats.checkpoint import read_config

    require_core()
    path = resolve(options.model, offline=options.offline)
    config = read_config(path)
    with progress_bar("packing", parameters(config), "weight") as progress:
        file = convert(
            path, options.folder, options.weights, threads=options.threads, offline=options.offline, progress=progress
        )
    print(file)
    print(f"{human(file.stat().st_size)}; ask it with: qwq generate -m {options.folder}", file=sys.stderr)
    return 0
