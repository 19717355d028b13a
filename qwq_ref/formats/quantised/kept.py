"""The matrices of a quantised checkpoint in the formats of the core, without loss."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from ...core import FORMATS, Array, Packed
from ...forms import FileForm, same_columns
from ..parts import Parts
from .stripes import held_bytes
from .tensors import Matrix


class QuantisedKept:
    """See `formats.source.Kept`."""

    def __init__(self, places: Mapping[str, Matrix]) -> None:
        self._places = {name: place for name, place in places.items() if len(place.shape) == 2}

    @functools.cached_property
    def form(self) -> FileForm:
        formats = {name: place.format for name, place in self._places.items()}
        columns = {name: order for name, place in self._places.items() if (order := place.columns) is not None}
        for name in self._apart(columns):
            formats[name] = FORMATS["fp32"]
            columns.pop(name, None)
        return FileForm(formats, "int8" if any(format.group for format in formats.values()) else "fp32", columns)

    def _apart(self, columns: Mapping[str, Array]) -> set[str]:
        """Return the matrices of gate and up whose orders differ. They are one matrix for the kernels, so of floats."""
        pairs = [(name, name.replace("gate_proj", "up_proj")) for name in self._places if "gate_proj" in name]
        return {name for pair in pairs if not same_columns(*map(columns.get, pair)) for name in pair}

    @property
    def repacked(self) -> dict[str, int]:
        return {}

    @property
    def held(self) -> int:
        return held_bytes(self._places.values())

    def parts(self, name: str, begin: int, end: int) -> Parts:
        place = self._places[name]
        if self.form.formats[name] == place.format:
            return place.parts(begin, end)
        return Parts(place.floats(begin, end))

    def pack(self, name: str, begin: int, end: int, out: Packed, step: int = 1) -> bool:
        """Pack rows [begin, end) of a matrix in its format -> whether all scales, or floats, are finite."""
        place = self._places[name]
        if self.form.formats[name] == place.format:
            return place.pack(begin, end, out, step)
        return Parts(place.floats(begin, end)).pack(out, step)

    def loss(self) -> float:
        """Return 0: nothing is repacked."""
        return 0.0
