"""Mistakes of attention: heads, scores, mask, window, softmax, biases, and the cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ....config import Config
from ....spec import causal_mask, rope, softmax
from ....spec.ops import Array, attention_heads, attention_scores
from ...graph import COS, SIN, At, Op, Run, mix, score
from .base import Mistake, Replaces, Values, changed, line, only, round_to_bf16


def _masked(hidden: Callable[[At, Array], Array], config: Callable[[Config], bool] = lambda config: True) -> Replaces:
    """Change the mask: (at, the right one) -> the wrong one"""

    def run(at: At, values: Values, weights: Values) -> Array:
        return attention_scores(values[0], values[1], hidden(at, at.visible()), at.rnd)

    return only(config, changed("self_attn.scores", run=run))


def _diagonal(at: At, ahead: int = 0) -> Array:
    return np.equal(np.arange(at.phase.S), np.arange(at.phase.start, at.phase.S)[:, None] + ahead)


def _hides_self(at: At, visible: Array) -> Array:
    strict = visible & ~_diagonal(at)
    nothing = ~strict.any(axis=-1, keepdims=True)
    return np.where(nothing, visible, strict)  # a softmax over no key is NaN: an obvious mistake


def _in_decode(at: At, wrong: Array, right: Array) -> Array:
    return wrong if at.phase.start else right


def _window_changed(by: int) -> Replaces:
    def hidden(at: At, visible: Array) -> Array:
        window = at.config.window(at.layer)
        return visible if window is None else causal_mask(at.phase.T, at.phase.S, max(1, window + by))

    return _masked(hidden, _has_window)


def _window_where(sliding: Callable[[Config, int], bool]) -> Replaces:
    def hidden(at: At, visible: Array) -> Array:
        window = at.config.sliding_window if sliding(at.config, at.layer) else None
        return causal_mask(at.phase.T, at.phase.S, window)

    return _masked(hidden, _has_window)


def _has_window(config: Config) -> bool:
    return any(config.window(layer) for layer in range(config.L))


def _scaled(factor: Callable[[Config], float]) -> Callable[[At, Values, Values], Array]:
    """Multiply the scores by a factor."""
    return lambda at, values, weights: at.rnd(score(at, values, weights) * factor(at.config))


def _tiled(config: Config) -> dict[str, Op]:
    def scores(at: At, values: Values, weights: Values) -> Array:
        return attention_scores(values[0], np.tile(values[1], (1, at.config.G, 1)), at.visible(), at.rnd)

    def heads(at: At, values: Values, weights: Values) -> Array:
        return attention_heads(values[0], np.tile(at.heads(values[1]), (1, at.config.G, 1)), at.rnd)

    if config.K in (1, config.H):
        return {}
    return changed("self_attn.scores", run=scores)(config) | changed("self_attn.heads", run=heads)(config)


def _softmax_in_bf16(at: At, values: Values, weights: Values) -> Array:
    x = round_to_bf16(values[0])
    with np.errstate(invalid="ignore"):  # -inf - -inf in a row without visible keys
        e = round_to_bf16(np.exp(round_to_bf16(x - np.max(x, axis=-1, keepdims=True))))
    return round_to_bf16(e / round_to_bf16(np.sum(e, axis=-1, keepdims=True)))


def _softmax_over_heads(at: At, values: Values, weights: Values) -> Array:
    return at.rnd(np.moveaxis(softmax(np.moveaxis(np.where(np.isinf(values[0]), -1e4, values[0]), 0, -1)), -1, 0))


def _not_transposed(at: At, values: Values, weights: Values) -> Array:
    """Take [H, T, E] for [T, H E]."""
    heads = mix(at, values, weights)
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(heads.shape)


def _unrotated_cache(config: Config) -> dict[str, Op]:
    def run(at: At, values: Values, weights: Values) -> Array:
        q, rotated, plain = values
        keys = np.concatenate([at.heads(plain)[: at.phase.start], rotated[at.phase.start :]])
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
        return lambda at, values, weights: true(at, [values[0], round_to_bf16(values[1])], weights)

    taps = ("self_attn.scores", "self_attn.heads")
    return {tap: dataclasses.replace(line(config, tap), run=rounded(line(config, tap).run)) for tap in taps}


def _biases_missing(names: str) -> Replaces:
    return changed(*(f"self_attn.{name}_proj" for name in names), vectors=())


MISTAKES = (
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
        changed("self_attn.scores", run=_scaled(lambda config: math.sqrt(config.E))),
    ),
    Mistake(
        "scores-scaled-by-hidden",
        "scores are divided by sqrt(hidden_size // heads), where the config's head_dim is another",
        "a config with head_dim other than hidden_size / num_attention_heads",
        only(
            lambda config: config.D // config.H not in (0, config.E),
            changed("self_attn.scores", run=_scaled(lambda config: math.sqrt(config.E / (config.D // config.H)))),
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
        changed("self_attn.probs", run=_softmax_in_bf16),
    ),
    Mistake(
        "softmax-bf16-inputs",
        "scores are rounded to bfloat16 before softmax, and probabilities after it",
        "fp32 or fp16",
        changed(
            "self_attn.probs",
            run=lambda at, values, weights: round_to_bf16(softmax(round_to_bf16(values[0]))),
        ),
    ),
    Mistake(
        "softmax-over-heads",
        "softmax is taken over another axis than the keys: the heads",
        "more than one head",
        changed("self_attn.probs", run=_softmax_over_heads),
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
        changed("self_attn.heads", run=_not_transposed),
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
)
