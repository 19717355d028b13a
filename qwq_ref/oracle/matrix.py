"""A whole matrix of a model: its floats, and the integers and scales that a quantised file stores of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core import Format
from ..formats.decoded import DecodedSource
from ..formats.parts import Parts, dequantised
from ..spec.ops import Array

FLOATS = "floats"  # the kind of weights that are no quantised file


@dataclass(frozen=True)
class Stored:
    """The integers and scales of a matrix, in a format of the core.

    type     the name of the file's type, such as "Q4_K"
    columns  the column of the matrix that each packed column is; None: the same one
    """

    type: str
    format: Format
    parts: Parts
    columns: Array | None = None

    def with_parts(self, **arrays: Array) -> Stored:
        """Return the matrix with some other arrays of `Parts`."""
        return dataclasses.replace(self, parts=dataclasses.replace(self.parts, **arrays))

    def floats(self) -> Array:
        """Return the float32 [out, in] that these integers and scales mean."""
        with np.errstate(all="ignore"):
            return self._in_place(dequantised(self.format, self.parts))

    def steps(self) -> Array | None:
        """Return the scale of each weight, float32 [out, in]; None for scales of super-blocks."""
        if self.parts.scale is None or self.parts.sub_scale is not None:
            return None
        steps = np.repeat(self.parts.scale.astype(np.float32), self.format.group, axis=1)
        return self._in_place(steps[:, : self.parts.code.shape[1]])

    def _in_place(self, packed: Array) -> Array:
        if self.columns is None:
            return packed
        rows = np.empty_like(packed)
        rows[:, self.columns] = packed
        return rows


class Matrix:
    """A matrix by its name in the weights of a model. It is read when `floats` or `stored` is used.

    kind  the kind of the weights: see `kind_of`
    """

    def __init__(self, weights: Mapping[str, Array], name: str) -> None:
        self._weights, self._name = weights, name
        self.kind = kind_of(weights)

    @functools.cached_property
    def floats(self) -> Array:
        """float32 [out, in]"""
        return np.asarray(self._weights[self._name], np.float32)

    @functools.cached_property
    def stored(self) -> Stored | None:
        """The integers of a quantised file; None for floats, and for types that the core has no format for."""
        if not isinstance(self._weights, DecodedSource):
            return None
        found = self._weights.stored(self._name)
        return None if found is None else Stored(*found)


def kind_of(weights: Mapping[str, Array] | None) -> str:
    """Return the kind of the files that weights are read from: "gguf", "awq", "gptq" or "mlx", or `FLOATS`."""
    return weights.kind if isinstance(weights, DecodedSource) else FLOATS
