"""Mistakes of precision in matrix products."""

from __future__ import annotations

import dataclasses

import numpy as np

from ....spec.ops import Array, Round, exact
from ...graph import LOGITS, At, Run
from .base import MATRICES, Mistake, Replaces, Values, line, round_to_bf16


def _multiplied_in(round_inputs: Round, round_result: Round = exact) -> Replaces:
    """Round the inputs and weights of every product, and its result. Biases have the precision of the result."""

    def run(true: Run) -> Run:
        def rounded(at: At, values: Values, weights: Values) -> Array:
            biases = [round_result(w) for w in weights[1:]]
            return round_result(true(at, [round_inputs(values[0])], [round_inputs(weights[0]), *biases]))

        return rounded

    return lambda config: {
        tap: dataclasses.replace(line(config, tap), run=run(line(config, tap).run)) for tap in (*MATRICES, LOGITS)
    }


def _to_tf32(x: Array) -> Array:
    """Round float32 to the ten mantissa bits of a tensor core."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    kept = (bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000
    return np.asarray(kept.view(np.float32).astype(x.dtype))


def _cut_to_tf32(x: Array) -> Array:
    """Cut float32 to ten mantissa bits, as a tensor core does with unconverted input."""
    kept = np.asarray(x, np.float32).view(np.uint32) & 0xFFFFE000
    return np.asarray(kept.view(np.float32).astype(x.dtype))


MISTAKES = (
    Mistake(
        "matmul-tf32",
        "matrices are multiplied in TF32, which keeps 10 bits of the mantissa",
        "fp32",
        _multiplied_in(_to_tf32),
    ),
    Mistake(
        "matmul-tf32-truncated",
        "matrices are multiplied in TF32, from inputs that were cut to 10 bits instead of rounded",
        "fp32",
        _multiplied_in(_cut_to_tf32),
    ),
    Mistake(
        "matmul-bf16",
        "matrices are multiplied from bfloat16 inputs in a model of higher precision",
        "fp32 or fp16",
        _multiplied_in(round_to_bf16),
    ),
    Mistake(
        "matmul-autocast-bf16",
        "matrices are multiplied in bfloat16, results and biases included, in a model of higher precision (autocast)",
        "fp32 or fp16",
        _multiplied_in(round_to_bf16, round_to_bf16),
    ),
)
