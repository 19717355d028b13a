"""Generation: run the model, choose a token, and run the model on it, until an end token or a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import Config
from .model import forward
from .ops import Array
from .sampling import Sampling, distribution, draw


def generate(
    config: Config,
    weights: Mapping[str, Array],
    prompt: Sequence[int],
    how: Sampling,
    rng: np.random.Generator,
    max_tokens: int,
    end_ids: Sequence[int] = (),
    dtype: Any = np.float32,
) -> list[int]:
    """prompt [T] -> ids

    The ids that follow `prompt`: at most `max_tokens`, and none after one of `end_ids`, which is not returned.
    HF: `GenerationMixin._sample`.
    """
    output: list[int] = []
    new, cache = prompt, None
    for _ in range(max_tokens):
        logits, cache = forward(config, weights, new, cache, dtype=dtype)
        token = draw(distribution(logits[-1], how, prompt, output), rng)
        if token in end_ids:
            break
        output.append(token)
        new = [token]
    return output
