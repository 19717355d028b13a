"""Writing checkpoints: safetensors in bfloat16 or float32, each file whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import StrPath
from ..spec.ops import Array, to_bf16


def write_atomically(path: StrPath, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a file that takes the place of `path` afterwards, as `atomic_file` says."""
    with atomic_file(path) as file:
        write(file)


@contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, put in its place at the end: a crash leaves the old or the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: StrPath, values: Any) -> None:
    """Indented UTF-8, with a line end."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_safetensors(path: StrPath, tensors: Mapping[str, Array], dtype: str) -> None:
    """Name -> float array, as one file. dtype "BF16" rounds to nearest, ties to even; "F32" is exact."""
    shapes = {name: np.shape(array) for name, array in tensors.items()}

    def write(file: BinaryIO) -> None:
        stream = SafetensorsStream(file, shapes, dtype)
        for name, array in tensors.items():
            stream.append(name, array)

    write_atomically(path, write)


class SafetensorsStream:
    """A safetensors file that is written tensor by tensor, as they are made: only their shapes are known before.

    The format: a length (8 bytes, little-endian), a JSON header padded to 8 bytes, the tensors back to back.
    """

    def __init__(self, file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        if dtype not in _SIZES:
            raise ValueError(f"dtype must be one of {', '.join(_SIZES)}, got {dtype!r}")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which transformers insists on
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + math.prod(shape) * _SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self.digest = hashlib.sha256()
        self._file = file
        self._dtype = dtype
        self._waiting = list(shapes.items())[::-1]
        self._write(len(text).to_bytes(8, "little") + text)

    def append(self, name: str, array: Array) -> None:
        """The next tensor, in the order of the shapes."""
        assert (name, np.shape(array)) == self._waiting.pop()
        self._write(_bits(np.asarray(array, np.float32), self._dtype).tobytes())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


_SIZES = {"F32": 4, "BF16": 2}


def _bits(array: Array, dtype: str) -> Array:
    if dtype == "F32":
        return array.astype("<f4")
    rounded: Array = np.asarray(to_bf16(array), np.float32)
    return (rounded.view(np.uint32) >> 16).astype("<u2")
