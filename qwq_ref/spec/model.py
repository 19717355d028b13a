"""The model: a block, and a forward pass over all of them.

A cache is a value: `forward` takes one and returns a longer one, and changes nothing that it was given. It holds,
for each layer, the keys after RoPE and the values of every position so far.

Taps. `tap(name, array)` is called with every intermediate result. A name extends the Hugging Face path of the
module whose output it is (`model.layers.0.self_attn.q_proj`); results that no module returns have a name of their
own in the same place (`q_matmul` before the bias, `q_rope` after RoPE, `scores`, `probs`, `heads`, `resid_mid`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..config import Config
from .ops import (
    Array,
    Round,
    Tap,
    attention,
    causal_mask,
    embed,
    exact,
    linear,
    no_tap,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    swiglu,
    to_bf16,
    to_fp16,
)

KV = tuple[Array, Array]
Cache = tuple[KV, ...]


def block(
    config: Config,
    weight: Callable[[str], Array],
    x: Array,
    cos: Array,
    sin: Array,
    visible: Array,
    past: KV,
    rnd: Round = exact,
    tap: Tap = no_tap,
) -> tuple[Array, KV]:
    """x [T, D], cos [T, E], sin [T, E], visible [T, S] -> [T, D], kv

    One decoder layer: attention, then the MLP, each on a normalised copy and added back to the residual stream.
    `weight(name)` gives the layer's parameters; `past` holds the keys and values [S - T, K, E] of the positions before.
    HF: `Qwen2DecoderLayer`.
    """
    T = len(x)
    tap("resid_pre", x)
    normed = rmsnorm(x, weight("input_layernorm.weight"), config.rms_norm_eps, rnd)
    tap("input_layernorm", normed)

    def project(name: str, heads: int) -> Array:
        product = linear(normed, weight(f"self_attn.{name}_proj.weight"))
        tap(f"self_attn.{name}_matmul", rnd(product))
        biased = rnd(product + weight(f"self_attn.{name}_proj.bias"))
        tap(f"self_attn.{name}_proj", biased)
        return biased.reshape(T, heads, config.E)

    q = rope(project("q", config.H), cos, sin, rnd)
    k = rope(project("k", config.K), cos, sin, rnd)
    v = project("v", config.K)
    tap("self_attn.q_rope", q)
    tap("self_attn.k_rope", k)

    k = np.concatenate([past[0], k])
    v = np.concatenate([past[1], v])
    heads = attention(q, k, v, visible, rnd, lambda name, value: tap(f"self_attn.{name}", value))
    tap("self_attn.heads", heads)
    mixed = linear(heads.reshape(T, config.H * config.E), weight("self_attn.o_proj.weight"), rnd=rnd)
    tap("self_attn.o_proj", mixed)
    x = rnd(x + mixed)
    tap("resid_mid", x)

    normed = rmsnorm(x, weight("post_attention_layernorm.weight"), config.rms_norm_eps, rnd)
    tap("post_attention_layernorm", normed)
    gate = linear(normed, weight("mlp.gate_proj.weight"), rnd=rnd)
    tap("mlp.gate_proj", gate)
    up = linear(normed, weight("mlp.up_proj.weight"), rnd=rnd)
    tap("mlp.up_proj", up)
    act = swiglu(gate, up, config.swiglu_beta, rnd)
    tap("mlp.act", act)
    down = linear(act, weight("mlp.down_proj.weight"), rnd=rnd)
    tap("mlp.down_proj", down)
    x = rnd(x + down)
    tap("resid_post", x)
    return x, (k, v)


def forward(
    config: Config,
    weights: Mapping[str, Array],
    token_ids: Any,
    cache: Cache | None = None,
    tap: Tap | None = None,
    dtype: Any = np.float32,
) -> tuple[Array, Cache]:
    """token_ids [T] -> logits [T, V], cache

    Logits of the token after each of `token_ids`, and the cache with their positions added.

    weights    name -> array, by the names of `config.tensors()`; read one at a time, so they may live on disk
    token_ids  integers in [0, V), at least one; they follow the positions that `cache` holds
    dtype      np.float32, np.float64, or "bfloat16" or "float16" (emulated: see `ops.py`)

    Raises ValueError for ids or a dtype that cannot be. HF: `Qwen2ForCausalLM.forward`.
    """
    compute, rnd = _precision(dtype)
    tap = tap or no_tap
    ids = _checked_ids(config, token_ids)
    cache = empty_cache(config, dtype) if cache is None else cache
    T, S = len(ids), len(cache[0][0]) + len(ids)

    def weight(name: str) -> Array:
        return rnd(np.asarray(weights[name], compute))

    positions = np.arange(S - T, S)
    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions, compute, rnd)
    tap("model.rotary_emb.cos", cos)
    tap("model.rotary_emb.sin", sin)

    x = embed(ids, weight("model.embed_tokens.weight"))
    tap("model.embed_tokens", x)
    longer = []
    for layer in range(config.L):
        path = f"model.layers.{layer}."

        def in_layer(name: str, path: str = path) -> Array:
            return weight(path + name)

        def tap_layer(name: str, value: Array, path: str = path) -> None:
            tap(path + name, value)

        visible = causal_mask(T, S, config.window(layer))
        x, kv = block(config, in_layer, x, cos, sin, visible, cache[layer], rnd, tap_layer)
        longer.append(kv)

    x = rmsnorm(x, weight("model.norm.weight"), config.rms_norm_eps, rnd)
    tap("model.norm", x)
    logits = linear(x, weight(config.head_name), rnd=rnd)
    tap("lm_head", logits)
    return logits, tuple(longer)


def empty_cache(config: Config, dtype: Any = np.float32) -> Cache:
    """-> cache

    No positions yet: for each layer, keys and values [0, K, E].
    """
    nothing = np.zeros((0, config.K, config.E), _precision(dtype)[0])
    return ((nothing, nothing),) * config.L


def crop(cache: Cache, length: int) -> Cache:
    """-> cache

    The cache as it was when it held `length` positions. ValueError if it never did.
    """
    if not 0 <= length <= len(cache[0][0]):
        raise ValueError(f"cannot crop a cache of {len(cache[0][0])} positions to {length}")
    return tuple((k[:length], v[:length]) for k, v in cache)


def _precision(dtype: Any) -> tuple[Any, Round]:
    """The type to compute in, and the rounding that goes with it."""
    if isinstance(dtype, str) and dtype in ("bfloat16", "float16"):
        return np.float32, to_bf16 if dtype == "bfloat16" else to_fp16
    if np.dtype(dtype) in (np.float32, np.float64):
        return np.dtype(dtype).type, exact
    raise ValueError(f'dtype must be float32, float64, "bfloat16" or "float16", got {dtype!r}')


def _checked_ids(config: Config, token_ids: Any) -> Array:
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"token_ids must be a non-empty list of integers, got {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= config.V:  # NumPy would read a negative id from the end of the table
        raise ValueError(f"token_ids must be in [0, {config.V}), got {ids.min()} to {ids.max()}")
    return ids
