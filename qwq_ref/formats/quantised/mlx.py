"""Matrices of MLX in the mode affine: w = scale * code + bias, where the biases are offsets."""

from __future__ import annotations

import numpy as np

from ...core import Array, Format, Words
from ..quantisation import Settings, core_group
from . import codes
from .tensors import Quantised, TensorFiles, code_type, of_core_groups, whole_words

LEAVES = ("scales", "weight", "biases")  # the first tells whether a module is quantised
_SCALES = {"F16": "offset", "BF16": "offset_bf16"}


class MLXMatrix(Quantised):
    """A matrix [N, K] as a stream of codes, weight uint32 [N, K bits / 32], with scales and biases [N, groups].

    scales and biases are both F16 or both BF16. Raises CheckpointError for tensors of another dtype or shape.
    """

    def __init__(self, files: TensorFiles, module: str, shape: tuple[int, ...], settings: Settings) -> None:
        N, K = shape
        own = settings.modules.get(module, (settings.bits, settings.group))
        if own is None:
            raise files.error(f"{module}.scales", f"unexpected: {settings.file} says that it is not quantised")
        self._bits, group = own
        self._group = group or K
        whole_words(files, f"{module}.weight", K, self._bits)
        files.expect(f"{module}.weight", ["U32"], (N, K * self._bits // 32))
        scales = f"{module}.scales"
        files.expect(scales, list(_SCALES), (N, -(-K // self._group)))
        files.expect(f"{module}.biases", [files[scales].dtype], files[scales].shape)
        super().__init__(files, module, shape, f"MLX {self._bits}-bit", LEAVES)
        scales, self._weight, offsets = self._names
        self._numbers = (scales, offsets)
        self.format = Format(code_type(self._bits), core_group(group), _SCALES[files[scales].dtype])

    def words(self, begin: int, end: int) -> Words:
        return Words("rows", self._bits, self._files.rows(self._weight, begin, end), (end - begin, self.shape[1]))

    def codes(self, begin: int, end: int) -> Array:
        return codes.stream(self._files.rows(self._weight, begin, end), self._bits)

    def scales(self, begin: int, end: int) -> dict[str, Array]:
        scale, offset = (
            of_core_groups(self._files.rows(name, begin, end), self.shape[1], self._group, self.format.group)
            for name in self._numbers
        )
        return {"scale": np.ascontiguousarray(scale), "offset": np.ascontiguousarray(offset)}

    def forget(self, begin: int, end: int) -> None:
        for name in self._names:
            self._files.forget(name, begin, end)
