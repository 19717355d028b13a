"""A new folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import FileError, UsageError


@contextlib.contextmanager
def new_folder(out: Path, contents: str) -> Iterator[Path]:
    """Yield a hidden folder beside `out`, and rename it to `out` at the end; on any error, delete it.

    contents  what is written, for the message: "a pack"

    Raises UsageError if `out` exists, and FileError if the system refuses to write.
    """
    if os.path.lexists(out):
        raise UsageError(out, None, f"exists already; {contents} is written to a new folder")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
    except OSError as problem:
        raise FileError.from_os(problem, out) from None
    try:
        yield unfinished
        unfinished.rename(out)
    except BaseException as problem:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(problem, OSError):
            raise FileError.from_os(problem, out) from None
        raise
