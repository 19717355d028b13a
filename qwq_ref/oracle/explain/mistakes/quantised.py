"""Mistakes of reading quantised weights: the order of codes, zero points, and scales.

The integers of a quantised file give the wrong weights exactly. Floats that came from such a file show those of the
mistakes that only move columns, rows or a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ....config import Config
from ....spec.ops import Array
from ...graph import LAYER, Op
from ...matrix import FLOATS, Matrix, Stored
from .base import MATRICES, Mistake, Replaces, changed

Change = Callable[[Config, Matrix], Array]
_AWQ, _GPTQ, _GGUF, _MLX = "awq", "gptq", "gguf", "mlx"


def _columns(change: Change, block: int) -> Replaces:
    """Change the matrices that have whole blocks of so many columns."""

    def replaces(config: Config) -> dict[str, Op]:
        shapes = config.tensors()
        taps = [op.tap for op in LAYER if op.matrix and shapes[f"model.layers.0.{op.matrix}"][1] % block == 0]
        return changed(*taps, change=change)(config)

    return replaces


def _restored(change: Callable[[Stored], Stored | None]) -> Change:
    """Dequantise other integers or scales than the file's; None leaves a matrix as it is."""

    def changed_matrix(config: Config, matrix: Matrix) -> Array:
        stored = matrix.stored
        wrong = None if stored is None else change(stored)
        return matrix.floats if wrong is None else wrong.floats()

    return changed_matrix


# --- AWQ and GPTQ ----------------------------------------------------------------------------------------------------


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


def _steps(matrix: Matrix) -> Array | None:
    """Return the step of each weight [out, in]: the file's scales, or those of the grid of floats; None without one."""
    if matrix.stored is None:
        return grid_steps(matrix.floats)
    return matrix.stored.steps()


def _awq_order(config: Config, matrix: Matrix) -> Array:
    """Put each eight rows into the order in which AWQ packs them. Scales are not packed, so they keep their order."""
    stored, w = matrix.stored, matrix.floats
    if len(w) % 8:
        return w
    if stored is not None and stored.parts.zero_point is not None:
        return stored.with_parts(code=_moved(stored.parts.code), zero_point=_moved(stored.parts.zero_point)).floats()
    steps = grid_steps(w)
    moved = _moved(w)
    if steps is None:
        return moved
    return (moved * np.where(steps > 0, _divided(steps, _moved(steps)), 1)).astype(w.dtype)


def _moved(w: Array) -> Array:
    return w.reshape(-1, 8, w.shape[1])[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(w.shape)


def _zero_off(by: int) -> Replaces:
    def change(config: Config, matrix: Matrix) -> Array:
        steps, w = _steps(matrix), matrix.floats
        return w if steps is None else (w + by * steps).astype(w.dtype)

    return changed(*MATRICES, change=change)


def _without_order(stored: Stored) -> Stored | None:
    """Give each column the scale and the zero point of its place: codes move to the columns, and these do not."""
    if stored.columns is None:
        return None
    code = np.empty_like(stored.parts.code)
    code[:, stored.columns] = stored.parts.code
    return dataclasses.replace(stored, parts=dataclasses.replace(stored.parts, code=code), columns=None)


# --- GGUF ------------------------------------------------------------------------------------------------------------

# The bytes of a run of each type: their lower halves are the codes of so many columns, the upper halves of the next.
_RUNS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"), 16),
    **dict.fromkeys(("Q4_K", "Q5_K"), 32),
    "Q6_K": 64,
}
_SUPER = 256  # columns of a super-block
_BLOCK = 32  # columns of the smallest run; weights that now are floats are taken as those of a type with these


