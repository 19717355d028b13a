"""Read the header of a GGUF file that must not be trusted.

A file is the magic "GGUF", a version, two counts, the metadata (key, type, value), one entry for each tensor (name,
dimensions, type, offset), padding, and the tensors. Numbers are little-endian. No length of the header is stored.

Every count and length is a Python integer, and is checked against the bytes that the file has before memory is
allocated. The header is read with `pread`, in pieces, as far as it goes. Arrays stay bytes until they are asked for:
a vocabulary of 150,000 tokens makes no Python object for each token.

The `gguf` package maps the file and makes an array for each string, so that it is not used for reading.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...files import GGUF, START, StrPath, foreign, foreign_text, open_regular, pread_exactly
from .arrays import Numbers, Strings
from .types import REMOVED, TYPES, GGMLType

# The limits keep a lying header below 50 MB and one second. Qwen2's header has 6 MB: 303,000 strings in two arrays, 40
# fields and, in the largest model, 1,000 tensors.
HEADER_BYTES = 24 << 20
_MOST_FIELDS = 4096
_MOST_TENSORS = 8192
_MOST_STRINGS = 1 << 20  # in all arrays together
_MOST_ELEMENT = 1 << 20  # bytes of one string in an array
_MOST_TEXT = 2 << 20  # bytes of names and of strings outside of arrays, together
_MOST_KEY = 65_535  # of the published format
_MOST_NAME = 64
_MOST_RANK = 4
_MOST_DIMENSION = 1 << 40
_MOST_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_PIECE = 1 << 20  # bytes that are read at a time

# Scalar types of metadata: number -> name, and the letter of `struct` and NumPy. A bool is a byte, 0 or 1.
_SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY, _BOOL = 8, 9, 7


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the header.

    type        its ggml type
    shape       dimensions, the slowest first: [out, in] of a matrix, the reverse of the file's order
    begin, end  the place of its bytes in the file
    """

    type: GGMLType
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The checked header of one file.

    fields     key -> scalar as a Python value, or `Values` for an array
    types      key -> name of the type, such as "uint32" or "array"
    tensors    name -> GGUFTensor, in the order of the file
    alignment  the multiple at which tensors begin
    end        the place in the file behind the last field
    """

    path: StrPath
    version: int
    fields: Mapping[str, Any]
    types: Mapping[str, str]
    tensors: Mapping[str, GGUFTensor]
    alignment: int
    end: int


def read_header(path: StrPath, *, whole: bool = True) -> Header:
    """Read the header of a .gguf file. Raises CheckpointError, with the file and the field.

    whole  False: the file may be cut off behind the header, where the metadata are enough
    """
    descriptor = open_regular(path, CheckpointError)
    try:
        return read_header_of(descriptor, path, whole=whole)
    finally:
        os.close(descriptor)


def read_header_of(descriptor: int, path: StrPath, *, whole: bool = True) -> Header:
    """Read the header of an open file: see `read_header`."""
    read = _Reader(descriptor, path)
    version = _version(read)
    tensor_count, field_count = read.unsigned(8, "tensor count"), read.unsigned(8, "field count")
    # The smallest field is a key of one letter with one byte; the smallest tensor has one letter and one dimension.
    read.check_count(field_count, 8 + 1 + 4 + 1, _MOST_FIELDS, "field count")
    read.check_count(tensor_count, 8 + 1 + 4 + 8 + 4 + 8, _MOST_TENSORS, "tensor count")
    fields: dict[str, Any] = {}
    types: dict[str, str] = {}
    for i in range(field_count):
        key = read.string(f"field {i}", "a key", _MOST_KEY)
        if not key:
            raise read.error(f"field {i}", "has an empty key")
        if key in fields:
            raise read.error(key, "appears twice")
        types[key], fields[key] = read.value(key)
    alignment, end = _alignment(fields, types, read), read.position
    entries: dict[str, tuple[GGMLType, tuple[int, ...], int]] = {}
    for i in range(tensor_count):
        name = read.string(f"tensor {i}", "a name", _MOST_NAME)
        if not name:
            raise read.error(f"tensor {i}", "has an empty name")
        if name in entries:
            raise read.error(name, "appears twice")
        entries[name] = read.tensor(name, alignment)
    data = -(-read.position // alignment) * alignment
    tensors = {
        name: GGUFTensor(kind, shape, data + offset, data + offset + math.prod(shape) // kind.block * kind.nbytes)
        for name, (kind, shape, offset) in entries.items()
    }
    _check_places(tensors, data, alignment, read, whole)
    read.finish()
    return Header(path, version, fields, types, tensors, alignment, end)


def metadata_only(path: StrPath) -> bytes:
    """Return a GGUF file with the metadata of another one, and without tensors. Raises CheckpointError."""
    descriptor = open_regular(path, CheckpointError)
    try:
        header = read_header_of(descriptor, path)
        data = bytearray(header.end)
        pread_exactly(descriptor, [memoryview(data)], 0, path, CheckpointError)
    finally:
        os.close(descriptor)
    data[8:16] = bytes(8)  # the number of tensors
    return bytes(data)


def _version(read: _Reader) -> int:
    """Read the magic and the version, and refuse other files."""
    start = read.start()
    if start[:4] != GGUF:
        kind = foreign(start) or foreign_text(start)
        raise read.error(None, f"is not a GGUF file, but {kind}" if kind else "is not a GGUF file")
    read.skip(4)
    version = read.unsigned(4, "version")
    if version and not version & 0xFFFF:
        problem = f"is big-endian (version {version >> 24}): only little-endian files are read"
        raise read.error("version", problem)
    if version == 1:
        raise read.error(
            "version", "is 1, a format of 2023 that llama.cpp does not read either: convert the model again"
        )
    if version not in (2, 3):
        raise read.error("version", f"must be 2 or 3, got {version}")
    return version


def _alignment(fields: Mapping[str, Any], types: Mapping[str, str], read: _Reader) -> int:
    key = "general.alignment"
    if key not in fields:
        return _DEFAULT_ALIGNMENT
    value = fields[key]
    if types[key] != "uint32" or not 0 < value <= _MOST_ALIGNMENT or value & (value - 1):
        shown = value if types[key] != "array" else "an array"
        problem = f"must be a uint32 and a power of two up to {_MOST_ALIGNMENT:,}, got {shown!r:.40} ({types[key]})"
        raise read.error(key, problem)
    return int(value)


def _check_places(tensors: Mapping[str, GGUFTensor], data: int, alignment: int, read: _Reader, whole: bool) -> None:
    """Check that the tensors cover the file from `data` on, with padding to the alignment and nothing else."""
    end, cut = data, None
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        wanted = -(-end // alignment) * alignment
        if tensor.begin != wanted:
            fault = "overlaps what stands before it" if tensor.begin < wanted else "leaves a hole before it"
            raise read.error(name, f"offset: {fault}")
        end = tensor.end
        if whole and end > read.size and cut is None:
            cut = name, end - read.size
    if cut is not None:
        name, missing = cut
        in_all = "" if end - read.size == missing else f" and lacks {end - read.size:,} bytes in all"
        problem = f"ends {missing:,} bytes past the end of the file, which is cut off{in_all}: download it again"
        raise read.error(name, problem)
    rest = read.size - -(-end // alignment) * alignment
    if rest > 0:
        raise read.error(None, f"has {rest:,} bytes behind its last tensor that the header does not account for")


class _Reader:
    """The header of one open file, read in order. Nothing is taken that the file cannot hold."""

    def __init__(self, descriptor: int, path: StrPath) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self.position = 0
        self._descriptor = descriptor
        # Anonymous memory: pages that are never written take nothing, and the buffer need not grow and be copied.
        self._data = mmap.mmap(-1, max(1, min(self.size, HEADER_BYTES)))
        self._filled = 0
        self._text = 0
        self._strings = 0
        self._waiting: list[Strings | Numbers] = []

    def error(self, field: str | None, problem: str) -> CheckpointError:
        return CheckpointError(self.path, field, problem)

    def start(self) -> bytes:
        """Return the first bytes of the file."""
        self._fill(min(START, self.size))
        return self._data[: self._filled]

    def skip(self, count: int) -> None:
        self.position += count

    def unsigned(self, size: int, field: str) -> int:
        return int.from_bytes(self._take(size, field), "little")

    def check_count(self, count: int, smallest: int, most: int, field: str) -> None:
        """Refuse a count of things of at least `smallest` bytes that the file cannot hold, or above `most`."""
        if count * smallest > self.size - self.position:
            problem = f"is {count:,}, more than the {self.size - self.position:,} bytes behind it can hold"
            raise self.error(field, problem)
        if count > most:
            raise self.error(field, f"is {count:,}; at most {most:,} are read")

    def string(self, field: str, what: str, most: int | None = None) -> str:
        """Read one string. `field` names the field or the tensor that it belongs to."""
        length = self.unsigned(8, field)
        if most is not None and length > most:
            raise self.error(field, f"has {what} of {length:,} bytes; at most {most:,} are read")
        self._text += length
        if length <= self.size - self.position and self._text > _MOST_TEXT:
            raise self.error(field, f"makes the strings of the header longer than {_MOST_TEXT:,} bytes together")
        try:
            return self._take(length, field).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.error(field, f"has {what} that is not UTF-8 (byte {problem.start})") from None

    def value(self, key: str) -> tuple[str, Any]:
        """Read the type and the value of one field -> name of the type, value."""
        number = self.unsigned(4, key)
        if number == _STRING:
            return "string", self.string(key, "a value")
        if number == _ARRAY:
            return "array", self._array(key)
        if number not in _SCALARS:
            raise self.error(key, f"has the unknown type {number}")
        name, letter = _SCALARS[number]
        data = self._take(struct.calcsize(f"<{letter}"), key)
        if number == _BOOL and data[0] > 1:
            raise self.error(key, f"must be 0 or 1, being a bool, got {data[0]}")
        return name, struct.unpack(f"<{letter}", data)[0]

    def tensor(self, name: str, alignment: int) -> tuple[GGMLType, tuple[int, ...], int]:
        """Read one tensor's entry behind its name -> type, shape, offset in the data. Checks it by itself."""
        rank = self.unsigned(4, name)
        if not 1 <= rank <= _MOST_RANK:
            raise self.error(name, f"must have 1 to {_MOST_RANK} dimensions, got {rank:,}")
        sizes = [self.unsigned(8, name) for _ in range(rank)]
        if not all(1 <= n <= _MOST_DIMENSION for n in sizes):
            raise self.error(name, f"dimensions must be 1 to {_MOST_DIMENSION:,}, got {sizes}")
        number = self.unsigned(4, name)
        if number in REMOVED:
            problem = f"has the type {REMOVED[number]}, which llama.cpp has removed: take a newer file"
            raise self.error(name, problem)
        if number not in TYPES:
            raise self.error(name, f"has the unknown type {number}")
        kind = TYPES[number]
        if sizes[0] % kind.block:
            raise self.error(name, f"has rows of {sizes[0]:,} columns, no multiple of {kind.name}'s {kind.block}")
        offset = self.unsigned(8, name)
        if offset % alignment:
            raise self.error(name, f"offset: {offset:,} is no multiple of the alignment {alignment}")
        return kind, tuple(reversed(sizes)), offset

    def finish(self) -> None:
        """Give the arrays their memory: the bytes of the header."""
        for values in self._waiting:
            values.data = self._data

    def _array(self, key: str) -> Strings | Numbers:
        number, count = self.unsigned(4, key), self.unsigned(8, key)
        if number == _ARRAY:
            raise self.error(key, "holds arrays in an array, which are not read")
        result: Strings | Numbers
        if number == _STRING:
            result = self._string_array(key, count)
        elif number in _SCALARS:
            name, letter = _SCALARS[number]
            size = struct.calcsize(f"<{letter}")
            self.check_count(count, size, HEADER_BYTES, key)
            begin = self.position
            self._need(count * size, key)
            self.position += count * size
            if number == _BOOL:
                self._check_bools(key, begin, count)
            result = Numbers(self.path, key, name, letter, begin, count)
        else:
            raise self.error(key, f"holds elements of the unknown type {number}")
        self._waiting.append(result)
        return result

    def _check_bools(self, key: str, begin: int, count: int) -> None:
        if count and np.frombuffer(self._data, np.uint8, count, begin).max() > 1:
            raise self.error(key, "must hold only 0 and 1, being bools")

    def _string_array(self, key: str, count: int) -> Strings:
        """Walk over an array of strings, and note where each ends."""
        self.check_count(count, 8, _MOST_STRINGS - self._strings, key)
        self._strings += count
        begin = position = self.position
        ends = array("I")
        append, unpack = ends.append, struct.Struct("<Q").unpack_from
        data, filled, size = self._data, self._filled, self.size
        # The loop runs 300,000 times for a usual file: it calls nothing that it does not need.
        for i in range(count):
            if position + 8 > filled:
                self._need(position + 8 - self.position, key)
                filled = self._filled
            (length,) = unpack(data, position)
            position += 8 + length
            if position > filled:
                if position > size:
                    raise self.error(key, f"element {i} has {length:,} bytes, and ends past the end of the file")
                if length > _MOST_ELEMENT:
                    raise self.error(key, f"element {i} has {length:,} bytes; at most {_MOST_ELEMENT:,} are read")
                self._need(position - self.position, key)
                filled = self._filled
            append(position)
        self.position = position
        result = Strings(self.path, key, begin, ends)
        result.check(data)
        return result

    def _take(self, count: int, field: str) -> bytes:
        self._need(count, field)
        begin, self.position = self.position, self.position + count
        return self._data[begin : self.position]

    def _need(self, count: int, field: str) -> None:
        """See to it that `count` bytes behind the position are read."""
        end = self.position + count
        if end > self.size:
            raise self.error(field, f"ends {end - self.size:,} bytes past the end of the file")
        if end > HEADER_BYTES:
            raise self.error(field, f"makes the header longer than the {HEADER_BYTES:,} bytes that are read")
        if end > self._filled:
            self._fill(min(-(-end // _PIECE) * _PIECE, len(self._data)))

    def _fill(self, end: int) -> None:
        with memoryview(self._data) as data, data[self._filled : end] as piece:
            pread_exactly(self._descriptor, [piece], self._filled, self.path, CheckpointError)
        self._filled = end
