"""The matrices of a quantised checkpoint in the formats of the core, without loss."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from ...forms import FileForm
from ..parts import Parts
from .tensors import Matrix


class QuantisedKept:
    """See `formats.source.Kept`."""

    def __init__(self, places: Mapping[str, Matrix]) -> None:
        self._places = {name: place for name, place in places.items() if len(place.shape) == 2}

    @functools.cached_property
    def form(self) -> FileForm:
        formats = {name: place.format for name, place in self._places.items()}
        return FileForm(formats, "int8" if any(format.group for format in formats.values()) else "fp32")

    @property
    def repacked(self) -> dict[str, int]:
        return {}

    def parts(self, name: str, begin: int, end: int) -> Parts:
        return self._places[name].parts(begin, end)

    def loss(self) -> float:
        """Return 0: nothing is repacked."""
        return 0.0
