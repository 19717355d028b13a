"""The model as the engine computes it, to the bit: `model.py` with the operations of `quant`, `kv` and `fixed`.

A mode is a form of the weights, "fp32", "bf16", "q8" or "q4", and one of the cache, "fp32" or "int8". What a mode loses
against `model.forward` is what its rounding costs; from what is written here, the engine has not one bit of freedom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config
from ..forms import FORMS
from ..spec.ops import (
    Array,
    Tap,
    causal_mask,
    embed,
    no_tap,
    rope,
    rope_frequencies,
    to_bf16,
)
from .fixed import rmsnorm, rope_tables, swiglu
from .kv import (
    attention_fp32,
    attention_int8,
    key_center,
    pad,
    quantise_kv,
)
from .quant import (
    CODEBOOK,
    GROUP,
    matmul_floats,
    matmul_integers,
    quantise_q4,
    quantise_q8,
)

Linear = Callable[[Array], Array]
Kept = tuple[Array, ...]  # of one layer: keys, values [S, K, E]; in int8 each with its scales [S, K] behind it
Cache = tuple[Kept, ...]

CENTER_POSITIONS = 4096  # that the mean of a key's bias is taken over, where the model has so many


@dataclass(frozen=True)
class Prepared:
    """A checkpoint in a form.

    linear  its matrices by name, as functions from x to x w^T
    vector  norms and biases by name, and the embedding
    center  of each layer, what is taken off its keys before they become int8
    """

    linear: Mapping[str, Linear]
    vector: Mapping[str, Array]
    center: tuple[Array, ...]


def prepare(config: Config, weights: Mapping[str, Array], form: str) -> Prepared:
    """-> prepared

    Every matrix in a form. SwiGLU's beta is folded into gate and up, silu(beta g) u / beta. The embedding is bfloat16
    in all forms but fp32.
    """
    beta = np.float32(config.swiglu_beta)
    linears: dict[str, Linear] = {}
    vectors: dict[str, Array] = {}
    for name in config.tensors():
        w = np.asarray(weights[name], np.float32)
        if w.ndim == 1:
            vectors[name] = w
        elif name == "model.embed_tokens.weight":
            vectors[name] = w if FORMS[form].embedding == "F32" else to_bf16(w)
        elif name.endswith("mlp.gate_proj.weight"):
            linears[name] = matrix(w * beta, FORMS[form].matrix)
        elif name.endswith("mlp.up_proj.weight"):
            linears[name] = matrix(w / beta, FORMS[form].matrix)
        elif name != config.head_name:
            linears[name] = matrix(w, FORMS[form].matrix)
    linears[config.head_name] = matrix(np.asarray(weights[config.head_name], np.float32), FORMS[form].head)
    inv_freq = rope_frequencies(config.rope, config.E)
    positions = np.arange(min(config.positions, CENTER_POSITIONS))
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions)
    biases = (vectors[f"model.layers.{layer}.self_attn.k_proj.bias"] for layer in range(config.L))
    centers = tuple(key_center(bias.reshape(config.K, config.E), cos, sin) for bias in biases)
    return Prepared(linears, vectors, centers)


def matrix(w: Array, form: str) -> Linear:
    """w [m, n] -> linear

    A weight in a form, as the function from x [T, n] to x w^T [T, m]. Columns that are missing to a whole group of 64
    are zeros.
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

    One decoder layer, as `model.block`; `past` says by what it holds whether the cache is int8. Taps are those of
    `model.block`, without the products before a bias, scores and probabilities; a beta is in gate and up.
    """
    path = f"model.layers.{layer}."

    def linear(name: str, x: Array) -> Array:
        return prepared.linear[f"{path}{name}.weight"](x)

    def norm(name: str, x: Array) -> Array:
        normed = rmsnorm(x, prepared.vector[f"{path}{name}.weight"], config.rms_norm_eps)
        tap(path + name, normed)
        return normed

    def project(name: str, normed: Array) -> Array:
        biased = linear(name, normed) + prepared.vector[f"{path}{name}.bias"]
        tap(path + name, biased)
        return biased.reshape(T, -1, config.E)

    T, S = len(x), len(past[0]) + len(x)
    tap(f"{path}resid_pre", x)
    normed = norm("input_layernorm", x)
    q = rope(project("self_attn.q_proj", normed), cos, sin)
    k = rope(project("self_attn.k_proj", normed), cos, sin)
    v = project("self_attn.v_proj", normed)
    tap(f"{path}self_attn.q_rope", q)
    tap(f"{path}self_attn.k_rope", k)

    visible = causal_mask(T, S, config.window(layer))
    is_int8 = len(past) == 4
    new = (*quantise_kv(k, prepared.center[layer]), *quantise_kv(v)) if is_int8 else (k, v)
    kept = tuple(np.concatenate(pair) for pair in zip(past, new, strict=True))
    if is_int8:
        k, k_scale, v, v_scale = kept
        heads = attention_int8(q, k, k_scale, v, v_scale, visible)
    else:
        heads = attention_fp32(q, kept[0], kept[1], visible)
    tap(f"{path}self_attn.heads", heads)
    mixed = linear("self_attn.o_proj", heads.reshape(T, config.H * config.E))
    tap(f"{path}self_attn.o_proj", mixed)
    x = x + mixed
    tap(f"{path}resid_mid", x)

    normed = norm("post_attention_layernorm", x)
    gate = linear("mlp.gate_proj", normed)
    tap(f"{path}mlp.gate_proj", gate)
    up = linear("mlp.up_proj", normed)
    tap(f"{path}mlp.up_proj", up)
    act = swiglu(gate, up)
    tap(f"{path}mlp.act", act)
    down = linear("mlp.down_proj", act)
    tap(f"{path}mlp.down_proj", down)
    x = x + down
    tap(f"{path}resid_post", x)
    return x, kept


def angles(config: Config, positions: Array) -> tuple[Array, Array]:
    """positions [T] -> cos [T, E], sin [T, E]

    The tables of `ops.rope_tables`, each half of E alike.
    """
    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions)
    return np.concatenate([cos, cos], axis=1), np.concatenate([sin, sin], axis=1)


def head(config: Config, prepared: Prepared, x: Array, tap: Tap = no_tap) -> Array:
    """x [T, D] -> [T, V]

    The last norm, and the logits.
    """
    x = rmsnorm(x, prepared.vector["model.norm.weight"], config.rms_norm_eps)
    tap("model.norm", x)
    logits = prepared.linear[config.head_name](x)
    tap("lm_head", logits)
    return logits


def forward(config: Config, prepared: Prepared, token_ids: Any, cache: Cache, tap: Tap = no_tap) -> tuple[Array, Cache]:
    """token_ids [T] -> logits [T, V], cache

    `model.forward` in the mode that `prepared` and `cache` are of: begin with an `empty_cache`.
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

    No positions yet, of a cache in "fp32" or "int8".
    """
    nothing = np.zeros((0, config.K, config.E), np.float32)
    if kv == "fp32":
        return ((nothing, nothing),) * config.L
    if kv != "int8":
        raise ValueError(f"kv must be fp32 or int8, got {kv!r}")
    return ((*quantise_kv(nothing), *quantise_kv(nothing)),) * config.L
