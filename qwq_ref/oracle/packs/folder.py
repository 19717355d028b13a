"""A new folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import FileError, UsageError
from ...files import writes
from ...formats.write import temporary_name


def check_new(out: Path, contents: str) -> None:
    """Check that a folder is new. Raises UsageError."""
    if os.path.lexists(out):
        raise UsageError(out, None, f"exists already; {contents} is written to a new folder")


@contextlib.contextmanager
def new_folder(out: Path, contents: str) -> Iterator[Path]:
    """Yield a hidden folder beside `out`, and rename it to `out` at the end; on any error, delete it.

    contents  what is written, for the message: "a pack"

    Raises UsageError if `out` exists, FileError if the system refuses to write.
    """
    check_new(out, contents)
    unfinished = temporary_name(out)
    with writes(out):
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            unfinished.rename(out)
        except BaseException as problem:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(problem, FileError) and problem.file and Path(problem.file).is_relative_to(unfinished):
                raise FileError(out / Path(problem.file).relative_to(unfinished), None, problem.problem) from None
            raise
