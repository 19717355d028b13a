"""The matrices of a GGUF file in the formats of the core, without loss where the core has such a format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ...core import BLOCK_TYPES, FORMATS, Array, Packed, pack_blocks, quantise_q8
from ...core.formats import GROUP
from ...core.magnitude import FLOAT32_MAX, first_beyond
from ...errors import CheckpointError
from ...files import StrPath
from ...forms import FileForm
from ..parts import Parts, dequantised
from .blocks import NATIVE, parts
from .types import GGMLType

REPACKED = FORMATS["q8"]  # of types that the core has no format for: an error of 0.5 % where they have 10 % or more
_SAMPLE = 64  # rows of each repacked matrix that the error is measured on


class _Place(Protocol):
    @property
    def kind(self) -> GGMLType: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def raw(self, begin: int, end: int) -> Array: ...

    def floats(self, begin: int, end: int) -> Array: ...


class _Source(Protocol):
    @property
    def places(self) -> Mapping[str, _Place]: ...

    def file(self, name: str) -> StrPath: ...


class GGUFKept:
    """See `formats.source.Kept`."""

    held = 0

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._places = {name: place for name, place in source.places.items() if len(place.shape) == 2}

    @functools.cached_property
    def form(self) -> FileForm:
        formats = {name: NATIVE.get(place.kind.name, REPACKED) for name, place in self._places.items()}
        return FileForm(formats, "int8" if any(format.group for format in formats.values()) else "fp32")

    @property
    def repacked(self) -> dict[str, int]:
        kinds = [place.kind.name for place in self._places.values() if place.kind.name not in NATIVE]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def parts(self, name: str, begin: int, end: int) -> Parts:
        """Return rows [begin, end) of a matrix in its format.

        Raises CheckpointError for NaN and infinity in what is repacked.
        """
        place = self._places[name]
        if place.kind.name not in NATIVE:
            return self._quantised(name, place.floats(begin, end), begin)
        return parts(place.kind, place.raw(begin, end))

    def pack(self, name: str, begin: int, end: int, out: Packed, step: int = 1) -> bool:
        """Pack rows [begin, end) of a matrix in its format -> whether all scales, or floats, are finite.

        The core packs the file's own bytes, of types that have blocks.
        """
        place = self._places[name]
        if place.kind.name in BLOCK_TYPES:
            return pack_blocks(place.kind.name, place.raw(begin, end), out, step)
        return self.parts(name, begin, end).pack(out, step)

    def loss(self) -> float:
        """Return the root mean square error of what is repacked, relative to the weights, on some rows of each."""
        error = size = 0.0
        for name, place in self._places.items():
            if place.kind.name not in NATIVE:
                exact = place.floats(0, min(_SAMPLE, place.shape[0]))
                made = dequantised(REPACKED, _whole(self._quantised(name, exact, 0)))[:, : exact.shape[1]]
                error += float(np.square(made - exact, dtype=np.float64).sum())
                size += float(np.square(exact, dtype=np.float64).sum())
        return (error / size) ** 0.5 if size else 0.0

    def _quantised(self, name: str, rows: Array, begin: int) -> Parts:
        """Round floats to q8."""
        found = first_beyond(rows, FLOAT32_MAX)
        if found is not None:
            place = [begin + found[0][0], found[0][1]]
            raise CheckpointError(self._source.file(name), name, f"holds {found[1]} at {place}")
        K = rows.shape[1]
        code, scale = quantise_q8(np.pad(rows, ((0, 0), (0, -K % GROUP))) if K % GROUP else rows)
        return Parts(code[:, :K], scale)


def _whole(rows: Parts) -> Parts:
    """Return the rows with zeros up to a whole group of columns."""
    return Parts(np.pad(rows.code, ((0, 0), (0, -rows.code.shape[1] % GROUP))), rows.scale)
