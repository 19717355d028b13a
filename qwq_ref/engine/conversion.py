"""Carry out a conversion: the files of a new folder appear when they are complete, and the manifest comes last.

A folder is in one of three states at each moment. It is as it was before, or it has a hidden folder that the same
command resumes, or it is complete. Each step that changes a name is one call of the system.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UsageError
from ..files import writes
from ..formats import Source
from ..formats.layout import Layout
from ..formats.manifest import add_to_manifest, described, identity, read_manifest, times
from ..formats.names import MANIFEST, UNFINISHED
from ..formats.packed import Stored
from ..formats.packed_folder import packed_files
from ..formats.unfinished import Unfinished, Work, held_bytes, locked
from ..formats.write import write_atomically
from .ahead import check_room
from .pieces import Pieces, Progress, Target

Small = Mapping[str, Callable[[], bytes]]  # name -> a function that returns the contents of a file
Stage = Callable[[str, int], Callable[[int], object]]  # (words, bytes) -> a function to call with bytes done


@dataclass(frozen=True)
class Observer:
    """Functions that are told of the work.

    progress  called with the number of weights read since its last call, of `footprint.parameters`
    resumed   called with the number of weights of tensors that an earlier run has finished
    stage     called before files are read for their checksums, with words and the number of bytes
    """

    progress: Progress | None = None
    resumed: Progress | None = None
    stage: Stage | None = None

    def of(self, words: str) -> Callable[[int], Callable[[int], object]] | None:
        """Return `stage` for some words."""
        stage = self.stage
        return None if stage is None else lambda total: stage(words, total)


@dataclass(frozen=True)
class Conversion:
    """A plan of files in a folder.

    name        of the kind of conversion: a weight form, or "hf"
    options     of the command, and `parameters` for the manifest
    layouts     name -> plan of a weight file
    planned     name -> shape and format of a tensor
    small       the files beside the weights, and `last` a file that appears after them
    pool        returns the threads that fill a target
    replaces    whether the folder may hold packed weights, and the files that are to be written
    """

    name: str
    model: str | os.PathLike[str]
    folder: Path
    options: Collection[str]
    parameters: Mapping[str, Any]
    layouts: Mapping[str, Layout]
    planned: Mapping[str, Stored]
    small: Small
    pool: Callable[[Target], Pieces]
    last: Small = field(default_factory=dict)
    replaces: bool = True

    @property
    def nbytes(self) -> int:
        return sum(layout.size for layout in self.layouts.values())

    def work(self, source: Source, facts: Mapping[str, Any], small: Mapping[str, bytes]) -> Work:
        """Return the work, with a key of all that its files depend on."""
        files = {**{name: layout.header for name, layout in self.layouts.items()}, **small}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        text = json.dumps([facts, digests, times(source)], sort_keys=True)
        words = ["qwq", "convert", "-m", os.fspath(self.model), "-o", os.fspath(self.folder), *self.options]
        key = hashlib.sha256(text.encode()).hexdigest()
        return Work(self.name, key, shlex.join(words), self.layouts, self.planned)


def carry_out(conversion: Conversion, source: Source, threads: int, observer: Observer) -> dict[str, dict[str, int]]:
    """Write the files. Return what was noted of each tensor.

    An error removes what this run and earlier ones left of the work; files that were there before stay. Ctrl-C leaves
    it: the same call resumes it. Raises FileError, and a QwqError of the source.
    """
    folder, names = conversion.folder, [*conversion.small, *conversion.layouts, *conversion.last, MANIFEST]
    parameters = dict(conversion.parameters)
    facts = {"tool": f"qwq_ref {__version__}", "source": identity(source), "parameters": parameters}
    small = {name: contents() for name, contents in conversion.small.items()}
    work = conversion.work(source, facts, small)
    with writes(folder), _removed_if_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), _all_or_nothing(folder, names), Unfinished(folder, work) as unfinished:
            if not conversion.replaces and not unfinished.matches():
                _check_new(folder, names, unfinished)
            check_contents(folder, names, conversion.replaces)
            read_manifest(folder)
            _remove_temporary(folder, [*small, *conversion.last, MANIFEST])
            check_room(folder, max(0, conversion.nbytes - held_bytes(folder, conversion.name)))
            try:
                unfinished.open(threads, observer.of("comparing what is there"))
                with conversion.pool(unfinished) as pool:
                    for _ in pool.run(observer.progress, observer.resumed):
                        pass
                _appear(conversion, unfinished, facts, small, unfinished.complete(threads, observer.of("checking")))
            except Exception:
                with suppress(OSError):
                    unfinished.discard()
                raise
            return unfinished.notes


def _appear(
    conversion: Conversion,
    unfinished: Unfinished,
    facts: Mapping[str, Any],
    small: Mapping[str, bytes],
    files: Mapping[str, Any],
) -> None:
    """Let complete files appear, the manifest last. Weights in several files are no model before their index."""
    folder, last = conversion.folder, {name: contents() for name, contents in conversion.last.items()}
    for name, data in small.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            _write(folder / name, data)
    unfinished.appear()
    for name, data in last.items():
        _write(folder / name, data)
    others = {name: described(data) for name, data in {**small, **last}.items()}
    add_to_manifest(folder, conversion.name, {**facts, "files": {**files, **others}})
    unfinished.discard()


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))


def _remove_temporary(folder: Path, names: Collection[str]) -> None:
    """Remove the hidden files that a killed run left while it wrote small files."""
    for name in names:
        path = folder / name
        for left in path.parent.glob(f".{glob.escape(path.name[:40])}.*.tmp"):
            left.unlink()


def _check_new(folder: Path, names: Collection[str], unfinished: Unfinished) -> None:
    """Raise UsageError if one of the files is there."""
    if any(os.path.lexists(folder / name) for name in names):
        if not unfinished.is_begun():  # a run was killed at its very end
            unfinished.discard()
        raise UsageError(folder, None, "holds a model already: take a new folder")


@contextmanager
def _all_or_nothing(folder: Path, names: Collection[str]) -> Iterator[None]:
    """After an error, remove those of the files in a folder that were not there before.

    A file that was there already keeps its contents: `check_small_files` compared it.
    """
    made = [folder / name for name in names if not os.path.lexists(folder / name)]
    try:
        yield
    except Exception:  # Ctrl-C is none: its work is resumed
        for path in made:
            with suppress(OSError):
                path.unlink()
            if path.parent != folder:
                with suppress(OSError):
                    path.parent.rmdir()
        raise


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """After an error or Ctrl-C, remove the folder and those above it that were not there before, if they are empty."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def check_small_files(small: Small, folder: Path) -> None:
    """Check that the small files in a folder are those of this model. Raises UsageError."""
    check_contents(folder, small)
    for name, contents in small.items():
        if (folder / name).exists() and (folder / name).read_bytes() != contents():
            raise UsageError(folder / name, None, "is of another model: take a new folder")


def check_contents(folder: Path, small: Collection[str], packed: bool = True) -> None:
    """Check that a folder is new, is empty, or holds packed weights if it may, or these files alone.

    The small files alone, and hidden unfinished files, are what an earlier version or a killed conversion left.
    """
    with writes(folder):
        if not os.path.isdir(folder):
            if os.path.lexists(folder):
                raise UsageError(folder, None, "is not a folder")
            return
        left = {path.name for path in folder.iterdir() if not _is_left(path)}
        if left - {Path(name).parts[0] for name in small} and not (packed and packed_files(folder)):
            raise UsageError(folder, None, "holds something else: take a new folder")


def _is_left(path: Path) -> bool:
    return path.name.startswith(UNFINISHED) or path.name == MANIFEST or (path.name[0] == "." and path.suffix == ".tmp")
