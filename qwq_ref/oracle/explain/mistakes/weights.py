"""Mistakes of reading weights: their layout, and how 4-bit weights are unpacked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....config import Config
from ....spec.ops import Array
from ...graph import At, project
from .base import MATRICES, Mistake, Replaces, Values, changed


def _read_as(change: Callable[[Config, Array], Array], taps: tuple[str, ...] = MATRICES) -> Replaces:
    return changed(*taps, change=change)


def _in_out(config: Config, w: Array) -> Array:
    return w.reshape(w.shape[::-1]).T


def _halves_to_pairs(config: Config, rows: Array) -> Array:
    """Permute the rows (or the bias) of q or k for interleaved RoPE, as some formats do with Llama."""
    return rows.reshape(-1, 2, config.E // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _pairs_to_halves(config: Config, rows: Array) -> Array:
    """The inverse permutation."""
    return rows.reshape(-1, config.E // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _permuted(order: Callable[[Config, Array], Array]) -> Replaces:
    def run(at: At, values: Values, weights: Values) -> Array:
        return project(at, values, [weights[0], *(order(at.config, w) for w in weights[1:])])

    return changed(*(f"self_attn.{name}_{kind}" for name in "qk" for kind in ("matmul", "proj")), run=run, change=order)


def grid_steps(w: Array) -> Array | None:
    """Find the step of the 4-bit grid that weights lie on: w [out, in] -> [out, in]; 0 in rows without a grid

    None if most rows have no grid. Groups of 32, 64, 128 or all inputs share a step; the largest groups that fit are
    taken. The step is the smallest gap between two values of a group, refined by least squares. Rounding to bfloat16
    moves a weight by less than a tenth of a step.
    """
    for group in (w.shape[1], 128, 64, 32):
        if w.shape[1] % group:
            continue
        groups = w.reshape(len(w), -1, group).astype(np.float64)
        rows = np.sort(groups, axis=-1)
        gaps = np.diff(rows, axis=-1)
        largest = np.abs(rows).max(axis=-1, keepdims=True)
        gaps = np.where(gaps > largest / 64, gaps, np.inf)  # 16 steps span more than the largest value
        step = gaps.min(axis=-1, keepdims=True)
        step = np.where(np.isfinite(step), step, 0)
        for _ in range(3):
            n = np.round(_divided(rows - rows[..., :1], step))
            products, squares = (np.sum(n * x, axis=-1, keepdims=True) for x in (rows - rows[..., :1], n))
            step = _divided(products, squares)
        n = _divided(rows - rows[..., :1], step)
        fits = (np.abs(n - np.round(n)).max(axis=-1, keepdims=True) < 0.1) & (n.max(axis=-1, keepdims=True) < 15.5)
        whole = (fits & (step > 0)).all(axis=1, keepdims=True)
        if whole.mean() > 0.5:
            return np.broadcast_to(np.where(whole, step, 0), groups.shape).reshape(w.shape)
    return None


def _divided(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 0))


def _awq_order(config: Config, w: Array) -> Array:
    """Put each eight rows into the order in which AWQ packs them. Scales are not packed, so they keep their order."""
    if len(w) % 8:
        return w
    steps = grid_steps(w)
    moved = _moved(w)
    if steps is None:
        return moved
    return (moved * np.where(steps > 0, _divided(steps, _moved(steps)), 1)).astype(w.dtype)


def _moved(w: Array) -> Array:
    return w.reshape(-1, 8, w.shape[1])[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(w.shape)


def _zero_off(by: int) -> Replaces:
    def change(config: Config, w: Array) -> Array:
        steps = grid_steps(w)
        return w if steps is None else (w + by * steps).astype(w.dtype)

    return _read_as(change)


MISTAKES = (
    Mistake(
        "weights-in-out",
        "a matrix is read as [in, out]; checkpoints hold [out, in]",
        "any tokens",
        _read_as(_in_out),
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
    Mistake(
        "awq-nibble-order",
        "4-bit weights are unpacked as 0 1 2 3 4 5 6 7; AWQ packs each eight as 0 2 4 6 1 3 5 7",
        "any tokens",
        _read_as(_awq_order),
    ),
    Mistake(
        "gptq-zero-high",
        "4-bit weights are one step too low: the zero point is one too high (GPTQ v2 read as v1)",
        "weights that came from 4 bits",
        _zero_off(-1),
    ),
    Mistake(
        "gptq-zero-low",
        "4-bit weights are one step too high: the 1 that GPTQ v1 subtracts from zero points is not added back",
        "weights that came from 4 bits",
        _zero_off(1),
    ),
)
