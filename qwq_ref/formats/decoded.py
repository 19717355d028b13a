"""A source whose tensors are decoded when they are read: a GGUF file, or a quantised checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..core import Array, Format
from ..core.magnitude import FLOAT32_MAX, first_beyond
from ..errors import CheckpointError, UsageError
from ..files import StrPath
from .parts import Parts
from .safetensors import DROP_FROM

_PIECE = 1 << 20  # weights that are decoded at a time
FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Place(Protocol):
    """The rows of one tensor of a model, in its file.

    type    the name of the stored type: one of `FLOAT_TYPES`, or another
    shape   of the tensor
    nbytes  in the file
    path    of the file
    """

    @property
    def type(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def path(self) -> StrPath: ...

    def read(self, begin: int, out: Sequence[NDArray[Any]]) -> None:
        """Fill arrays, one after another, with rows of floats from `begin` on, as they are stored."""

    def floats(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return rows [begin, end) of another type, decoded."""

    def forget(self, begin: int, end: int) -> None:
        """Tell the system to drop its copy of these rows."""


class DecodedSource(Mapping[str, NDArray[np.float32]]):
    """A `Source` without packed weights, and its `Tensors`: name -> float32 array, decoded from disk at each access.

    kind       "gguf", "awq", "gptq" or "mlx"
    path       the file or folder that was opened
    tokenizer  what `text` reads the tokenizer from, and `template` that of the chat template
    places     the tensors of the config, in its order
    floats     the source itself
    """

    kind: str
    forms: tuple[str, ...] = ()
    _what = "a quantised checkpoint"

    def __init__(self, path: Path, small: Path, config: Config, places: Mapping[str, Place], files: ExitStack) -> None:
        self.path, self.config = path, config
        self.tokenizer = self.template = small
        self._decoded = places
        self._files = files
        self._is_large = sum(place.nbytes for place in places.values()) >= DROP_FROM

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def floats(self) -> Self:
        return self

    def open_packed(self, form: str, *_: object) -> NoReturn:
        """Raise UsageError: the tensors are in the layout of their file."""
        raise UsageError(self.path, "weights", f"{form} are not here packed: this is {self._what}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._decoded[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype of `rows`: float32 for a quantised tensor."""
        return FLOAT_TYPES.get(self._decoded[name].type, FLOAT_TYPES["F32"])

    def file(self, name: str) -> StrPath:
        """Return the file that holds a tensor."""
        return self._decoded[name].path

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a tensor in `dtype`. Raises CheckpointError if the file shrank."""
        result = np.empty((end - begin, *self.shape(name)[1:]), self.dtype(name))
        self.read_into(name, begin, [result])
        return result

    def read_into(self, name: str, begin: int, out: Sequence[NDArray[Any]]) -> None:
        """Fill contiguous arrays of `dtype`, one after another, with the rows of a tensor from `begin` on."""
        place, dtype = self._decoded[name], self.dtype(name)
        assert all(part.dtype == dtype and part.shape[1:] == place.shape[1:] for part in out)
        assert begin + sum(map(len, out)) <= place.shape[0]
        if place.type in FLOAT_TYPES:
            place.read(begin, out)
            return
        step = max(1, _PIECE // place.shape[1])
        for part in out:
            for start in range(0, len(part), step):
                piece = part[start : start + step]
                piece[:] = place.floats(begin + start, begin + start + len(piece))
            begin += len(part)

    def stored(self, name: str) -> tuple[str, Format, Parts, Array | None] | None:
        """Return a whole matrix as the file stores it; None for floats, and for types without a format of the core.

        The parts are the type's name, the format, integers and scales, and the column that each packed column is.
        Raises CheckpointError, FormError.
        """
        raise NotImplementedError

    def forget(self, name: str, begin: int, end: int) -> None:
        """Tell the system to drop its copy of these rows, if the model is large: see `DROP_FROM`."""
        if self._is_large:
            self._decoded[name].forget(begin, end)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.rows(name, 0, self._decoded[name].shape[0]), np.float32)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._decoded

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded)

    def __len__(self) -> int:
        return len(self._decoded)

    @property
    def dtypes(self) -> dict[str, int]:
        """Return the number of bytes of each type."""
        totals: dict[str, int] = {}
        for place in self._decoded.values():
            totals[place.type] = totals.get(place.type, 0) + place.nbytes
        return totals

    @property
    def types(self) -> dict[str, int]:
        """Return the number of tensors of each type."""
        kinds = [place.type for place in self._decoded.values()]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def check_finite(self, progress: Callable[[int], object] | None = None) -> None:
        """Decode everything once. Raises CheckpointError at the first NaN or infinity.

        progress  called with the number of bytes read since its last call, as for tqdm's `update`
        """
        for name, place in self._decoded.items():
            rows, told = place.shape[0], 0
            step = max(1, _PIECE // math.prod(place.shape[1:]))
            for begin in range(0, rows, step):
                end = min(begin + step, rows)
                found = first_beyond(self.rows(name, begin, end), FLOAT32_MAX)
                if found is not None:
                    index = [begin + found[0][0], *found[0][1:]]
                    raise CheckpointError(place.path, name, f"holds {found[1]} at {index}")
                if progress is not None:
                    read = place.nbytes * end // rows
                    progress(read - told)
                    told = read
