"""Plain data as bytes, and messages over a file descriptor: the language between two sandboxed processes.

A value is a byte for its type and its content. The writer may be hostile, so reading accepts nothing but this form. It
makes nothing but exact built-in types: no method of the writer comes along. Pickle would bring code, and JSON knows no
tuples, sets, bytes, NaN or complex numbers.

A message is 4 bytes of length, big-endian, and one value.
"""

from __future__ import annotations

import os
from struct import pack, unpack

TYPE_CHECKING = False  # of `typing`, whose import takes 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_BYTES = 1 << 26  # of a message
MOST_DEPTH = 100


class Opaque:
    """A returned object that is no plain data. It equals nothing, itself included."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encoded(value: Any) -> bytes:
    """Return the bytes of a value. Raises ValueError for one that is nested too deeply or too large."""
    parts: list[bytes] = []
    _encode(value, parts.append, MOST_DEPTH)
    return b"".join(parts)


def _sized(tag: bytes, data: bytes) -> bytes:
    return tag + pack(">I", len(data)) + data


def _encode(value: Any, put: Callable[[bytes], object], depth: int) -> None:
    if depth < 0:
        raise ValueError("a value is nested too deeply")
    if value is None or value is True or value is False or value is Ellipsis:
        put(b"N" if value is None else b"E" if value is Ellipsis else b"T" if value else b"F")
    elif isinstance(value, int):
        put(_sized(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "big", signed=True)))
    elif isinstance(value, float):
        put(b"f" + pack(">d", value))
    elif isinstance(value, complex):
        put(b"c" + pack(">dd", value.real, value.imag))
    elif isinstance(value, str):
        put(_sized(b"s", str.encode(value, "utf-8", "surrogatepass")))
    elif isinstance(value, (bytes, bytearray)):
        put(_sized(b"b" if isinstance(value, bytes) else b"a", bytes(value)))
    elif isinstance(value, dict):
        put(b"d" + pack(">I", dict.__len__(value)))
        for key, item in dict.items(value):
            _encode(key, put, depth - 1)
            _encode(item, put, depth - 1)
    elif isinstance(value, range):
        put(b"r")
        for part in (value.start, value.stop, value.step):
            _encode(part, put, depth - 1)
    else:
        for tag, kind in _SERIES.items():
            if isinstance(value, kind):
                items = list(kind.__iter__(value))
                put(tag + pack(">I", len(items)))
                for item in items:
                    _encode(item, put, depth - 1)
                return
        put(_sized(b"o", type(value).__name__[:100].encode("utf-8", "replace")))


_SERIES: dict[bytes, Any] = {b"l": list, b"t": tuple, b"S": set, b"z": frozenset}
_CONSTANTS = {b"N": None, b"T": True, b"F": False, b"E": Ellipsis}


def decoded(data: bytes, most_keys: int | None = None) -> Any:
    """Return the value of some bytes. Raises ValueError for any other bytes.

    most_keys  the largest number of elements of sets and keys of dictionaries in all: a hostile writer can choose
               keys whose comparison takes long
    """
    reader = _Reader(data, most_keys)
    value = reader.value(MOST_DEPTH)
    if reader.place != len(data):
        raise ValueError("bytes are left over")
    return value


class _Reader:
    def __init__(self, data: bytes, most_keys: int | None) -> None:
        self.data, self.place, self.keys_left = data, 0, most_keys

    def take(self, size: int) -> bytes:
        part = self.data[self.place : self.place + size]
        if len(part) < size:
            raise ValueError("the bytes end too early")
        self.place += size
        return part

    def sized(self) -> bytes:
        return self.take(self.count())

    def count(self) -> int:
        (count,) = unpack(">I", self.take(4))
        if count > len(self.data) - self.place:  # each item takes a byte at least
            raise ValueError("the bytes end too early")
        return int(count)

    def keys(self) -> int:
        count = self.count()
        if self.keys_left is not None:
            self.keys_left -= count
            if self.keys_left < 0:
                raise ValueError("too many keys")
        return count

    def value(self, depth: int) -> Any:
        if depth < 0:
            raise ValueError("a value is nested too deeply")
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        reads: Callable[[int], Any] | None = getattr(self, f"read_{tag.decode('latin-1')}", None)
        if reads is None:
            raise ValueError(f"no type has the byte {tag!r}")
        try:
            return reads(depth - 1)
        except TypeError:
            raise ValueError("a list, set or dictionary is a key") from None

    def read_i(self, depth: int) -> int:
        return int.from_bytes(self.sized(), "big", signed=True)

    def read_f(self, depth: int) -> float:
        return float(unpack(">d", self.take(8))[0])

    def read_c(self, depth: int) -> complex:
        return complex(*unpack(">dd", self.take(16)))

    def read_s(self, depth: int) -> str:
        return self.sized().decode("utf-8", "surrogatepass")

    def read_b(self, depth: int) -> bytes:
        return self.sized()

    def read_a(self, depth: int) -> bytearray:
        return bytearray(self.sized())

    def read_l(self, depth: int) -> list[Any]:
        return [self.value(depth) for _ in range(self.count())]

    def read_t(self, depth: int) -> tuple[Any, ...]:
        return tuple(self.read_l(depth))

    def read_S(self, depth: int) -> set[Any]:
        return {self.value(depth) for _ in range(self.keys())}

    def read_z(self, depth: int) -> frozenset[Any]:
        return frozenset(self.read_S(depth))

    def read_d(self, depth: int) -> dict[Any, Any]:
        return {self.value(depth): self.value(depth) for _ in range(self.keys())}

    def read_r(self, depth: int) -> range:
        parts = [self.value(depth) for _ in range(3)]
        if any(type(part) is not int for part in parts):
            raise ValueError("a range is not of integers")
        return range(*parts)

    def read_o(self, depth: int) -> Opaque:
        return Opaque(self.sized().decode("utf-8", "replace"))


# --- Messages ---------------------------------------------------------------------------------------------------------


def message(value: Any) -> bytes:
    """Return the bytes of a message. Raises ValueError for a value that no message can carry."""
    data = encoded(value)
    if len(data) > MOST_BYTES:
        raise ValueError("a value is too large")
    return pack(">I", len(data)) + data


def send(fd: int, data: bytes) -> None:
    """Write a message, all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> Any:
    """Return the value of the next message. Raises EOFError at the end, ValueError for bytes of another form."""
    (size,) = unpack(">I", _read(fd, 4))
    if size > MOST_BYTES:
        raise ValueError("a message is too large")
    return decoded(_read(fd, size))


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def text(problem: BaseException) -> str:
    """Return the text of any exception, at most 200 characters of it."""
    try:
        return str(problem)[:200]
    except BaseException:  # from a method that a program wrote
        return ""


def line(problem: BaseException) -> str:
    """Return an exception in one short line, for any exception."""
    name, words = type.__dict__["__name__"].__get__(type(problem)), text(problem)
    return " ".join(f"{name}: {words}".split()) if words else str(name)
