"""The weights of a model as the core reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..config import Config
from ..core import Packed, unpack_rows
from ..core.layer import LayerWeights
from ..spec.ops import Array
from .plan import EMBEDDING, HEAD, NORM, layer_names


@dataclass(frozen=True)
class ModelWeights:
    """All layers, the embedding [V, D], the last norm, the head.

    embedding  float32, or bfloat16 as uint16; the head itself where `plan.head_is_embedding`
    """

    form: str
    embedding: Array | Packed
    layers: list[LayerWeights]
    norm: Array
    head: Packed

    @classmethod
    def of(cls, config: Config, form: str, tensors: Mapping[str, Any]) -> ModelWeights:
        """Build the weights from tensors by the names of `plan`."""
        layers = [LayerWeights(*(tensors[name] for name in layer_names(i))) for i in range(config.L)]
        return cls(form, tensors.get(EMBEDDING, tensors[HEAD]), layers, tensors[NORM], tensors[HEAD])


def embed(ids: Any, embedding: Array | Packed) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = unpack_rows(embedding, ids) if isinstance(embedding, Packed) else embedding[ids]
    return rows if rows.dtype == np.float32 else rows.view(ml_dtypes.bfloat16).astype(np.float32)
