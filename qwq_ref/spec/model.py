"""The model: from token ids to logits, with a KV cache.

A cache is a value. `forward` takes one and returns a longer one, and changes nothing that it was given. For each layer
it holds the keys (after RoPE) and the values of all positions so far.

`tap(name, array)` is called with every intermediate result. A name is the Hugging Face path of the module that returns
the result, such as `model.layers.0.self_attn.q_proj`. Results that no module returns have a name of their own in the
same place: `q_matmul` (before the bias), `q_rope` (after RoPE), `scores`, `probs`, `heads`, `resid_mid`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import Config
from .block import KV, Scope, block, norm
from .ops import (
    Array,
    Round,
    Tap,
    causal_mask,
    embed,
    exact,
    linear,
    no_tap,
    rope_frequencies,
    rope_tables,
    to_bf16,
    to_fp16,
)

Cache = tuple[KV, ...]


def forward(
    config: Config,
    weights: Mapping[str, Array],
    token_ids: Any,
    cache: Cache | None = None,
    tap: Tap | None = None,
    dtype: Any = np.float32,
) -> tuple[Array, Cache]:
    """token_ids [T] -> logits [T, V], cache

    The logits of the token after each of `token_ids`, and the cache with their positions added.

    weights    name -> array, for the names of `config.tensors()`; read one at a time, so they may be on disk
    token_ids  one or more integers in [0, V); they follow the positions of `cache`
    dtype      np.float32, np.float64, or the emulated "bfloat16" or "float16" (see `ops.py`)

    ValueError for wrong ids or an unknown dtype. HF: `Qwen2ForCausalLM.forward`.
    """
    compute, rnd = _precision(dtype)
    ids = _checked_ids(config, token_ids)
    cache = empty_cache(config, dtype) if cache is None else cache
    T, S = len(ids), len(cache[0][0]) + len(ids)
    top = Scope(weights, "", compute, rnd, tap or no_tap)
    model = top.inside("model")

    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, np.arange(S - T, S), compute, rnd)
    model.result("rotary_emb.cos", cos)
    model.result("rotary_emb.sin", sin)

    x = model.result("embed_tokens", embed(ids, model.weight("embed_tokens.weight")))
    longer = []
    for layer in range(config.L):
        visible = causal_mask(T, S, config.window(layer))
        x, kv = block(config, model.inside(f"layers.{layer}"), x, cos, sin, visible, cache[layer])
        longer.append(kv)
    x = norm(config, model, "norm", x)
    logits = top.result("lm_head", linear(x, top.weight(config.head_name)))
    return logits, tuple(longer)


def empty_cache(config: Config, dtype: Any = np.float32) -> Cache:
    """-> cache

    The cache before the first token: for each layer, keys and values [0, K, E].
    """
    nothing = np.zeros((0, config.K, config.E), _precision(dtype)[0])
    return ((nothing, nothing),) * config.L


def crop(cache: Cache, length: int) -> Cache:
    """-> cache

    Roll back to the first `length` positions. ValueError if the cache is shorter.
    """
    if not 0 <= length <= len(cache[0][0]):
        raise ValueError(f"cannot crop a cache of {len(cache[0][0])} positions to {length}")
    return tuple((k[:length], v[:length]) for k, v in cache)


def _precision(dtype: Any) -> tuple[Any, Round]:
    """The type to compute in, and the rounding that goes with it."""
    if isinstance(dtype, str) and dtype in ("bfloat16", "float16"):
        return np.float32, to_bf16 if dtype == "bfloat16" else to_fp16
    try:
        compute = np.dtype("no name" if dtype is None else dtype)  # None would be float64
    except TypeError:  # a name that NumPy does not have, such as "bf16"
        compute = np.dtype(object)
    if compute in (np.float32, np.float64):
        return compute.type, exact
    raise ValueError(f'dtype must be float32, float64, "bfloat16" or "float16", got {dtype!r}')


def _checked_ids(config: Config, token_ids: Any) -> Array:
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"token_ids must be a non-empty list of integers, got {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= config.V:  # NumPy would read a negative id from the end of the table
        raise ValueError(f"token_ids must be in [0, {config.V}), got {ids.min()} to {ids.max()}")
    return ids
