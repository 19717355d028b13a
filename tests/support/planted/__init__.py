"""Every mistake of the oracle's catalogue, made by Hugging Face's model: the mistakes that the oracle has to find.

`planted(name, hf, config)` patches a model that `hf.build` made, as a programmer would write the mistake in torch, in
any type of the computation. Nothing here comes from the spec or the oracle. Enter it first and `hf.taps` inside it:
modules are called as usual, so the taps show the values of the mistaken model.

Start with `past=None`: the mistaken model makes its own cache. In layers with a window, the cache keeps the keys that a
wrong window needs. For "mask-missing" and "softmax-over-heads" it keeps all keys, because those behind the window still
count. The scores of such a layer have the keys that its cache holds, the last ones of the S.
"""

import math
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch.nn import functional
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from tests.support.planted.attention import (
    bf16_cache,
    bf16_softmax,
    cache,
    cache_unrotated,
    hides_self,
    in_decode,
    mask,
    not_transposed,
    scaling,
    seen,
    softmax,
    softmax_of_bf16,
    softmax_over_heads,
    values_rotated,
    without_bias,
)
from tests.support.planted.blocks import (
    activation,
    eps,
    gate_up_swapped,
    mlp_in_parallel,
    norm,
    norm_weights_swapped,
    residual,
)
from tests.support.planted.files import read_wrongly
from tests.support.planted.positions import (
    RAMP,
    YARN,
    bf16_tables,
    by_ratio,
    cos_only,
    exponent_halved,
    frequencies,
    hf_rope,
    interleaved,
    interpolated,
    positions,
    ramp_reversed,
    reread,
    rotation,
    tables,
)
from tests.support.planted.site import Plant, Site, forwards, function
from tests.support.planted.weights import (
    awq_order,
    columns,
    cut_to_tf32,
    gate_up_weights_swapped,
    halves,
    heads_permuted,
    multiplied,
    on_grid,
    pairs,
    steps_off,
    tf32,
    through_bf16,
    weights,
)

__all__ = ["PLANTS", "Plant", "Site", "on_grid", "planted"]


@contextmanager
def planted(name, hf, config, layers=None):
    """Within it, `hf` makes the mistake: in every layer, or in a set of `layers` only."""
    plant = PLANTS[name]
    if layers is not None:
        if plant.whole:
            raise ValueError(f"{name} is a mistake of the whole model: it cannot be planted in layers {sorted(layers)}")
        if not set(layers) <= set(range(config.L)):
            raise ValueError(f"layers {sorted(layers)} of a model of {config.L}")
    with ExitStack() as stack:
        plant.put(Site(hf, config, layers, stack))
        yield


BF16, FP16 = torch.bfloat16, torch.float16
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
BLOCKS = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # rows of whole blocks of GGUF
EPS = {"rms_norm_eps": 1e-2}  # far enough from 1e-6 to be seen in bfloat16, too