def _nibbles(moved: Callable[[Array], Array]) -> Change:
    """Read lower and upper halves of bytes in another order: halves [n, m, 2, run] -> the same numbers, moved"""

    def all_moved(x: Array, run: int) -> Array:
        return moved(x.reshape(len(x), -1, 2, run)).reshape(x.shape)

    def change(config: Config, matrix: Matrix) -> Array:
        stored = matrix.stored
        if stored is None:
            return all_moved(matrix.floats, _BLOCK // 2) if matrix.kind == FLOATS else matrix.floats
        if stored.type not in _RUNS:
            return matrix.floats
        code, run = stored.parts.code, _RUNS[stored.type]
        if stored.type.startswith("IQ4"):  # these codes are levels
            return stored.with_parts(code=all_moved(code, run)).floats()
        return stored.with_parts(code=all_moved(code & 15, run) | code & 0xF0).floats()

    return change


def _super_scale_missing(stored: Stored) -> Stored | None:
    if stored.parts.sub_scale is None:
        return None
    floats = {name: of for name, of in stored.parts.arrays().items() if name in ("scale", "offset")}
    return stored.with_parts(**{name: np.ones_like(of) for name, of in floats.items()})


def _min_missing(stored: Stored) -> Stored | None:
    if stored.parts.offset is None:
        return None
    return stored.with_parts(offset=np.zeros_like(stored.parts.offset))


# --- MLX -------------------------------------------------------------------------------------------------------------


# Type -> codes of a word. Codes of 3, 5 and 6 bits lie in two words, so readers cannot make this mistake with them.
_IN_WORD = {FLOATS: 8, "MLX 2-bit": 16, "MLX 4-bit": 8, "MLX 8-bit": 4}


def _highest_first(config: Config, matrix: Matrix) -> Array:
    """Turn the codes of each word of 32 bits around. All columns of a word share their scale."""
    stored, w = matrix.stored, matrix.floats
    codes = _IN_WORD.get(stored.type if stored else matrix.kind)
    return w if codes is None else w.reshape(len(w), -1, codes)[:, :, ::-1].reshape(w.shape)


MISTAKES = (
    Mistake(
        "awq-nibble-order",
        "4-bit weights are unpacked as 0 1 2 3 4 5 6 7; AWQ packs each eight as 0 2 4 6 1 3 5 7",
        "any tokens",
        changed(*MATRICES, change=_awq_order),
        sources=(FLOATS, _AWQ),
    ),
    Mistake(
        "gptq-zero-high",
        "weights are one step too low: the zero point is one too high (AWQ, or GPTQ v2, read as GPTQ v1)",
        "weights that came from 4 bits, or a file of AWQ or GPTQ",
        _zero_off(-1),
        sources=(FLOATS, _AWQ, _GPTQ),
    ),
    Mistake(
        "gptq-zero-low",
        "weights are one step too high: the 1 that GPTQ v1 subtracts from zero points is not added back",
        "weights that came from 4 bits, or a file of AWQ or GPTQ",
        _zero_off(1),
        sources=(FLOATS, _AWQ, _GPTQ),
    ),
    Mistake(
        "gptq-g-idx-ignored",
        "column k has the scale and zero point of group k // group_size; with desc_act, g_idx[k] is its group",
        "a GPTQ checkpoint with desc_act, by --model",
        changed(*MATRICES, change=_restored(_without_order)),
        sources=(_GPTQ,),
    ),
    Mistake(
        "gguf-nibbles-interleaved",
        "byte i of a block holds columns 2i and 2i + 1; in GGUF it holds i (low half) and i + 16 (Q4_K: i + 32)",
        "rows of whole blocks of 32",
        _columns(_nibbles(lambda halves: halves.swapaxes(2, 3)), _BLOCK),
        sources=(FLOATS, _GGUF),
    ),
    Mistake(
        "gguf-halves-swapped",
        "the high halves of a block's bytes are the first columns; in GGUF the low halves are",
        "rows of whole blocks of 32",
        _columns(_nibbles(lambda halves: halves[:, :, ::-1]), _BLOCK),
        sources=(FLOATS, _GGUF),
    ),
    Mistake(
        "gguf-super-scale-missing",
        "the integer scales of groups are not multiplied by d, nor their mins by dmin, the float16 of the super-block",
        "a GGUF file with a K type, by --model",
        _columns(_restored(_super_scale_missing), _SUPER),
        sources=(_GGUF,),
    ),
    Mistake(
        "gguf-min-missing",
        "the min of a group (dmin * m, or m) is not added or subtracted: w = d * sc * q alone",
        "a GGUF file with Q4_1, Q5_1, Q2_K, Q4_K or Q5_K, by --model",
        _columns(_restored(_min_missing), _BLOCK),
        sources=(_GGUF,),
    ),
    Mistake(
        "mlx-bit-order",
        "the first code of a word of 32 bits is in its highest bits; in MLX it is in the lowest",
        "rows of whole words",
        _columns(_highest_first, 8),
        sources=(FLOATS, _MLX),
    ),
)
