"""The model as the C core computes it, to the bit: the spec's block with the operations of `quant`, `kv` and `fixed`.

A mode is a weight form ("fp32", "bf16", "q8" or "q4") and a cache form ("fp32" or "int8"). The distance of a mode from
`spec.forward` is the cost of its rounding. The core computes exactly the bits that are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config
from ..forms import FORMS
from ..spec import Scope
from ..spec.ops import Array, Tap, causal_mask, embed, no_tap, rope, rope_frequencies, to_bf16
from .fixed import rmsnorm, rope_tables, swiglu
from .integers import CHUNK, LARGEST
from .key_bias import POSITIONS, KeyBias, key_bias, turns_of
from .kv import attention_fp32, attention_int8, pad, quantise_kv
from .quant import CODEBOOK, GROUP, matmul_floats, matmul_integers, quantise_q4, quantise_q8

Linear = Callable[[Array], Array]
Tables = Callable[[Array, float, Array], tuple[Array, Array]]
Kept = tuple[Array, ...]  # of one layer: keys, values [S, K, E]; in int8 each is followed by its scales [S, K, ...]
Cache = tuple[Kept, ...]


@dataclass(frozen=True)
class Prepared:
    """A checkpoint in a weight form.

    linear  the matrices by name, as functions from x to x w^T
    vector  norms and biases by name, and the embedding
    bias    for each layer, what int8 keys leave out of k_proj's bias
    """

    linear: Mapping[str, Linear]
    vector: Mapping[str, Array]
    bias: tuple[KeyBias, ...]


def prepare(config: Config, weights: Mapping[str, Array], form: str) -> Prepared:
    """-> prepared

    A checkpoint with every matrix in its form. SwiGLU's beta is folded into gate and up: silu(beta g) u / beta. The
    embedding is bfloat16 in all forms but fp32. ValueError for an unknown form, and for integers.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    kept, beta = FORMS[form], np.float32(config.swiglu_beta)
    linears: dict[str, Linear] = {}
    vectors: dict[str, Array] = {}
    for name in config.tensors():
        if np.asarray(weights[name]).dtype.kind not in "fV":  # integers may be the bits of bfloat16
            raise ValueError(f"{name} must be floats, got {np.asarray(weights[name]).dtype}")
        w = np.asarray(weights[name], np.float32)
        if w.ndim == 1:
            vectors[name] = w
        elif name == "model.embed_tokens.weight":
            vectors[name] = w if kept.embedding == "F32" else to_bf16(w)
        elif name.endswith("mlp.gate_proj.weight"):
            linears[name] = matrix(w * beta, kept.matrix)
        elif name.endswith("mlp.up_proj.weight"):
            linears[name] = matrix(w / beta, kept.matrix)
        elif name != config.head_name:
            linears[name] = matrix(w, kept.matrix)
    linears[config.head_name] = matrix(np.asarray(weights[config.head_name], np.float32), kept.head)
    return Prepared(linears, vectors, key_biases_of(config, vectors))


def key_biases_of(config: Config, vectors: Mapping[str, Array]) -> tuple[KeyBias, ...]:
    """vectors -> found

    `key_biases` of a model's vectors.
    """
    names = [f"model.layers.{layer}.self_attn" for layer in range(config.L)]
    biases = [np.concatenate([vectors[f"{name}.{x}_proj.bias"] for x in "qk"]) for name in names]
    return key_biases(config, biases, rope_tables)


def key_biases(config: Config, biases: Sequence[Array], tables: Tables) -> tuple[KeyBias, ...]:
    """biases -> found

    For each layer, the bias that int8 keys leave out. `biases` are those of each layer's q_proj and k_proj side by
    side, [(H + K) * E]. `tables` is `fixed.rope_tables` or the core's.
    """
    inv_freq = rope_frequencies(config.rope, config.E)
    near = tables(inv_freq, config.rope.attention_scaling, np.arange(max(CHUNK, min(config.positions, POSITIONS))))
    turns = turns_of(*near, *tables(inv_freq, 1.0, np.arange(0, config.positions, CHUNK)))
    heads = (bias.reshape(-1, config.E) for bias in biases)
    return tuple(key_bias(each[: config.H], each[config.H :], turns) for each in heads)


def matrix(w: Array, form: str) -> Linear:
    """w [m, n] -> linear

    A matrix in a form, as the function from x [T, n] to x w^T [T, m]. Zeros fill the columns up to a multiple of 64.
    """
    w = pad(w, GROUP)
    if form == "q4":
        code, scale = quantise_q4(w)
        return lambda x: matmul_integers(pad(x, GROUP), CODEBOOK[code], scale)
    if form == "q8":
        q, scale = quantise_q8(w)
        return lambda x: matmul_integers(pad(x, GROUP), q, scale)
    if form not in ("fp32", "bf16"):
        raise ValueError(f"form must be fp32, bf16, q8 or q4, got {form!r}")
    stored = to_bf16(w) if form == "bf16" else w
    return lambda x: matmul_floats(pad(x, GROUP), stored)


def block(
    config: Config, prepared: Prepared, layer: int, x: Array, cos: Array, sin: Array, past: Kept, tap: Tap = no_tap
) -> tuple[Array, Kept]:
    """x [T, D], cos [T, E], sin [T, E] -> [T, D], kept

    One decoder layer, as `spec.block`. The arrays of `past` decide the form of the cache. The taps are those of
    `spec.block`, without the products before a bias, the scores and the probabilities.
    """
    scope = Scope(prepared.vector, f"model.layers.{layer}.", tap=tap)
    scope.result("resid_pre", x)
    normed = norm(config, scope, "input_layernorm", x)
    visible = causal_mask(len(x), len(past[0]) + len(x), config.window(layer))
    attn, bias = scope.inside("self_attn"), prepared.bias[layer]
    attended, kept = self_attention(config, prepared, attn, normed, cos, sin, visible, past, bias)
    x = scope.result("resid_mid", x + attended)
    normed = norm(config, scope, "post_attention_layernorm", x)
    x = scope.result("resid_post", x + mlp(prepared, scope.inside("mlp"), normed))
    return x, kept


