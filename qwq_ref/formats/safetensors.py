"""Read safetensors files that must not be trusted.

A file is a length (8 bytes, little-endian), a JSON header, and the tensors back to back. Every size is a Python integer
and is checked against the file before memory is allocated. Data is read with `preadv` into memory that the process
owns: a file that shrinks gives an error. In a memory map it would end the process with SIGBUS.

The `safetensors` package (0.8) is not used for reading, for these measured reasons. Its "pread" backend maps the file
while it parses the header. A slice of rows reads the whole tensor. It copies at 0.9 GB/s where `preadv` copies at 5.
It accepts duplicate keys and unknown fields. The package writes our files, and the tests read them with it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..core.magnitude import FLOAT32_MAX, first_beyond
from ..errors import CheckpointError
from ..files import (
    START,
    StrPath,
    foreign,
    foreign_text,
    open_regular,
    parse_json,
    pread_exactly,
)

# The worst header of this size (a million bytes of `{"":0},`) costs 30 MB and 0.2 s when it is parsed. A header of
# 100 MB, the format's own limit, would cost 3 GB. QwQ-32B's 771 tensors need 0.1 MB in a single file; the 3,000 tensors
# of a quantised model of 80 layers need 0.4 MB.
HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_WIDE_BYTES = 16 << 10  # of a part of a row that is read by itself
_CHUNK_BYTES = 1 << 18  # of whole rows, which stay in the processor's cache until some columns are taken from them
# The limits keep the product of all dimensions a cheap integer.
_MAX_RANK = 8
_MAX_DIMENSION = 1 << 40

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
FLOATS = ("F32", "F16", "BF16")
# The bytes of one element, of each dtype that may stand in a header.
SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    **{"I64": 8, "U64": 8, "C64": 8, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
}
DROP_FROM = 4 << 30  # bytes of weights from which on the system need not keep its own copy of the file


@dataclass(frozen=True)
class Tensor:
    """One entry of the header.

    dtype       the header's name, such as "BF16"
    shape       dimensions, the slowest first
    begin, end  the place of its bytes in the file
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """One open file. Raises CheckpointError, also for a tensor whose dtype is not one of `dtypes`.

    tensors   name -> Tensor; together they cover the file exactly
    metadata  the strings of `__metadata__`
    """

    def __init__(self, path: StrPath, dtypes: Collection[str] = FLOATS) -> None:
        self.path = path
        self._file = os.fdopen(open_regular(path, CheckpointError), "rb", buffering=0)
        try:
            self.tensors, self.metadata = _read_header(self._file.fileno(), path, dtypes)
        except CheckpointError as problem:
            start = b""
            with contextlib.suppress(OSError), self._file:
                start = os.pread(self._file.fileno(), START, 0)
            kind = foreign(start) or foreign_text(start)
            if kind and not kind.startswith("a safetensors"):
                raise CheckpointError(path, None, f"is not a safetensors file, but {kind}") from None
            raise problem
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def read_into(self, name: str, begin: int, out: Sequence[NDArray[Any]]) -> None:
        """Fill arrays, one after another, with the rows of a tensor from `begin` on. Threads may call it together.

        out  contiguous arrays of the stored dtype, each a number of rows. Raises CheckpointError if the file shrank.
        """
        tensor = self.tensors[name]
        dtype, columns = DTYPES[tensor.dtype], tensor.shape[1:]
        assert all(part.dtype == dtype and part.shape[1:] == columns for part in out)
        assert begin + sum(map(len, out)) <= tensor.shape[0]
        self._fill(out, tensor.begin + begin * (tensor.nbytes // max(1, tensor.shape[0])))

    def columns(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return columns [begin, end) of a matrix, contiguous. Raises CheckpointError if the file shrank.

        Wide parts of rows are read one by one. Narrow ones are taken from whole rows: a call of the system for each
        would cost more than the bytes beside it.
        """
        tensor = self.tensors[name]
        (rows, width), dtype = tensor.shape, DTYPES[tensor.dtype]
        result, size = np.empty((rows, end - begin), dtype), width * dtype.itemsize
        if end - begin == width:
            self._fill([result], tensor.begin)
        elif result[:1].nbytes >= _WIDE_BYTES:
            ahead(self._file.fileno(), tensor.begin, tensor.nbytes)
            for row in range(rows):
                self._fill([result[row]], tensor.begin + row * size + begin * dtype.itemsize)
        else:
            chunk = np.empty((max(1, _CHUNK_BYTES // size), width), dtype)
            for row in range(0, rows, len(chunk)):
                part = chunk[: rows - row]
                self._fill([part], tensor.begin + row * size)
                result[row : row + len(part)] = part[:, begin:end]
        return result

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of floats, widened to float32 exactly. Holds the result and one block."""
        tensor = self.tensors[name]
        assert tensor.dtype in FLOATS
        result = np.empty(tensor.shape, np.float32)
        flat = result.reshape(-1)
        if tensor.dtype == "F32":
            self._fill([flat], tensor.begin)
        else:
            for start, block in self.blocks(name):
                flat[start : start + len(block)] = block.view(DTYPES[tensor.dtype])
        return result

    def blocks(self, name: str, most: int | None = None) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
        """Yield the bits of all elements in pieces of at most 8 MiB: (flat index of the first, unsigned integers [n]).

        most  the number of elements of a piece, if it must not be as large

        The next piece overwrites the last one. Raises CheckpointError if the file shrank.
        """
        tensor = self.tensors[name]
        size = DTYPES[tensor.dtype].itemsize
        count = tensor.nbytes // size
        buffer = np.empty(min(count, most or _BLOCK_BYTES // size), f"<u{size}")
        for start in range(0, count, max(1, len(buffer))):
            block = buffer[: count - start]
            self._fill([block], tensor.begin + start * size)
            yield start, block

    def forget(self, name: str, begin: int, end: int) -> None:
        """Tell the system to drop its cached copy of these rows."""
        tensor = self.tensors[name]
        row = tensor.nbytes // tensor.shape[0]
        forget_range(self._file.fileno(), tensor.begin + begin * row, (end - begin) * row)

    def _fill(self, arrays: Sequence[NDArray[Any]], offset: int) -> None:
        # ml_dtypes arrays give no buffers, so that bytes are read.
        buffers = [array.reshape(-1).view(np.uint8).data for array in arrays]
        pread_exactly(self._file.fileno(), buffers, offset, self.path, CheckpointError)


def equal_values(first: SafetensorsFile, second: SafetensorsFile, name: str, other: str | None = None) -> bool:
    """Return whether two tensors of floats have one shape and equal values, whatever their dtypes.

    name, other  the tensor in the first file, and that in the second; None: of the same name

    Reads both in pieces. Raises CheckpointError if a file shrank.
    """
    other = name if other is None else other
    ours, theirs = first.tensors[name], second.tensors[other]
    if ours.shape != theirs.shape:
        return False
    most = _BLOCK_BYTES // np.dtype(np.float32).itemsize
    for (_, a), (_, b) in zip(first.blocks(name, most), second.blocks(other, most), strict=True):
        if ours.dtype == theirs.dtype and np.array_equal(a, b):
            continue
        with np.errstate(all="ignore"):  # NaN is for `check_finite`
            values = (a.view(DTYPES[ours.dtype]).astype(np.float64), b.view(DTYPES[theirs.dtype]).astype(np.float64))
        if not np.array_equal(*values, equal_nan=True):
            return False
    return True


def forget_range(descriptor: int, begin: int, count: int) -> None:
    """Tell the system that it need not keep these bytes of a file in memory. Systems without the call ignore it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, count, os.POSIX_FADV_DONTNEED)


def ahead(descriptor: int, begin: int, count: int) -> None:
    """Tell the system that these bytes of a file are about to be read, in parts. Systems without the call ignore it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, count, os.POSIX_FADV_WILLNEED)


def first_non_finite(block: NDArray[np.unsignedinteger], dtype: str) -> tuple[int, str] | None:
    """Return (index, "NaN" or "infinity") of the first value that is not finite, or None.

    block  the bits of values of `dtype`, [n]
    """
    found = first_beyond(block.view(DTYPES[dtype]), FLOAT32_MAX)
    return None if found is None else (found[0][0], found[1])


def _read_header(descriptor: int, path: StrPath, dtypes: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parse the header and check it against itself and the file's size -> tensors, metadata."""
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

    metadata = fields.pop("__metadata__", None)
    if metadata is None:  # absent, or null
        metadata = {}
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
    """Check one header entry by itself. `data` is the end of the header; the entry's offsets count from there."""

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
    wanted = math.prod(shape) * SIZES[dtype]
    if end - begin != wanted:
        raise error(f"data_offsets: spans {end - begin:,} bytes; {dtype} {shape} takes {wanted:,}")
    return Tensor(dtype, tuple(shape), data + begin, data + end)


def _read(descriptor: int, count: int, offset: int, path: StrPath) -> bytes:
    buffer = bytearray(count)
    pread_exactly(descriptor, [memoryview(buffer)], offset, path, CheckpointError)
    return bytes(buffer)
