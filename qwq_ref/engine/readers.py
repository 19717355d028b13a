"""The readers of `streaming`: they fill the same memory again and again, from whatever files a model has."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from ..core import PANEL, Packed
from ..core.magnitude import FLOAT32_MAX, check_finite, within
from ..formats.packed import PackedFile, Stored
from ..formats.source import Source, Tensors
from ..forms import AnyForm
from ..spec.ops import Array
from .pieces import Notes
from .plan import EMBEDDING, HEAD, plan
from .reading import packer
from .streaming import WeightReader
from .weights import embed


def open_reader(source: Source, form: AnyForm, threads: int) -> WeightReader:
    """Return the reader of a model's weights in one form, while its source is open. Raises CheckpointError."""
    if str(form) in source.forms:
        planned = plan(source.config, form)
        return PackedReader(source.open_packed(str(form), planned), planned)
    return PackingReader(source, form, threads)


class PackingReader:
    """Packs the floats of a source, or what it stores, as the loader does."""

    def __init__(self, source: Source, form: AnyForm, threads: int) -> None:
        assert source.floats is not None
        self._floats = source.floats
        self._target = _Memory(plan(source.config, form))
        self._pool = packer(source, form, threads, self._target, _Remembered.of(source.floats))
        weakref.finalize(self, self._pool.__exit__)

    def fill(self, name: str, out: Packed, begin: int = 0) -> None:
        self._target.aim(name, begin, out.packed)
        self._pool.fill(name, begin, begin + out.shape[0])

    def vector(self, name: str) -> Array:
        stored = self._target.planned[name]
        data = np.empty(stored.nbytes, np.uint8)
        self._target.aim(name, 0, data)
        self._pool.fill(name, 0, stored.shape[0])
        return data.view(np.float32)

    def embed(self, ids: Any) -> Array:
        return _rows(ids, self._row)

    def _row(self, i: int) -> Array:
        row = self._floats.rows(EMBEDDING, i, i + 1).astype(np.float32)
        if not within(row, FLOAT32_MAX):
            check_finite(row, self._floats.file(EMBEDDING), f"{EMBEDDING}, row {i}")
        return row


class _Memory:
    """A `pieces.Target` of one tensor at a time, in memory that is given."""

    def __init__(self, planned: Mapping[str, Stored]) -> None:
        self.planned = planned
        self._start, self._data = 0, np.empty(0, np.uint8)

    def aim(self, name: str, begin: int, data: Array) -> None:
        """Take the rows of a tensor from `begin` on into `data`."""
        self._start, self._data = self.planned[name].span(begin, begin)[0], data

    def has(self, name: str) -> bool:
        return False

    def begin(self, name: str) -> None:
        """Do nothing: the memory is there."""

    def room(self, name: str, begin: int, end: int) -> Array:
        start, stop = self.planned[name].span(begin, end)
        return self._data[start - self._start : stop - self._start]

    def put(self, name: str, begin: int, end: int, data: Array) -> None:
        """Do nothing: the rows are where they belong."""

    def finish(self, name: str, notes: Notes) -> None:
        """Do nothing: nothing is resumed."""


class _Remembered:
    """Tensors that the system may keep in its own memory, because they are read again in the next pass."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    @classmethod
    def of(cls, tensors: Tensors) -> Tensors:
        return cast(Tensors, cls(tensors))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensors, name)

    def forget(self, name: str, begin: int, end: int) -> None:
        """Do nothing."""


class PackedReader:
    """Reads a file of packed weights."""

    def __init__(self, file: PackedFile, planned: Mapping[str, Stored]) -> None:
        self._file, self._planned = file, planned
        weakref.finalize(self, file.close)

    def fill(self, name: str, out: Packed, begin: int = 0) -> None:
        self._file.fill(name, begin, begin + out.shape[0], out.packed)

    def vector(self, name: str) -> Array:
        vector = self._whole(name, 0, self._planned[name].shape[0])
        check_finite(vector, self._file.path, name)
        return cast(Array, vector)

    def embed(self, ids: Any) -> Array:
        name = EMBEDDING if EMBEDDING in self._planned else HEAD
        V, rows = self._planned[name].shape[0], 1 if self._planned[name].format is None else PANEL

        def row(i: int) -> Array:
            begin = i // rows * rows
            return embed(np.array([i - begin]), self._whole(name, begin, min(begin + rows, V)))

        return _rows(ids, row)

    def _whole(self, name: str, begin: int, end: int) -> Any:
        """Return rows [begin, end) of a tensor."""
        stored = self._planned[name]
        start, stop = stored.span(begin, end)
        data = np.empty(stop - start, np.uint8)
        self._file.fill(name, begin, end, data)
        return Stored((end - begin, *stored.shape[1:]), stored.format, stored.dtype).view(data)


def _rows(ids: Any, row: Callable[[int], Array]) -> Array:
    """ids [T], row(i) -> float32 [1, D] -> [T, D]: each row is read once."""
    different, places = np.unique(np.asarray(ids), return_inverse=True)
    found: Array = np.concatenate([row(int(i)) for i in different])[places]
    return found