def norm(config: Config, scope: Scope, name: str, x: Array) -> Array:
    """x [T, D] -> [T, D]

    `fixed.rmsnorm` with the weight of the norm `name`.
    """
    return scope.result(name, rmsnorm(x, scope.weight(f"{name}.weight"), config.rms_norm_eps))


def self_attention(
    config: Config,
    prepared: Prepared,
    scope: Scope,
    x: Array,
    cos: Array,
    sin: Array,
    visible: Array,
    past: Kept,
    bias: KeyBias,
) -> tuple[Array, Kept]:
    """x [T, D], cos [T, E], sin [T, E], visible [T, S] -> [T, D], kept

    `spec.self_attention` over a cache of floats or of int8. ValueError for queries, keys or values that are not finite,
    or beyond 2^56: attention in the core would hide them.
    """
    q, k, v = (projection(prepared, scope, name, x).reshape(len(x), -1, config.E) for name in "qkv")
    q = scope.result("q_rope", rope(q, cos, sin))
    k = scope.result("k_rope", rope(k, cos, sin))
    if not all(np.all(np.abs(each) <= LARGEST) for each in (q, k, v)):
        raise ValueError(f"{scope.path}: queries, keys or values are not finite, or beyond 2^56")
    is_int8 = len(past) == 4
    if is_int8 and bias.first.size:
        product = prepared.linear[f"{scope.path}k_proj.weight"](x).reshape(k.shape)
        k = rope(product + bias.rest, cos, sin)
    new = (*quantise_kv(k, 2, bias.key_gain, bias.center), *quantise_kv(v)) if is_int8 else (k, v)
    kept = tuple(np.concatenate(pair) for pair in zip(past, new, strict=True))
    if is_int8:
        k, k_scale, v, v_scale = kept
        heads = attention_int8(q, k, k_scale, v, v_scale, visible, bias=bias)
    else:
        k, v = kept
        heads = attention_fp32(q, k, v, visible)
    heads = scope.result("heads", heads)
    return linear(prepared, scope, "o_proj", heads.reshape(-1, config.H * config.E)), kept


def projection(prepared: Prepared, scope: Scope, name: str, x: Array) -> Array:
    """x [T, D] -> [T, n]

    The queries ("q"), keys ("k") or values ("v") of all heads, side by side.
    """
    product = prepared.linear[f"{scope.path}{name}_proj.weight"](x)
    return scope.result(f"{name}_proj", product + scope.weight(f"{name}_proj.bias"))


def mlp(prepared: Prepared, scope: Scope, x: Array) -> Array:
    """x [T, D] -> [T, D]

    `spec.mlp`; SwiGLU's beta is in the weights of gate and up.
    """
    gate = linear(prepared, scope, "gate_proj", x)
    up = linear(prepared, scope, "up_proj", x)
    act = scope.result("act", swiglu(gate, up))
    return linear(prepared, scope, "down_proj", act)


def linear(prepared: Prepared, scope: Scope, name: str, x: Array) -> Array:
    """x [T, n] -> [T, m]

    The product with the matrix `name`.
    """
    return scope.result(name, prepared.linear[f"{scope.path}{name}.weight"](x))


def angles(config: Config, positions: Array) -> tuple[Array, Array]:
    """positions [T] -> cos [T, E], sin [T, E]

    The tables of `spec.rope_tables`; both halves of E are equal.
    """
    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions)
    return np.concatenate([cos, cos], axis=1), np.concatenate([sin, sin], axis=1)


def head(config: Config, prepared: Prepared, x: Array, tap: Tap = no_tap) -> Array:
    """x [T, D] -> [T, V]

    The last norm and the logits.
    """
    x = rmsnorm(x, prepared.vector["model.norm.weight"], config.rms_norm_eps)
    tap("model.norm", x)
    logits = prepared.linear[config.head_name](x)
    tap("lm_head", logits)
    return logits


def forward(config: Config, prepared: Prepared, token_ids: Any, cache: Cache, tap: Tap = no_tap) -> tuple[Array, Cache]:
    """token_ids [T] -> logits [T, V], cache

    `spec.forward` in the mode of `prepared` and `cache`. Begin with an `empty_cache`.
    """
    ids, start = np.asarray(token_ids), len(cache[0][0])
    cos, sin = angles(config, np.arange(start, start + len(ids)))
    x = embed(ids, prepared.vector["model.embed_tokens.weight"])
    tap("model.embed_tokens", x)
    longer = []
    for layer in range(config.L):
        x, kept = block(config, prepared, layer, x, cos, sin, cache[layer], tap)
        longer.append(kept)
    return head(config, prepared, x, tap), tuple(longer)


def empty_cache(config: Config, kv: str) -> Cache:
    """-> cache

    The cache before the first token, in the form "fp32" or "int8". ValueError for another form.
    """
    nothing = np.zeros((0, config.K, config.E), np.float32)
    if kv == "fp32":
        return ((nothing, nothing),) * config.L
    if kv != "int8":
        raise ValueError(f"kv must be fp32 or int8, got {kv!r}")
    return ((*quantise_kv(nothing, 2), *quantise_kv(nothing)),) * config.L
