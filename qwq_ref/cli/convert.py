"""`qwq convert`: write the packed weights of a model, so that it loads faster, or a checkpoint of floats."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..forms import FILE, FORMS
from .ending import kept
from .options import (
    add_download_arguments,
    add_model_argument,
    add_threads_argument,
    given_once,
    refuse,
    require_core,
    set_threads,
)
from .progress import Bar, progress_bar
from .sampling import tell_surprises
from .values import one_of

_PACKED, _HF = "packed", "hf"
_DTYPES = ("bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    what = "a new folder, or one that holds other weight forms of this model"
    parser.add_argument("-o", "--out", dest="folder", metavar="FOLDER", help=what)
    parser.add_argument("positional", nargs="?", metavar="FOLDER", help="the folder, without -o")
    kinds = "weight form; default: q4. The form file keeps the types of a quantised file, without loss"
    parser.add_argument("--weights", **one_of((*FORMS, FILE)), default="q4", help=kinds)
    targets = "packed weights, or a checkpoint of floats in safetensors that transformers loads; default: packed"
    parser.add_argument("--to", **one_of((_PACKED, _HF)), default=_PACKED, help=targets)
    dtypes = "with --to hf: bfloat16, or float32, which keeps every bit of all formats; default: bfloat16"
    parser.add_argument("--dtype", **one_of(_DTYPES), default=_DTYPES[0], help=dtypes)
    compare = "compare all files of FOLDER with its manifest, and convert nothing"
    parser.add_argument("--check", action="store_true", help=compare)
    add_threads_argument(parser)
    add_download_arguments(parser)


def run(options: argparse.Namespace) -> int:
    folder = given_once(options, "folder")
    if folder is None:
        raise UsageError(None, "folder", "is missing: name the new folder with -o")
    if options.check:
        refuse(options, ("model", "weights", "to", "dtype", "offline", "yes"), "has no effect with --check")
        return _check(Path(folder))
    set_threads(1)  # BLAS is not used
    if options.to == _PACKED:
        refuse(options, ("dtype",), "is for --to hf; packed weights have --weights")
        _convert(options, Path(folder))
    else:
        refuse(options, ("weights",), "is for packed weights; --to hf has --dtype")
        _export(options, Path(folder))
    return 0


def _convert(options: argparse.Namespace, folder: Path) -> None:
    from ..engine.convert import check_download, check_folder, check_small, convert
    from ..footprint import human
    from .models import locate

    require_core()
    check_folder(folder)
    path = locate(
        options,
        lambda download: check_download(download, folder, options.weights),
        lambda small: check_small(small, folder),
    )
    with _reported(path, folder, "packing") as report:
        file = convert(path, folder, options.weights, threads=options.threads, offline=options.offline, **report)
    print(file)
    print(f"{human(file.stat().st_size)}; run it with: qwq generate -m {shlex.quote(str(folder))}", file=sys.stderr)


def _export(options: argparse.Namespace, folder: Path) -> None:
    from ..engine.export import check_download, check_folder, check_small, export
    from .models import locate

    require_core()
    check_folder(folder)
    path = locate(options, lambda download: check_download(download, folder, options.dtype), check_small)
    with _reported(path, folder, "writing") as report:
        rounded = export(path, folder, options.dtype, threads=options.threads, offline=options.offline, **report)
    print(folder)
    if rounded:
        some = "1 tensor was" if rounded == 1 else f"{rounded} tensors were"
        print(f"qwq: {some} rounded to {options.dtype}; --dtype float32 keeps every bit", file=sys.stderr)


@contextlib.contextmanager
def _reported(path: Path, folder: Path, word: str) -> Iterator[dict[str, Callable[..., Any]]]:
    """Show bars while the block runs: yield the arguments of `convert` that are told of the work."""
    from ..footprint import parameters
    from ..formats import read_config, read_generation_config
    from ..formats.unfinished import command_of

    total = parameters(read_config(path))
    tell_surprises(read_generation_config(path))

    def left() -> str:
        return "the same command goes on from here" if command_of(folder) else "nothing was written"

    with kept(left), contextlib.ExitStack() as bars:
        progress: list[Bar] = []

        def bar() -> Bar:
            if not progress:
                progress.append(bars.enter_context(progress_bar(word, total, "weights")))
            return progress[0]

        def stage(words: str, size: int) -> Bar:
            bars.close()
            return bars.enter_context(progress_bar(words, size, "B"))

        def resumed(count: float) -> None:
            bar().begin(bar().done + count)

        yield {"progress": lambda count: bar()(count), "resumed": resumed, "stage": stage}


def _check(folder: Path) -> int:
    from ..formats.manifest import check, total_bytes

    faults = 0
    with progress_bar("checking", total_bytes(folder), "B") as count:
        found = list(check(folder, count))
    for name, fault in found:
        print(f"{folder / name}: {fault or 'is complete'}")
        faults += fault is not None
    return 1 if faults else 0