PLANTS: dict[str, Plant] = {
    "rope-interleaved": Plant(rotation(interleaved)),
    "rope-backwards": Plant(rotation(lambda q, k, cos, sin: apply_rotary_pos_emb(q, k, cos, -sin))),
    "rope-missing": Plant(rotation(lambda q, k, cos, sin: (q, k))),
    "positions-from-one": Plant(positions(lambda ids, start: ids + 1), whole=True),
    "decode-position-late": Plant(positions(lambda ids, start: ids - (start > 0).long()), whole=True),
    "decode-position-restarts": Plant(positions(lambda ids, start: ids - start), whole=True),
    "rope-theta-1e4": Plant(reread(rope_theta=1e4), {"rope_theta": 1e6}, whole=True),
    "rope-theta-1e6": Plant(reread(rope_theta=1e6), whole=True),
    "rope-exponent-halved": Plant(frequencies(exponent_halved), whole=True),
    "rope-frequencies-bf16": Plant(frequencies(lambda site, inv_freq: inv_freq.bfloat16()), whole=True),
    "rope-angles-by-ratio": Plant(tables(by_ratio), whole=True, quiet=True),
    "rope-tables-bf16": Plant(tables(bf16_tables), whole=True, silent=frozenset({BF16})),
    "yarn-missing": Plant(reread(rope_type="default"), YARN, whole=True),
    "yarn-no-attention-scaling": Plant(reread(attention_factor=1.0), YARN, whole=True),
    "yarn-scaling-on-cos-only": Plant(tables(cos_only), YARN, whole=True),
    "yarn-factor-twice": Plant(
        frequencies(lambda site, inv_freq: hf_rope(site, factor=site.config.rope.factor**2)[0]), YARN, whole=True
    ),
    "yarn-ramp-untruncated": Plant(
        lambda site: reread(truncate=not site.hf.config.rope_parameters.get("truncate", True))(site), RAMP, whole=True
    ),
    "yarn-ramp-reversed": Plant(frequencies(ramp_reversed), YARN, whole=True),
    "yarn-as-linear": Plant(interpolated, YARN, whole=True),
    "eps-1e-6": Plant(eps(1e-6), EPS),
    "eps-outside-root": Plant(
        norm(lambda module, x, true: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + module.variance_epsilon)), EPS
    ),
    "layernorm": Plant(norm(lambda module, x, true: true(x - x.mean(-1, keepdim=True)))),
    "norm-sum-of-squares": Plant(
        norm(lambda module, x, true: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + module.variance_epsilon))
    ),
    "norm-plus-one": Plant(norm(weigh=lambda weight, x, dtype: (1 + weight) * x.to(dtype))),
    "norm-weight-missing": Plant(norm(weigh=lambda weight, x, dtype: x.to(dtype))),
    "norm-weights-swapped": Plant(norm_weights_swapped),
    "final-norm-missing": Plant(forwards(lambda site: [site.hf.model.norm], lambda module, true, x: x), whole=True),
    "norm-weight-before-cast": Plant(
        norm(weigh=lambda weight, x, dtype: (weight.float() * x).to(dtype)), silent=frozenset({torch.float32})
    ),
    "heads-tiled": Plant(function(modeling_qwen2, "repeat_kv", lambda x, G: x.repeat(1, G, 1, 1))),
    "scores-not-scaled": Plant(scaling(lambda config: 1.0)),
    "scores-scaled-by-hidden": Plant(scaling(lambda config: (config.D // config.H) ** -0.5)),
    "mask-missing": Plant(mask(lambda key, query, W: key + query >= 0, forgets=False)),
    "mask-hides-self": Plant(mask(hides_self)),
    "mask-one-ahead": Plant(mask(lambda key, query, W: seen(key, query, W) | (key == query + 1))),
    "window-ignored": Plant(mask(window=lambda W, configured: math.inf), WINDOW),
    "window-one-wider": Plant(mask(window=lambda W, configured: W + 1), WINDOW),
    "window-one-narrower": Plant(mask(window=lambda W, configured: max(1, W - 1)), WINDOW),
    "window-everywhere": Plant(mask(window=lambda W, configured: configured), WINDOW),
    "window-on-the-other-layers": Plant(
        mask(window=lambda W, configured: configured if math.isinf(W) else math.inf), WINDOW
    ),
    "softmax-bf16": Plant(softmax(bf16_softmax)),
    "softmax-bf16-inputs": Plant(softmax(softmax_of_bf16), silent=frozenset({BF16}), flips=True),
    "softmax-over-heads": Plant(softmax_over_heads),
    "q-bias-missing": Plant(without_bias("q")),
    "k-bias-missing": Plant(without_bias("k")),
    "v-bias-missing": Plant(without_bias("v")),
    "qkv-biases-missing": Plant(without_bias("qkv")),
    "heads-not-transposed": Plant(function(modeling_qwen2, "eager_attention_forward", not_transposed)),
    "cache-unrotated": Plant(cache_unrotated),
    "decode-misses-newest": Plant(mask(in_decode(hides_self))),
    "decode-misses-oldest": Plant(mask(in_decode(lambda key, query, W: seen(key, query, W) & (key > 0)))),
    "values-rotated": Plant(cache(values_rotated)),
    "cache-bf16": Plant(cache(bf16_cache), silent=frozenset({BF16})),
    "gate-up-swapped": Plant(forwards(lambda site: [block.mlp for block in site.blocks], gate_up_swapped)),
    "gate-up-weights-swapped": Plant(gate_up_weights_swapped),
    "gelu": Plant(activation(functional.gelu)),
    "gelu-tanh": Plant(activation(partial(functional.gelu, approximate="tanh"))),
    "quick-gelu": Plant(activation(lambda x: x * torch.sigmoid(1.702 * x))),
    "swish-beta-ln2": Plant(activation(lambda x: x * torch.sigmoid(math.log(2) * x))),
    "relu": Plant(activation(functional.relu)),
    "activation-missing": Plant(activation(lambda x: x)),
    "residual-from-norm": Plant(residual(lambda stream, normalised, result: normalised + result)),
    "residual-missing": Plant(residual(lambda stream, normalised, result: result)),
    "mlp-in-parallel": Plant(mlp_in_parallel),
    "weights-in-out": Plant(weights(lambda w: w.reshape(w.shape[1], w.shape[0]).T)),
    "heads-permuted": Plant(heads_permuted(pairs)),
    "heads-unpermuted": Plant(heads_permuted(halves)),
    "awq-nibble-order": Plant(weights(awq_order)),
    "gptq-zero-high": Plant(steps_off(-1), grid=True),
    "gptq-zero-low": Plant(steps_off(1), grid=True),
    "gptq-g-idx-ignored": Plant(read_wrongly("gptq-g-idx-ignored", "gptq"), source="gptq"),
    "gguf-nibbles-interleaved": Plant(columns(lambda i: i.reshape(2, 16).T.flatten(), 32), BLOCKS),
    "gguf-halves-swapped": Plant(columns(lambda i: i.roll(16), 32), BLOCKS),
    "gguf-super-scale-missing": Plant(read_wrongly("gguf-super-scale-missing", "gguf"), source="gguf"),
    "gguf-min-missing": Plant(read_wrongly("gguf-min-missing", "gguf"), source="gguf"),
    "mlx-bit-order": Plant(columns(lambda i: i.flip(0), 8), BLOCKS),
    "head-tied": Plant(lambda site: site.edit(site.hf.lm_head.weight, site.hf.model.embed_tokens.weight), whole=True),
    "embedding-scaled": Plant(
        forwards(
            lambda site: [site.hf.model.embed_tokens], lambda module, true, ids: true(ids) * module.embedding_dim**0.5
        ),
        whole=True,
    ),
    "matmul-tf32": Plant(multiplied(tf32), silent=frozenset({BF16, FP16})),
    "matmul-tf32-truncated": Plant(multiplied(cut_to_tf32), silent=frozenset({BF16, FP16})),
    "matmul-bf16": Plant(multiplied(through_bf16), silent=frozenset({BF16})),
    "matmul-autocast-bf16": Plant(multiplied(through_bf16, through_bf16), silent=frozenset({BF16})),
}
