"""A strict reader of NumPy's .npy and .npz files.

NumPy parses the header. `numpy.load` allocates the array before it knows that the file is long enough, and returns
bfloat16 as bytes without a type. This reader compares the size of the file with the header first, reads bfloat16, and
refuses everything but plain numbers, so nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from ...errors import GoldenError
from ...files import StrPath, open_regular
from ...spec.ops import Array

_HEADER_BYTES = 1 << 12  # NumPy's own headers have 118 bytes
_MAX_RANK = 32
_MAX_DIMENSION = 1 << 40
_AT_ONCE = 64 << 20
_DEFLATE = 1032  # zlib's highest ratio: 258 bytes in two bits

_FLOATS = ("f2", "f4", "f8")
_INTEGERS = tuple(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))
_SHAPE = f"shape must be at most {_MAX_RANK} sizes of 0 to {_MAX_DIMENSION:,}"
# Version 3.0 differs from 2.0 in the encoding of the names of records only, which are refused.
_READERS: dict[tuple[int, int], Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
    (3, 0): npy_format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """The header of an array.

    dtype     as stored
    bfloat16  whether the values are bfloat16, read as uint16: ml_dtypes saves them as two bytes without a type
    fortran   whether the first axis runs fastest
    begin     the position of the data
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
    """One array, in a file of its own or in an archive. Its methods raise GoldenError.

    open   returns a stream at its start, and its declared size in bytes
    file   the file, for errors
    field  the name of the array in an archive, for errors
    """

    open: Callable[[], tuple[BinaryIO, int]]
    file: StrPath
    field: str | None = None

    def header(self, integers: bool = False) -> Header:
        """Read the header. `integers` demands integers, otherwise floating point is demanded."""
        with self._stream() as (stream, size):
            return self._header(stream, size, integers)

    def read(self, integers: bool = False) -> Array:
        """Read the array in native byte order: bfloat16 as float32, all other types as stored."""
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
        """Read the header, and check the size of the file against it."""

        def take(count: int) -> bytes:
            buffer = bytearray(count)
            if count > size:
                raise self._error(f"is no .npy file: it is {size} bytes long")
            self._fill(stream, memoryview(buffer))
            return bytes(buffer)

        version = self._version(take(npy_format.MAGIC_LEN))
        width = 2 if version == (1, 0) else 4
        stored_length = take(width)
        length = int.from_bytes(stored_length, "little")
        if length > _HEADER_BYTES:
            raise self._error(f"has a header of {length:,} bytes; at most {_HEADER_BYTES:,} are read")
        begin = npy_format.MAGIC_LEN + width + length
        if begin > size:
            raise self._error("is cut short: it ends within its header")
        header = self._parsed(version, stored_length + take(length), begin, integers)
        if begin + header.nbytes != size:
            missing = begin + header.nbytes - size
            what = f"is cut short: {missing:,} bytes are missing" if missing > 0 else f"has {-missing:,} bytes too many"
            raise self._error(f"{what}, of {header.dtype.str} {list(header.shape)}")
        return header

    def _version(self, magic: bytes) -> tuple[int, int]:
        try:
            version = npy_format.read_magic(io.BytesIO(magic))
        except ValueError:
            raise self._error("is no .npy file: it does not begin with \\x93NUMPY") from None
        if version not in _READERS:
            raise self._error(f"is of .npy version {version[0]}.{version[1]}; 1.0, 2.0 and 3.0 are read")
        return version

    def _parsed(self, version: tuple[int, int], text: bytes, begin: int, integers: bool) -> Header:
        """Parse a header with NumPy. It unpickles nothing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes and numbers in the text
                shape, fortran, dtype = _READERS[version](io.BytesIO(text))
        except Exception as problem:  # MemoryError and RecursionError among them: the text may be anything
            raise self._error(_in_words(str(problem), integers)) from None
        if any(type(n) is not int or not 0 <= n <= _MAX_DIMENSION for n in shape) or len(shape) > _MAX_RANK:
            raise self._error(_SHAPE)
        if dtype.hasobject:
            raise self._error("holds Python objects (a pickle), which are never read")
        if dtype.names or dtype.subdtype:
            raise self._error("holds records, which are not read; a tensor is one array of numbers")
        if b"'>V" in text:  # NumPy drops the byte order of bytes without a type
            raise self._error(_other_type(f">V{dtype.itemsize}", integers))
        kind = f"{dtype.kind}{dtype.itemsize}"
        bfloat16 = kind == "V2" and not integers
        if not bfloat16 and kind not in (_INTEGERS if integers else _FLOATS):
            raise self._error(_other_type(dtype.str, integers))
        return Header(np.dtype("<u2") if bfloat16 else dtype, bfloat16, shape, fortran, begin)


def _in_words(problem: str, integers: bool) -> str:
    """Translate an error of NumPy's parser, which names a field of the header first."""
    field, _, value = problem.partition(" ")
    if field == "shape":
        return _SHAPE
    if field == "fortran_order":
        return "fortran_order must be True or False"
    if field == "descr":
        return _other_type(value.partition(": ")[2].strip("'\""), integers)
    return "has a header that is not a Python dict of descr, fortran_order and shape"


def _other_type(found: str, integers: bool) -> str:
    if integers:
        return f"must hold integers, got {found[:40]}"
    return f"is of type {found[:40]}; float16, float32, float64 and ml_dtypes' bfloat16 are read"


def npy_file(path: Path) -> Npy:
    """Return the array of a .npy file. Each read opens the file, so that thousands need no descriptors."""

    def open_() -> tuple[BinaryIO, int]:
        file = os.fdopen(open_regular(path, GoldenError), "rb", buffering=0)
        return file, os.fstat(file.fileno()).st_size

    return Npy(open_, path)


def open_archive(path: Path) -> tuple[list[tuple[str, Npy]], list[str]]:
    """Open an .npz file -> ([(name, array)], names of other members)

    Members may be stored or deflated, as NumPy writes them. The file stays open as long as one of its arrays lives.
    Raises GoldenError.
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
