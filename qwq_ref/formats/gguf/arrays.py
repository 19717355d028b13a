"""Arrays in the metadata of a GGUF file: bytes of the header, until their elements are asked for."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError
from ...files import StrPath

Buffer = bytes | mmap.mmap
_PIECE = 1 << 20  # bytes of strings that are checked at a time


class Values(Protocol):
    """An array of the metadata. Its elements become Python objects when they are asked for.

    type  the name of the element type, such as "string" or "int32"
    """

    @property
    def type(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def tolist(self) -> list[Any]:
        """Return all elements as Python values."""

    def strings(self) -> list[str]:
        """Return all elements of an array of strings. Raises CheckpointError for another type."""

    def array(self) -> NDArray[Any]:
        """Return all elements of an array of numbers. Raises CheckpointError for strings."""


class _Array:
    """The base of both kinds of arrays: their place in the bytes of the header, which `finish` gives them."""

    def __init__(self, path: StrPath, key: str, type: str, begin: int, count: int) -> None:
        self.type = type
        self.data: Buffer = b""
        self._path, self._key, self._begin, self._count = path, key, begin, count

    def __len__(self) -> int:
        return self._count

    def _index(self, index: int) -> int:
        """Return a place from the beginning. Raises IndexError."""
        if not -self._count <= index < self._count:
            raise IndexError(f"{self._key}: {index} of {self._count}")
        return index % self._count

    def _refuse(self, wanted: str) -> CheckpointError:
        return CheckpointError(self._path, self._key, f"must be an array of {wanted}, got {self.type}")


class Numbers(_Array):
    """An array of numbers or bools."""

    def __init__(self, path: StrPath, key: str, type: str, letter: str, begin: int, count: int) -> None:
        super().__init__(path, key, type, begin, count)
        self._dtype = np.dtype(f"<{letter}")

    def array(self) -> NDArray[Any]:
        elements = np.frombuffer(self.data, self._dtype, self._count, self._begin)
        elements.flags.writeable = False
        return elements

    def __getitem__(self, index: int) -> Any:
        return self.array()[self._index(index)].item()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def tolist(self) -> list[Any]:
        elements: list[Any] = self.array().tolist()
        return elements

    def strings(self) -> list[str]:
        raise self._refuse("strings")


class Strings(_Array):
    """An array of strings: each is a length of 8 bytes, and its bytes."""

    def __init__(self, path: StrPath, key: str, begin: int, ends: array[int]) -> None:
        super().__init__(path, key, "string", begin, len(ends))
        self._ends = ends

    def check(self, data: Buffer) -> None:
        """Raise CheckpointError for a string that is not UTF-8.

        Many strings are decoded at once: zeros in place of the lengths divide them, and end a character that is cut.
        """
        for first, starts, piece in self._pieces(data):
            try:
                piece.tobytes().decode("utf-8")
            except UnicodeDecodeError as problem:
                bad = first + int(np.searchsorted(starts, problem.start, "right")) - 1
                raise CheckpointError(self._path, self._key, f"element {bad:,} is not UTF-8") from None

    def _pieces(self, data: Buffer) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield many strings at a time: the index of the first, the places where they start, and their bytes.

        Zeros are in place of the lengths.
        """
        ends = np.frombuffer(self._ends, np.uint32) if len(self._ends) else np.zeros(0, np.uint32)
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else self._begin
            last = max(first + 1, int(np.searchsorted(ends, begin + _PIECE, "right")))
            piece = np.frombuffer(data, np.uint8, int(ends[last - 1]) - begin, begin).copy()
            starts = np.concatenate([[begin], ends[first : last - 1]]).astype(np.int64) - begin
            piece[(starts[:, None] + np.arange(8)).ravel()] = 0
            yield first, starts, piece
            first = last

    def _text(self, index: int) -> str:
        begin = self._ends[index - 1] if index else self._begin
        return self.data[begin + 8 : self._ends[index]].decode("utf-8")

    def __getitem__(self, index: int) -> str:
        return self._text(self._index(index))

    def __iter__(self) -> Iterator[str]:
        return map(self._text, range(self._count))

    def tolist(self) -> list[str]:
        found: list[str] = []
        for first, starts, piece in self._pieces(self.data):
            if len(piece) - np.count_nonzero(piece) == 8 * len(starts):  # no string has a zero: these divide them
                found += piece.tobytes().decode("utf-8").split("\0" * 8)[1:]
            else:
                found += map(self._text, range(first, first + len(starts)))
        return found

    def strings(self) -> list[str]:
        return self.tolist()

    def array(self) -> NDArray[Any]:
        raise self._refuse("numbers")
