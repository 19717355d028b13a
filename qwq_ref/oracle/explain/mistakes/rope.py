"""Mistakes of positions, of RoPE's frequencies and tables, and of the rotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ....config import Config
from ....spec import rope, rope_frequencies, rope_tables
from ....spec.ops import Array, Round, to_bf16
from ...graph import COS, SIN, At, Run, tables
from .base import Mistake, Replaces, changed, line, only, round_to_bf16

# Mistakes of positions and frequencies change how the two tables, cos and sin, are computed.


def _rotary(run: Callable[[At], tuple[Array, Array]], which: tuple[str, ...] = (COS, SIN)) -> Replaces:
    def one(index: int) -> Run:
        return lambda at, values, weights: run(at)[index]

    return lambda config: {
        tap: dataclasses.replace(line(config, tap), run=one(index))
        for index, tap in enumerate((COS, SIN))
        if tap in which
    }


def _with_rope(**fields: Any) -> Replaces:
    def run(at: At) -> tuple[Array, Array]:
        return tables(dataclasses.replace(at, config=_rope_changed(at.config, **fields)))

    return _rotary(run)


def _rope_changed(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, rope=dataclasses.replace(config.rope, **fields))


def _shifted(shift: Callable[[At], int]) -> Replaces:
    """Shift all positions."""

    def run(at: At) -> tuple[Array, Array]:
        rope_, positions = at.config.rope, at.positions() + shift(at)
        inv_freq = rope_frequencies(rope_, at.config.E)
        return rope_tables(inv_freq, rope_.attention_scaling, positions, at.dtype, at.rnd)

    return _rotary(run)


def _frequencies(change: Callable[[Config, Array], Array]) -> Replaces:
    """Change the frequencies: (config, the right ones) -> the wrong ones"""

    def run(at: At) -> tuple[Array, Array]:
        inv_freq = change(at.config, rope_frequencies(at.config.rope, at.config.E))
        return rope_tables(inv_freq, at.config.rope.attention_scaling, at.positions(), at.dtype, at.rnd)

    return _rotary(run)


def _interpolated(at: At) -> tuple[Array, Array]:
    """Position interpolation. It has no attention scaling."""
    inv_freq = _plain(at.config) / np.float32(at.config.rope.factor)
    return rope_tables(inv_freq, 1.0, at.positions(), at.dtype, at.rnd)


def _ramp_reversed(config: Config, inv_freq: Array) -> Array:
    plain = _plain(config)
    return plain + plain / np.float32(config.rope.factor) - inv_freq


def _plain(config: Config) -> Array:
    return rope_frequencies(dataclasses.replace(config.rope, type="default"), config.E)


def _whole_exponent(config: Config, inv_freq: Array) -> Array:
    """theta^(-i/E) instead of theta^(-2i/E)."""
    return np.asarray(config.rope.theta ** -(np.arange(config.E // 2) / config.E), np.float32)


def _angles_by_ratio(at: At) -> tuple[Array, Array]:
    """Multiply each pair's angle by theta^(-2/E) to get the next one, in float32; then apply YaRN."""
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
    return round_to_bf16(cos), round_to_bf16(sin)


def _is_yarn(config: Config) -> bool:
    return config.rope.type == "yarn"


def _interleaved(x: Array, cos: Array, sin: Array, rnd: Round) -> Array:
    half = x.shape[-1] // 2
    even, odd, c, s = x[..., ::2], x[..., 1::2], cos[:, None, :half], sin[:, None, :half]
    return rnd(np.stack([even * c - odd * s, odd * c + even * s], axis=-1).reshape(x.shape))


def _rotated(how: Callable[[Array, Array, Array, Round], Array]) -> Replaces:
    run: Run = lambda at, values, weights: how(at.heads(values[0]), values[1], values[2], at.rnd)  # noqa: E731
    return changed("self_attn.q_rope", "self_attn.k_rope", run=run)


MISTAKES = (
    Mistake(
        "rope-interleaved",
        "RoPE rotates neighbouring pairs (2i, 2i + 1); this model pairs the halves (i, i + E/2)",
        "two tokens",
        _rotated(_interleaved),
    ),
    Mistake(
        "rope-backwards",
        "RoPE rotates by the negative angle",
        "two tokens",
        _rotated(lambda x, cos, sin, rnd: rope(x, cos, -sin, rnd)),
    ),
    Mistake("rope-missing", "queries and keys are not rotated", "two tokens", _rotated(lambda x, c, s, rnd: x)),
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
        only(lambda config: config.rope.theta != 1e4, _with_rope(theta=1e4)),
    ),
    Mistake(
        "rope-theta-1e6",
        "RoPE's theta is 1,000,000, QwQ's, instead of this config's rope_theta",
        "a config with another theta, and two tokens",
        only(lambda config: config.rope.theta != 1e6, _with_rope(theta=1e6)),
    ),
    Mistake(
        "rope-exponent-halved",
        "RoPE's frequencies are theta^(-i/E); they are theta^(-2i/E)",
        "a config without YaRN, and two tokens",
        only(lambda config: not _is_yarn(config), _frequencies(_whole_exponent)),
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
        only(_is_yarn, _with_rope(type="default")),
    ),
    Mistake(
        "yarn-no-attention-scaling",
        "YaRN's factor on cos and sin, 0.1 ln(factor) + 1, is left out",
        "a config with YaRN",
        only(lambda config: config.rope.attention_scaling != 1, _with_rope(attention_factor=1.0)),
    ),
    Mistake(
        "yarn-scaling-on-cos-only",
        "YaRN's attention scaling multiplies cos, but not sin",
        "a config with YaRN",
        only(lambda config: config.rope.attention_scaling != 1, _rotary(_sin_without_scaling, (SIN,))),
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
        only(_is_yarn, _frequencies(_ramp_reversed)),
    ),
    Mistake(
        "yarn-as-linear",
        "all frequencies are divided by the factor (position interpolation), instead of by YaRN's ramp",
        "a config with YaRN",
        only(_is_yarn, _rotary(_interpolated)),
    ),
)
