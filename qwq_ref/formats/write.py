"""Write files that appear only when they are complete: any file, JSON, and safetensors in bfloat16 or float32."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from ..core import Array
from ..files import StrPath, writes
from .layout import METADATA, floats_layout
from .safetensors import DTYPES

_WRITTEN = ("F32", "BF16")


def write_atomically(path: StrPath, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a file that then replaces `path`, as `atomic_file` does."""
    with atomic_file(path) as file:
        write(file)


@contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it at the end. A crash leaves the old file or the new one.

    A link stays, and its target is replaced. A pipe or a device such as /dev/null is written in place.
    Raises FileError for an OSError, of the block too.
    """
    path = Path(path)
    if _is_special(path):
        with writes(path), open(path, "wb") as file:
            yield file
        return
    with writes(path):
        path = Path(os.path.realpath(path))
        temporary = temporary_name(path)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: StrPath) -> None:
    """Flush the names in a folder to the disk, if the file system can: the files themselves are complete."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder(folder: StrPath) -> None:
    """Make a folder and a file in it, and remove both again. Raises FileError if the system refuses.

    A long computation calls it first. Permissions alone do not tell: a file system may be read-only, or take no files.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    with writes(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _try(folder / "trial")
        finally:
            for path in made:
                with suppress(OSError):
                    path.rmdir()


def check_file(path: StrPath) -> None:
    """Check that `atomic_file` can write a file, and leave it as it is. Raises FileError."""
    path = Path(path)
    with writes(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_special(path):
            _try(Path(os.path.realpath(path)))


def _try(path: Path) -> None:
    """Make the temporary file of `atomic_file`, and remove it. Raises OSError."""
    trial = temporary_name(path)
    try:
        with open(trial, "wb"):
            pass
    finally:
        trial.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def temporary_name(path: Path) -> Path:
    """Return the hidden name of an unfinished file or folder. It is never too long where the name itself is not."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")


def write_json(path: StrPath, values: Any) -> None:
    """Write a value as indented UTF-8 JSON with a final line end."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_safetensors(path: StrPath, tensors: Mapping[str, Array], dtype: str) -> None:
    """Write name -> float array as one file. Holds a second copy of all of it: `SafetensorsStream` does not.

    dtype  "BF16", which rounds to nearest, ties to even; or "F32", which is exact
    """
    data = save({name: _rounded(array, dtype) for name, array in tensors.items()}, METADATA)
    write_atomically(path, lambda file: file.write(data))


class SafetensorsStream:
    """A safetensors file that is written tensor by tensor, when only the shapes are known before.

    The `safetensors` package needs all tensors at once.
    """

    def __init__(self, file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        _dtype(dtype)
        self.digest = hashlib.sha256()
        self._file = file
        self._dtype = dtype
        self._waiting = list(shapes.items())[::-1]
        self._write(floats_layout(shapes, dtype).header)

    def append(self, name: str, array: Array) -> None:
        """Write the next tensor, in the order of the shapes."""
        assert (name, np.shape(array)) == self._waiting.pop()
        self._write(_rounded(array, self._dtype).tobytes())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _WRITTEN:
        raise ValueError(f"dtype must be one of {', '.join(_WRITTEN)}, got {name!r}")
    return DTYPES[name]


def _rounded(array: Array, dtype: str) -> Array:
    with np.errstate(all="ignore"):  # NaN and infinity pass
        return np.ascontiguousarray(np.asarray(array, np.float32).astype(_dtype(dtype))).reshape(np.shape(array))
