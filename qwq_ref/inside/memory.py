"""The memory of a look inside a model, counted before it begins."""

from __future__ import annotations

import math
from collections.abc import Collection

from ..config import Config

FLOAT = 4  # bytes
LENS_ROWS = 64  # rows of logits that the lens holds at a time


def needs(config: Config, T: int, subjects: Collection[str]) -> dict[str, int]:
    """Return the bytes that `look` takes for T tokens: purpose -> bytes.

    The weights are read one tensor at a time, so the largest counts: as it is stored, and widened to float32.
    """
    largest = max(math.prod(shape) for shape in config.tensors().values())
    scores = 5 * config.H * T * T  # the scores, their softmax, and the steps between them
    mlp = 6 * config.F * T  # gate, up, and the steps of SwiGLU
    logits = 2 * config.V * T
    lens = 5 * LENS_ROWS * config.V if "lens" in subjects else 0
    cache = 2 * config.L * T * config.K * config.E
    streams = (config.L + 1) * T * config.D if "lens" in subjects else 0
    kept = config.L * config.H * T + config.L * T * T if "attention" in subjects else 0
    return {
        "a tensor of the weights": largest * FLOAT * 3 // 2,
        "KV cache": cache * FLOAT,
        "results": (streams + kept + 3 * (config.L + 1) * T) * FLOAT,
        "scratch": (max(scores, mlp, logits + lens) + 8 * config.D * T) * FLOAT,
    }
