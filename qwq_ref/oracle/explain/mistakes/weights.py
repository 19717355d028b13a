"""Mistakes of reading weights: the layout of their rows and columns."""

from __future__ import annotations

from collections.abc import Callable

from ....config import Config
from ....spec.ops import Array
from ...graph import At, project
from ...matrix import Matrix
from .base import MATRICES, Mistake, Replaces, Values, changed


def _in_out(config: Config, matrix: Matrix) -> Array:
    return matrix.floats.reshape(matrix.floats.shape[::-1]).T


def _halves_to_pairs(config: Config, rows: Array) -> Array:
    """Permute the rows (or the bias) of q or k for interleaved RoPE, as some formats do with Llama."""
    return rows.reshape(-1, 2, config.E // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _pairs_to_halves(config: Config, rows: Array) -> Array:
    """The inverse permutation."""
    return rows.reshape(-1, config.E // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _permuted(order: Callable[[Config, Array], Array]) -> Replaces:
    def run(at: At, values: Values, weights: Values) -> Array:
        return project(at, values, [weights[0], *(order(at.config, w) for w in weights[1:])])

    def change(config: Config, matrix: Matrix) -> Array:
        return order(config, matrix.floats)

    return changed(
        *(f"self_attn.{name}_{kind}" for name in "qk" for kind in ("matmul", "proj")), run=run, change=change
    )


MISTAKES = (
    Mistake(
        "weights-in-out",
        "a matrix is read as [in, out]; checkpoints hold [out, in]",
        "any tokens",
        changed(*MATRICES, change=_in_out),
    ),
    Mistake(
        "heads-permuted",
        "q_proj and k_proj are permuted for interleaved RoPE, as a Llama converter does; Qwen2's must not be",
        "two tokens",
        _permuted(_halves_to_pairs),
    ),
    Mistake(
        "heads-unpermuted",
        "q_proj and k_proj are permuted from pairs to halves, as Meta's Llama weights must be; Qwen2's are in halves",
        "two tokens",
        _permuted(_pairs_to_halves),
    ),
)
