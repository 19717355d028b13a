"""Matrices of GPTQ (Frantar et al. 2022, arXiv:2210.17323): w = scale * (code - zero point).

The first version of the files holds each zero point minus 1. `g_idx` names the group of each column. Where columns were
quantised in an order of their own (`desc_act`), it jumps, and columns are packed in the order of their groups.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...core import Array, Format, Words
from ...errors import CheckpointError, FormError
from ..quantisation import Settings, core_group
from . import codes
from .tensors import Quantised, Recent, TensorFiles, code_type, whole_words

LEAVES = ("qweight", "qzeros", "scales")
GROUPS = "g_idx"
_MOST_ZERO = {"u4": 16, "u8": 255}  # the largest zero point that the core holds


class GPTQMatrix(Quantised):
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
        self._settings, self._recent, self._group = settings, recent, settings.group or K
        self._groups = -(-K // self._group)
        wanted = ((K * bits // 32, N), (self._groups, N * bits // 32), (self._groups, N))
        for leaf, dtype, size in zip(LEAVES, ("I32", "I32", "F16"), wanted, strict=True):
            files.expect(f"{module}.{leaf}", [dtype], size)
        has_groups = f"{module}.{GROUPS}" in files
        if has_groups:
            files.expect(f"{module}.{GROUPS}", ["I32"], (K,))
        super().__init__(files, module, shape, f"GPTQ {bits}-bit", (*LEAVES, *([GROUPS] if has_groups else [])))
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
        words, _, _ = self._recent.get(self._module, self._read)
        shape = (end - begin, self.shape[1])
        return Words("columns", self._settings.bits, words[:, begin:end], shape, self.columns)

    def codes(self, begin: int, end: int) -> Array:
        words, _, _ = self._recent.get(self._module, self._read)
        code = codes.stream(words[:, begin:end].T, self._settings.bits)
        return code if self.columns is None else code[:, self.columns]

    def scales(self, begin: int, end: int) -> dict[str, Array]:
        _, zeros, scales = self._recent.get(self._module, self._read)
        _, groups = self._order
        zero, scale = (values[groups, begin:end].T for values in (zeros, scales))
        return {"scale": np.ascontiguousarray(scale), "zero_point": np.ascontiguousarray(zero)}

    def _read(self) -> tuple[Array, Array, Array]:
        """Return words, zero points [groups, N] and scales. Raises FormError for a zero point that the core lacks."""
        words, packed, scales = (self._files.read(f"{self._module}.{leaf}") for leaf in LEAVES)
        zeros: Any = codes.stream(packed, self._settings.bits).astype(np.uint16)
        # Some writers name the first version, and write the second. Symmetric codes have their zero in the middle.
        second = self._settings.symmetric and np.all(zeros == 1 << (self._settings.bits - 1))
        zeros += 0 if second else self._settings.zero_less
        most = _MOST_ZERO[self.format.codes]
        if zeros.max() > most:
            name = f"{self._module}.qzeros"
            raise FormError(self.path, name, f"holds the zero point {zeros.max()}, and the core at most {most}")
        return words, zeros.astype(np.uint8), scales
