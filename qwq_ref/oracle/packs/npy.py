"""A strict reader of NumPy's .npy: a magic, a version, the length of a header, the header (a Python dict), the data.

`numpy.load` allocates what a header says before it looks whether the file is that long, and gives bfloat16 as bytes
without a type. Here the size of the file is held against the header first, and what is no plain number is refused by
its name: nothing is ever unpickled.
"""

from __future__ import annotations

import ast
import contextlib
import math
import os
import re
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import GoldenError
from ...files import StrPath, open_regular
from ...spec.ops import Array

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 1 << 12  # NumPy's own are 118 bytes long
_MAX_RANK = 32
_MAX_DIMENSION = 1 << 40
_AT_ONCE = 64 << 20
_DEFLATE = 1032  # to one: what zlib's smallest code, a run of 258 bytes in two bits, comes to

_FLOATS = ("f2", "f4", "f8")
_INTEGERS = tuple(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))


@dataclass(frozen=True)
class Header:
    """dtype as stored, shape, whether the first axis runs fastest, where the data begin.

    bfloat16  the values are uint16, the upper halves of float32s: ml_dtypes saves them as two bytes without a type
    """

    dtype: np.dtype[Any]
    bfloat16: bool
    shape: tuple[int, ...]
    fortran: bool
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Npy:
    """One array, in a file of its own or in an archive. Both functions raise GoldenError.

    open   -> a stream at its start, and how many bytes it says that it has
    file   for errors
    field  the array in it, where there are several
    """

    open: Callable[[], tuple[BinaryIO, int]]
    file: StrPath
    field: str | None = None

    def header(self, integers: bool = False) -> Header:
        """What the array is; `integers` is the kind that is wanted, else floating point."""
        with self._stream() as (stream, size):
            return self._header(stream, size, integers)

    def read(self, integers: bool = False) -> Array:
        """The array: float16, 32 or 64 as stored, bfloat16 as float32; integers as stored. In native byte order."""
        with self._stream() as (stream, size):
            header = self._header(stream, size, integers)
            try:
                data = np.empty(math.prod(header.shape), header.dtype)
            except MemoryError:
                raise self._error(f"takes {header.nbytes:,} bytes, more than there is memory") from None
            self._fill(stream, data.data.cast("B") if data.size else memoryview(bytearray()))
        if header.bfloat16:
            data = (data.astype(np.uint32) << 16).view(np.float32)
        data = data.astype(data.dtype.newbyteorder("="), copy=False)
        return data.reshape(header.shape[::-1]).T if header.fortran else data.reshape(header.shape)

    def _error(self, problem: str) -> GoldenError:
        return GoldenError(self.file, self.field, problem)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[tuple[BinaryIO, int]]:
        try:
            stream, size = self.open()
            with stream:
                yield stream, size
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as problem:
            reason = (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or "it ends early"
            raise self._error(f"cannot be read ({reason})") from None

    def _fill(self, stream: BinaryIO, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            got = stream.readinto(buffer[done : done + _AT_ONCE])  # type: ignore[attr-defined]
            if not got:
                raise self._error(f"is cut short: {len(buffer) - done:,} bytes are missing")
            done += got

    def _header(self, stream: BinaryIO, size: int, integers: bool) -> Header:
        def take(count: int) -> bytes:
            buffer = bytearray(count)
            if count > size:
                raise self._error(f"is no .npy file: it is {size} bytes long")
            self._fill(stream, memoryview(buffer))
            return bytes(buffer)

        start = take(8)
        if not start.startswith(_MAGIC):
            raise self._error("is no .npy file: it does not begin with \\x93NUMPY")
        if start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
            raise self._error(f"is of .npy version {start[6]}.{start[7]}; 1.0, 2.0 and 3.0 are read")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(take(width), "little")
        if length > _HEADER_BYTES:
            raise self._error(f"has a header of {length:,} bytes; at most {_HEADER_BYTES:,} are read")
        begin = 8 + width + length
        if begin > size:
            raise self._error("is cut short: it ends within its header")
        descr, fortran, shape = self._fields(take(length))
        dtype, bfloat16 = self._dtype(descr, integers)
        header = Header(dtype, bfloat16, shape, fortran, begin)
        if begin + header.nbytes != size:
            missing = begin + header.nbytes - size
            what = f"is cut short: {missing:,} bytes are missing" if missing > 0 else f"has {-missing:,} bytes too many"
            raise self._error(f"{what}, of {descr} {list(shape)}")
        return header

    def _fields(self, text: bytes) -> tuple[str, bool, tuple[int, ...]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python has opinions on escapes and digits
                fields = ast.literal_eval(text.decode("latin-1").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise self._error("has a header that is not a Python dict") from None
        if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
            raise self._error("must have a header of descr, fortran_order and shape")
        descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if not isinstance(descr, str):
            raise self._error("holds records, which are not read; a tensor is one array of numbers")
        if not isinstance(fortran, bool):
            raise self._error(f"fortran_order must be True or False, got {str(fortran)[:40]}")
        sizes = isinstance(shape, tuple) and all(type(n) is int and 0 <= n <= _MAX_DIMENSION for n in shape)
        if not sizes or len(shape) > _MAX_RANK:
            raise self._error(f"shape must be at most {_MAX_RANK} sizes of 0 to {_MAX_DIMENSION:,}")
        return descr, fortran, shape

    def _dtype(self, descr: str, integers: bool) -> tuple[np.dtype[Any], bool]:
        """-> what is read, and whether it is bfloat16."""
        match = re.fullmatch(r"([<>=|]?)([a-zA-Z][0-9]*)", descr)
        order, kind = match.groups() if match else ("", "")
        if kind[:1] == "O":
            raise self._error("holds Python objects (a pickle), which are never read")
        if integers and kind not in _INTEGERS:
            raise self._error(f"must hold integers, got {descr[:40]}")
        if not integers and kind == "V2" and order != ">":
            return np.dtype("<u2"), True
        if not integers and kind not in _FLOATS:
            raise self._error(f"is of type {descr[:40]}; float16, float32, float64 and ml_dtypes' bfloat16 are read")
        return np.dtype(order.replace("|", "=") + kind), False


def npy_file(path: Path) -> Npy:
    """A .npy file; opened anew for each reading, so that a folder of thousands takes no descriptors."""

    def open_() -> tuple[BinaryIO, int]:
        file = os.fdopen(open_regular(path, GoldenError), "rb", buffering=0)
        return file, os.fstat(file.fileno()).st_size

    return Npy(open_, path)


def open_archive(path: Path) -> tuple[list[tuple[str, Npy]], list[str]]:
    """An .npz -> (name, array) of each, other members. Raises GoldenError.

    It may be stored or deflated, as NumPy writes it; and it stays open for as long as one of the arrays lives.
    """
    file = os.fdopen(open_regular(path, GoldenError), "rb")
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, ValueError, IndexError) as problem:
        file.close()
        raise GoldenError(path, None, f"is no .npz archive ({problem})") from None

    def array(member: zipfile.ZipInfo, name: str) -> Npy:
        def open_() -> tuple[BinaryIO, int]:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise GoldenError(path, name, "is encrypted, or compressed in a way that NumPy never writes")
            if member.file_size > _DEFLATE * (member.compress_size + 1):
                raise GoldenError(path, name, f"cannot be {member.file_size:,} bytes long, from {member.compress_size}")
            return archive.open(member), member.file_size  # type: ignore[return-value]

        return Npy(open_, path, name)

    arrays, others = [], []
    for member in members:
        name = member.filename
        if name.endswith(".npy"):
            arrays.append((name[:-4], array(member, name[:-4])))
        else:
            others.append(name)
    weakref.finalize(archive, file.close)
    return arrays, others
