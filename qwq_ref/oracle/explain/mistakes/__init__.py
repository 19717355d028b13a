"""The catalogue: mistakes that implementations of this architecture have made, each as a change to the table.

A mistake replaces a few lines of the table in `graph`. Run beside the reference on the same inputs, it predicts the
results of a candidate with this mistake. `diagnose` compares those predictions with the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....config import Config
from ....spec.ops import Array
from ...graph import Op
from ...matrix import kind_of
from . import attention, ends, matmul, mlp, norm, quantised, residual, rope, weights
from .base import Mistake

__all__ = ["BY_NAME", "MISTAKES", "Mistake", "possible"]

# The order decides between mistakes with equal results.
MISTAKES: tuple[Mistake, ...] = (
    *rope.MISTAKES,
    *norm.MISTAKES,
    *attention.MISTAKES,
    *mlp.MISTAKES,
    *residual.MISTAKES,
    *weights.MISTAKES,
    *quantised.MISTAKES,
    *ends.MISTAKES,
    *matmul.MISTAKES,
)

BY_NAME: Mapping[str, Mistake] = {mistake.name: mistake for mistake in MISTAKES}


def possible(config: Config, weights: Mapping[str, Array] | None) -> dict[str, tuple[Mistake, Mapping[str, Op]]]:
    """Return the mistakes that change a model with this config and weights from these files, and their lines."""
    kind = kind_of(weights)
    tried = {m.name: (m, m.replaces(config)) for m in MISTAKES if not m.sources or kind in m.sources}
    return {name: pair for name, pair in tried.items() if pair[1]}
