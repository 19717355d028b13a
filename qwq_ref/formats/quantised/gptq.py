"""Matrices of GPTQ (Frantar et al. 2022, arXiv:2210.17323): w = scale * (code - zero point).

The first version of the files holds each zero point minus 1. `g_idx` names the group of each column. Where columns were
quantised in an order of their own (`desc_act`), it jumps, and columns are packed in the order of their groups.
"""

from __future__ import annotations

import functools

import numpy as np

from ...core import Array, Format, Words
from ...errors import CheckpointError
from ..quantisation import Settings, core_group
from . import codes
from .stripes import Recent, Striped
from .tensors import TensorFiles, code_type, whole_words

LEAVES = ("qweight", "qzeros", "scales")
_WORDS, _ZEROS, _SCALES = range(3)  # their places
GROUPS = "g_idx"
_WORD = 32  # codes of any bits fill whole words at a multiple of so many


class GPTQMatrix(Striped):
    """A matrix [N, K] as streams of codes: qweight int32 [K bits / 32, N] along K, qzeros int32 [groups, N bits / 32].

    Beside them are scales F16 [groups, N], and g_idx int32 [K], which may be absent. Raises CheckpointError for tensors
    of another dtype or shape.
    """

    def __init__(
        self, files: TensorFiles, module: str, shape: tuple[int, ...], settings: Settings, recent: Recent
    ) -> None:
        (N, K), bits = shape, settings.bits
        whole_words(files, f"{module}.qweight", K, bits)
        whole_words(files, f"{module}.qzeros", N, bits)
        self._settings, self._group = settings, settings.group or K
        self._groups = -(-K // self._group)
        wanted = ((K * bits // 32, N), (self._groups, N * bits // 32), (self._groups, N))
        for leaf, dtype, size in zip(LEAVES, ("I32", "I32", "F16"), wanted, strict=True):
            files.expect(f"{module}.{leaf}", [dtype], size)
        has_groups = f"{module}.{GROUPS}" in files
        if has_groups:
            files.expect(f"{module}.{GROUPS}", ["I32"], (K,))
        names = (*LEAVES, *([GROUPS] if has_groups else []))
        super().__init__(files, module, shape, f"GPTQ {bits}-bit", names, recent)
        self.format = Format(code_type(bits), core_group(settings.group), "zero")

    @functools.cached_property
    def _order(self) -> tuple[Array | None, Array]:
        """The order in which columns are packed, and the group of each group of the core. Raises CheckpointError."""
        K = self.shape[1]
        name, given = f"{self._module}.{GROUPS}", np.arange(K) // self._group
        if name in self._files:
            given = self._files.read(name)
            if not (given.min() >= 0 and given.max() < self._groups):
                raise CheckpointError(self.path, name, f"must name groups 0 to {self._groups - 1}")
        order = np.argsort(given, kind="stable").astype(np.int32)
        groups = given[order]
        of_core = groups[:: self.format.group]
        if not np.array_equal(np.repeat(of_core, self.format.group)[:K], groups):
            raise CheckpointError(self.path, name, f"has groups of other sizes than {self._group}")
        return (None if np.array_equal(order, np.arange(K)) else order), of_core

    @property
    def columns(self) -> Array | None:
        return self._order[0]

    def words(self, begin: int, end: int) -> Words:
        shape = (end - begin, self.shape[1])
        return Words("columns", self._settings.bits, self._columns(_WORDS, begin, end), shape, self.columns)

    def codes(self, begin: int, end: int) -> Array:
        code = codes.stream(self._columns(_WORDS, begin, end).T, self._settings.bits)
        return code if self.columns is None else code[:, self.columns]

    def scales(self, begin: int, end: int) -> dict[str, Array]:
        _, groups = self._order
        zero, scale = (values[groups].T for values in (self._zeros(begin, end), self._columns(_SCALES, begin, end)))
        return {"scale": np.ascontiguousarray(scale), "zero_point": np.ascontiguousarray(zero)}

    def _zeros(self, begin: int, end: int) -> Array:
        """Return the zero points of rows [begin, end), uint8 [groups, end - begin]."""
        bits, first = self._settings.bits, begin // _WORD * _WORD
        last = min(-(-end // _WORD) * _WORD, self.shape[0])
        words = self._columns(_ZEROS, first * bits // _WORD, last * bits // _WORD)
        zeros = codes.one_more(words, bits) if self._one_less else codes.stream(words, bits)
        return zeros[:, begin - first : end - first]

    @functools.cached_property
    def _one_less(self) -> bool:
        """Whether the file holds each zero point minus 1. Raises CheckpointError.

        Some writers name the first version, and write the second. Symmetric codes have their zero in the middle.
        """
        if not self._settings.one_less or not self._settings.symmetric:
            return self._settings.one_less
        stored = codes.stream(self._files.read(self._names[_ZEROS]), self._settings.bits)
        return not np.all(stored == 1 << (self._settings.bits - 1))
