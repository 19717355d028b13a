"""Files of packed weights: safetensors files whose bytes are those that the kernels read, so that loading is reading.

docs/packed.md specifies the format. A packed weight is a U8 tensor, and `__metadata__` describes its bytes. Norms,
biases and other arrays that are not packed are F32 or BF16 tensors beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import core
from ..core import Array, Format, Packed
from ..core.dtypes import BFLOAT16
from ..core.magnitude import check_finite
from ..errors import CheckpointError, MemoryLimitError
from ..files import StrPath, parse_json, pread_exactly
from .layout import Layout
from .safetensors import (
    DROP_FROM,
    HEADER_BYTES,
    SafetensorsFile,
    forget_range,
)
from .write import atomic_file

FORMAT, VERSION = "qwq-packed", "1"
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "I32": np.dtype("<i4")}
_ALIGNMENT = 64
_FIELDS = ("codes", "group", "scales", "zero", "shape")  # of an entry in the metadata
_PIECE_BYTES = 16 << 20  # of one read: many times a huge page, which two threads should not share


@dataclass(frozen=True)
class Stored:
    """The shape and the format of one tensor in a file.

    shape   (N, K) of a packed weight, or that of an array
    format  of a packed weight; None for an array
    dtype   of an array: "F32"; "BF16", which is uint16 in NumPy; or "I32" for an order of columns
    """

    shape: tuple[int, ...]
    format: Format | None = None
    dtype: str = "F32"

    @classmethod
    def of(cls, weight: Packed | Array) -> Stored:
        if isinstance(weight, Packed):
            return cls(weight.shape, weight.format)
        kinds = {np.dtype(np.uint16): "BF16", np.dtype(np.int32): "I32"}
        return cls(weight.shape, dtype=kinds.get(weight.dtype.newbyteorder("="), "F32"))

    @property
    def nbytes(self) -> int:
        """Return the size; 0 for a format that does not exist, or cannot hold the shape."""
        if self.format is None:
            return _DTYPES[self.dtype].itemsize * math.prod(self.shape)
        return core.packed_bytes(self.format, (self.shape[0], self.shape[1]))

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Return the places of the first and the last byte of rows [begin, end), the last excluded.

        begin  for a packed weight, a multiple of 32; `end` is one, too, or the last row
        """
        rows = self.shape[0] if self.format is None else -(-self.shape[0] // core.PANEL)
        size, panel = self.nbytes // max(1, rows), 1 if self.format is None else core.PANEL
        return begin // panel * size, -(-end // panel) * size

    def view(self, data: Array) -> Packed | Array:
        """Return uint8 [nbytes] as the weight or the array that it is."""
        if self.format is not None:
            return Packed(self.format, data, (self.shape[0], self.shape[1]))
        return data.view(_DTYPES[self.dtype]).reshape(self.shape)


def write_packed(path: StrPath, weights: Mapping[str, Packed | Array]) -> None:
    """Write packed weights, float32 arrays and bfloat16 as uint16 to one file, which appears when it is complete.

    Raises CheckpointError for something else, and for an array that holds NaN or infinity.
    """
    orders = {columns_name(name): w.columns for name, w in weights.items() if isinstance(w, Packed)}
    for name, weight in weights.items():
        if isinstance(weight, Packed):
            continue
        if not isinstance(weight, np.ndarray) or weight.dtype.newbyteorder("=") not in (np.float32, np.uint16):
            kind = getattr(weight, "dtype", type(weight).__name__)
            raise CheckpointError(path, name, f"must be packed, float32 or uint16, got {kind}")
        native = weight.astype(weight.dtype.newbyteorder("="), copy=False)
        check_finite(native if native.dtype == np.float32 else native.view(BFLOAT16), path, name)
    every = {**weights, **{name: order for name, order in orders.items() if order is not None}}
    with writing(path, {name: Stored.of(weight) for name, weight in every.items()}) as append:
        for name, weight in every.items():
            append(name, weight)


@contextmanager
def writing(path: StrPath, plan: Mapping[str, Stored]) -> Iterator[Callable[[str, Packed | Array], None]]:
    """Yield a function append(name, weight) that writes one weight of the plan. Weights may come in any order.

    The file replaces `path` at the end, if all weights came. Raises ValueError for a weight that is not in the plan.
    """
    layout = packed_layout(plan)
    places = dict(layout.places)
    with atomic_file(path) as file:
        file.write(layout.header)

        def append(name: str, weight: Packed | Array) -> None:
            data = weight.packed if isinstance(weight, Packed) else weight
            stored, kind = Stored.of(weight), data.dtype.newbyteorder("<")
            if name in places and not plan[name].format and kind == np.int32 and plan[name].dtype != "I32":
                raise ValueError(f"{name}: must be packed, float32 or uint16, got {data.dtype}")
            if name not in places or stored != plan[name] or data.nbytes != stored.nbytes:
                raise ValueError(f"{name}: {stored} was not planned, or was given before")
            if kind != (np.dtype(np.uint8) if stored.format else _DTYPES[stored.dtype]):
                raise ValueError(f"{name}: must be packed, float32 or uint16, got {data.dtype}")
            file.seek(places.pop(name))
            file.write(np.ascontiguousarray(data, data.dtype.newbyteorder("<")).data)

        yield append
        if places:
            raise ValueError(f"{next(iter(places))}: {len(places)} of the planned weights were not given")


def read_packed(
    path: StrPath,
    threads: int = 2,
    *,
    progress: Callable[[int], object] | None = None,
    drop_cache: bool | None = None,
) -> dict[str, Packed | Array]:
    """Return all weights of a file, with their orders of columns: see `PackedFile.read`. Raises CheckpointError."""
    with PackedFile(path) as file:
        return with_columns(file.read(threads, progress=progress, drop_cache=drop_cache))


def columns_name(name: str) -> str:
    """Return the name of the tensor that holds the order of the columns of a packed weight."""
    return f"{name.removesuffix('.weight')}.columns"


def with_columns(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors of a file, with each order of columns in the weight that it belongs to."""
    owners = {columns_name(name): name for name, weight in tensors.items() if isinstance(weight, Packed)}
    joined = {name: weight for name, weight in tensors.items() if name not in owners}
    for name in tensors.keys() & owners.keys():
        joined[owners[name]] = replace(joined[owners[name]], columns=tensors[name])
    return joined


class PackedFile:
    """One open file whose header was read and checked against the file's size. Raises CheckpointError.

    weights  name -> Stored, packed ones first
    nbytes   the memory that `read` takes
    """

    def __init__(self, path: StrPath) -> None:
        self.path = path
        self._file = SafetensorsFile(path, ("U8", *_DTYPES))
        try:
            self.weights = _check(self._file)
        except BaseException:
            self.close()
            raise
        begins = [tensor.begin for tensor in self._file.tensors.values()]
        self._begin = min(begins, default=0)
        self._end = max((tensor.end for tensor in self._file.tensors.values()), default=0)
        self._origin = self._begin // _ALIGNMENT * _ALIGNMENT  # the place in the file that the memory begins with
        self.nbytes = self._end - self._origin

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self,
        threads: int = 2,
        *,
        progress: Callable[[int], object] | None = None,
        drop_cache: bool | None = None,
    ) -> dict[str, Packed | Array]:
        """Return the weights: views of one piece of memory of the size of the file's data, on huge pages.

        progress    called with the number of bytes read since its last call, as for tqdm's `update`
        drop_cache  whether the system drops its own copy of the file; None: if that has at least `DROP_FROM` bytes

        Raises CheckpointError if the file shrank, MemoryLimitError if there is no such piece of memory.
        """
        try:
            memory = core.aligned(self.nbytes)
        except MemoryError:
            problem = f"needs {self.nbytes:,} bytes of memory, which the system does not give"
            raise MemoryLimitError(self.path, None, problem) from None
        drop = self.nbytes >= DROP_FROM if drop_cache is None else drop_cache
        descriptor, bytes_of_memory = self._file.fileno(), memory.data

        def read(start: int) -> int:
            begin, end = max(start, self._begin), min(start + _PIECE_BYTES, self._end)
            piece = bytes_of_memory[begin - self._origin : end - self._origin]
            pread_exactly(descriptor, [piece], begin, self.path, CheckpointError)
            if drop:  # by pieces, so that there are never two copies of everything
                forget_range(descriptor, begin, end - begin)
            return end - begin

        starts = range(self._begin // _PIECE_BYTES * _PIECE_BYTES, self._end, _PIECE_BYTES)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            try:
                for count in pool.map(read, starts):
                    if progress is not None:
                        progress(count)
            finally:  # an error, or Ctrl-C, waits for the pieces that are being read, and not for all others
                pool.shutdown(cancel_futures=True)
        weights = {name: self._view(memory, name, stored) for name, stored in self.weights.items()}
        self._check_orders({name: weights[name] for name, stored in self.weights.items() if stored.dtype == "I32"})
        return weights

    def fill(self, name: str, begin: int, end: int, data: Array) -> None:
        """Read rows [begin, end) of a weight or an array into uint8 `data`. Raises CheckpointError if the file shrank.

        begin  of a packed weight, a multiple of 32; `end` is one, too, or the last row
        """
        start, stop = self.weights[name].span(begin, end)
        at, buffer = self._file.tensors[name].begin, data.data
        for i in range(start, stop, _PIECE_BYTES):
            last = min(i + _PIECE_BYTES, stop)
            pread_exactly(self._file.fileno(), [buffer[i - start : last - start]], at + i, self.path, CheckpointError)

    def orders(self) -> dict[str, Array]:
        """Return the orders of columns alone: name of the weight -> int32 [K]. Raises CheckpointError."""
        found = {}
        for name, stored in self.weights.items():
            order = columns_name(name)
            if stored.format is not None and order in self.weights:
                data = np.empty(self.weights[order].nbytes, np.uint8)
                begin = self._file.tensors[order].begin
                pread_exactly(self._file.fileno(), [data.data], begin, self.path, CheckpointError)
                found[name] = data.view(_DTYPES["I32"])
        self._check_orders({columns_name(name): order for name, order in found.items()})
        return found

    def _check_orders(self, orders: Mapping[str, Any]) -> None:
        """Check that each order has each column once. The kernels would read memory elsewhere."""
        for name, order in orders.items():
            if not np.array_equal(np.sort(order), np.arange(len(order))):
                raise CheckpointError(self.path, name, "must hold each column once")

    def _view(self, memory: Array, name: str, stored: Stored) -> Packed | Array:
        tensor = self._file.tensors[name]
        return stored.view(memory[tensor.begin - self._origin : tensor.end - self._origin])


def packed_layout(plan: Mapping[str, Stored]) -> Layout:
    """Return the plan of a file.

    Packed weights come first. Their sizes are multiples of 64, so that all of them begin at such a multiple. BF16 comes
    last: an odd number of elements would give the next F32 tensor an odd place.
    """
    names = sorted(plan, key=lambda name: (plan[name].format is None, plan[name].dtype == "BF16"))
    packed = {name: _entry(stored.format, stored.shape) for name, stored in plan.items() if stored.format is not None}
    metadata = {"format": FORMAT, "version": VERSION, "packed": json.dumps(packed, separators=(",", ":"))}
    header: dict[str, Any] = {"__metadata__": metadata}
    places, end = {}, 0
    for name in names:
        stored = plan[name]
        if stored.format is not None and stored.nbytes == 0:
            raise ValueError(f"{name}: {stored.format} does not exist, or cannot hold shape {list(stored.shape)}")
        places[name], end = end, end + stored.nbytes
        dtype, shape = (stored.dtype, list(stored.shape)) if stored.format is None else ("U8", [stored.nbytes])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [places[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > HEADER_BYTES:
        raise ValueError(f"the header would have {len(text):,} bytes, more than the {HEADER_BYTES:,} that are read")
    data = 8 + len(text)
    return Layout(
        len(text).to_bytes(8, "little") + text, {name: data + begin for name, begin in places.items()}, data + end
    )


def _check(file: SafetensorsFile) -> dict[str, Stored]:
    """Check the metadata against the tensors -> name -> Stored."""
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(file.path, "__metadata__", f"format is not {FORMAT}: this is no file of packed weights")
    version = file.metadata.get("version")
    if version != VERSION:
        raise CheckpointError(file.path, "__metadata__", f"version must be {VERSION}, got {version!r:.40}")
    text = file.metadata.get("packed")
    if text is None:
        raise CheckpointError(file.path, "__metadata__", "packed is missing")
    try:
        entries = parse_json(text.encode("utf-8", "surrogatepass"), file.path, CheckpointError)
    except CheckpointError as problem:
        where = f" {problem.field[:60]}" if problem.field else ""
        raise CheckpointError(file.path, "__metadata__", f"packed:{where} {problem.problem}") from None
    for name in entries:
        if name not in file.tensors:
            raise CheckpointError(file.path, name, "is in the metadata, but there is no such tensor")
    weights: dict[str, Stored] = {}
    for name, tensor in sorted(file.tensors.items(), key=lambda item: item[1].begin):
        if tensor.dtype in _DTYPES:
            if name in entries:
                raise CheckpointError(file.path, name, f"is {tensor.dtype}, but in the metadata it is packed")
            weights[name] = Stored(tensor.shape, dtype=tensor.dtype)
            continue
        if name not in entries:
            raise CheckpointError(file.path, name, "is U8, but the metadata does not say what its bytes are")
        stored = weights[name] = _stored(entries[name], file.path, name)
        if len(tensor.shape) != 1 or tensor.nbytes != stored.nbytes:
            fault = f"shape must be [{stored.nbytes}] for {_words(stored)}, got {list(tensor.shape)}"
            raise CheckpointError(file.path, name, fault)
        if tensor.begin % _ALIGNMENT:
            fault = f"begins at byte {tensor.begin:,}, no multiple of {_ALIGNMENT}: was the file rewritten?"
            raise CheckpointError(file.path, name, fault)
    owners = {columns_name(name): stored for name, stored in weights.items() if stored.format is not None}
    for name, stored in weights.items():
        if stored.dtype == "I32" and (name not in owners or stored.shape != owners[name].shape[1:]):
            raise CheckpointError(file.path, name, "is I32, but no order of the columns of a packed weight")
    return weights


def _entry(form: Format, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the entry of a packed weight in the metadata."""
    values = (form.codes, form.group, form.scales, form.zero_point, list(shape))
    return dict(zip(_FIELDS, values, strict=True))


def _stored(entry: Any, path: StrPath, name: str) -> Stored:
    """Check an entry of the metadata by itself: {"codes", "group", "scales", "zero", "shape"}."""

    def error(problem: str) -> CheckpointError:
        return CheckpointError(path, name, f"in the metadata: {problem}")

    def is_integer(value: Any) -> bool:
        return type(value) is int and 0 <= value <= 1 << 30

    if not isinstance(entry, dict):
        raise error("must be an object")
    for field in (*entry, *_FIELDS):
        if field not in _FIELDS:
            raise error(f"unknown field {field[:60]}")
        if field not in entry:
            raise error(f"{field} is missing")
    codes, group, scales, zero, shape = (entry[field] for field in _FIELDS)
    for field, value, good in (
        ("codes", codes, isinstance(codes, str)),
        ("group", group, is_integer(group)),
        ("scales", scales, isinstance(scales, str)),
        ("zero", zero, is_integer(zero)),
        ("shape", shape, isinstance(shape, list) and len(shape) == 2 and all(map(is_integer, shape))),
    ):
        if not good:
            raise error(f"{field} is impossible: {str(value)[:60]}")
    stored = Stored(tuple(shape), Format(codes, group, scales, zero))
    if stored.nbytes == 0:
        raise error(f"there is no format of {_words(stored)}")
    return stored


def _words(stored: Stored) -> str:
    form, shape = stored.format, list(stored.shape)
    assert form is not None
    return (
        f"codes {form.codes[:20]}, group {form.group}, scales {form.scales[:20]}, zero {form.zero_point}, shape {shape}"
    )
