"""The weights of a model as the core reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..config import Config
from ..core import Packed, unpack_rows
from ..core.layer import QKV, LayerWeights
from ..formats.packed import with_columns
from ..forms import AnyForm
from ..spec.ops import Array
from .plan import EMBEDDING, HEAD, NORM, layer_names, qkv_names


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


def embed(ids: Any, embedding: Array | Packed) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = unpack_rows(embedding, ids) if isinstance(embedding, Packed) else embedding[ids]
    return (rows.view(ml_dtypes.bfloat16) if rows.dtype == np.uint16 else rows).astype(np.float32, copy=False)
