"""A strict reader of safetensors: a length (8 bytes, little-endian), a JSON header, then the tensors back to back.

The `safetensors` package maps the file, so one that shrinks is a SIGBUS; it keeps the last of two equal keys, ignores
unknown fields, and has no bfloat16 on its NumPy side. Here every size is a Python integer, checked against the file
before anything is allocated, and data is read with pread into memory that we own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..files import (
    StrPath,
    open_regular,
    parse_json,
    pread_exactly,
)

# Parsed, the worst header of this size costs 30 MB (a million bytes of `{"":0},`) and 0.2 s. The format's own limit,
# 100 MB, would cost 3 GB. QwQ-32B's 771 tensors need 0.1 MB in a single file.
HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
# Few and small enough that their product is a cheap integer, whatever the header says.
_MAX_RANK = 8
_MAX_DIMENSION = 1 << 40

_BITS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<u4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<u4"),
    "I8": np.dtype("u1"),
    "U8": np.dtype("u1"),
}
FLOATS = ("F32", "F16", "BF16")
DROP_FROM = 4 << 30  # bytes of weights from which the system need not keep its own copy of what was read
_EXPONENT = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Tensor:
    """One header entry: dtype (as the header names it), shape, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """One open file. Raises CheckpointError, for a tensor whose dtype is not one of `dtypes` too.

    tensors   name -> Tensor, checked to tile the file exactly
    metadata  what `__metadata__` holds, strings
    """

    def __init__(self, path: StrPath, dtypes: Collection[str] = FLOATS) -> None:
        self.path = path
        self._file = os.fdopen(open_regular(path, CheckpointError), "rb", buffering=0)
        try:
            self.tensors, self.metadata = _read_header(self._file.fileno(), path, dtypes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
        """The raw bits of the elements [begin, end) in pieces of <= 8 MiB: (flat index of the first, uint [n]).

        The next piece overwrites the last one. Raises CheckpointError where the file shrank.
        """
        tensor = self.tensors[name]
        dtype = _BITS[tensor.dtype]
        end = tensor.nbytes // dtype.itemsize if end is None else end
        buffer = np.empty(min(end - begin, _BLOCK_BYTES // dtype.itemsize), dtype)
        for start in range(begin, end, max(1, len(buffer))):
            block = buffer[: end - start]
            offset = tensor.begin + start * dtype.itemsize
            pread_exactly(self._file.fileno(), block.data.cast("B"), offset, self.path, CheckpointError)
            yield start, block

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """The floats, or rows [begin, end) of them, widened to float32 exactly. Holds the result and one block."""
        tensor = self.tensors[name]
        assert tensor.dtype in FLOATS
        shape = tensor.shape if end is None else (end - begin, *tensor.shape[1:])
        result = np.empty(shape, np.float32)
        flat = result.reshape(-1)
        first = begin * math.prod(tensor.shape[1:])
        for start, block in self.blocks(name, first, first + len(flat)):
            part = flat[start - first : start - first + len(block)]
            if tensor.dtype == "F16":
                part[:] = block.view("<f2")
            else:
                bits = part.view(np.uint32)
                bits[:] = block
                if tensor.dtype == "BF16":
                    bits <<= 16
        return result

    def forget(self, name: str, begin: int, end: int) -> None:
        """Have the system drop its copy of these rows, which it kept for whoever reads them again."""
        tensor = self.tensors[name]
        row = tensor.nbytes // tensor.shape[0]
        forget_range(self._file.fileno(), tensor.begin + begin * row, (end - begin) * row)


def forget_range(descriptor: int, begin: int, count: int) -> None:
    """Bytes of a file that the system need not keep in memory; a hint, and nothing where there is none to give."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, count, os.POSIX_FADV_DONTNEED)


def first_non_finite(block: NDArray[np.unsignedinteger], dtype: str) -> tuple[int, str] | None:
    """Raw bits [n] of a dtype -> (index, "NaN" or "infinity") of the first value that is either, if any."""
    exponent = _EXPONENT[dtype]
    bits = block & exponent
    if bits.max() != exponent:
        return None
    index = int(bits.argmax())
    mantissa = int(block[index]) & ((exponent & -exponent) - 1)  # the bits below the exponent's lowest
    return index, "NaN" if mantissa else "infinity"


def _read_header(descriptor: int, path: StrPath, dtypes: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = os.fstat(descriptor).st_size
    if size < 8:
        raise CheckpointError(path, "header", f"is missing: the file is {size} bytes long")
    length = int.from_bytes(_read(descriptor, 8, 0, path), "little")
    if length > HEADER_BYTES:
        raise CheckpointError(path, "header", f"is {length:,} bytes long; at most {HEADER_BYTES:,} are read")
    data = 8 + length
    if data > size:
        raise CheckpointError(path, "header", f"is {length:,} bytes long, but the file ends after {size - 8:,} of them")
    header = _read(descriptor, length, 8, path)
    if not header.startswith(b"{"):
        raise CheckpointError(path, "header", "does not start with {")
    try:
        fields = parse_json(header, path, CheckpointError)
    except CheckpointError as problem:
        raise CheckpointError(path, problem.field or "header", problem.problem) from None

    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(path, "__metadata__", "must map strings to strings")
    tensors = {name: _tensor(entry, data, path, name, dtypes) for name, entry in fields.items()}
    end = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            fault = "overlaps the tensor before it" if tensor.begin < end else "leaves a hole before it"
            raise CheckpointError(path, name, f"data_offsets: {fault}")
        end = tensor.end
        if end > size:
            raise CheckpointError(path, name, f"data_offsets: ends {end - size:,} bytes past the end of the file")
    if end < size:
        raise CheckpointError(path, "header", f"does not account for the last {size - end:,} bytes of the file")
    return tensors, metadata


def _tensor(entry: Any, data: int, path: StrPath, name: str, dtypes: Collection[str]) -> Tensor:
    """Check one header entry by itself; `data` is where the header ends, to which its offsets are relative."""

    def error(problem: str) -> CheckpointError:
        return CheckpointError(path, name, problem)

    def integers(values: Any, largest: int) -> bool:
        return isinstance(values, list) and all(type(n) is int and 0 <= n <= largest for n in values)

    if not isinstance(entry, dict):
        raise error("must be an object with dtype, shape and data_offsets")
    fields = ("dtype", "shape", "data_offsets")
    for field in (*entry, *fields):
        if field not in fields:
            raise error(f"unknown field {field[:60]}")
        if field not in entry:
            raise error(f"{field} is missing")
    dtype, shape, offsets = (entry[field] for field in fields)
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise error(f"dtype must be one of {', '.join(dtypes)}, got {str(dtype)[:60]}")
    if not integers(shape, _MAX_DIMENSION) or len(shape) > _MAX_RANK:
        raise error(f"shape must list at most {_MAX_RANK} dimensions of 0 to {_MAX_DIMENSION:,}")
    if not integers(offsets, 1 << 63) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise error("data_offsets must be two integers, 0 <= begin <= end")
    begin, end = offsets
    wanted = math.prod(shape) * _BITS[dtype].itemsize
    if end - begin != wanted:
        raise error(f"data_offsets: spans {end - begin:,} bytes; {dtype} {shape} takes {wanted:,}")
    return Tensor(dtype, tuple(shape), data + begin, data + end)


def _read(descriptor: int, count: int, offset: int, path: StrPath) -> bytes:
    buffer = bytearray(count)
    pread_exactly(descriptor, memoryview(buffer), offset, path, CheckpointError)
    return bytes(buffer)
