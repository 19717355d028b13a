"""Matrices whose rows are columns of the file's tensors, as AWQ and GPTQ store them: some columns are held."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...core import Array
from .tensors import Quantised, TensorFiles

# The engine packs at most so many stripes at a time: gate and up, and the next ones. They are the most memory that a
# conversion takes, which has 512 MiB. A matrix of 4 bits of QwQ-32B is one stripe, one of 8 bits is two.
_RECENT = 4
_STRIPE_BYTES = 80 << 20
_WHOLE = 64  # rows of a matrix: a stripe has a multiple of them, because their codes fill whole words


class Recent:
    """The stripes that were read last, of all matrices of a checkpoint."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int], tuple[threading.Lock, list[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stripe: tuple[str, int], make: Callable[[], Any]) -> Any:
        """Return what `make` made of a stripe. Threads that ask together wait for one of them."""
        with self._lock:
            entry = self._held.pop(stripe, None) or (threading.Lock(), [])
            self._held[stripe] = entry
            while len(self._held) > _RECENT:
                self._held.popitem(last=False)
        lock, made = entry
        with lock:
            if not made:
                made.append(make())
        return made[0]


def held_bytes(places: Iterable[Any]) -> int:
    """Return the memory that the stripes of these matrices take at most."""
    return _RECENT * min(_STRIPE_BYTES, max((each.nbytes for each in places if isinstance(each, Striped)), default=0))


class Striped(Quantised):
    """The base of matrices that read stripes: some rows of all tensors, which are columns there.

    names  the leaves of words, zero points and scales first: tensors [m, n], where n is N, or N codes in words
    """

    def __init__(
        self,
        files: TensorFiles,
        module: str,
        shape: tuple[int, ...],
        type: str,
        names: Sequence[str],
        recent: Recent,
    ) -> None:
        super().__init__(files, module, shape, type, names)
        self._recent = recent
        stripes = -(-self.nbytes // _STRIPE_BYTES)
        self._rows = shape[0] if stripes == 1 else -(-shape[0] // (stripes * _WHOLE)) * _WHOLE

    def _columns(self, leaf: int, begin: int, end: int) -> Array:
        """Return columns [begin, end) of the tensor with this place in `names`. Raises CheckpointError."""
        width = self._width(leaf)
        parts = []
        for i in range(begin // width, -(-end // width)):
            stripe = self._recent.get((self._module, i), functools.partial(self._read, i))
            parts.append(stripe[leaf][:, max(begin - i * width, 0) : end - i * width])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _width(self, leaf: int) -> int:
        """Return the columns of a stripe."""
        return self._files[self._names[leaf]].shape[1] * self._rows // self.shape[0]

    def _read(self, stripe: int) -> tuple[Array, ...]:
        """Return the columns of words, zero points and scales in a stripe."""
        read = []
        for leaf, name in enumerate(self._names[:3]):
            width = self._width(leaf)
            end = min((stripe + 1) * width, self._files[name].shape[1])
            read.append(self._files.columns(name, stripe * width, end))
        return tuple(read)
