"""The tensors of a quantised checkpoint by name, and the places of its matrices and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core import FORMATS, Array, Format, Packed, Words, pack
from ...core.magnitude import FLOAT32_MAX, within
from ...errors import CheckpointError
from ..checkpoint import open_file, read_index
from ..decoded import Place
from ..names import INDEX, SINGLE
from ..parts import Parts, dequantised
from ..safetensors import DTYPES, FLOATS, SafetensorsFile, Tensor

_FORMATS = {"F32": FORMATS["fp32"], "F16": FORMATS["fp16"], "BF16": FORMATS["bf16"]}


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of all files of a checkpoint: name -> dtype, shape and place.

    path  the file that lists them, for errors
    """

    def __init__(self, path: Path, homes: Mapping[str, SafetensorsFile]) -> None:
        self.path, self.homes = path, homes

    @classmethod
    def open(cls, path: Path, files: ExitStack) -> TensorFiles:
        """Open a file, or those in a folder. Raises CheckpointError, also for a tensor in two files."""
        if not path.is_dir() or (path / SINGLE).exists():
            listing = path / SINGLE if path.is_dir() else path
            file = open_file(listing, files)
            return cls(listing, dict.fromkeys(file.tensors, file))
        index, homes = path / INDEX, dict[str, SafetensorsFile]()
        shards = read_index(index)
        for shard in sorted(set(shards.values())):
            file = open_file(path / shard, files)
            for name in file.tensors:
                if name in homes:
                    raise CheckpointError(file.path, name, f"is in {homes[name].path}, too")
                homes[name] = file
        for name, shard in shards.items():
            if name not in homes:
                raise CheckpointError(path / shard, name, f"is not here, but {INDEX} says so")
        return cls(index, homes)

    def __getitem__(self, name: str) -> Tensor:
        return self.homes[name].tensors[name]

    def __iter__(self) -> Any:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)

    def error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(self.homes[name].path if name in self.homes else self.path, name, problem)

    def expect(self, name: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> None:
        """Check a tensor by its header. Raises CheckpointError."""
        if name not in self:
            raise self.error(name, "missing: the tensor beside it is quantised")
        tensor = self[name]
        if tensor.dtype not in dtypes:
            raise self.error(name, f"dtype must be {' or '.join(dtypes)}, got {tensor.dtype}")
        if tensor.shape != shape:
            raise self.error(name, f"shape {list(tensor.shape)}, but the config implies {list(shape)}")

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole tensor. Raises CheckpointError if its file shrank."""
        tensor = self[name]
        result = np.empty(tensor.shape, DTYPES[tensor.dtype])
        self.read_into(name, 0, [result])
        return result

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a tensor. Raises CheckpointError if its file shrank."""
        result = np.empty((end - begin, *self[name].shape[1:]), DTYPES[self[name].dtype])
        self.read_into(name, begin, [result])
        return result

    def columns(self, name: str, begin: int, end: int) -> NDArray[Any]:
        return self.homes[name].columns(name, begin, end)

    def read_into(self, name: str, begin: int, out: Sequence[NDArray[Any]]) -> None:
        self.homes[name].read_into(name, begin, out)

    def forget(self, name: str, begin: int, end: int) -> None:
        self.homes[name].forget(name, begin, end)


class Matrix(Place, Protocol):
    """The place of a matrix or vector in its files, which has a format of the core.

    format   of the core, which holds the stored numbers without loss
    columns  the column of the matrix that each packed column is; None: the same one
    """

    @property
    def format(self) -> Format: ...

    @property
    def columns(self) -> Array | None: ...

    def parts(self, begin: int, end: int) -> Parts: ...

    def pack(self, begin: int, end: int, out: Packed, step: int) -> bool: ...


class Floats:
    """A tensor that is not quantised."""

    columns = None

    def __init__(self, files: TensorFiles, name: str, shape: tuple[int, ...]) -> None:
        files.expect(name, FLOATS, shape)
        self._files, self._name, self.shape = files, name, shape
        self.type, self.nbytes, self.path = files[name].dtype, files[name].nbytes, files.homes[name].path
        self.format = _FORMATS[self.type]

    def parts(self, begin: int, end: int) -> Parts:
        return Parts(self._files.rows(self._name, begin, end))

    def pack(self, begin: int, end: int, out: Packed, step: int) -> bool:
        return self.parts(begin, end).pack(out, step)

    def read(self, begin: int, out: Sequence[NDArray[Any]]) -> None:
        self._files.read_into(self._name, begin, out)

    def floats(self, begin: int, end: int) -> NDArray[np.float32]:
        return np.asarray(self._files.rows(self._name, begin, end), np.float32)

    def forget(self, begin: int, end: int) -> None:
        self._files.forget(self._name, begin, end)


class Quantised:
    """The base of quantised matrices: integers and scales in several tensors of one module.

    The subclass sets `format` and `names`, and has `words`, `scales` and `codes`.
    """

    format: Format

    @property
    def columns(self) -> Array | None:
        """The column of the matrix that each packed column is; None: the same one."""
        return None

    def __init__(
        self, files: TensorFiles, module: str, shape: tuple[int, ...], type: str, names: Sequence[str]
    ) -> None:
        self._files, self._module, self.shape, self.type = files, module, shape, type
        self._names = [f"{module}.{name}" for name in names]
        self.nbytes = sum(files[name].nbytes for name in self._names)
        self.path = files.homes[self._names[0]].path

    def words(self, begin: int, end: int) -> Words:
        """Return the codes of rows [begin, end) as the file stores them. `begin` is a multiple of 8."""
        raise NotImplementedError

    def scales(self, begin: int, end: int) -> dict[str, Array]:
        """Return what `Parts` has of rows [begin, end) beside their codes. NaN and infinity pass."""
        raise NotImplementedError

    def codes(self, begin: int, end: int) -> Array:
        """Return the codes of rows [begin, end), uint8 [end - begin, K]."""
        raise NotImplementedError

    def parts(self, begin: int, end: int) -> Parts:
        """Return rows [begin, end) in the format. NaN and infinity pass."""
        return Parts(self.codes(begin, end), **self.scales(begin, end))

    def pack(self, begin: int, end: int, out: Packed, step: int) -> bool:
        """Pack rows [begin, end), as `parts` returns them -> whether all scales are finite."""
        scales = self.scales(begin, end)
        given: dict[str, Any] = {**scales}
        pack(self.format, self.words(begin, end), out=out, step=step, **given)
        return all(within(scales[name], FLOAT32_MAX) for name in ("scale", "offset") if name in scales)

    def read(self, begin: int, out: Sequence[NDArray[Any]]) -> None:
        raise AssertionError("these are no floats")

    def floats(self, begin: int, end: int) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            packed = dequantised(self.format, self.parts(begin, end))
        if self.columns is None:
            return packed
        rows = np.empty_like(packed)
        rows[:, self.columns] = packed
        return rows

    def forget(self, begin: int, end: int) -> None:
        if end == self.shape[0]:  # tensors are read whole
            for name in self._names:
                self._files.forget(name, 0, self._files[name].shape[0])


def whole_words(files: TensorFiles, name: str, count: int, bits: int) -> None:
    """Check that so many codes fill words of 32 bits. Raises CheckpointError."""
    if count * bits % 32:
        raise files.error(name, f"holds whole words of 32 bits, and {count} codes of {bits} bits are none")


def code_type(bits: int) -> str:
    """Return the type of the core that holds codes of so many bits."""
    return f"u{max(bits, 4)}"


def of_core_groups(values: Array, columns: int, group: int, of_core: int) -> Array:
    """values [n, m] of groups of the file -> [n, k] of the groups of the core that they consist of

    columns  of the matrix
    group    columns of a group of the file
    of_core  columns of a group of the core, which divides it
    """
    if group == of_core:
        return values
    taken: Array = values[:, np.arange(0, columns, of_core) // group]
    return taken
