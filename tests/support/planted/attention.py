"""Mistakes of scores, masks, softmax, biases and the cache."""

import math
from functools import partial

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb, eager_attention_forward

from tests.support.planted.positions import rotation
from tests.support.planted.site import forwards, function


def scaling(wrong):
    def put(site):
        for block in site.blocks:
            site.set(block.self_attn, "scaling", wrong(site.config))

    return put


def seen(key, query, W):
    """HF's mask: what lies behind, and no further than the window; W is infinite where there is none."""
    return (key <= query) & (key > query - W)


def mask(wrong=seen, window=lambda W, configured: W, forgets=True):
    """Other keys are seen: `wrong(positions of the keys [S], of the queries [T, 1], W)` -> bool [T, S].

    `window(W, the config's W)` is the wrong W of a layer. The cache keeps what that needs, or all if it never forgets.
    """

    def put(site):
        config = site.hf.config
        configured = config.sliding_window or math.inf
        true = [configured if kind == "sliding_attention" else math.inf for kind in config.layer_types]
        windows = [window(W, configured) if i in site.layers else W for i, W in enumerate(true)]

        def new_cache(config):
            past = DynamicCache(config=config)
            past.layers = [
                DynamicSlidingWindowLayer(W) if forgets and math.isfinite(W) else DynamicLayer() for W in windows
            ]
            return past

        def attention(module, q, k, v, attention_mask, position_ids, **kwargs):
            # HF makes one mask for all layers of a kind, which no longer keep the same keys.
            query = position_ids[0, :, None]
            key = torch.arange(int(query[-1]) + 1)[-k.shape[2] :]
            look = wrong if module.layer_idx in site.layers else seen
            hidden = ~look(key, query, windows[module.layer_idx])
            changed = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, torch.finfo(q.dtype).min)
            return eager_attention_forward(module, q, k, v, changed[None, None], position_ids=position_ids, **kwargs)

        site.set(modeling_qwen2, "DynamicCache", new_cache)
        site.set(modeling_qwen2, "eager_attention_forward", attention)

    return put


def hides_self(key, query, W):
    strict = seen(key, query, W) & (key != query)
    return torch.where(strict.any(-1, keepdim=True), strict, seen(key, query, W))


def in_decode(wrong):
    return lambda key, query, W: (wrong if query[0] > 0 else seen)(key, query, W)


def softmax(wrong):
    """Like torch's own function, it tells a function mode of its call, so that those who watch see one softmax."""

    def softmax(x, dim, dtype):
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(softmax, (x,), x, dim=dim, dtype=dtype)
        return wrong(x, dim, dtype)

    return function(functional, "softmax", softmax)


def bf16_softmax(x, dim, dtype):
    """As it is written out; torch's own, given bfloat16, rounds only its input and its result."""
    x = x.bfloat16()
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def softmax_of_bf16(x, dim, dtype):
    """torch rounds the input and the result, and nothing between them."""
    return torch.softmax(x.bfloat16(), dim=dim)


def softmax_over_heads(site):
    def over_heads(x, dim, dtype):
        # -1e4 is what masks were made of before they had a type's least number, beneath which heads can overflow.
        x = torch.where(x <= torch.finfo(x.dtype).min / 2, -1e4, x)
        return torch.softmax(x, dim=1, dtype=dtype)

    mask(forgets=False)(site)  # what all heads hide, they share: that it was forgotten would show
    softmax(over_heads)(site)


def not_transposed(module, *args, **kwargs):
    heads, probs = eager_attention_forward(module, *args, **kwargs)
    return heads.transpose(1, 2).contiguous(), probs


class Cache:
    """The part of HF's cache that attention uses: `update`, here that of the mistake."""

    def __init__(self, past, wrong) -> None:
        self.past = past
        self.wrong = wrong

    def update(self, keys, values, layer, **_):
        return self.wrong(self.past, keys, values, layer)


def cache(wrong):
    """`wrong(cache, keys, values, layer, cos and sin)` -> all keys, all values"""

    def attend(attn, true, *args, position_embeddings, **kwargs):
        name = "cache" if "cache" in kwargs else "past_key_values"  # transformers renamed it in 5.24
        kwargs[name] = Cache(kwargs[name], partial(wrong, tables=position_embeddings))
        return true(*args, position_embeddings=position_embeddings, **kwargs)

    return forwards(lambda site: [block.self_attn for block in site.blocks], attend)


def bf16_cache(past, keys, values, layer, tables):
    return past.update(keys.bfloat16().to(keys.dtype), values.bfloat16().to(values.dtype), layer)


def values_rotated(past, keys, values, layer, tables):
    return past.update(keys, apply_rotary_pos_emb(values, values, *tables)[1], layer)


def cache_unrotated(site):
    plain = []

    def rotate(q, k, cos, sin):
        plain[:] = [k]
        return apply_rotary_pos_emb(q, k, cos, sin)

    def update(past, keys, values, layer, tables):
        kept, values = past.update(plain.pop(), values, layer)
        return torch.cat((kept[..., : -keys.shape[2], :], keys), dim=2), values

    rotation(rotate)(site)
    cache(update)(site)


def without_bias(names):
    def put(site):
        for block in site.blocks:
            for name in names:
                bias = getattr(block.self_attn, f"{name}_proj").bias
                site.edit(bias, torch.zeros_like(bias))

    return put
