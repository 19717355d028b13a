"""The catalogue: mistakes that implementations of this architecture have made, each as a change to the table.

A mistake replaces a few lines of the table in `graph`. Run beside the reference on the same inputs, it predicts the
results of a candidate with this mistake. `diagnose` compares those predictions with the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import attention, ends, matmul, mlp, norm, residual, rope, weights
from .base import Mistake

__all__ = ["BY_NAME", "MISTAKES", "Mistake"]

# The order decides between mistakes with equal results.
MISTAKES: tuple[Mistake, ...] = (
    *rope.MISTAKES,
    *norm.MISTAKES,
    *attention.MISTAKES,
    *mlp.MISTAKES,
    *residual.MISTAKES,
    *weights.MISTAKES,
    *ends.MISTAKES,
    *matmul.MISTAKES,
)

BY_NAME: Mapping[str, Mistake] = {mistake.name: mistake for mistake in MISTAKES}
