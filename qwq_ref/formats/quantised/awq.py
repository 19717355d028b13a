"""Matrices of AWQ in the version gemm (Lin et al. 2023, arXiv:2306.00978): w = scale * (code - zero point)."""

from __future__ import annotations

import numpy as np

from ...core import Array, Format, Words
from ..quantisation import Settings, core_group
from . import codes
from .stripes import Recent, Striped
from .tensors import TensorFiles, of_core_groups

LEAVES = ("qweight", "qzeros", "scales")
_WORDS, _ZEROS, _SCALES = range(3)  # their places
_IN_WORD = 8  # codes of 4 bits


class AWQMatrix(Striped):
    """A matrix [N, K] as the tensors qweight int32 [K, N / 8], qzeros int32 [groups, N / 8], scales F16 [groups, N].

    Raises CheckpointError for tensors of another dtype or shape.
    """

    def __init__(
        self, files: TensorFiles, module: str, shape: tuple[int, ...], settings: Settings, recent: Recent
    ) -> None:
        N, K = shape
        if N % _IN_WORD:
            raise files.error(f"{module}.qweight", f"holds whole words of 8 outputs, and {N} are none")
        self._group = settings.group or K
        groups = -(-K // self._group)
        wanted = ((K, N // _IN_WORD), (groups, N // _IN_WORD), (groups, N))
        for leaf, dtype, size in zip(LEAVES, ("I32", "I32", "F16"), wanted, strict=True):
            files.expect(f"{module}.{leaf}", [dtype], size)
        super().__init__(files, module, shape, "AWQ 4-bit", LEAVES, recent)
        self.format = Format("u4", core_group(settings.group), "zero")

    def words(self, begin: int, end: int) -> Words:
        return Words("eights", 4, self._eights(_WORDS, begin, end), (end - begin, self.shape[1]))

    def codes(self, begin: int, end: int) -> Array:
        return self._rows_of(_WORDS, begin, end)

    def scales(self, begin: int, end: int) -> dict[str, Array]:
        zero, scale = self._rows_of(_ZEROS, begin, end), self._columns(_SCALES, begin, end).T
        return {"scale": self._of_core(scale), "zero_point": self._of_core(zero)}

    def _eights(self, leaf: int, begin: int, end: int) -> Array:
        """Return the words that hold rows [begin, end) of the matrix, int32 [m, words]."""
        return self._columns(leaf, begin // _IN_WORD, -(-end // _IN_WORD))

    def _rows_of(self, leaf: int, begin: int, end: int) -> Array:
        """Return rows [begin, end) of the codes of a tensor [m, N / 8], uint8 [end - begin, m]."""
        first = begin // _IN_WORD * _IN_WORD
        return codes.awq(self._eights(leaf, begin, end))[begin - first : end - first]

    def _of_core(self, values: Array) -> Array:
        return np.ascontiguousarray(of_core_groups(values, self.shape[1], self._group, self.format.group))
