"""Find the model that a user names. Before a download, list its files, compare with memory, and ask."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ..config import Config
from ..engine.fit import available_forms
from ..errors import CheckpointError, UsageError
from ..footprint import human
from ..formats import Download, GGUFSource, Inspect, open_source, recognise, resolve
from ..formats.gguf.names import shard_of
from ..formats.names import CONFIG, INDEX, SHARD
from ..formats.packed import PackedFile
from ..formats.packed_folder import packed_files
from ..forms import FileForm
from ..tables import Table
from .progress import progress_bar
from .screen import screen

_LARGE = 4 << 30  # bytes of a download, to which Enter says no, as to an unknown size

# From a download to the line and the bytes of the memory that it will need, if any. Raises a QwqError.
Judge = Callable[[Download], tuple[str, int] | None]


@dataclass(frozen=True)
class Found:
    """A model's config, and the weights beside it.

    path     the checkpoint's or packed weights' folder or file, or the config.json
    dtypes   dtype -> bytes of a checkpoint's tensors; empty where there is no checkpoint
    packed   weight form -> bytes of its packed tensors; empty where there are none
    kept     the form of a quantised file
    partial  whether the hub may have weights that are not in the cache
    """

    path: Path
    config: Config
    dtypes: Mapping[str, int] = field(default_factory=dict)
    packed: Mapping[str, int] = field(default_factory=dict)
    kept: FileForm | None = None
    partial: bool = False


def find(model: str, offline: bool) -> Found:
    """Find a model by a config.json, or by a name that `formats.resolve` takes, and read headers only.

    A config.json stands for itself, or for the folder of packed weights that it is in: this model has no other forms.
    Of a model of the hub that is not in the cache, the config alone is fetched, or the header of a GGUF file. Raises
    CheckpointError, ConfigError.
    """
    if model.endswith(".json"):
        file = Path(model)
        if file.name != CONFIG or not file.is_file() or not packed_files(file.parent):
            return Found(file, Config.from_file(model))
        model = os.fspath(file.parent)
    path = resolve(model, offline=offline, weights=False)
    try:
        path = resolve(model, offline=True)
    except CheckpointError:  # of the hub, and only a part of it is in the cache
        if path.is_dir():
            return Found(path / CONFIG, Config.from_file(path / CONFIG), partial=True)
        with GGUFSource.open(path) as header:
            return Found(path, header.config, header.dtypes, kept=header.kept.form, partial=True)
    if path.is_dir() and not os.path.lexists(path / CONFIG):
        recognise.require(path, model)
    if path.is_dir() and not (path / INDEX).exists() and not any(path.glob("*.safetensors")):
        return Found(path / CONFIG, Config.from_file(path / CONFIG))
    with open_source(path) as source:
        files = packed_files(path)
        forms = available_forms(source.dtypes, source.forms, source.config.swiglu_beta)
        packed = {form: _bytes(files[form]) for form in forms if form in files}
        kept = None if source.kept is None else source.kept.form
        return Found(path, source.config, source.dtypes, packed, kept)


def _bytes(file: Path) -> int:
    """Return the bytes of the tensors in a packed file. Raises CheckpointError."""
    with PackedFile(file) as packed:
        return sum(stored.nbytes for stored in packed.weights.values())


# --- Downloads -------------------------------------------------------------------------------------------------------


def locate(options: argparse.Namespace, judge: Judge | None = None, inspect: Inspect | None = None) -> Path:
    """Return the folder or file of the model that `--model` names, with its weights, which may be downloaded.

    judge    refuses a download that will not serve, and tells the memory that the command will need; None where it
             never holds the weights
    inspect  refuses a download by its small files, which come before the weights: see `resolve`

    Raises a QwqError, also for a download that the user did not agree to.
    """
    if not options.verbose:  # the library would print each of its tries
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with contextlib.ExitStack() as stack:
        told: list[Callable[[float], object]] = []

        def confirm(download: Download) -> bool:
            print(_table(download), file=sys.stderr)
            needs = None if judge is None else judge(download)
            if needs is not None:
                print(f"memory: {needs[0]}", file=sys.stderr)
            agreed = options.yes or _ask(download)
            if agreed:
                told.append(stack.enter_context(progress_bar("downloading", download.nbytes, "B")))
            return agreed

        path = resolve(
            options.model,
            offline=options.offline,
            confirm=confirm,
            inspect=inspect,
            progress=lambda n: [each(n) for each in told],
        )
    recognise.require(path, options.model)
    return path


def _table(download: Download) -> str:
    """Return the files that will be read, and their sizes. The shards of a model are one row."""
    groups: dict[str, list[str]] = {}
    for name in download.files:
        match, shard = SHARD.fullmatch(name), shard_of(name)
        row = f"{shard[0]}-*-of-{shard[2]:05d}.gguf" if shard else name
        groups.setdefault(f"model-*-of-{match[1]}.safetensors" if match else row, []).append(name)
    groups["total"] = list(download.files)
    rows = []
    for group, names in groups.items():
        absent = [name for name in names if name in download.absent]
        rows.append((group, str(len(names)), _sum(download, names), _sum(download, absent) if absent else "-"))
    table = Table(["file", "files", "size", "to download"], "<>>>").text(rows)
    return f"{download.name}: files to read, from the hub to {download.cache}\n{table}"


def _sum(download: Download, names: list[str]) -> str:
    sizes = [download.files[name] for name in names]
    return "unknown" if None in sizes else human(sum(size or 0 for size in sizes))


def _ask(download: Download) -> bool:
    """Ask on the terminal, also if standard input is a pipe. Raises UsageError if nobody can answer."""
    with contextlib.ExitStack() as stack:
        terminal = _terminal(stack)
        if terminal is None:
            raise UsageError(download.name, None, f"is not in the cache; --yes downloads it ({download.amount})")
        large = download.nbytes >= _LARGE or not download.is_sized
        for _ in range(3):
            answer = screen.ask(f"Download {download.amount}? [{'y/N' if large else 'Y/n'}] ", terminal)
            if not answer:  # Ctrl-D
                return False
            if (word := answer.strip().lower()) in ("", "y", "yes", "n", "no"):
                return word.startswith("y") if word else not large
        return False


def _terminal(stack: contextlib.ExitStack) -> TextIO | None:
    """Return the user's keyboard, if they can see a question: None for a command in the background or a script."""
    if not sys.stderr.isatty():
        return None
    try:
        terminal = os.fdopen(os.open("/dev/tty", os.O_RDONLY), encoding="utf-8", errors="replace")
        stack.enter_context(terminal)
        in_front = os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return sys.stdin if sys.stdin is not None and sys.stdin.isatty() else None
    return terminal if in_front else None
