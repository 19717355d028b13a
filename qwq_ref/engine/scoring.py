"""The log-probabilities of the tokens of a text, as evaluations ask for them: a few tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..spec.ops import Array
from .backends import ALL
from .faults import run_finite
from .logprobs import TokenLogprob, logprob
from .model import Model

ROWS = 64  # tokens of a part, each with a row of logits


def score(model: Model, part: Sequence[int], following: Sequence[int], sequence: Any, most: int) -> list[TokenLogprob]:
    """Add a part of a text to a sequence -> the log-probability of the token behind each of its own.

    part       at most ROWS ids
    following  the ids behind them, of which the text's last one has none
    sequence   of the model's backend; it holds what stands before the part
    most       likeliest ids to note with each

    Raises NonFiniteError.
    """
    vocabulary = min(model.tokenizer.size, model.config.V)
    rows = run_finite(model.backend, part, sequence, ALL, model.path, "prompt")[:, :vocabulary].copy()
    for hole in model.tokenizer.holes:
        rows[:, hole.start : hole.stop] = -np.inf
    return [_noted(row, identity, most) for row, identity in zip(rows, following, strict=False)]


def _noted(row: Array, identity: int, most: int) -> TokenLogprob:
    if identity >= len(row):  # an id of the padding, which is never chosen
        return TokenLogprob(identity, -np.inf, logprob(row, 0, most).top)
    return logprob(row, identity, most)
