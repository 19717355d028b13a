"""The door to the compiled library: the library itself, its errors, and pointers to arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import QwqError

try:
    from ._core import ffi as ffi
    from ._core import lib as lib
except ImportError:  # the package was installed without a C compiler
    ffi = lib = None

Array = NDArray[Any]
_C_TYPES = {
    np.dtype(name).str: c_type  # in this machine's order of bytes
    for name, c_type in (
        ("f4", "float"), ("f2", "uint16_t"), ("u2", "uint16_t"), ("i2", "int16_t"),
        ("i1", "int8_t"), ("i4", "int32_t"), ("u1", "uint8_t"),
    )
}  # fmt: skip


class CoreError(QwqError):
    """The C core is not built, or it cannot do what a call asks for."""


class OutOfRange(CoreError):  # noqa: N818 - it says more than another name with Error
    """A query, key or value of a layer is not finite, or beyond 2^56."""


class Stopped(Exception):  # noqa: N818 - it is no error: the caller asked for it
    """A long call returned early, because its `Stop` was set."""


class Stop:
    """A flag that long calls look at. Another thread sets it."""

    def __init__(self) -> None:
        self.flag = library() and ffi.new("int32_t *")

    def set(self) -> None:
        self.flag[0] = 1

    @property
    def is_set(self) -> bool:
        return bool(self.flag[0])

    def clear(self) -> None:
        self.flag[0] = 0


def available() -> bool:
    """Return whether the core was built."""
    return lib is not None


def library() -> Any:
    """Return the compiled library. Raises CoreError where it was not built."""
    if lib is None:
        raise CoreError(None, "core", "is not built: install with a C compiler, or use the NumPy backend")
    return lib


def names(function: str) -> tuple[str, ...]:
    """Return all names that a function of C knows by number; none without the core."""
    if lib is None:
        return ()
    name = getattr(lib, function)
    found: list[str] = []
    while (text := name(len(found))) != ffi.NULL:
        found.append(ffi.string(text).decode())
    return tuple(found)


def check(code: int) -> None:
    """Raise the error that a return code of the library means: CoreError, OutOfRange, or Stopped."""
    if not code:
        return
    if code == lib.QWQ_ESTOP:
        raise Stopped
    if code == lib.QWQ_ERANGE:
        raise OutOfRange(None, "layer", "queries, keys or values are not finite, or beyond 2^56")
    reasons = {
        lib.QWQ_EISA: "the instruction set cannot run here",
        lib.QWQ_ESIZE: "a size is impossible",
        lib.QWQ_EALIGN: "an array is not aligned",
        lib.QWQ_EFORMAT: "the format does not exist, or an array does not fit it",
        lib.QWQ_EOVERLAP: "arrays overlap",
        lib.QWQ_ENULL: "an array is missing",
    }
    raise CoreError(None, None, reasons.get(code, f"failed with code {code}"))


def at(array: Array) -> Any:
    """Return the address of an array as a pointer of its type. The pointer holds a contiguous array.

    `from_buffer` is five times as fast as `array.ctypes.data`.
    """
    c_type = _C_TYPES.get(array.dtype.str)
    if c_type is None:
        raise CoreError(None, "array", f"of {array.dtype} is nothing that C reads")
    if array.flags.c_contiguous:
        return ffi.from_buffer(c_type + "[]", array)
    return ffi.cast(c_type + " *", array.ctypes.data)


def flag(stop: Stop | None) -> Any:
    """Return the pointer that C gets for a `Stop`."""
    return ffi.NULL if stop is None else stop.flag


def shape_of(name: str, array: Array, rank: int) -> tuple[int, ...]:
    """Return the shape of an array of this rank. Raises CoreError for another rank."""
    try:
        shape = np.shape(array)
    except ValueError:
        raise CoreError(None, name, "must be an array: its rows differ in length") from None
    if len(shape) != rank:
        raise CoreError(None, name, f"must have {rank} dimensions, got shape {list(shape)}")
    return shape


def expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Raise CoreError for an array of another shape."""
    if np.shape(array) != shape:
        raise CoreError(None, name, f"must have shape {list(shape)}, got {list(np.shape(array))}")
