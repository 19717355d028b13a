"""`qwq convert`: write the packed weights of a model, so that it loads faster."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..errors import UsageError
from ..forms import FILE, FORMS
from .ending import kept
from .options import (
    add_download_arguments,
    add_model_argument,
    add_threads_argument,
    given_once,
    require_core,
    set_threads,
)
from .progress import progress_bar
from .sampling import tell_surprises
from .values import one_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    what = "a new folder, or one that holds other weight forms of this model"
    parser.add_argument("-o", "--out", dest="folder", metavar="FOLDER", help=what)
    parser.add_argument("positional", nargs="?", metavar="FOLDER", help="the folder, without -o")
    kinds = "weight form; default: q4. The form file keeps the types of a GGUF file, without loss"
    parser.add_argument("--weights", **one_of((*FORMS, FILE)), default="q4", help=kinds)
    add_threads_argument(parser)
    add_download_arguments(parser)


def run(options: argparse.Namespace) -> int:
    set_threads(1)  # BLAS is not used
    from ..engine.convert import check_download, check_folder, check_small, convert
    from ..footprint import human, parameters
    from ..formats import read_config, read_generation_config
    from .models import locate

    folder = given_once(options, "folder")
    if folder is None:
        raise UsageError(None, "folder", "is missing: name the new folder with -o")
    require_core()
    target = Path(folder)
    check_folder(target)
    path = locate(
        options,
        lambda download: check_download(download, target, options.weights),
        lambda small: check_small(small, target),
    )
    config = read_config(path)
    tell_surprises(read_generation_config(path))
    with kept(lambda: "nothing was written"), progress_bar("packing", parameters(config), "weights") as progress:
        file = convert(
            path, folder, options.weights, threads=options.threads, offline=options.offline, progress=progress
        )
    print(file)
    print(f"{human(file.stat().st_size)}; run it with: qwq generate -m {shlex.quote(folder)}", file=sys.stderr)
    return 0
