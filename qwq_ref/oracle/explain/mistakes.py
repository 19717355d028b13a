"""The catalogue: mistakes that implementations of this architecture have made, each as a change to the table.

A mistake replaces a few lines of `graph`'s table. Run beside the reference on the same inputs, it predicts what a
candidate that had made it would show; `diagnose` asks which prediction comes true.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import Config
from ...spec import (
    causal_mask,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    softmax,
)
from ...spec.ops import (
    Array,
    Round,
    attention_heads,
    attention_scores,
    exact,
    to_bf16,
)
from ..graph import (
    BEFORE,
    COS,
    EMBED,
    LAYER,
    LOGITS,
    NORM,
    SIN,
    At,
    Op,
    Run,
    add,
    after,
    mix,
    project,
    same,
    score,
    tables,
)

Values = list[Array]


@dataclass(frozen=True)
class Mistake:
    """A small named change to the reference.

    name      what reports call it
    says      one line: what the candidate does, and what it should do
    needs     what a pack must have for it to show
    replaces  (config) -> the changed lines of the table, by tap; {} where the config cannot tell it from the truth
    rounding  it changes no result but by rounding: told apart by the bits of bfloat16 or float16 results
    """

    name: str
    says: str
    needs: str
    replaces: Callable[[Config], dict[str, Op]] = field(repr=False)
    rounding: bool = False


def line(config: Config, tap: str) -> Op:
    """The true line of the table."""
    return next(op for op in (*BEFORE, *LAYER, *after(config)) if op.tap == tap)


def _changed(*taps: str, **fields: Any) -> Callable[[Config], dict[str, Op]]:
    """The lines of `taps`, with other fields."""
    return lambda config: {tap: dataclasses.replace(line(config, tap), **fields) for tap in taps}


def _only(condition: Callable[[Config], bool], replaces: Callable[[Config], dict[str, Op]]) -> Any:
    return lambda config: replaces(config) if condition(config) else {}


# Positions: every mistake of the two tables is one of their arguments.


def _rotary(run: Callable[[At], tuple[Array, Array]], which: tuple[str, ...] = (COS, SIN)) -> Any:
    def one(index: int) -> Run:
        return lambda at, values, weights: run(at)[index]

    return lambda config: {
        tap: dataclasses.replace(line(config, tap), run=one(index))
        for index, tap in enumerate((COS, SIN))
        if tap in which
    }


def _with_rope(**fields: Any) -> Any:
    def run(at: At) -> tuple[Array, Array]:
        return tables(dataclasses.replace(at, config=_rope_changed(at.config, **fields)))

    return _rotary(run)


def _rope_changed(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, rope=dataclasses.replace(config.rope, **fields))


def _shifted(shift: Callable[[At], int]) -> Any:
    """Positions moved by so many."""

    def run(at: At) -> tuple[Array, Array]:
        rope_, positions = at.config.rope, at.positions() + shift(at)
        inv_freq = rope_frequencies(rope_, at.config.E)
        return rope_tables(inv_freq, rope_.attention_scaling, positions, at.dtype, at.rnd)

    return _rotary(run)


def _frequencies(change: Callable[[Config, Array], Array]) -> Any:
    """Other frequencies: (config, the right ones) -> the wrong ones."""

    def run(at: At) -> tuple[Array, Array]:
        inv_freq = change(at.config, rope_frequencies(at.config.rope, at.config.E))
        return rope_tables(inv_freq, at.config.rope.attention_scaling, at.positions(), at.dtype, at.rnd)

    return _rotary(run)


def _interpolated(at: At) -> tuple[Array, Array]:
    """Position interpolation, which has no attention scaling."""
    inv_freq = _plain(at.config) / np.float32(at.config.rope.factor)
    return rope_tables(inv_freq, 1.0, at.positions(), at.dtype, at.rnd)


def _ramp_reversed(config: Config, inv_freq: Array) -> Array:
    plain = _plain(config)
    return plain + plain / np.float32(config.rope.factor) - inv_freq


def _plain(config: Config) -> Array:
    return rope_frequencies(dataclasses.replace(config.rope, type="default"), config.E)


def _whole_exponent(config: Config, inv_freq: Array) -> Array:
    """theta^(-i/E) for theta^(-2i/E)."""
    return np.asarray(config.rope.theta ** -(np.arange(config.E // 2) / config.E), np.float32)


def _angles_by_ratio(at: At) -> tuple[Array, Array]:
    """Each pair's angle is the one before it times theta^(-2/E), in float32. YaRN slows pairs after that."""
    rope_, E = at.config.rope, at.config.E
    ratio = np.float32(rope_.theta ** (-2 / E))
    steps = np.full((at.phase.T, E // 2), ratio, np.float32)
    steps[:, 0] = at.positions()
    angles = np.multiply.accumulate(steps, axis=1)
    angles = angles * (rope_frequencies(rope_, E) / _plain(at.config))
    angles = np.concatenate([angles, angles], axis=1).astype(at.dtype)
    scaling = rope_.attention_scaling
    return at.rnd(np.cos(angles) * scaling), at.rnd(np.sin(angles) * scaling)


def _sin_without_scaling(at: At) -> tuple[Array, Array]:
    cos, sin = tables(at)
    return cos, at.rnd(sin / at.config.rope.attention_scaling)


def _tables_in_bf16(at: At) -> tuple[Array, Array]:
    cos, sin = tables(at)
    return _round_to_bf16(cos), _round_to_bf16(sin)


def _round_to_bf16(x: Array) -> Array:
    rounded: Array = to_bf16(np.asarray(x, np.float32)).astype(x.dtype)
    return rounded


def _is_yarn(config: Config) -> bool:
    return config.rope.type == "yarn"


def _interleaved(x: Array, cos: Array, sin: Array, rnd: Round) -> Array:
    half = x.shape[-1] // 2
    even, odd, c, s = x[..., ::2], x[..., 1::2], cos[:, None, :half], sin[:, None, :half]
    return rnd(np.stack([even * c - odd * s, odd * c + even * s], axis=-1).reshape(x.shape))


def _turned(how: Callable[[Array, Array, Array, Round], Array]) -> Any:
    run: Run = lambda at, values, weights: how(at.heads(values[0]), values[1], values[2], at.rnd)  # noqa: E731
    return _changed("self_attn.q_rope", "self_attn.k_rope", run=run)


# Norms.

_NORMS = ("input_layernorm", "post_attention_layernorm", NORM)


def _norm_as(how: Callable[[Array, Array, float, Round], Array]) -> Any:
    run: Run = lambda at, values, weights: how(values[0], weights[0], at.config.rms_norm_eps, at.rnd)  # noqa: E731
    return _changed(*_NORMS, run=run)


def _eps_outside(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    return rnd(w * rnd(x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps)))


def _sum_of_squares(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    return rnd(w * rnd(x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)))


def _norms_swapped(config: Config) -> dict[str, Op]:
    first, second = (line(config, tap) for tap in _NORMS[:2])
    return {
        first.tap: dataclasses.replace(first, vectors=second.vectors),
        second.tap: dataclasses.replace(second, vectors=first.vectors),
    }


# Attention.


def _masked(hidden: Callable[[At, Array], Array], config: Callable[[Config], bool] = lambda config: True) -> Any:
    """Another mask: (at, the right one) -> the wrong one."""

    def run(at: At, values: Values, weights: Values) -> Array:
        return attention_scores(values[0], values[1], hidden(at, at.visible()), at.rnd)

    return _only(config, _changed("self_attn.scores", run=run))


def _diagonal(at: At, ahead: int = 0) -> Array:
    return np.equal(np.arange(at.phase.S), np.arange(at.phase.start, at.phase.S)[:, None] + ahead)


def _hides_self(at: At, visible: Array) -> Array:
    strict = visible & ~_diagonal(at)
    nothing = ~strict.any(axis=-1, keepdims=True)
    return np.where(nothing, visible, strict)  # a softmax over nothing is NaN, which nobody would overlook


def _in_decode(at: At, wrong: Array, right: Array) -> Array:
    return wrong if at.phase.start else right


def _window_changed(by: int) -> Any:
    def hidden(at: At, visible: Array) -> Array:
        window = at.config.window(at.layer)
        return visible if window is None else causal_mask(at.phase.T, at.phase.S, max(1, window + by))

    return _masked(hidden, _has_window)


def _window_where(sliding: Callable[[Config, int], bool]) -> Any:
    def hidden(at: At, visible: Array) -> Array:
        window = at.config.sliding_window if sliding(at.config, at.layer) else None
        return causal_mask(at.phase.T, at.phase.S, window)

    return _masked(hidden, _has_window)


def _has_window(config: Config) -> bool:
    return any(config.window(layer) for layer in range(config.L))


def _scaled(factor: Callable[[Config], float]) -> Callable[[At, Values, Values], Array]:
    """Scores times a factor."""
    return lambda at, values, weights: at.rnd(score(at, values, weights) * factor(at.config))


def _tiled(config: Config) -> dict[str, Op]:
    def scores(at: At, values: Values, weights: Values) -> Array:
        return attention_scores(values[0], np.tile(values[1], (1, at.config.G, 1)), at.visible(), at.rnd)

    def heads(at: At, values: Values, weights: Values) -> Array:
        return attention_heads(values[0], np.tile(at.heads(values[1]), (1, at.config.G, 1)), at.rnd)

    if config.K in (1, config.H):
        return {}
    return _changed("self_attn.scores", run=scores)(config) | _changed("self_attn.heads", run=heads)(config)


def _softmax_in_bf16(at: At, values: Values, weights: Values) -> Array:
    x = _round_to_bf16(values[0])
    with np.errstate(invalid="ignore"):  # -inf - max, where all of a row is hidden, cannot be
        e = _round_to_bf16(np.exp(_round_to_bf16(x - np.max(x, axis=-1, keepdims=True))))
    return _round_to_bf16(e / _round_to_bf16(np.sum(e, axis=-1, keepdims=True)))


def _softmax_over_heads(at: At, values: Values, weights: Values) -> Array:
    return at.rnd(np.moveaxis(softmax(np.moveaxis(np.where(np.isinf(values[0]), -1e4, values[0]), 0, -1)), -1, 0))


def _not_transposed(at: At, values: Values, weights: Values) -> Array:
    """[H, T, E] taken for [T, H E]."""
    heads = mix(at, values, weights)
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(heads.shape)


def _unrotated_cache(config: Config) -> dict[str, Op]:
    def run(at: At, values: Values, weights: Values) -> Array:
        q, turned, plain = values
        keys = np.concatenate([at.heads(plain)[: at.phase.start], turned[at.phase.start :]])
        return score(at, [q, keys], [])

    true = line(config, "self_attn.scores")
    return {true.tap: dataclasses.replace(true, inputs=(*true.inputs, "*self_attn.k_proj"), run=run)}


def _values_rotated(config: Config) -> dict[str, Op]:
    def run(at: At, values: Values, weights: Values) -> Array:
        probs, v, cos, sin = values
        return attention_heads(probs, rope(at.heads(v), cos, sin, at.rnd), at.rnd)

    true = line(config, "self_attn.heads")
    return {true.tap: dataclasses.replace(true, inputs=(*true.inputs, f"*{COS}", f"*{SIN}"), run=run)}


def _cache_in_bf16(config: Config) -> dict[str, Op]:
    def rounded(true: Run) -> Run:
        return lambda at, values, weights: true(at, [values[0], _round_to_bf16(values[1])], weights)

    taps = ("self_attn.scores", "self_attn.heads")
    return {tap: dataclasses.replace(line(config, tap), run=rounded(line(config, tap).run)) for tap in taps}


def _biases_missing(names: str) -> Any:
    return _changed(*(f"self_attn.{name}_proj" for name in names), vectors=())


# MLP and residual stream.


def _activated(how: Callable[[Array], Array]) -> Any:
    run: Run = lambda at, values, weights: at.rnd(at.rnd(how(values[0])) * values[1])  # noqa: E731
    return _changed("mlp.act", run=run)


def _silu(x: Array, beta: float = 1.0) -> Array:
    scaled = beta * x
    return np.asarray(x * np.exp(np.minimum(scaled, 0)) / (1 + np.exp(-np.abs(scaled))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _gelu_erf(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


def _sums(mid: tuple[str, ...] | None, post: tuple[str, ...] | None, run: Run = add) -> Any:
    """Other terms in the sums that make the residual stream."""
    given = {"resid_mid": mid, "resid_post": post}
    return lambda config: {
        tap: dataclasses.replace(line(config, tap), inputs=inputs, run=run if len(inputs) > 1 else same)
        for tap, inputs in given.items()
        if inputs
    }


# Weights that are read wrongly.

_MATRICES = tuple(op.tap for op in LAYER if op.matrix)


def _read_as(change: Callable[[Config, Array], Array], taps: tuple[str, ...] = _MATRICES) -> Any:
    return _changed(*taps, change=change)


def _in_out(config: Config, w: Array) -> Array:
    return w.reshape(w.shape[::-1]).T


def _halves_to_pairs(config: Config, rows: Array) -> Array:
    """Rows (or a bias) of q or k, permuted for interleaved RoPE as Llama's checkpoints are in some formats."""
    return rows.reshape(-1, 2, config.E // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _pairs_to_halves(config: Config, rows: Array) -> Array:
    """The other way round."""
    return rows.reshape(-1, config.E // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _permuted(order: Callable[[Config, Array], Array]) -> Any:
    def run(at: At, values: Values, weights: Values) -> Array:
        return project(at, values, [weights[0], *(order(at.config, w) for w in weights[1:])])

    return _changed(
        *(f"self_attn.{name}_{kind}" for name in "qk" for kind in ("matmul", "proj")), run=run, change=order
    )


def _gate_up_weights_swapped(config: Config) -> dict[str, Op]:
    gate, up = line(config, "mlp.gate_proj"), line(config, "mlp.up_proj")
    return {
        gate.tap: dataclasses.replace(gate, matrix=up.matrix),
        up.tap: dataclasses.replace(up, matrix=gate.matrix),
    }


def grid_steps(w: Array) -> Array | None:
    """w [out, in] -> [out, in]: the step of 4-bit weights under each, 0 in rows that lie on no grid; None if all do.

    Groups of 32, 64, 128 or all inputs share a step: the coarsest that fits. It is the smallest gap between two values
    of a group, refined by least squares: storing a weight in bfloat16 moves it by less than a tenth of a step.
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
    """Rows of each eight in the order in which AWQ packs them; their scales are not packed, and stay."""
    if len(w) % 8:
        return w
    steps = grid_steps(w)
    moved = _moved(w)
    if steps is None:
        return moved
    return (moved * np.where(steps > 0, _divided(steps, _moved(steps)), 1)).astype(w.dtype)


def _moved(w: Array) -> Array:
    return w.reshape(-1, 8, w.shape[1])[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(w.shape)


def _zero_off(by: int) -> Any:
    def change(config: Config, w: Array) -> Array:
        steps = grid_steps(w)
        return w if steps is None else (w + by * steps).astype(w.dtype)

    return _read_as(change)


def _tied(config: Config) -> dict[str, Op]:
    if config.tie_word_embeddings:
        return {}
    return _changed(LOGITS, matrix="model.embed_tokens.weight")(config)


# Precision.


def _multiplied_in(round_inputs: Round, round_result: Round = exact) -> Any:
    """Matrices multiplied from rounded inputs and weights, the result rounded, too; biases are in its precision."""

    def run(true: Run) -> Run:
        def rounded(at: At, values: Values, weights: Values) -> Array:
            biases = [round_result(w) for w in weights[1:]]
            return round_result(true(at, [round_inputs(values[0])], [round_inputs(weights[0]), *biases]))

        return rounded

    return lambda config: {
        tap: dataclasses.replace(line(config, tap), run=run(line(config, tap).run)) for tap in (*_MATRICES, LOGITS)
    }


def _to_tf32(x: Array) -> Array:
    """The ten mantissa bits that a tensor core keeps of float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    kept = (bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000
    return np.asarray(kept.view(np.float32).astype(x.dtype))


def _cut_to_tf32(x: Array) -> Array:
    """The same without rounding: what a tensor core takes of a float32 that nobody converted."""
    kept = np.asarray(x, np.float32).view(np.uint32) & 0xFFFFE000
    return np.asarray(kept.view(np.float32).astype(x.dtype))


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "rope-interleaved",
        "RoPE turns neighbouring pairs (2i, 2i + 1); this model pairs the halves (i, i + E/2)",
        "two tokens",
        _turned(_interleaved),
    ),
    Mistake(
        "rope-backwards",
        "RoPE turns by the negative angle",
        "two tokens",
        _turned(lambda x, cos, sin, rnd: rope(x, cos, -sin, rnd)),
    ),
    Mistake("rope-missing", "queries and keys are not turned at all", "two tokens", _turned(lambda x, c, s, rnd: x)),
    Mistake(
        "positions-from-one",
        "positions start at 1; they start at 0 (attention cannot tell, RoPE is relative)",
        "cos and sin, or q_rope: no constant shift moves a score",
        _shifted(lambda at: 1),
    ),
    Mistake(
        "decode-position-late",
        "in decoding, positions lag by one: the first new token gets the position of the last of the prompt",
        "a step of decoding",
        _shifted(lambda at: -1 if at.phase.start else 0),
    ),
    Mistake(
        "decode-position-restarts",
        "in decoding, positions start again at 0",
        "a step of decoding",
        _shifted(lambda at: -at.phase.start),
    ),
    Mistake(
        "rope-theta-1e4",
        "RoPE's theta is 10,000, the usual default, instead of the config's rope_theta",
        "a config with another theta, and two tokens",
        _only(lambda config: config.rope.theta != 1e4, _with_rope(theta=1e4)),
    ),
    Mistake(
        "rope-theta-1e6",
        "RoPE's theta is 1,000,000, QwQ's, instead of this config's rope_theta",
        "a config with another theta, and two tokens",
        _only(lambda config: config.rope.theta != 1e6, _with_rope(theta=1e6)),
    ),
    Mistake(
        "rope-exponent-halved",
        "RoPE's frequencies are theta^(-i/E); they are theta^(-2i/E)",
        "a config without YaRN, and two tokens",
        _only(lambda config: not _is_yarn(config), _frequencies(_whole_exponent)),
    ),
    Mistake(
        "rope-frequencies-bf16",
        "RoPE's frequencies are rounded to bfloat16; they stay float32 in every precision",
        "positions in the hundreds, or fp32",
        _frequencies(lambda config, inv_freq: to_bf16(inv_freq)),
    ),
    Mistake(
        "rope-angles-by-ratio",
        "RoPE's angles are multiplied up from one float32 ratio, theta^(-2/E), whose rounding grows from pair to pair "
        "(llama.cpp's way)",
        "fp32, and positions in the hundreds",
        _rotary(_angles_by_ratio),
    ),
    Mistake(
        "rope-tables-bf16",
        "cos and sin are rounded to bfloat16 in a model of higher precision",
        "fp32 or fp16",
        _rotary(_tables_in_bf16),
    ),
    Mistake(
        "yarn-missing",
        "YaRN is left out: plain RoPE where the config has rope_scaling",
        "a config with YaRN",
        _only(_is_yarn, _with_rope(type="default")),
    ),
    Mistake(
        "yarn-no-attention-scaling",
        "YaRN's factor on cos and sin, 0.1 ln(factor) + 1, is left out",
        "a config with YaRN",
        _only(lambda config: config.rope.attention_scaling != 1, _with_rope(attention_factor=1.0)),
    ),
    Mistake(
        "yarn-scaling-on-cos-only",
        "YaRN's attention scaling multiplies cos, but not sin",
        "a config with YaRN",
        _only(lambda config: config.rope.attention_scaling != 1, _rotary(_sin_without_scaling, (SIN,))),
    ),
    Mistake(
        "yarn-factor-twice",
        "YaRN's frequencies are divided by the factor twice",
        "a config with YaRN, and a long prompt",
        lambda config: (
            _frequencies(
                lambda config, inv_freq: rope_frequencies(
                    dataclasses.replace(config.rope, factor=config.rope.factor**2), config.E
                )
            )(config)
            if _is_yarn(config)
            else {}
        ),
    ),
    Mistake(
        "yarn-ramp-untruncated",
        "the ends of YaRN's ramp are not rounded to whole pairs, or are where the config says otherwise",
        "a config with YaRN whose ramp has a middle",
        lambda config: _with_rope(truncate=not config.rope.truncate)(config) if _is_yarn(config) else {},
    ),
    Mistake(
        "yarn-ramp-reversed",
        "YaRN slows the fast pairs and keeps the slow ones; it is the other way round",
        "a config with YaRN",
        _only(_is_yarn, _frequencies(_ramp_reversed)),
    ),
    Mistake(
        "yarn-as-linear",
        "all frequencies are divided by the factor (position interpolation), instead of by YaRN's ramp",
        "a config with YaRN",
        _only(_is_yarn, _rotary(_interpolated)),
    ),
    Mistake(
        "eps-1e-6",
        "the norms use eps 1e-6 instead of the config's rms_norm_eps",
        "fp32, or an input whose mean square is not far above eps",
        _only(
            lambda config: config.rms_norm_eps != 1e-6,
            _norm_as(lambda x, w, eps, rnd: rmsnorm(x, w, 1e-6, rnd)),
        ),
    ),
    Mistake(
        "eps-outside-root",
        "the norms add eps to the root; it belongs under it",
        "fp32, or an input whose mean square is not far above eps",
        _norm_as(_eps_outside),
    ),
    Mistake(
        "layernorm",
        "the norms subtract the mean (LayerNorm); RMSNorm does not",
        "any tokens",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x - x.mean(axis=-1, keepdims=True), w, eps, rnd)),
    ),
    Mistake(
        "norm-sum-of-squares",
        "the norms divide by the root of the sum of squares; it is the mean",
        "any tokens",
        _norm_as(_sum_of_squares),
    ),
    Mistake(
        "norm-plus-one",
        "the norms multiply by 1 + weight (Gemma's way)",
        "any tokens",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x, rnd(1 + w), eps, rnd)),
    ),
    Mistake(
        "norm-weight-missing",
        "the norms do not multiply by their weight",
        "norm weights other than 1",
        _norm_as(lambda x, w, eps, rnd: rmsnorm(x, np.ones_like(w), eps, rnd)),
    ),
    Mistake(
        "norm-weights-swapped",
        "the weights of input_layernorm and post_attention_layernorm are swapped",
        "two norms with different weights",
        _norms_swapped,
    ),
    Mistake(
        "final-norm-missing",
        "the last norm, model.norm, is left out before the head",
        "any tokens",
        _changed(NORM, run=same, vectors=()),
    ),
    Mistake(
        "norm-weight-before-cast",
        "the norms multiply by the weight before they round; Hugging Face rounds, then multiplies",
        "bf16 or fp16, and Hugging Face's bits: it is no larger an error, only another one",
        _norm_as(lambda x, w, eps, rnd: rnd(rmsnorm(x, w, eps, exact))),
        rounding=True,
    ),
    Mistake(
        "heads-tiled",
        "query head h reads key-value head h mod K (tile); it reads h // G (repeat)",
        "grouped-query attention: 1 < K < H",
        _tiled,
    ),
    Mistake(
        "scores-not-scaled",
        "scores are not divided by sqrt(E)",
        "two tokens",
        _changed("self_attn.scores", run=_scaled(lambda config: math.sqrt(config.E))),
    ),
    Mistake(
        "scores-scaled-by-hidden",
        "scores are divided by sqrt(hidden_size // heads), where the config's head_dim is another",
        "a config with head_dim other than hidden_size / num_attention_heads",
        _only(
            lambda config: config.D // config.H not in (0, config.E),
            _changed("self_attn.scores", run=_scaled(lambda config: math.sqrt(config.E / (config.D // config.H)))),
        ),
    ),
    Mistake(
        "mask-missing",
        "tokens see those that come after them: there is no causal mask",
        "two tokens in one call",
        _masked(lambda at, visible: np.ones_like(visible)),
    ),
    Mistake(
        "mask-hides-self",
        "tokens do not see themselves",
        "two tokens",
        _masked(_hides_self),
    ),
    Mistake(
        "mask-one-ahead",
        "tokens see the one after them",
        "two tokens in one call",
        _masked(lambda at, visible: visible | _diagonal(at, 1)),
    ),
    Mistake(
        "window-ignored",
        "layers with a sliding window attend to everything",
        "a config that uses its window, and more tokens than it is wide",
        _window_where(lambda config, layer: False),
    ),
    Mistake(
        "window-one-wider",
        "the sliding window is one key too wide: W keys are seen, the token itself included",
        "a config that uses its window, and more tokens than it is wide",
        _window_changed(1),
    ),
    Mistake(
        "window-one-narrower",
        "the sliding window is one key too narrow: W keys are seen, the token itself included",
        "a config that uses its window of at least 2, and as many tokens",
        _window_changed(-1),
    ),
    Mistake(
        "window-everywhere",
        "every layer has the sliding window; the first max_window_layers have none",
        "a config that uses its window in some layers, and more tokens than it is wide",
        _window_where(lambda config, layer: True),
    ),
    Mistake(
        "window-on-the-other-layers",
        "the sliding window is on the layers that have none, and the others see everything",
        "a config that uses its window, and more tokens than it is wide",
        _window_where(lambda config, layer: config.window(layer) is None),
    ),
    Mistake(
        "softmax-bf16",
        "softmax is computed in bfloat16; it is computed in float32 in every precision",
        "fp32 or fp16; in bf16, a long context",
        _changed("self_attn.probs", run=_softmax_in_bf16),
    ),
    Mistake(
        "softmax-bf16-inputs",
        "scores are rounded to bfloat16 before softmax, and probabilities after it",
        "fp32 or fp16",
        _changed(
            "self_attn.probs",
            run=lambda at, values, weights: _round_to_bf16(softmax(_round_to_bf16(values[0]))),
        ),
    ),
    Mistake(
        "softmax-over-heads",
        "softmax is taken over another axis than the keys: the heads",
        "more than one head",
        _changed("self_attn.probs", run=_softmax_over_heads),
    ),
    Mistake("q-bias-missing", "q_proj.bias is not added", "a bias that is not zero", _biases_missing("q")),
    Mistake(
        "k-bias-missing",
        "k_proj.bias is not added",
        "k_proj, or a bias that is large: softmax hardly sees one that all keys share",
        _biases_missing("k"),
    ),
    Mistake("v-bias-missing", "v_proj.bias is not added", "a bias that is not zero", _biases_missing("v")),
    Mistake(
        "qkv-biases-missing",
        "the biases of q_proj, k_proj and v_proj are not added (Llama has none; Qwen2 has)",
        "biases that are not zero",
        _biases_missing("qkv"),
    ),
    Mistake(
        "heads-not-transposed",
        "the heads' outputs [H, T, E] go into o_proj as if they were [T, H, E]",
        "two tokens in one call",
        _changed("self_attn.heads", run=_not_transposed),
    ),
    Mistake(
        "cache-unrotated",
        "keys are cached before RoPE, and used from the cache as they are",
        "a step of decoding",
        _unrotated_cache,
    ),
    Mistake(
        "decode-misses-newest",
        "in decoding, a token does not see itself: its key is cached after attention",
        "a step of decoding",
        _masked(lambda at, visible: _in_decode(at, _hides_self(at, visible), visible)),
    ),
    Mistake(
        "decode-misses-oldest",
        "in decoding, the first position of the cache is not seen",
        "a step of decoding",
        _masked(lambda at, visible: _in_decode(at, visible & (np.arange(at.phase.S) > 0), visible)),
    ),
    Mistake("values-rotated", "RoPE is applied to the values, too", "two tokens", _values_rotated),
    Mistake(
        "cache-bf16",
        "keys and values are kept in bfloat16 in a model of higher precision",
        "fp32 or fp16",
        _cache_in_bf16,
    ),
    Mistake(
        "gate-up-swapped",
        "SiLU is applied to up_proj instead of to gate_proj: the two are swapped",
        "any tokens",
        _changed("mlp.act", inputs=("mlp.up_proj", "mlp.gate_proj")),
    ),
    Mistake(
        "gate-up-weights-swapped",
        "the weights of gate_proj and up_proj are swapped",
        "any tokens",
        _gate_up_weights_swapped,
    ),
    Mistake("gelu", "the MLP uses GELU (erf); it is SiLU", "any tokens", _activated(_gelu_erf)),
    Mistake("gelu-tanh", "the MLP uses GELU (tanh); it is SiLU", "any tokens", _activated(_gelu_tanh)),
    Mistake(
        "quick-gelu",
        "the MLP uses x sigmoid(1.702 x); SiLU is x sigmoid(x)",
        "any tokens",
        _activated(lambda x: _silu(x, 1.702)),
    ),
    Mistake(
        "swish-beta-ln2",
        "the MLP uses x sigmoid(x ln 2), as some descriptions have it; SiLU is x sigmoid(x)",
        "any tokens",
        _activated(lambda x: _silu(x, math.log(2))),
    ),
    Mistake("relu", "the MLP uses ReLU; it is SiLU", "any tokens", _activated(lambda x: np.maximum(x, 0))),
    Mistake(
        "activation-missing",
        "the MLP multiplies gate and up without an activation",
        "any tokens",
        _activated(lambda x: x),
    ),
    Mistake(
        "residual-from-norm",
        "attention and MLP are added to their normalised inputs; they are added to the stream",
        "any tokens",
        _sums(("input_layernorm", "self_attn.o_proj"), ("post_attention_layernorm", "mlp.down_proj")),
    ),
    Mistake(
        "residual-missing",
        "attention and MLP replace the stream; they are added to it",
        "any tokens",
        _sums(("self_attn.o_proj",), ("mlp.down_proj",)),
    ),
    Mistake(
        "mlp-in-parallel",
        "the MLP reads the stream from before attention (as in parallel blocks); it reads it from after",
        "any tokens",
        _changed("post_attention_layernorm", inputs=("resid_pre",)),
    ),
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
    Mistake("head-tied", "the head is the embedding; this config's is its own", "tie_word_embeddings false", _tied),
    Mistake(
        "embedding-scaled",
        "the embedding is multiplied by sqrt(hidden_size) (Gemma's way)",
        "any tokens",
        _changed(EMBED, run=lambda at, values, weights: at.rnd(weights[0] * math.sqrt(at.config.D))),
    ),
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
        _multiplied_in(_round_to_bf16),
    ),
    Mistake(
        "matmul-autocast-bf16",
        "matrices are multiplied in bfloat16, results and biases included, in a model of higher precision (autocast)",
        "fp32 or fp16",
        _multiplied_in(_round_to_bf16, _round_to_bf16),
    ),
)

BY_NAME: Mapping[str, Mistake] = {mistake.name: mistake for mistake in MISTAKES}
