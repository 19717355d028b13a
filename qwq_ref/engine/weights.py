"""The weights of a model as the core reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ..config import Config
from ..core import Packed, Stop, unpack_rows
from ..core.layer import QKV, LayerWeights
from ..formats.packed import with_columns
from ..forms import AnyForm
from ..spec.ops import Array
from .plan import EMBEDDING, HEAD, NORM, layer_names, qkv_names

Ready = Callable[[int], None]


class WeightStore(Protocol):
    """A model's weights for the core backend, wherever they are.

    form         the weight form
    layers       each layer's weights. Their memory holds numbers while `reading` says so
    norm         the last norm
    head_pieces  the head [V, D], divided by rows: one piece or more
    streamed     bytes that each pass reads from the disk; 0 where all weights are in memory
    """

    @property
    def form(self) -> AnyForm: ...

    @property
    def layers(self) -> list[LayerWeights]: ...

    @property
    def norm(self) -> Array: ...

    @property
    def head_pieces(self) -> list[Packed]: ...

    @property
    def streamed(self) -> int: ...

    def embed(self, ids: Any) -> Array:
        """ids [T] -> float32 [T, D]"""

    def reading(self, stop: Stop | None) -> AbstractContextManager[Ready]:
        """Begin a pass over all weights -> ready(i), to be called with 0, 1, ... before the i-th part is used.

        The parts are the layers, and then the pieces of the head. Earlier parts may then be gone. Only one pass can go
        on at a time. Raises Stopped where `stop` was set, CheckpointError for a file that shrank.
        """


@dataclass(frozen=True)
class ModelWeights:
    """All layers, the embedding [V, D], the last norm, the head.

    embedding  float32, bfloat16 as uint16, or packed; the head itself where `plan.head_is_embedding`
    """

    form: AnyForm
    embedding: Array | Packed
    layers: list[LayerWeights]
    norm: Array
    head: Packed

    @classmethod
    def of(cls, config: Config, form: AnyForm, tensors: Mapping[str, Any]) -> ModelWeights:
        """Build the weights from tensors by the names of `plan`."""
        tensors, layers = with_columns(tensors), []
        for i in range(config.L):
            norm, qkv, *rest = layer_names(i)
            projections = tensors[qkv] if qkv in tensors else QKV(*(tensors[name] for name in qkv_names(i)))
            layers.append(LayerWeights(tensors[norm], projections, *(tensors[name] for name in rest)))
        return cls(form, tensors.get(EMBEDDING, tensors[HEAD]), layers, tensors[NORM], tensors[HEAD])

    streamed = 0

    @property
    def head_pieces(self) -> list[Packed]:
        return [self.head]

    def embed(self, ids: Any) -> Array:
        """ids [T] -> float32 [T, D]"""
        return embed(ids, self.embedding)

    def reading(self, stop: Stop | None) -> AbstractContextManager[Ready]:
        return nullcontext(lambda part: None)


def embed(ids: Any, embedding: Array | Packed) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = unpack_rows(embedding, ids) if isinstance(embedding, Packed) else embedding[ids]
    return (rows.view(ml_dtypes.bfloat16) if rows.dtype == np.uint16 else rows).astype(np.float32, copy=False)
